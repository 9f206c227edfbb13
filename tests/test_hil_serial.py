import asyncio
import contextlib
import functools
import itertools
import operator
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import looptime
import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st

from gateway.driver import Frame, Length, PortError
from gateway.reading import (
    ALTITUDE,
    CATALOGUE,
    DEW_POINT,
    DISTANCE,
    HUMIDITY,
    LATITUDE,
    LONGITUDE,
    PM1,
    PM2_5,
    PM10,
    PRESSURE,
    SATELLITES,
    SPEED,
    TEMPERATURE,
    WIND_DIRECTION,
    WIND_SPEED,
    Values,
)
from hil import __main__ as command
from hil.device import Device
from hil.devices import DEVICES, Maxbotix, Nmea0183, Pms5003, Sds011
from hil.faults import BABBLE_BYTES, FAULTS, spoiled
from hil.scripted import ScriptedPort
from hil.serialline import SerialLine

ROOT = Path(__file__).parent.parent
QUERY = bytes.fromhex("aab404000000000000000000000000ffff02ab")
SLEEP = bytes.fromhex("aab406010000000000000000000000ffff05ab")
WAKE = bytes.fromhex("aab406010100000000000000000000ffff06ab")
STREAM = bytes.fromhex("aab402010000000000000000000000ffff01ab")
SDS011 = Frame(start=b"\xaa\xc0", length=10)
FRAMES = {
    "sds011": SDS011,
    "pms5003": Frame(start=b"BM", length=Length(at=2, size=2, extra=4)),
    "maxbotix": Frame(start=b"R", end=b"\r"),
    "nmea0183": Frame(start=b"$", end=b"\r\n"),
}

# What devices say


def words(frame: bytes, order: str) -> tuple[int, ...]:
    return struct.unpack(f"{order}{len(frame) // 2}H", frame)


def decoded_sds011(frame: bytes) -> dict[Any, Any]:
    assert sum(frame[2:8]) & 0xFF == frame[8]
    return dict(zip((PM2_5, PM10), (word / 10 for word in words(frame[2:6], "<")), strict=True))


def decoded_pms5003(frame: bytes) -> dict[Any, Any]:
    assert sum(frame[:30]) == int.from_bytes(frame[30:], "big")
    counts = [CATALOGUE[f"particles_{size}"] for size in ("0_3", "0_5", "1", "2_5", "5", "10")]
    air, count = words(frame[10:16], ">"), words(frame[16:28], ">")
    return dict(zip((PM1, PM2_5, PM10, *counts), (*air, *(n / 100 for n in count)), strict=True))


def decoded_maxbotix(frame: bytes) -> dict[Any, Any]:
    value = int(frame[1:5])
    return {DISTANCE: None if value == 9999 else value}


def decoded_nmea0183(frame: bytes) -> dict[Any, Any]:
    body, check = frame[1:-2].decode().split("*")
    assert functools.reduce(operator.xor, body.encode()) == int(check, 16)
    kind, *field = body.split(",")

    def number(at: int, factor: float = 1) -> float | None:
        return float(field[at]) * factor if field[at] else None

    def degrees(at: int) -> float | None:
        whole, minutes = divmod(float(field[at] or 0), 100)
        sign = -1 if field[at + 1] in "SW" else 1
        return sign * (whole + minutes / 60) if field[at] else None

    if kind == "GPGGA":
        place = {LATITUDE: degrees(1), LONGITUDE: degrees(3)}
        return {**place, ALTITUDE: number(8), SATELLITES: number(6)}
    if kind == "GPRMC":
        assert field[1] == ("A" if field[2] else "V")
        return {LATITUDE: degrees(2), LONGITUDE: degrees(4), SPEED: number(6, 1852 / 3600)}
    if kind == "WIMWV":
        assert field[1] in "RT"
        assert field[3] == "M"
        assert field[4] == ("A" if field[2] else "V")
        return {WIND_DIRECTION: number(0), WIND_SPEED: number(2)}
    assert [field[at] for at in (1, 3, 5, 11, 13, 17, 19) if field[at - 1]] == [
        unit for unit, at in zip("IBCCTNM", (0, 2, 4, 10, 12, 16, 18), strict=True) if field[at]
    ]
    air = {PRESSURE: number(2, 1000), TEMPERATURE: number(4), HUMIDITY: number(8)}
    wind = {WIND_DIRECTION: number(12), WIND_SPEED: number(18)}
    found = {**air, DEW_POINT: number(10), **wind}
    return {quantity: value for quantity, value in found.items() if value is not None}


