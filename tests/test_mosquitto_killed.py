"""A real mosquitto, killed and started again, with certificates on both sides that change."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from certificates import Authority
from delivery import Box, delivering, traffic, until
from trials import found, times

from gateway.settings import Broker as Address
from gateway.wire import decode
from hil.mosquitto import Mosquitto
from hil.seat import HOST, Seat

KILLS = 4
BETWEEN = 40
"""Batches from one kill to the next, on average."""
PACE = 100
"""Batches a second; mosquitto saves each before it reads the next one."""

TLS = """\
allow_anonymous true
listener {port} 127.0.0.1
cafile {directory}/ca.pem
certfile {directory}/broker.pem
keyfile {directory}/broker.pem
require_certificate true
"""


@asynccontextmanager
async def subscriber(broker: Mosquitto, *more: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run mosquitto_sub with a session that outlives it; it knows nothing of this project."""
    process = await asyncio.create_subprocess_exec(
        *("mosquitto_sub", "-p", str(broker.port), "-V", "5", "-q", "1", "-c", "-x", "3600"),
        *("-i", "receiver", "-t", "bygate/v1/+/batch/#", "-F", "%t %x", *more),
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_a_broker_killed_again_and_again_has_all_that_it_acknowledged(tmp_path: Path, seed: int):
    async def scenario() -> None:
        random, place = Random(seed), tmp_path / "broker"
        place.mkdir()
        keys = {"ca_file": "ca.pem", "cert_file": "gateway.pem"}
        certify(place)
        tls = Seat()
        async with Mosquitto(place, TLS.format(port=tls.port, directory=place)) as broker:
            async with subscriber(broker, "-E") as lines:  # subscribes, and leaves its session
                assert await lines.read() == b""
            box = Box(
                tmp_path / "state",
                Address(HOST, tls.port, tls=True),
                settings={name: place / file for name, file in keys.items()},
            )
            waiting: set[int] = set()
            async with delivering(box):
                async with traffic(box.seal, PACE):
                    for kill in range(KILLS):
                        await flows(box, random.randint(1, 2 * BETWEEN))
                        waiting |= unacknowledged(box)
                        await broker.end(signal.SIGKILL)
                        if kill % 2:
                            certify(place)  # a new authority: the old ones are worth nothing
                        await broker.start()
                    await flows(box, 1)
                await box.empty()
                await box.seal()
                await box.empty()
            await check(box, broker, waiting)
        tls.leave()

    asyncio.run(asyncio.wait_for(scenario(), 120))


async def flows(box: Box, batches: int) -> None:
    """Return when so many more are acknowledged, at a moment when some are under way."""
    later = box.sealed + batches
    stats = box.buffer.stats
    await until(lambda: box.sealed - stats().waiting_batches >= later and unacknowledged(box), 30)


def unacknowledged(box: Box) -> set[int]:
    """Return the latest, as live ones are acknowledged in order; one more is kept for a moment."""
    return set(range(box.sealed + 2 - box.buffer.stats().waiting_batches, box.sealed + 1))


def certify(place: Path) -> None:
    authority = Authority()
    authority.write(place / "ca.pem")
    for name in ("broker", "gateway"):
        authority.issue(place / f"{name}.pem", name)


async def check(box: Box, broker: Mosquitto, waiting: set[int]) -> None:
    """Have the receiver fetch what was kept for it."""
    lanes: dict[str, list[int]] = {"live": [], "backlog": []}
    async with subscriber(broker) as lines, asyncio.timeout(10):
        while box.sealed not in lanes["live"]:
            topic, payload = (await lines.readline()).decode().split()
            lanes[topic.rpartition("/")[2]].append(decode(bytes.fromhex(payload)).sequence)
    sequences = [*lanes["live"], *lanes["backlog"]]
    lost = set(range(1, box.sealed + 1)) - set(sequences)
    again = len(sequences) - len(set(sequences))
    found(
        f"{box.sealed} batches, {KILLS} kills with {len(waiting)} not acknowledged, "
        f"{len(lost)} lost, {again} sent again: {again / len(sequences):.1%}"
    )
    assert waiting & set(lanes["backlog"]), "no kill was amid the traffic"
    assert not lost
    assert lanes["live"] == sorted(set(lanes["live"])), "not in order, or not once"
    assert again <= box.sealed / 20
