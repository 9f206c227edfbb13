"""The daemon as its own process, between real ptys and a broker."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path

import pytest
from gateway_process import ROOT, batches, gateway, readings, sensor, values
from mosquitto import Mosquitto

from gateway.reading import PM2_5, PM10, Quantity, Value
from gateway.tally import quantity_of
from hil.broker import Broker, Faults
from hil.devices import Maxbotix, Nmea0183, Pms5003, Sds011
from hil.serialline import SerialLine


def run(scenario: Coroutine) -> None:
    asyncio.run(asyncio.wait_for(scenario, 150))


def is_subsequence(part: list[Value], whole: list[Value]) -> bool:
    rest = iter(whole)
    return all(value in rest for value in part)


async def answered(line: SerialLine, count: int) -> None:
    """Return when the device has given so many good answers."""
    more = asyncio.Event()
    line.on_sent = lambda _: more.set()
    while len(line.good) < count:
        more.clear()
        await more.wait()


def sent(line: SerialLine, quantity: Quantity) -> list[Value]:
    return [values[quantity] for values in line.good if quantity in values]


def all_sent(line: SerialLine, quantity: Quantity) -> tuple[list[Value], list[Value]]:
    """What was sent, also without the last: that one may be under way when the daemon is told."""
    return sent(line, quantity), sent(line, quantity)[:-1]


@pytest.mark.parametrize("kind", [Sds011, Pms5003, Maxbotix, Nmea0183])
def test_what_a_device_sends_arrives_to_the_last_digit(kind: type, tmp_path: Path):
    async def scenario() -> None:
        device = kind() if kind is Sds011 else kind(period=0.05)
        async with Broker() as broker, SerialLine(device, tmp_path / "tty") as line:
            sensors = sensor("it", kind.__name__.lower(), line.path)
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 3)
                assert await daemon.stop() == 0
            quantities = {r.quantity for r in readings(broker.received)}
            quantities -= {quantity_of("ok")}
            assert quantities
            for quantity in quantities:
                arrived = values(broker.received, "it", quantity.name)
                assert is_subsequence(arrived, sent(line, quantity))

    run(scenario())


def test_every_answer_of_a_polled_device_arrives(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            async with gateway(tmp_path, broker.url, sensor("air", "sds011", line.path)) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 3)
                assert await daemon.stop() == 0
            for quantity in (PM2_5, PM10):
                assert values(broker.received, "air", quantity.name) in all_sent(line, quantity)

    run(scenario())


def ten_line_decoder() -> dict[str, object]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "gateway/WIRE.md").read_text(), re.S)
    names: dict[str, object] = {}
    exec(next(block for block in blocks if "zlib" in block and "def " in block), names)
    return names


def test_a_real_mosquitto_hands_it_on_to_a_stranger_with_ten_lines(tmp_path: Path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            async with gateway(tmp_path, broker.url, sensor("air", "sds011", line.path)) as daemon:
                topic = ""
                while not topic.endswith("/batch/live"):
                    _, topic, payload = await broker.message()
                state = ""
                assert await daemon.stop() == 0
                while state != "offline":
                    _, status, text = await broker.message()
                    state = json.loads(text)["state"] if status.endswith("/status") else state
            decoder = next(v for k, v in ten_line_decoder().items() if k.startswith("decode"))
            rows = [row for row in decoder(payload) if "pm2_5" in row]
            assert topic == "bygate/v1/trd-0042/batch/live"
            assert [row[-1] for row in rows] == sent(line, PM2_5)[: len(rows)]

    run(scenario())


def test_what_a_gateway_is_lies_retained_at_a_real_mosquitto(tmp_path: Path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            site = '[site]\nname = "Nidelva"\n' + sensor("box", "host")
            async with gateway(tmp_path, broker.url, site) as daemon:
                topic = ""
                while not topic.endswith("/about"):
                    _, topic, payload = await broker.message()
                assert await daemon.stop() == 0
            retained = await broker.retained("bygate/v1/trd-0042/about")
            assert retained == payload
            about = json.loads(payload)
            assert about["site"]["name"] == "Nidelva"
            assert about["sensors"]["box"]["quantities"]["cpu_temperature"] == {"unit": "Cel"}

    run(scenario())


OUTSIDE = '''
"""Says what is easily taken for nothing."""
from gateway.driver import LocalDriver
from gateway.reading import MOTION, OPEN, POWER, TEMPERATURE, Values

class Driver(LocalDriver):
    model = "Nothing"
    quantities = (MOTION, OPEN, POWER, TEMPERATURE)

    def poll(self) -> Values:
        return {MOTION: False, OPEN: None, POWER: 0.0, TEMPERATURE: -0.0}
'''


@pytest.fixture
def outside_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nothing_says.py").write_text(OUTSIDE)
    points = tmp_path / "nothing-1.dist-info"
    points.mkdir()
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing\nVersion: 1\n")
    (points / "entry_points.txt").write_text("[bygate.drivers]\nnothing = nothing_says:Driver\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "nothing"


def test_zero_minus_zero_and_false_arrive_as_what_they_are(tmp_path: Path, outside_driver: str):
    async def scenario() -> None:
        async with Broker() as broker:
            async with gateway(tmp_path, broker.url, sensor("it", outside_driver)) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 1)
                assert await daemon.stop() == 0
            for quantity, said in {
                "motion": "False",
                "open": "None",
                "power": "0.0",
                "temperature": "-0.0",
            }.items():
                assert set(map(repr, values(broker.received, "it", quantity))) == {said}

    run(scenario())


def test_a_port_that_vanishes_and_returns_goes_on_where_it_was(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            async with gateway(tmp_path, broker.url, sensor("air", "sds011", line.path)) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 1)
                line.unplug()
                assert "adapter" in await daemon.says("air:")
                line.replug()
                await daemon.says("gives readings again")
                known = len(line.good)
                await broker.wait_for(
                    lambda seen: len(values(seen, "air", "pm2_5")) > known, timeout=10
                )
                assert await daemon.stop() == 0
            arrived = values(broker.received, "air", "pm2_5")
            assert is_subsequence(arrived, sent(line, PM2_5))
            assert len(arrived) >= len(line.good) - 1  # one may have been under way at the unplug

    run(scenario())


def test_what_is_missing_at_start_is_no_reason_to_stop(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            await broker.down()
            sensors = sensor("air", "sds011", line.path) + sensor(
                "gone", "maxbotix", tmp_path / "no-such-tty"
            )
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await daemon.says("nothing listens there")
                await daemon.says("is the adapter plugged in?")
                await broker.up()
                async with SerialLine(Maxbotix(period=0.1), tmp_path / "no-such-tty"):
                    await broker.wait_for(lambda seen: values(seen, "gone", "distance"), timeout=30)
                    assert await daemon.stop() == 0
                    assert values(broker.received, "air", "pm2_5") in all_sent(line, PM2_5)

    run(scenario())


def test_a_broker_that_appears_after_a_minute_gets_everything(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            await broker.down()
            sensors = sensor("air", "sds011", line.path, interval="1s")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await answered(line, 60)  # one a second
                await broker.up()
                await broker.wait_for(
                    lambda seen: len(values(seen, "air", "pm2_5")) >= 60, timeout=70
                )
                assert await daemon.stop() == 0
                assert values(broker.received, "air", "pm2_5") in all_sent(line, PM2_5)

    run(scenario())


def test_killed_and_started_again_it_delivers_what_was_flushed(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path, durable=True)
            broker.faults = Faults(ack_withheld=True, ack_topics="bygate/v1/+/batch/#")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 1)
                flushed = len(line.good) - 1  # the last may not have been flushed yet
                daemon.process.kill()
                await daemon.process.wait()
            broker.faults = Faults()
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda seen: len({b.epoch for b in batches(seen)}) == 2)
                assert await daemon.stop() == 0
            first, _second = sorted(
                {b.epoch: b.sequence for b in batches(broker.received)}.items(),
                key=lambda item: item[1],
            )
            begin = next(b for b in batches(broker.received) if b.previous)
            last = max(b.sequence for b in batches(broker.received) if b.epoch == first[0])
            assert begin.previous == (first[0], last)
            arrived = values(broker.received, "air", "pm2_5")
            assert arrived[:flushed] == sent(line, PM2_5)[:flushed]

    run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "faults",
    [Faults(), Faults(ack_withheld=True), Faults(deaf=True), Faults(connack_withheld=True)],
)
def test_it_stops_within_five_seconds_whatever_the_broker_does(
    tmp_path: Path, faults: Faults, number: signal.Signals
):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            broker.faults = faults
            async with gateway(tmp_path, broker.url, sensor("air", "sds011", line.path)) as daemon:
                await answered(line, 5)
                assert await daemon.stop(number) == 0

    run(scenario())


def test_the_status_is_retained_and_the_will_says_offline(tmp_path: Path):
    async def scenario() -> None:
        topic = "bygate/v1/trd-0042/status"
        async with Broker() as broker, gateway(tmp_path, broker.url) as daemon:
            await broker.wait_for(lambda seen: topic in broker.retained)
            assert json.loads(broker.retained[topic])["state"] == "online"
            daemon.process.kill()
            await broker.wait_for(lambda _: not broker.connections)
            will = json.loads(broker.retained[topic])
            assert will["state"] == "offline"
            shown = (ROOT / "gateway/WIRE.md").read_text()
            example = next(line for line in shown.split("\n") if line.startswith('{"state"'))
            assert will.keys() == json.loads(example).keys()

    run(scenario())


def test_any_number_of_sensors_finds_its_broker_again(tmp_path: Path):
    async def scenario() -> None:
        many = "".join(
            sensor(f"{'street-' * 8}{n}", "simulator", interval="1h") for n in range(400)
        )
        async with Broker() as broker, gateway(tmp_path, broker.url, many) as daemon:
            topic = "bygate/v1/trd-0042/status"
            await broker.wait_for(lambda _: len(broker.retained.get(topic, b"")) > 65_535, 30)
            broker.drop()
            await broker.wait_for(lambda _: broker.connects == 2)
            assert await daemon.stop() == 0

    run(scenario())


def test_a_second_daemon_on_the_same_directory_refuses(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, gateway(tmp_path, broker.url) as first:
            await first.says("connected")
            async with gateway(tmp_path, broker.url) as second:
                assert "another bygate uses it" in await second.says("state")
                assert await second.process.wait() == 1
            assert await first.stop() == 0

    run(scenario())


def test_every_mistake_is_told_at_once_and_nothing_is_started(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text('[gateway]\nidd = "x"\n[uplink]\nurl = "mqtt://h"\nkeepalive = 60\n')
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "run", "-c", config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{config}:2: gateway.idd: there is no such setting; did you mean 'id'?" in done.stderr
    assert f"{config}:5: uplink.keepalive" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()
