import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import jumping
import pytest

from drivers import pms5003, sds011
from gateway.driver import (
    BadFrame,
    DeviceRefused,
    Frame,
    LocalDriver,
    Port,
    SerialDriver,
)
from gateway.judge import judge
from gateway.listener import SerialListener
from gateway.poller import Link, LocalPoller, SerialPoller
from gateway.reading import (
    COUNT,
    HUMIDITY,
    MOTION,
    PM2_5,
    PM10,
    TEMPERATURE,
    WATER_LEVEL,
    Quality,
    Quantity,
    Reading,
    Values,
)
from gateway.serialport import SerialPort
from gateway.settings import PortSettings
from hil.device import Device
from hil.devices import Pms5003, Sds011
from hil.scripted import ScriptedPort
from hil.serialline import SerialLine


class Taken(list[tuple[float, Reading]]):
    """Readings, each with the loop's time at which it came."""

    def __call__(self, reading: Reading) -> None:
        self.append((jumping.now(), reading))

    @property
    def values(self) -> list[Any]:
        return [reading.value for _, reading in self]

    def times(self, quantity: Quantity) -> list[float]:
        return [round(at, 3) for at, reading in self if reading.quantity == quantity]


def poller_of(port: Link, driver: SerialDriver, interval: float = 60) -> SerialPoller:
    kind = SerialPoller if driver.polled else SerialListener
    return kind(
        name="air",
        driver=driver,
        interval=interval,
        clock=jumping.clock(),
        sink=Taken(),
        port=port,
    )


def polled(
    seconds: float,
    device: Device,
    driver: SerialDriver,
    *,
    interval: float = 60,
    delay: float = 0,
    meanwhile: Callable[[ScriptedPort], Coroutine[Any, Any, None]] | None = None,
    **line: Any,
) -> tuple[SerialPoller, Taken, ScriptedPort]:
    """Let a poller run for so long; return it, what it took, and its port."""

    async def main() -> tuple[SerialPoller, Taken, ScriptedPort]:
        port = ScriptedPort(device, driver.frame, **line)
        poller = poller_of(port, driver, interval)
        more = [meanwhile(port)] if meanwhile else []
        await jumping.for_seconds(seconds, poller.run(delay), *more)
        assert isinstance(poller.sink, Taken)
        return poller, poller.sink, port

    return jumping.run(main())


# Rhythm


def test_the_first_poll_is_at_once_and_none_drifts_in_a_day():
    _, taken, _ = polled(86400, Sds011(), sds011.Driver())
    assert taken.times(PM10) == [60 * number for number in range(1440)]


def test_a_slow_device_does_not_make_the_rhythm_drift():
    _, taken, _ = polled(3600, Slow(), sds011.Driver())
    assert taken.times(PM10) == [60 * number + 0.9 for number in range(60)]


class Slow(Sds011):
    """Speaks 0.9 s after it was asked, of its own accord."""

    def answer(self, request: bytes) -> bytes:
        self.period = 0.9
        return b""

    def unasked(self) -> bytes:
        self.period = 0.0
        return super().unasked()


def test_the_first_poll_may_be_put_off():
    _, taken, _ = polled(100, Sds011(), sds011.Driver(), delay=7)
    assert taken.times(PM10) == [7, 67]


def test_turns_that_were_missed_are_not_made_up_for():
    poller, taken, _ = polled(
        10, Sds011(), sds011.Driver(), interval=0.4, faults=["silent"] * 3, fault=""
    )
    assert poller.state.outcomes["no reply"] == 3  # at 0, 1 and 2 s
    assert taken.times(PM10)[:3] == [3, 3.4, 3.8]