def rounded(values: dict[Any, Any]) -> Values:
    return {q: v if v is None else round(v, q.decimals) for q, v in values.items()}


def said(device: Device) -> bytes:
    return device.unasked() if device.period else device.answer(QUERY)


@pytest.mark.parametrize("name", DEVICES)
def test_a_decoder_gives_to_the_last_digit_what_the_device_says_it_sent(name: str):
    device, decode = DEVICES[name](seed=7), globals()[f"decoded_{name}"]
    for _ in range(2000):
        assert rounded(decode(said(device))) == device.sent[-1]
    assert device.measured == 2000


@pytest.mark.parametrize("name", DEVICES)
def test_the_same_seed_gives_the_same_frames_and_another_one_others(name: str):
    one, same, other = (DEVICES[name](seed=seed) for seed in (1, 1, 2))
    frames = [[said(device) for _ in range(10)] for device in (one, same, other)]
    assert frames[0] == frames[1] != frames[2]


def weather_station(fixed: Values) -> Device:
    station = Nmea0183(fixed=fixed)
    station.sentences = ("MDA",)
    return station


RECORDED = {
    "aac00900090058d943ab": Sds011(fixed={PM2_5: 0.9, PM10: 0.9}),
    "aac00600060058d93dab": Sds011(fixed={PM2_5: 0.6, PM10: 0.6}),
    "424d001c00000007000700000007000700d20046002d001e00000000970002c1": Pms5003(
        fixed=dict(zip(Pms5003.walks, (0, 7, 7, 2.1, 0.7, 0.45, 0.3, 0, 0), strict=True))
    ),
    b"R1234\r".hex(): Maxbotix(fixed={DISTANCE: 1234}),
    b"$WIMDA,29.4473,I,0.9972,B,17.2,C,,,,,,,,,,,,,,*3E\r\n".hex(): weather_station(
        {**dict.fromkeys(Nmea0183.walks), PRESSURE: 997.2, TEMPERATURE: 17.2}
    ),
}


@pytest.mark.parametrize("frame", RECORDED)
def test_a_device_says_the_frame_that_was_recorded_of_the_real_one(frame: str):
    assert said(RECORDED[frame]).hex() == frame


def test_what_is_invalid_is_said_as_the_data_sheets_say():
    assert Maxbotix(fixed={DISTANCE: None}).unasked() == b"R9999\r"
    station = Nmea0183(
        fixed={LATITUDE: None, WIND_SPEED: None, WIND_DIRECTION: None, DEW_POINT: None}
    )
    gga, rmc, mwv, mda = (station.unasked() for _ in range(4))
    assert re.fullmatch(rb"\$GPGGA,\d{6}.00,,,,,0,00,,,M,,M,,\*..\r\n", gga)
    assert re.fullmatch(rb"\$GPRMC,\d{6}.00,V,,,,,,,010126,,,N\*..\r\n", rmc)
    assert mwv[:-5] == b"$WIMWV,,R,,M,V"
    assert re.match(rb"\$WIMDA,[\d.]+,I,[\d.]+,B,-?[\d.]+,C,,,[\d.]+,{11}\*", mda)
    assert station.sent[0] == {LATITUDE: None, LONGITUDE: None, ALTITUDE: None, SATELLITES: 0}
    assert set(station.sent[1].values()) | set(station.sent[2].values()) == {None}
    assert set(station.sent[3]) == {PRESSURE, TEMPERATURE, HUMIDITY}


def test_a_weather_station_with_a_compass_tells_the_true_wind_in_both_sentences():
    station = Nmea0183()
    station.wind, station.sentences = "T", ("MWV", "MDA")
    for _ in range(100):
        assert rounded(decoded_nmea0183(station.unasked())) == station.sent[-1]
        assert WIND_SPEED in station.sent[-1]


def test_a_pms5003_tells_the_factorys_values_from_those_of_outdoor_air():
    frame = Pms5003(fixed={PM10: 60}).unasked()
    assert (words(frame[4:10], ">")[2], words(frame[10:16], ">")[2]) == (90, 60)


def test_an_sds011_sleeps_wakes_and_streams_when_told():
    device = Sds011()
    assert device.answer(SLEEP).hex() == "aac50601000058d938ab"
    assert device.answer(QUERY) == device.unasked() == b""
    assert device.answer(WAKE).hex() == "aac50601010058d939ab"
    assert device.answer(QUERY)[:2] == b"\xaa\xc0"
    assert device.answer(STREAM)[:2] == b"\xaa\xc5"
    assert device.period == 1.0
    assert device.answer(QUERY[:-2] + b"\x03\xab") == b""


