"""How the daemon ends: soon, in good order, whatever hangs, and so that the next one goes on."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from gateway_process import ROOT, gateway, sensor

from gateway.wire import decode
from hil.broker import Broker, Faults, Received
from hil.devices import Sds011
from hil.serialline import SerialLine

HANGS = '''
"""Never answers, as a file system that is gone."""
import time
from gateway.driver import LocalDriver
from gateway.reading import COUNT, Values

class Driver(LocalDriver):
    model = "Stuck"
    quantities = (COUNT,)
    timeout = 0.2

    def poll(self) -> Values:
        time.sleep(1000)
        return {}
'''


@pytest.fixture
def stuck_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "stuck_driver.py").write_text(HANGS)
    points = tmp_path / "stuck-1.dist-info"
    points.mkdir()
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1\n")
    (points / "entry_points.txt").write_text("[bygate.drivers]\nstuck = stuck_driver:Driver\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "stuck"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def names(messages: list[Received]) -> Counter[tuple[int, int]]:
    batches = [decode(message.payload) for message in messages if "/batch/" in message.topic]
    return Counter((batch.epoch, batch.sequence) for batch in batches)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://192.0.2.1:1883",  # TEST-NET-1: no answer, or no route
        "mqtt://no-such-host.invalid:1883",
        "mqtt://127.0.0.1:1",
    ],
)
def test_it_stops_while_no_broker_can_be_reached(url: str, tmp_path: Path):
    async def scenario() -> None:
        async with SerialLine(Sds011(), tmp_path / "tty") as line:
            heard = asyncio.Event()
            line.on_sent = lambda _: heard.set()
            async with gateway(tmp_path, url, sensor("air", "sds011", line.path)) as daemon:
                await heard.wait()
                assert await daemon.stop() == 0

    run(scenario())


def test_it_stops_although_a_thread_hangs(stuck_driver: str, tmp_path: Path):
    async def scenario() -> None:
        sensors = sensor("it", stuck_driver)
        async with Broker() as broker, gateway(tmp_path, broker.url, sensors) as daemon:
            await daemon.says("no answer within")
            assert await daemon.stop() == 0

    run(scenario())


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_told_to_stop_before_it_has_started_it_ends_in_good_order(tmp_path: Path):
    config = tmp_path / "config.toml"
    os.mkfifo(config)  # nobody ever writes it: so it does not get as far as to start

    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "run", "-c", config), cwd=ROOT
        )
        try:
            async with asyncio.timeout(20):
                while not hears(process.pid, signal.SIGTERM):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 5) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    run(scenario())


CRASHES = """
import asyncio
import gateway.service

async def crash(*_):
    await asyncio.sleep(0.5)
    raise RuntimeError("a bug")

class Driver(Driver):
    def __post_init__(self):
        gateway.service.Uplink.run = crash
"""


def test_a_mistake_of_its_own_ends_it_although_a_thread_hangs(stuck_driver: str, tmp_path: Path):
    (tmp_path / "stuck_driver.py").write_text(HANGS + CRASHES)

    async def scenario() -> None:
        async with gateway(tmp_path, "mqtt://127.0.0.1:1", sensor("it", stuck_driver)) as daemon:
            assert "a bug" in await daemon.says("RuntimeError")
            async with asyncio.timeout(5):
                assert await daemon.process.wait() == 1

    run(scenario())


@pytest.mark.parametrize("sealed", ["1h", "400ms"])
def test_it_says_how_many_readings_a_broken_disk_costs(sealed: str, tmp_path: Path):
    (tmp_path / "state").write_text("a file where the directory should be")

    async def scenario() -> None:
        async with SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path)
            url = "mqtt://127.0.0.1:1"
            async with gateway(tmp_path, url, sensors, seal_interval=sealed) as daemon:
                await daemon.says("nothing listens there")
                while len(line.good) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                assert await daemon.stop() == 1
                said = await daemon.says("stopped")
                assert int(said.split()[2]) >= 2, said
                assert " readings lost: " in said
                assert "set [gateway] state_dir" in said

    run(scenario())


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_goes_ends_it_in_good_order_unless_nohup_says_otherwise(
    nohup: bool, tmp_path: Path
):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path)
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(names)
                daemon.process.send_signal(signal.SIGHUP)
                if nohup:
                    known = len(names(broker.received))
                    await broker.wait_for(lambda got: len(names(got)) > known + 3)
                    daemon.process.send_signal(signal.SIGTERM)
                assert await daemon.process.wait() == 0
                assert await daemon.says("stopped: 0 batches left")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        run(scenario())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_changes_nothing(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path)
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(names)
                broker.faults = Faults(ack_withheld=True)
                daemon.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)  # in its farewell
                assert await daemon.stop() == 0
                assert "left for the next start" in await daemon.says("stopped")

    run(scenario())


def test_what_was_delivered_in_the_farewell_is_not_delivered_again(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path)
            for starts in (1, 2, 3):
                known = len(line.good)
                async with gateway(tmp_path, broker.url, sensors, seal_interval="1h") as daemon:
                    await daemon.says("connected")
                    while len(line.good) < known + 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    assert await daemon.stop() == 0
                    assert await daemon.says("stopped: 0 batches left")
                assert len({epoch for epoch, _ in names(broker.received)}) == starts
            assert set(names(broker.received).values()) == {1}

    run(scenario())


def test_the_directory_is_its_own_until_the_very_end(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, SerialLine(Sds011(), tmp_path / "tty") as line:
            sensors = sensor("air", "sds011", line.path)
            async with gateway(tmp_path, broker.url, sensors) as first:
                await broker.wait_for(names)
                broker.faults = Faults(ack_withheld=True)
                first.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)  # it waits 2 s for the acknowledgement
                first.process.send_signal(signal.SIGSTOP)  # however long the second takes to start
                async with gateway(tmp_path, broker.url, sensors) as second:
                    assert "another bygate uses it" in await second.says("state")
                assert first.process.returncode is None
                first.process.send_signal(signal.SIGCONT)
                await first.process.wait()

    run(scenario())
