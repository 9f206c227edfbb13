import asyncio
import contextlib
import fcntl
import gc
import itertools
import os
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import looptime
import pytest
import serial

from drivers import pms5003, sds011
from gateway.driver import BadChecksum, PortError, SerialDriver
from gateway.serialport import SerialPort
from gateway.settings import PortSettings
from hil.devices import Pms5003, Sds011
from hil.serialline import SerialLine

QUERY = sds011.Driver.request
FRAME = bytes.fromhex("aac00900090058d943ab")
TIOCGEXCL = 0x80045440


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    """A bare pty that nobody answers on: its master, and the name of its slave."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    name = os.ttyname(slave)
    os.close(slave)
    yield master, name
    with contextlib.suppress(OSError):
        os.close(master)


def port_at(path: object, threads: Executor, **settings: Any) -> SerialPort:
    return SerialPort(PortSettings(path=Path(str(path)), **settings), sds011.Driver(), threads)


def run(main: Coroutine[Any, Any, None], within: float = 20) -> None:
    asyncio.run(asyncio.wait_for(main, within))


async def until(holds: Callable[[], object], within: float = 5) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def why_not_open(port: SerialPort, within: float = 0.3) -> str:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(port.opened(), within)
    return port.why


async def decoded(port: SerialPort, driver: SerialDriver) -> Any:
    frame = await port.frame()
    while True:
        try:
            return driver.decode(frame)
        except BadChecksum:
            port.reject()
            frame = await port.frame()


# Opening


def test_a_missing_path_is_named_and_opens_within_two_seconds_of_appearing(threads, tmp_path):
    async def main() -> None:
        port = port_at(tmp_path / "tty", threads)
        opening = asyncio.create_task(port.opened())
        await until(lambda: port.why)
        assert port.why == f"{port.path} is not there: is the adapter plugged in?"
        async with SerialLine(Sds011(), port.path):
            await asyncio.wait_for(opening, 2)
            assert (port.why, port.counts.opens) == ("", 1)

    run(main())


def test_a_path_that_cannot_even_be_looked_for_is_as_good_as_missing(threads):
    async def main() -> None:
        assert "is not there" in await why_not_open(port_at("/dev/" + "x" * 300, threads))

    run(main())


@pytest.mark.parametrize("path", ["/dev/null", "/dev", __file__])
def test_what_is_no_serial_port_is_refused_with_a_reason_and_tried_again(path, threads):
    async def main() -> None:
        port = port_at(path, threads)
        assert f"{path} cannot be opened: " in await why_not_open(port)
        assert port.counts.opens == 0

    run(main())


def test_a_port_that_another_holds_says_so_and_opens_when_it_is_free(threads, pty):
    async def main() -> None:
        port = port_at(pty[1], threads)
        with serial.Serial(pty[1], exclusive=True):
            assert f"another program holds it: sudo fuser -v {pty[1]}" in await why_not_open(port)
        await asyncio.wait_for(port.opened(), 3)
        assert port.why == ""

    run(main())


def test_pauses_between_attempts_double_to_fifteen_seconds_and_start_afresh(threads, pty):
    async def main() -> None:
        loop, tries = asyncio.get_running_loop(), Counting(threads)
        port = port_at("/dev/null", tries)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(port.opened(), 80)
        times = [round(at - tries.at[0]) for at in tries.at]
        assert [after - before for before, after in itertools.pairwise(times)] == [
            *(1, 2, 4, 8),
            *[15] * (len(times) - 5),
        ]
        assert len(times) > 8, loop.time()

    jumping(main())


class Counting(Executor):
    """Notes when something was to be run, by the loop's clock."""

    def __init__(self, pool: Executor) -> None:
        self.pool, self.at = pool, []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.at.append(asyncio.get_running_loop().time())
        return self.pool.submit(work, *args, **kwargs)


def jumping(main: Coroutine[Any, Any, None]) -> None:
    loop = looptime.new_event_loop(start=0)
    with contextlib.closing(loop):
        loop.run_until_complete(main)