# Faults as functions


@given(st.binary(min_size=1), st.sampled_from(sorted(FAULTS)), st.integers())
def test_every_fault_takes_every_frame_and_is_the_same_again_with_the_same_seed(frame, fault, seed):
    assert spoiled(fault, frame, b"?", Random(seed)) == spoiled(fault, frame, b"?", Random(seed))


@given(st.binary(min_size=3))
def test_a_flipped_bit_is_one_bit_and_neither_at_the_start_nor_at_the_end(frame: bytes):
    wrong = spoiled("flipped bit", frame, b"", Random(1))
    differing = [at for at in range(len(frame)) if frame[at] != wrong[at]]
    assert len(differing) == 1
    assert 1 <= differing[0] < len(frame) - 1
    assert frame[differing[0]] ^ wrong[differing[0]] == 1


def test_a_misspelt_fault_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'flipped bit'"):
        ScriptedPort(Sds011(), SDS011, faults=["", "fliped bit"])
    with pytest.raises(ValueError, match="did you mean 'silent'"):
        ScriptedPort(Sds011(), SDS011).fault = "silence"


# On a pty, seen by pyserial


def opened(line: SerialLine) -> serial.Serial:
    return serial.Serial(str(line.path), 9600, timeout=5, exclusive=True)


def on_pty(device: Device, use: Callable[[serial.Serial], Any], **settings: Any) -> Any:
    """Return what `use` of the open port returns, and the line after it."""

    def client(line: SerialLine) -> Any:
        with opened(line) as port:
            return use(port)

    async def run() -> Any:
        async with SerialLine(device, **settings) as line, asyncio.timeout(20):
            return await asyncio.to_thread(client, line), line

    return asyncio.run(run())


def asked(port: serial.Serial, size: int = 10) -> bytes:
    port.write(QUERY)
    return port.read(size)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_heard_on_a_pty(name: str):
    device = DEVICES[name](period=0.01)
    data, line = on_pty(device, lambda port: port.read(100))
    # pyserial flushes while it opens, and with that, on a busy machine, the first frames
    assert len(data) == 100
    assert data in b"".join(sent.data for sent in line.sent)
    assert list(device.sent) == line.good


def test_a_request_may_come_in_pieces_and_behind_noise():
    def use(port: serial.Serial) -> bytes:
        port.write(b"\x00\xaa" + QUERY[:7])
        port.write(QUERY[7:])
        return port.read(10)

    assert on_pty(Sds011(fixed={PM2_5: 0.9, PM10: 0.9}), use)[0].hex() == "aac00900090058d943ab"


def test_a_silent_answer_is_the_one_that_does_not_come():
    def use(port: serial.Serial) -> tuple[bytes, int]:
        port.write(QUERY)
        return asked(port), port.in_waiting

    (frame, more), line = on_pty(Sds011(), use, faults=["silent"])
    assert [sent.fault for sent in line.sent] == ["silent", ""]
    assert (frame, more) == (line.sent[1].data, 0)
    assert line.good == [line.device.sent[1]]


def test_half_a_frame_is_its_first_half():
    data, line = on_pty(Sds011(), lambda port: asked(port, 5) + asked(port), faults=["half frame"])
    assert data == line.sent[0].data + line.sent[1].data
    assert data[:2] == data[5:7] == b"\xaa\xc0"


def test_a_flipped_bit_breaks_the_checksum():
    frame, _ = on_pty(Sds011(), asked, fault="flipped bit")
    assert (sum(frame[2:8]) - frame[8]) & 0xFF in (1, 0xFF)


def test_a_late_answer_comes_whole_after_the_delay():
    began = time.monotonic()
    frame, line = on_pty(Sds011(), asked, fault="late", delay=0.2)
    assert time.monotonic() - began >= 0.2
    assert decoded_sds011(frame) == line.device.sent[0]


def test_babble_comes_without_being_asked_and_no_faster_than_a_line_can_carry():
    began = time.monotonic()
    data, line = on_pty(Sds011(), lambda port: port.read(2 * BABBLE_BYTES), fault="babble")
    assert len(set(data)) > 100
    assert time.monotonic() - began >= 0.5
    assert not line.good


