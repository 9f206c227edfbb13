"""Drivers that break the rules: each costs its own sensor, or is told of at the start."""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import jumping
import pytest

from gateway.config import ConfigError, load
from gateway.driver import Frame, LocalDriver, Port, SensorError, SerialDriver
from gateway.health import Health
from gateway.listener import SerialListener
from gateway.poller import LocalPoller, Poller, SerialPoller
from gateway.reading import COUNT, Values
from gateway.uplinkstate import UplinkState
from hil.device import Device
from hil.scripted import ScriptedPort


class Wordless(Exception):
    def __str__(self) -> str:
        return None  # noqa: PLE0307


class Nameless(SensorError):
    outcome = ("a", 1)


class Wordy(SensorError):
    outcome = "no " * 20_000  # a reading of that name has no room in any batch


RAISED = [
    (Wordless(), "driver error", "its text cannot be told: TypeError"),
    (OSError("cannot read /sys/\udcff"), "driver error", "cannot read /sys/\\udcff"),
    (Nameless("x"), "sensor error", "x"),
    (Wordy("x"), "sensor error", "x"),
    (SystemExit(3), "driver error", "SystemExit"),
    (asyncio.CancelledError(), "driver error", "CancelledError"),
    (concurrent.futures.CancelledError(), "driver error", "CancelledError"),
    (StopIteration(), "driver error", "StopIteration"),
    (MemoryError(), "driver error", "MemoryError"),
]
raising = pytest.mark.parametrize(
    ("error", "outcome", "why"), RAISED, ids=[type(error).__name__ for error, _, _ in RAISED]
)


@pytest.fixture(autouse=True)
def unlogged():
    """Log nothing: what pytest keeps of it, bytes that are no text, no worker can hand on."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Thrower(LocalDriver):
    """Raises what it is told to, every second time."""

    model = "test"
    quantities = (COUNT,)
    state: ClassVar[dict[str, Any]] = {}

    def poll(self) -> Values:
        self.state["calls"] += 1
        if self.state["calls"] % 2:
            raise self.state["error"]
        return {COUNT: 0}


class Asked(SerialDriver):
    model = "test"
    quantities = (COUNT,)
    frame = Frame(start=b"!", length=2)
    request = b"?"

    def decode(self, frame: bytes) -> Values:
        return Thrower().poll()


class Answers(Device):
    def answer(self, request: bytes) -> bytes:
        return b"!x"


def common(driver: Any, interval: float = 60) -> dict[str, Any]:
    clock = jumping.clock()
    return {"name": "it", "driver": driver, "interval": interval, "clock": clock, "sink": id}


def snapshot(poller: Poller) -> bytes:
    """Return the status with this sensor in it."""

    class NoBuffer:
        epoch = 1

        def stats(self) -> Any:
            raise NotImplementedError

    class OfSensors(Health):
        def snapshot(self, state: str) -> dict[str, object]:
            return {"sensors": {"it": self._of_sensor(poller)}}

    return OfSensors("g", poller.clock, NoBuffer(), [poller], UplinkState()).payload("online")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@raising
def test_what_a_local_driver_raises_costs_that_reading_only(error, outcome: str, why: str):
    Thrower.state.update(error=error, calls=0)

    async def main(threads: ThreadPoolExecutor) -> None:
        poller = LocalPoller(threads=threads, **common(Thrower(), 0.02))
        task = asyncio.create_task(poller.run())
        await until(lambda: Thrower.state["calls"] > 4)
        assert not task.done()
        assert poller.state.outcomes[outcome] >= 2
        assert poller.state.outcomes["ok"] >= 2
        await until(lambda: poller.state.why)
        assert why in poller.state.why
        assert b'"it"' in snapshot(poller)
        task.cancel()

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(main(threads))


@raising
def test_what_a_serial_driver_raises_costs_that_reading_only(error, outcome: str, why: str):
    Thrower.state.update(error=error, calls=0)

    async def main() -> None:
        poller = SerialPoller(port=ScriptedPort(Answers(), Asked.frame), **common(Asked()))
        await jumping.for_seconds(299, poller.run())
        assert poller.state.outcomes == {outcome: 3, "ok": 2}
        assert why in (poller.state.why or "")
        snapshot(poller)

    jumping.run(main())


class Swallows(SerialDriver):
    model = "test"
    quantities = (COUNT,)
    frame = Frame(start=b"!", length=2)

    async def poll(self, port: Port) -> Values:
        try:
            await port.request(b"?")
        except BaseException:  # noqa: BLE001
            return {}
        return {COUNT: 1}


def test_a_driver_that_swallows_the_cancel_is_cancelled_all_the_same():
    async def main() -> None:
        port = ScriptedPort(Answers(), Swallows.frame, fault="silent")
        poller = SerialPoller(port=port, **common(Swallows()))
        task = asyncio.create_task(poller.run())
        await asyncio.sleep(0.5)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=60)
        assert done
        assert task.cancelled()

    jumping.run(main())


def test_a_port_that_raises_without_waiting_does_not_fill_the_cpu():
    class Fails(ScriptedPort):
        calls = 0

        async def frame(self) -> bytes:
            self.calls += 1
            raise AttributeError("'NoneType' object has no attribute 'start'")

    async def main() -> None:
        port = Fails(Answers(), Asked.frame)
        poller = SerialListener(port=port, **common(Asked()))
        await jumping.for_seconds(9.95, poller.run())
        assert port.calls == 100

    jumping.run(main())


# What is told at the start

HEAD = """
from fractions import Fraction
from gateway.driver import *
from gateway.reading import *
class Driver({kind}):
    model = "x"
    quantities = ({quantity},)
    {body}
