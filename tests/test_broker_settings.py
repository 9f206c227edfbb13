"""The settings of mosquitto that gateway/WIRE.md recommends, with a real one."""

import asyncio
import math
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest
from delivery import Box, delivering, run, until
from trials import times

from gateway.reading import TEMPERATURE, Instant, Reading
from gateway.settings import Broker as Address
from gateway.wire import decode
from hil.mosquitto import Mosquitto

DOCUMENT = (Path(__file__).parent.parent / "gateway/WIRE.md").read_text(encoding="utf-8")
PATTERN = re.search(r"`(pattern write .*?)`", DOCUMENT)[1]
SESSION = ("-V", "5", "-q", "1", "-c", "-i", "city", "-x", "3600", "-t", "bygate/v1/+/batch/+")


async def subscriber(port: int, *arguments: str) -> bytes:
    asked = await asyncio.create_subprocess_exec(
        *("mosquitto_sub", "-p", str(port), *SESSION, *arguments), stdout=asyncio.subprocess.PIPE
    )
    return (await asked.communicate())[0]


def test_what_was_acknowledged_outlives_a_killed_mosquitto(tmp_path):
    async def scenario() -> None:
        store = tmp_path / "mosquitto.db"
        async with Mosquitto(tmp_path) as broker:
            await subscriber(broker.port, "-E")
            box = Box(tmp_path / "state", Address("127.0.0.1", broker.port, tls=False))
            await box.seal(30)
            *_, last = (box.buffer.payload(held) for held in box.buffer.waiting())
            async with delivering(box):
                await box.empty()
                await until(lambda: last in store.read_bytes())
                await broker.end(signal.SIGKILL)
            await broker.start()
            kept = (await subscriber(broker.port, "-C", "30", "-W", "5", "-F", "%x")).split()
            found = [decode(bytes.fromhex(text.decode())).sequence for text in kept]
            assert found == list(range(1, 31))

    run(scenario())


def test_a_receiver_that_was_away_gets_all_that_was_acknowledged_meanwhile(tmp_path):
    batches = times(1100, 1500)  # mosquitto's own limit is 1000

    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            await subscriber(broker.port, "-E")
            box = Box(tmp_path / "state", Address("127.0.0.1", broker.port, tls=False))
            await box.seal(batches)
            async with delivering(box):
                await until(lambda: box.delivered, within=60)
            kept = await subscriber(broker.port, "-C", str(batches), "-W", "5", "-F", "%x")
            found = {decode(bytes.fromhex(text.decode())).sequence for text in kept.split()}
            assert found == set(range(1, batches + 1))

    run(scenario(), within=90)


def password(users: Path, name: str, secret: str) -> None:
    subprocess.run(["mosquitto_passwd", "-b", users, name, secret], check=True)


def test_one_line_gives_each_gateway_its_own_topics_and_no_others(tmp_path):
    async def scenario() -> None:
        acl, users, secret = (tmp_path / name for name in ("acl", "users", "secret"))
        acl.write_text(f"{PATTERN}\n")
        secret.write_text("secret")
        users.touch()
        for name in ("trd-0042", "trd-0043"):
            password(users, name, "secret")
        async with Mosquitto(tmp_path, f"password_file {users}\nacl_file {acl}") as broker:
            there = Address("127.0.0.1", broker.port, tls=False)
            for name in ("trd-0042", "trd-0043"):
                login = {"username": name, "password_file": secret}
                box = Box(tmp_path / name, there, settings=login)  # its id is trd-0042
                await box.seal()
                async with delivering(box):
                    if name == "trd-0042":
                        await box.empty()
                    else:
                        await until(lambda b=box: "0x87 not authorized" in (b.state.why or ""))
                        assert not box.delivered

    run(scenario())


async def seal_one_of_3_kb(box: Box) -> None:
    for n in range(300):
        at = Instant(1_763_900_000_000 + n, n, 2)
        box.buffer.append(Reading("it", TEMPERATURE, at, math.sin(n)))
    await box.seal()


def test_a_batch_above_message_size_limit_is_set_aside_and_the_rest_flows(tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path, "allow_anonymous true\nmessage_size_limit 2000") as broker:
            box = Box(tmp_path / "state", Address("127.0.0.1", broker.port, tls=False))
            await seal_one_of_3_kb(box)
            await box.seal()
            async with delivering(box):
                await box.empty()
            assert box.refused == [f"1-{box.buffer.epoch}-0x95.batch"]

    run(scenario())


def test_with_mqtt_3_1_1_message_size_limit_costs_a_batch_and_max_packet_size_does_not(tmp_path):
    """So says gateway/WIRE.md."""

    async def scenario(line: str) -> bool:
        async with Mosquitto(tmp_path, f"allow_anonymous true\n{line} 2000") as broker:
            address = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / line, address, settings={"protocol": "3.1.1"})
            await seal_one_of_3_kb(box)
            async with delivering(box):
                await until(lambda: box.delivered or box.state.suspects.in_doubt)
            return box.delivered

    assert asyncio.run(scenario("message_size_limit"))
    assert not asyncio.run(scenario("max_packet_size"))


@pytest.mark.parametrize("line", ["message_size_limit 150", "max_packet_size 250"])
def test_batches_above_a_bound_of_mosquitto_cost_no_connection_and_hold_up_no_other(line, tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path, f"allow_anonymous true\n{line}") as broker:
            box = Box(tmp_path / "state", Address("127.0.0.1", broker.port, tls=False))
            for n in range(1, 31):
                await box.seal(value=random.randbytes(500).hex() if n in (8, 20, 21) else n)
            async with delivering(box):
                await box.empty()
            assert [name.split("-")[0] for name in box.refused] == ["20", "21", "8"]
            assert broker.log.count("as trd-0042 (") == 1

    run(scenario())