def test_noise_comes_before_the_frame():
    data, line = on_pty(
        Sds011(), lambda port: asked(port, len(line_noise()) + 10), fault="noise before", seed=3
    )
    assert data.startswith(line_noise())
    assert decoded_sds011(data[-10:]) == line.device.sent[0]


def line_noise() -> bytes:
    return spoiled("noise before", b"!", b"", Random(3))[:-1]


def test_an_echo_comes_before_the_answer():
    data, line = on_pty(Sds011(), lambda port: asked(port, 29), fault="echo")
    assert data[:19] == QUERY
    assert decoded_sds011(data[19:]) == line.device.sent[0]


def test_an_unplugged_adapter_is_end_of_file_and_eio_and_its_path_is_gone():
    async def run() -> None:
        async with SerialLine(Sds011()) as line:
            before = line.tty
            with await asyncio.to_thread(opened, line) as port:
                line.unplug()
                assert os.read(port.fd, 10) == b""
                with pytest.raises(OSError, match=r"Errno 5\b"):
                    os.write(port.fd, b"?")
                assert not line.path.is_symlink()
                with pytest.raises(serial.SerialException):
                    opened(line)
                line.replug()
                assert line.tty != before
            with await asyncio.to_thread(opened, line) as port:
                assert len(await asyncio.to_thread(asked, port)) == 10

    asyncio.run(run())


def test_an_adapter_pulled_by_the_schedule_comes_back_by_itself():
    def client(line: SerialLine) -> bytes:
        with opened(line) as port, pytest.raises(serial.SerialException):
            asked(port)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(serial.SerialException), opened(line) as port:
                return asked(port)
        raise AssertionError("it did not come back")

    async def run() -> bytes:
        async with SerialLine(Sds011(), faults=["unplugged"], delay=0.1) as line:
            return await asyncio.to_thread(client, line)

    assert decoded_sds011(asyncio.run(run()))


def test_a_client_in_another_process_is_served():
    script = (
        "import serial, sys; port = serial.Serial(sys.argv[1], timeout=5, exclusive=True);"
        "port.write(bytes.fromhex(sys.argv[2])); print(port.read(10).hex())"
    )

    async def run() -> tuple[str, Values]:
        async with SerialLine(Sds011()) as line, asyncio.timeout(20):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", script, str(line.path), QUERY.hex()),
                stdout=subprocess.PIPE,
            )
            out, _ = await child.communicate()
            return out.decode(), line.good[0]

    text, values = asyncio.run(run())
    assert decoded_sds011(bytes.fromhex(text)) == values


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 the names are all we want


def test_a_hundred_opens_and_closes_and_ten_replugs_leave_no_descriptor():
    async def run() -> tuple[list[str], list[str]]:
        async with SerialLine(Sds011()) as line:
            await asyncio.to_thread(lambda: None)
            before = descriptors()
            for count in range(100):
                with opened(line) as port:
                    assert len(await asyncio.to_thread(asked, port)) == 10
                if count % 10 == 0:
                    line.unplug()
                    line.replug()
            return before, descriptors()

    outside = descriptors()
    before, after = asyncio.run(run())
    assert len(before) == len(after)
    assert descriptors() == outside


def test_what_is_said_while_no_client_listens_is_never_heard():
    async def run() -> None:
        async with SerialLine(Maxbotix(period=0.001)) as line:
            with await asyncio.to_thread(opened, line) as port:
                await asyncio.to_thread(port.read, 6)
            assert line.clients == 0
            count = line.device.measured
            await asyncio.sleep(0.05)  # fifty periods
            assert line.device.measured == count
            with await asyncio.to_thread(opened, line) as port:
                first = await asyncio.to_thread(port.read, 6)
            # Not always the very first: pyserial discards what comes while it opens.
            assert first in [sent.data for sent in itertools.islice(line.sent, count, None)]

    asyncio.run(run())


def test_a_client_that_does_not_read_loses_bytes_and_stops_nobody():
    async def run() -> SerialLine:
        async with SerialLine(Pms5003(period=0.0001)) as line, asyncio.timeout(20):
            lost = asyncio.Event()
            line.on_sent = lambda sent: lost.set() if sent.fault == "lost" else None
            with await asyncio.to_thread(opened, line):
                await lost.wait()
            return line

    line = asyncio.run(run())
    assert len(line.good) < line.device.measured