"""
CONFIG = '[gateway]\nid = "g"\n[uplink]\nurl = "mqtt://h"\n[sensors.a]\ndriver = "outside"\n'
FLAWS = {
    "frame = None": "it declares no frame",
    "pass": "it declares no frame",
    'frame = Frame(start="x", length=4)': "a Frame's start and end are bytes",
    'frame = Frame(start=b"x", length="4")': "a Frame's length is a number or a Length",
    'frame = Frame(start=b"x", length=-4)': "a Frame's length is from",
    'frame = Frame(start=b"x", end=b"y", longest=0)': "a Frame's longest is",
    'frame = Frame(start=b"x", length=4); timeout = "1"': "its timeout is no number",
    'frame = Frame(start=b"x", length=4); request = "?"': "its request is no bytes",
    'quantities = [COUNT]; frame = Frame(start=b"x", length=4)': "its quantities are no tuple",
}
QUANTITIES = {
    'Quantity("n" * 40_000)': "of at most 64 characters",
    'Quantity("s\\udcff")': "its name and unit are text",
    'Quantity("")': "it has no name",
    'Quantity("n", "u", None)': "its decimals are a whole number",
    'Quantity("n", "u", 1, Fraction(1, 3))': "its low and high are numbers",
    '"temperature"': "no Quantity",
}
RAISES = {
    'raise RuntimeError("no such bus")': "RuntimeError: no such bus",
    'assert False, "nope"': "AssertionError: nope",
    'raise type("Odd", (Exception,), {})("odd")': "Odd: odd",
    "raise SystemExit(3)": "SystemExit: 3",
}


def told(site: Path, monkeypatch: pytest.MonkeyPatch, source: str, more: str = "") -> str:
    name = f"outside_{abs(hash(source))}"
    (site / f"{name}.py").write_text(source)
    points = site / f"{name}-1.dist-info"
    points.mkdir()
    (points / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (points / "entry_points.txt").write_text(f"[bygate.drivers]\noutside = {name}:Driver\n")
    monkeypatch.syspath_prepend(site)
    (site / "config.toml").write_text(CONFIG + more)
    with pytest.raises(ConfigError) as caught:
        load(site / "config.toml")
    [line] = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("body", FLAWS)
def test_what_a_serial_driver_declares_is_judged_once(tmp_path: Path, monkeypatch, body: str):
    source = HEAD.format(kind="SerialDriver", quantity="COUNT", body=body)
    assert FLAWS[body] in told(tmp_path, monkeypatch, source, 'port = "/dev/x"\n')


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_its_quantities_are_judged_once(tmp_path: Path, monkeypatch, quantity: str):
    source = HEAD.format(kind="LocalDriver", quantity=quantity, body="pass")
    assert QUANTITIES[quantity] in told(tmp_path, monkeypatch, source)


@pytest.mark.parametrize("where", ["in the module", "when it is made"])
@pytest.mark.parametrize("body", RAISES)
def test_whatever_it_raises_is_told_on_one_line(tmp_path: Path, monkeypatch, body: str, where: str):
    indented = f"def __post_init__(self):\n        {body}"
    source = HEAD.format(kind="LocalDriver", quantity="COUNT", body=indented)
    if where == "in the module":
        source = body
    said = RAISES[body].partition(": ")[2] if where == "in the module" else RAISES[body]
    assert said in told(tmp_path, monkeypatch, source)