# Outcomes


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("", "ok"),
        ("silent", "no reply"),
        ("half frame", "no reply"),
        ("flipped bit", "bad checksum"),
        ("late", "no reply"),
        ("babble", "no reply"),
        ("noise before", "ok"),
        ("echo", "ok"),
    ],
)
def test_each_fault_has_its_outcome_and_costs_that_poll_only(fault: str, outcome: str):
    faults = ["", "", fault, "", fault, fault, "", "", "", ""]
    poller, taken, port = polled(595, Sds011(), sds011.Driver(), faults=faults)
    good = 10 if outcome == "ok" else 7
    assert poller.state.outcomes == ({"ok": 10} if good == 10 else {"ok": 7, outcome: 3})
    assert len(taken) == 2 * good
    clean = [s.values for s in port.sent if s.fault in ("", "noise before", "echo")]
    assert taken.values == [value for values in clean for value in values.values()]
    assert poller.state.why is None


def test_silence_and_bytes_without_a_frame_are_told_apart():
    poller, _, _ = polled(30, Sds011(), sds011.Driver(), fault="silent")
    assert (
        poller.state.why == "nothing to read within 1 s, 0 bytes came: check power, wiring and port"
    )
    poller, _, _ = polled(30, Sds011(), sds011.Driver(), fault="half frame")
    assert poller.state.why == (
        "nothing to read within 1 s, 5 bytes came: wrong baud rate, parity or driver?"
    )


class Stutters(Sds011):
    """Begins each answer twice."""

    def answer(self, request: bytes) -> bytes:
        return (frame := super().answer(request))[:6] + frame


def test_a_bad_frame_with_a_good_one_inside_is_a_good_answer():
    poller, taken, _ = polled(599, Stutters(), sds011.Driver())
    assert poller.state.outcomes == {"ok": 10}
    assert taken.values == [v for values in poller_sent(Stutters(), 10) for v in values]


def poller_sent(device: Sds011, count: int) -> list[tuple[Any, ...]]:
    for _ in range(count):
        device.unasked()
    return [tuple(values.values()) for values in device.sent]


def test_a_port_that_is_pulled_during_a_poll_is_polled_again_as_soon_as_it_is_back():
    async def plug(port: ScriptedPort) -> None:
        await asyncio.sleep(60.5)  # the answer of 60 s is late
        port.unplug()
        await asyncio.sleep(39.5)
        port.replug()

    poller, taken, _ = polled(200, Sds011(), sds011.Driver(), faults=["", "silent"], meanwhile=plug)
    assert poller.state.outcomes == {"ok": 3, "no port": 1}
    assert taken.times(PM10) == [0, 100, 160]


def test_an_adapter_that_is_away_for_two_seconds_is_asked_again_then():
    faults = ["", "unplugged", "unplugged", ""]
    poller, taken, _ = polled(150, Sds011(), sds011.Driver(), faults=faults)
    assert poller.state.outcomes == {"ok": 3, "no port": 2}
    assert taken.times(PM10) == [0, 64, 124]


class Flickers(ScriptedPort):
    """A port that is back before anybody has seen that it was away."""

    why = ""


def flickered(seconds: float, faults: Iterable[str], interval: float = 60) -> SerialPoller:
    """Let a poller run whose port is away for 10 ms at each "unplugged"."""

    async def main() -> SerialPoller:
        port = Flickers(Sds011(), sds011.Driver.frame, faults=faults, delay=0.01)
        poller = poller_of(port, sds011.Driver(), interval)
        await jumping.for_seconds(seconds, poller.run())
        return poller

    return jumping.run(main())


def test_a_poll_that_broke_off_is_made_up_for_once_though_the_port_is_open_again():
    poller = flickered(179, ["", "unplugged"])
    assert poller.state.outcomes == {"ok": 3, "no port": 1}
    assert poller.sink.times(PM10) == [0, 61, 121]


def test_a_port_that_is_lost_in_every_poll_is_polled_once_a_second():
    poller = flickered(59.5, itertools.cycle(["unplugged"]))
    assert poller.state.outcomes == {"no port": 60}


def test_a_port_that_flickers_does_not_change_a_rhythm_that_is_faster_than_that():
    poller = flickered(2, ["", "unplugged", "unplugged"], interval=0.3)
    assert poller.sink.times(PM10) == [0, 0.9, 1.2, 1.5, 1.8]