def test_a_link_of_a_killed_run_is_replaced_and_nothing_else_is(tmp_path: Path):
    async def run(path: Path) -> None:
        async with SerialLine(Sds011(), path) as line:
            assert str(line.path.resolve()) == line.tty

    path = tmp_path / "by-id" / "usb-sim"
    path.parent.mkdir()
    path.symlink_to(tmp_path / "gone")
    asyncio.run(run(path))
    assert not path.is_symlink()
    path.touch()
    with pytest.raises(FileExistsError):
        asyncio.run(run(path))
    assert path.is_file()


# In memory, with a clock that jumps


def jumping(main: Any) -> Any:
    loop = looptime.patch_event_loop(asyncio.new_event_loop(), start=0)
    with contextlib.closing(loop):
        return loop.run_until_complete(main)


async def polled(port: ScriptedPort) -> bytes | str:
    try:
        async with asyncio.timeout(1):
            return await port.request(QUERY)
    except TimeoutError:
        return "no reply"
    except PortError:
        return "no port"


def test_a_day_of_polls_gives_every_value_but_those_a_fault_met():
    schedule = ["", "", "silent", "half frame", "", "late", "noise before", "echo", "flipped bit"]

    async def day() -> ScriptedPort:
        port = ScriptedPort(Sds011(), SDS011, faults=itertools.cycle(schedule), delay=30)
        for count in range(1440):
            frame = await polled(port)
            fault = schedule[count % len(schedule)]
            if isinstance(frame, bytes) and fault != "flipped bit":
                assert decoded_sds011(frame) == port.device.sent[-1], fault
            else:
                assert fault in ("silent", "half frame", "late", "flipped bit")
            await asyncio.sleep(60)
        return port

    assert len(jumping(day()).good) == 480


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", DEVICES)
def test_every_fault_on_every_device_ends_with_good_frames_again(name: str, fault: str):
    async def run() -> None:
        port = ScriptedPort(DEVICES[name](period=1.0), FRAMES[name], fault=fault, delay=5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await port.opened()
                await asyncio.sleep(60)
        port.fault = ""
        await asyncio.sleep(30)
        before = len(port.good)
        async with asyncio.timeout(60):
            while len(port.good) < before + 4:
                last = await port.frame()
        sought = [sent.data for sent in port.sent]
        assert last in sought[-10:]

    jumping(run())


def test_an_unplugged_port_in_memory_is_waited_for_and_refuses_the_rest():
    async def run() -> None:
        port = ScriptedPort(Sds011(), SDS011, faults=["", "unplugged"], delay=100)
        assert len(await port.request(QUERY)) == 10
        with pytest.raises(PortError):
            await port.request(QUERY)
        with pytest.raises(PortError):
            await port.frame()
        await port.opened()
        assert asyncio.get_running_loop().time() == 100
        assert len(await port.request(QUERY)) == 10

    jumping(run())


def test_a_good_frame_swallowed_by_half_of_another_is_found_when_that_is_given_back():
    async def run() -> None:
        port = ScriptedPort(Sds011(period=1.0), SDS011, faults=["half frame"])
        wrong = await port.frame()
        port.reject()
        half, whole = (sent.data for sent in port.sent)
        assert wrong == (half + whole)[:10]
        assert await port.frame() == whole

    jumping(run())


# From a shell


def test_without_a_command_everything_is_listed(capsys: pytest.CaptureFixture[str]):
    command.main([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*DEVICES, *FAULTS, *command.benches()))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["seral"], "there is no command 'seral'; did you mean 'serial'?"),
        (["serial", "sds01"], "there is no device 'sds01'; did you mean 'sds011'?"),
        (["serial", "sds011", "--fault", "sillent"], "did you mean 'silent'?"),
        (["bench", "nonesuch"], "there is no bench 'nonesuch'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(arguments, hint, capsys):
    with contextlib.suppress(SystemExit):
        assert command.main(arguments) == 2
    assert hint in capsys.readouterr().err


def test_a_device_runs_till_it_is_interrupted_and_takes_its_path_along(tmp_path: Path):
    arguments = ["serial", "sds011", "--path", str(tmp_path / "sds011"), "--verbose"]
    with subprocess.Popen(
        [sys.executable, "-m", "hil", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout
            for printed in child.stdout:
                if "Ctrl-C" in printed:
                    break
            with serial.Serial(str(tmp_path / "sds011"), timeout=5) as port:
                assert len(asked(port)) == 10
            assert "pm2_5" in child.stdout.readline()
            child.send_signal(signal.SIGINT)
            assert child.wait(5) == 0
        finally:
            child.kill()
    assert not (tmp_path / "sds011").is_symlink()