class Stuck(Executor):
    """Threads that hang until they are let go, as open(2) does on a broken adapter."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append((Future(), lambda: work(*args, **kwargs)))
        return self.jobs[-1][0]

    def let_go(self) -> None:
        for future, work in self.jobs:
            future.set_result(work())


def test_an_open_that_hangs_is_begun_once_and_taken_up_when_it_succeeds(pty):
    async def main() -> None:
        stuck = Stuck()
        port = port_at(pty[1], stuck)
        for _ in range(3):
            assert await why_not_open(port, 0.05) == ""
        assert len(stuck.jobs) == 1
        stuck.let_go()
        await port.opened()
        assert port.counts.opens == 1
        port.close()

    run(main())


def test_baud_rate_and_stop_bits_are_the_settings_or_else_the_drivers(threads, pty):
    async def main() -> None:
        for settings, speed, two in (
            ({}, termios.B9600, 0),
            ({"baudrate": 115200, "stopbits": 2}, termios.B115200, termios.CSTOPB),
        ):
            port = port_at(pty[1], threads, **settings)
            await port.opened()
            flags = termios.tcgetattr(pty[0])
            assert (flags[4], flags[5], flags[2] & termios.CSTOPB) == (speed, speed, two)
            port.close()

    run(main())


def test_an_odd_baud_rate_and_modem_lines_that_a_pty_lacks_do_not_keep_it_shut(threads, pty):
    async def main() -> None:
        port = port_at(pty[1], threads, baudrate=12345, dtr=False, rts=True, parity="E")
        await asyncio.wait_for(port.opened(), 2)
        port.close()

    run(main())


def test_an_open_port_is_exclusive_until_it_is_closed(threads, pty):
    def exclusive() -> bool:
        with Path(pty[1]).open("rb", buffering=0) as file:  # root may
            answer = fcntl.ioctl(file, TIOCGEXCL, struct.pack("i", 0))
            return struct.unpack("i", answer) == (1,)

    async def main() -> None:
        port = port_at(pty[1], threads)
        await port.opened()
        assert exclusive()
        with pytest.raises(serial.SerialException):
            serial.Serial(pty[1], exclusive=True)
        port.close()
        assert not exclusive()
        serial.Serial(pty[1], exclusive=True).close()

    run(main())


# Losing it


def test_a_port_pulled_while_idle_is_lost_at_once_and_back_within_two_seconds(threads):
    async def main() -> None:
        async with SerialLine(Sds011()) as line:
            port = port_at(line.path, threads)
            await port.opened()
            line.unplug()
            await until(lambda: port.why, 0.5)
            assert "was the adapter pulled" in port.why
            line.replug()
            await asyncio.wait_for(port.opened(), 2.5)
            assert sds011.Driver().decode(await port.request(QUERY)) == line.good[-1]

    run(main())


def test_a_port_pulled_while_an_answer_is_awaited_says_so_at_once(threads):
    async def main() -> None:
        async with SerialLine(Sds011(), fault="silent") as line:
            port = port_at(line.path, threads)
            await port.opened()
            asked = asyncio.create_task(port.request(QUERY))
            await until(lambda: line.sent)
            line.unplug()
            with pytest.raises(PortError, match="was the adapter pulled"):
                await asyncio.wait_for(asked, 1)
            with pytest.raises(PortError, match="was lost"):
                await port.request(QUERY)

    run(main())


def test_a_pulled_port_costs_no_processor_time(threads):
    async def main() -> None:
        async with SerialLine(Sds011()) as line:
            port = port_at(line.path, threads)
            await port.opened()
            line.unplug()
            await until(lambda: port.why)
            used = time.process_time()
            await why_not_open(port, 0.5)
            assert time.process_time() - used < 0.05

    run(main())


def test_a_hundred_replugs_leave_neither_descriptors_nor_tasks_nor_threads(threads):
    def left() -> tuple[int, int, int]:
        gc.collect()  # what other tests left
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, len(asyncio.all_tasks()), threading.active_count()

    async def main() -> None:
        async with SerialLine(Sds011()) as line:
            port = port_at(line.path, threads)
            for number in range(103):
                await port.opened()
                await port.request(QUERY)
                if number == 2:
                    before = left()
                line.unplug()
                with pytest.raises(PortError):
                    await port.frame()
                line.replug()
            await port.opened()
            assert left() == before
            assert (port.counts.opens, port.counts.frames) == (104, 103)
            port.close()

    jumping(main())


# Bytes


def test_bytes_and_frames_are_counted(threads):
    async def main() -> None:
        async with SerialLine(Sds011(), fault="noise before") as line:
            port = port_at(line.path, threads)
            await port.opened()
            await port.request(QUERY)
            await port.request(QUERY)
            assert (port.counts.frames, port.counts.bytes_out) == (2, 2 * len(QUERY))
            assert port.counts.bytes_in == port.heard == sum(len(s.data) for s in line.sent)

    run(main())


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(threads):
    async def main() -> None:
        async with SerialLine(Sds011(), faults=["late"], delay=0.1) as line:
            port = port_at(line.path, threads)
            await port.opened()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(port.request(QUERY), 0.02)
            await until(lambda: port.heard == 10)
            assert await port.request(QUERY) == line.sent[1].data != line.sent[0].data

    run(main())


def test_input_that_the_loop_has_not_seen_yet_is_discarded_too_and_is_no_hang_up(threads, pty):
    async def main() -> None:
        port = port_at(pty[1], threads)
        await port.opened()
        os.write(pty[0], FRAME)
        time.sleep(0.05)  # noqa: ASYNC251  # the kernel has it, the loop has not looked
        await asyncio.sleep(0)  # the reader's call and this task are due in the same round
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await port.request(QUERY)
        assert (port.why, port.heard) == ("", len(FRAME))
        port.close()

    run(main())


def test_half_a_frame_costs_only_itself(threads):
    async def main() -> None:
        faults = ["", "half frame", "", "half frame", "half frame", "", ""]
        async with SerialLine(Pms5003(period=0.02), faults=faults) as line:
            driver = pms5003.Driver()
            port = SerialPort(PortSettings(path=line.path), driver, threads)
            await port.opened()
            assert [await decoded(port, driver) for _ in range(6)] == line.good[:6]
            port.close()

    run(main())


def test_half_an_answer_does_not_spoil_the_next(threads):
    async def main() -> None:
        async with SerialLine(Sds011(), faults=["half frame"]) as line:
            port = port_at(line.path, threads)
            await port.opened()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(port.request(QUERY), 0.1)
            assert sds011.Driver().decode(await port.request(QUERY)) == line.good[0]

    run(main())


def test_a_full_transmit_buffer_holds_up_the_writer_and_not_the_loop(threads, pty):
    async def main() -> None:
        port = port_at(pty[1], threads)
        await port.opened()
        writing = asyncio.create_task(port.write(bytes(200_000)))
        await until(lambda: port.counts.bytes_out)
        used = time.process_time()
        assert not (await asyncio.wait({writing}, timeout=0.2))[0]
        assert time.process_time() - used < 0.05
        taken = 0
        while taken < 200_000:
            with contextlib.suppress(BlockingIOError):
                taken += len(os.read(pty[0], 65536))
            await asyncio.sleep(0)
        await asyncio.wait_for(writing, 1)
        assert port.counts.bytes_out == 200_000
        port.close()

    run(main())


def test_a_port_pulled_with_a_full_transmit_buffer_is_lost_and_leaves_nothing_behind(threads, pty):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        port = port_at(pty[1], threads)
        await port.opened()
        writing = asyncio.create_task(port.write(bytes(200_000)))
        await until(lambda: port.counts.bytes_out)
        os.close(pty[0])
        with pytest.raises(PortError, match="was lost"):
            await asyncio.wait_for(writing, 1)
        one, other = os.pipe()  # takes the descriptors that have become free
        loop.add_reader(one, lambda: None)
        assert loop.remove_reader(one)
        os.close(one)
        os.close(other)

    run(main())