def test_a_real_port_that_is_lost_during_a_poll_and_back_at_once_is_polled_within_2_s(tmp_path):
    async def main(threads: ThreadPoolExecutor) -> None:
        async with SerialLine(Sds011(), tmp_path / "tty", faults=["unplugged"], delay=0.01):
            settings = PortSettings(path=tmp_path / "tty")
            poller = poller_of(SerialPort(settings, sds011.Driver(), threads), sds011.Driver())
            polling = asyncio.create_task(poller.run())
            await until(lambda: poller.state.outcomes["no port"])
            began = time.monotonic()
            await until(lambda: poller.state.outcomes["ok"])
            assert 0.5 < time.monotonic() - began < 2
            polling.cancel()

    with ThreadPoolExecutor(2) as threads:
        asyncio.run(main(threads))


def test_a_port_that_stays_away_is_counted_once_in_each_interval():
    poller, taken, _ = polled(299, Sds011(), sds011.Driver(), fault="unplugged")
    assert poller.state.outcomes == {"no port": 5}
    assert "unplugged" in (poller.state.why or "")
    assert not taken


class Adds(SerialDriver):
    """Answers are !, a digit, and a newline; some digits mean trouble."""

    model = "test"
    quantities = (COUNT, TEMPERATURE)
    request = b"?"
    frame = Frame(start=b"!", end=b"\n")

    def decode(self, frame: bytes) -> Values | None:
        answer = ANSWERS[int(frame[1:2])]
        if isinstance(answer, Exception):
            raise answer
        return answer


ANSWERS: list[Any] = [
    ZeroDivisionError(),
    {PM2_5: 1.0},
    {COUNT: object()},
    None,
    {},
    DeviceRefused("not now"),
    {COUNT: None, TEMPERATURE: math.nan},
    {COUNT: 0, TEMPERATURE: 200.0},
    BadFrame("8"),
    {COUNT: 0, TEMPERATURE: -0.0},
]


class Digits(Device):
    """Answers with one digit after the other."""

    walks: ClassVar = {}

    def __init__(self, digits: str) -> None:
        super().__init__()
        self.digits = list(digits)

    def answer(self, request: bytes) -> bytes:
        return b"!%s\n" % self.digits.pop(0).encode()


@pytest.mark.parametrize(
    ("digit", "outcome", "values"),
    [
        ("0", "driver error", []),
        ("1", "driver error", []),
        ("2", "driver error", []),
        ("3", "no reply", []),
        ("4", "ok", []),
        ("5", "refused", []),
        ("6", "not a number", [None, None]),
        ("7", "implausible", [0, 200.0]),
        ("8", "bad frame", []),
        ("9", "ok", [0, -0.0]),
    ],
)
def test_each_answer_of_a_driver_has_its_outcome(digit: str, outcome: str, values: list[Any]):
    poller, taken, _ = polled(119, Digits(digit + "9"), Adds())
    assert poller.state.outcomes == ({"ok": 2} if outcome == "ok" else {outcome: 1, "ok": 1})
    assert repr(taken.values) == repr([*values, 0, -0.0])


def test_a_drivers_bug_is_logged_once_with_its_trace_and_the_sensor_goes_on(caplog):
    poller, taken, _ = polled(299, Digits("00901"), Adds())
    assert poller.state.outcomes == {"driver error": 4, "ok": 1}
    assert poller.state.why == "driver error: ValueError: pm2_5: not among the driver's quantities"
    assert len(taken) == 2
    [traced] = [record for record in caplog.records if record.exc_info]
    assert "ZeroDivisionError" in caplog.text
    assert traced.levelno == logging.ERROR


def test_a_drivers_bug_costs_no_other_sensor():
    async def main() -> None:
        bad = poller_of(ScriptedPort(Digits("0" * 60), Adds.frame), Adds())
        good = poller_of(ScriptedPort(Sds011(), sds011.Driver.frame), sds011.Driver())
        await jumping.for_seconds(3599, bad.run(), good.run())
        assert bad.state.outcomes == {"driver error": 60}
        assert good.state.outcomes == {"ok": 60}

    jumping.run(main())


def test_a_sensor_that_falls_silent_and_recovers_is_logged_twice_not_at_every_poll(caplog):
    caplog.set_level(logging.INFO)
    polled(599, Sds011(), sds011.Driver(), faults=["", "silent", "silent", "silent"])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# A driver with a dialogue


class Wakes(SerialDriver):
    """Wakes the sensor, hears that it did, and asks."""

    model = "test"
    quantities = (PM2_5, PM10)
    frame = Frame(start=b"\xaa", length=10)

    async def poll(self, port: Port) -> Values | None:
        await port.request(bytes.fromhex("aab406010100000000000000000000ffff06ab"))
        return sds011.Driver().decode(await port.request(sds011.Driver.request))


def test_a_driver_may_hold_a_dialogue():
    poller, taken, _ = polled(3599, Sds011(), Wakes())
    assert poller.state.outcomes == {"ok": 60}
    assert taken.times(PM10) == [60 * number for number in range(60)]


def test_a_dialogue_in_which_nothing_is_said_that_the_driver_reads_is_no_reply():
    class Deaf(Wakes):
        async def poll(self, port: Port) -> Values | None:
            return None

    poller, taken, _ = polled(119, Sds011(), Deaf())
    assert (poller.state.outcomes, taken) == ({"no reply": 2}, [])
    assert "nothing that its driver reads" in (poller.state.why or "")


def test_a_dialogue_that_breaks_off_is_no_reply_and_a_bad_frame_in_it_is_that():
    poller, _, _ = polled(
        239, Sds011(), Wakes(), faults=["", "silent", "", "flipped bit", "silent", "", ""]
    )
    assert poller.state.outcomes == {"no reply": 2, "bad checksum": 1, "ok": 1}


# Streams


def test_of_a_stream_the_first_values_go_out_at_once_and_then_the_latest_per_interval():
    poller, taken, port = polled(605.5, Pms5003(), pms5003.Driver())
    sent = [sent.values for sent in port.sent]
    assert taken.times(PM10) == [1, *(60 * number for number in range(1, 11))]
    assert taken.values[:9] == list(sent[0].values())
    latest = [list(sent[60 * number - 1].values()) for number in range(1, 11)]
    others = [list(sent[60 * number - 2].values()) for number in range(1, 11)]
    for number in range(10):  # which of two that fall together comes first is the loop's affair
        assert taken.values[9 * (number + 1) : 9 * (number + 2)] in (latest[number], others[number])
    assert poller.state.outcomes == {"ok": 605}


def test_a_reading_of_a_stream_bears_the_time_at_which_its_frame_came():
    _, taken, _ = polled(60.5, Pms5003(period=7), pms5003.Driver())
    assert {reading.instant.boot_ms for _, reading in taken} == {7000, 56000}


def test_bad_frames_of_a_stream_are_counted_one_by_one_beside_the_good():
    faults = ["", "flipped bit", "half frame", "", "half frame", "half frame", "", "silent", ""]
    poller, _, _ = polled(9.5, Pms5003(), pms5003.Driver(), faults=faults)
    assert poller.state.outcomes == {"ok": 4, "bad checksum": 3}


def test_a_stream_that_falls_silent_is_told_of_once_in_each_interval():
    poller, taken, _ = polled(200, Pms5003(), pms5003.Driver(), faults=[""] * 30, fault="silent")
    assert poller.state.outcomes == {"ok": 30, "no reply": 2}
    assert taken.times(PM10) == [1, 60]
    assert (
        poller.state.why
        == "nothing to read within 60 s, 0 bytes came: check power, wiring and port"
    )


def test_a_stream_that_babbles_is_told_from_one_that_is_silent():
    poller, _, _ = polled(130, Pms5003(), pms5003.Driver(), fault="babble")
    assert poller.state.outcomes["ok"] == 0
    assert "wrong baud rate" in (poller.state.why or "") or "check" not in (poller.state.why or "")


def test_a_stream_whose_port_is_pulled_goes_on_when_it_is_back():
    async def plug(port: ScriptedPort) -> None:
        await asyncio.sleep(30.5)
        port.unplug()
        await asyncio.sleep(200)
        port.replug()

    poller, taken, _ = polled(299, Pms5003(), pms5003.Driver(), meanwhile=plug)
    assert poller.state.outcomes["ok"] == 30 + 68
    assert poller.state.outcomes["no port"] == 1 + 2  # when it went, at 120 and at 180 s
    assert taken.times(PM10) == [1, 60, 231.5, 240]


# The gateway's own drivers


class Hangs(LocalDriver):
    """Answers when it is let go."""

    model = "test"
    quantities = (COUNT,)
    timeout: ClassVar[float] = 0.05
    calls: ClassVar[list[int]] = []
    gate: ClassVar[threading.Event] = threading.Event()

    def poll(self) -> Values:
        self.calls.append(len(self.calls))
        number = len(self.calls)
        if number == 1:
            self.gate.wait()
        return {COUNT: number}


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_local_driver_that_hangs_is_not_called_twice_and_its_late_answer_is_not_taken():
    async def main(threads: ThreadPoolExecutor) -> None:
        taken: list[Reading] = []
        poller = LocalPoller(
            name="host",
            driver=Hangs(),
            interval=0.1,
            clock=jumping.clock(),
            sink=taken.append,
            threads=threads,
        )
        running = asyncio.create_task(poller.run())
        await until(lambda: poller.state.outcomes["no reply"] == 3)
        assert Hangs.calls == [0]
        Hangs.gate.set()
        await until(lambda: poller.state.outcomes["ok"] == 2)
        assert [reading.value for reading in taken] == [2, 3]
        running.cancel()

    with ThreadPoolExecutor(2) as threads:
        asyncio.run(main(threads))


# Values


@pytest.mark.parametrize(
    ("quantity", "said", "kept", "quality"),
    [
        (TEMPERATURE, 0, 0, 0),
        (TEMPERATURE, 0.0, 0.0, 0),
        (TEMPERATURE, -0.0, -0.0, 0),
        (TEMPERATURE, -0.0001, 0.0, 0),
        (TEMPERATURE, 21.23456, 21.235, 0),
        (MOTION, False, False, 0),
        (MOTION, True, True, 0),
        (MOTION, None, None, 0),
        (COUNT, math.nan, None, 0),
        (COUNT, math.inf, None, 0),
        (COUNT, -math.inf, None, 0),
        (COUNT, 1e308, 1e308, 0),
        (COUNT, 5e-324, 0.0, 0),
        (COUNT, 1 << 62, 1 << 62, 0),
        (COUNT, 1 << 63, None, 0),
        (COUNT, -(1 << 70), None, 0),
        (HUMIDITY, 100.004, 100.0, 0),
        (HUMIDITY, 100.01, 100.01, Quality.SUSPECT),
        (HUMIDITY, -1, -1, Quality.SUSPECT),
        (WATER_LEVEL, -6000, -6000, Quality.SUSPECT),
        (Quantity("depth", high=0), 1, 1, Quality.SUSPECT),
        (Quantity("flag", low=2), True, True, 0),
        (COUNT, "", "", 0),
        (COUNT, "å" * 128, "å" * 128, 0),
        (COUNT, "å" * 129, "å" * 128, Quality.CLIPPED),
        (COUNT, "x" + "å" * 128, "x" + "å" * 127, Quality.CLIPPED),
        (COUNT, "\ud800", "?", Quality.CLIPPED),
    ],
)
def test_a_value_is_kept_as_it_is_or_its_flaw_is_marked(quantity, said, kept, quality):
    value, found, _ = judge(quantity, said)
    assert (type(value), repr(value), found) == (type(kept), repr(kept), quality)


@pytest.mark.parametrize("said", [b"1", [1], 1j, object()])
def test_what_is_no_value_is_the_drivers_mistake(said: Any):
    with pytest.raises(TypeError, match=r"count: .* is no kind of value"):
        judge(COUNT, said)
