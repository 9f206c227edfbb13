"""A clock that is wrong, set and set back: nothing is skipped, doubled or held up."""

import asyncio
import ctypes
import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jumping
import msgpack
import pytest

from drivers import sds011
from gateway.buffer import Buffer
from gateway.clock import SYNCHRONISED_BELOW_US, Clock, kernel_clock, set_from_rtc
from gateway.config import Config, load
from gateway.disk import BLOCK, LOCK, Disk
from gateway.holdover import HoldOver
from gateway.poller import SerialPoller
from gateway.rates import RATE_AFTER, Meter
from gateway.reading import ClockState, Reading
from gateway.service import Service
from gateway.settings import BufferSettings
from gateway.traffic import Traffic
from gateway.wire import Batch, decode
from hil.broker import Broker, Received
from hil.devices import Sds011
from hil.scripted import ScriptedPort

MINUTE, HOUR, YEAR = 60, 3600, 365 * 86_400
ADRIFT, SYNCED = (SYNCHRONISED_BELOW_US, False), (4000, False)
WIRE = (Path(__file__).parent.parent / "gateway/WIRE.md").read_text(encoding="utf-8")


class Machine:
    """A computer whose wall clock the test sets; it booted `boot_s` seconds of the loop ago."""

    def __init__(self, wall_s: float, kernel: tuple[int, bool], boot: int) -> None:
        self.booted, self.offset, self.kernel = jumping.now(), wall_s, kernel
        self.clock = Clock(
            wall_ns=lambda: round((self.since_boot + self.offset) * 1e9),
            boot_ns=lambda: round(self.since_boot * 1e9),
            kernel=lambda: self.kernel,
            boot=boot,
        )

    @property
    def since_boot(self) -> float:
        return jumping.now() - self.booted


class Run:
    """One run of poller and buffer on a machine: a reading of two quantities a minute."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        self.taken: list[Reading] = []
        settings = BufferSettings(flush_interval=10, seal_interval=5 * MINUTE, keep_free=0)
        clock = machine.clock
        self.buffer = Buffer(Disk(directory), settings, "trd-0042", clock.boot)
        driver = sds011.Driver()
        port = ScriptedPort(Sds011(seed=1), driver.frame, seed=1)
        how = {"interval": MINUTE, "clock": clock, "sink": self.sink, "port": port}
        self.poller = SerialPoller(name="air", driver=driver, **how)

    def sink(self, reading: Reading) -> None:
        self.taken.append(reading)
        self.buffer.append(reading)

    async def keep(self) -> None:
        while True:
            self.buffer.tick(jumping.now())
            await asyncio.sleep(1)

    async def go_on(self, machine: Machine, *steps: float) -> None:
        """Run for ten minutes, and for ten more for each step of the wall clock."""

        async def step() -> None:
            await asyncio.sleep(8 * MINUTE)  # in the midst of a batch
            for seconds in steps:
                machine.offset += seconds
                await asyncio.sleep(10 * MINUTE)

        lasting = 10 * MINUTE * (len(steps) + 1) - 1
        await jumping.for_seconds(lasting, self.poller.run(1), self.keep(), step())
        self.buffer.close()

    @property
    def batches(self) -> list[Batch]:
        return [decode(self.buffer.payload(held) or b"") for held in self.buffer.waiting()]


def rows(readings: list[Reading]) -> Counter[tuple[object, ...]]:
    return Counter(
        (r.quantity.name, r.instant.wall_ms, r.instant.boot_ms, r.instant.clock, r.value)
        for r in readings
    )


@pytest.mark.parametrize("steps", [(), (3 * YEAR,), (-HOUR,), (3 * YEAR, -HOUR, -3 * YEAR)])
def test_a_start_before_the_last_stored_row_and_steps_lose_double_and_delay_nothing(
    steps, tmp_path
):
    async def main() -> None:
        first = Machine(jumping.START_MS / 1000, SYNCED, boot=1)
        before = Run(tmp_path, first)
        await before.go_on(first)
        second = Machine(jumping.START_MS / 1000 - 2 * HOUR, ADRIFT, boot=2)
        after = Run(tmp_path, second)
        await after.go_on(second, *steps)
        for run in (before, after):
            beats = sorted({r.instant.boot_ms for r in run.taken})
            assert {later - earlier for earlier, later in pairwise(beats)} == {60_000}
            assert len(beats) == (10 if run is before else 10 * (len(steps) + 1))
        batches = after.batches
        assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
        assert rows([r for b in batches for r in b.readings]) == rows(before.taken + after.taken)
        for batch in batches:
            offsets = {r.instant.wall_ms - r.instant.boot_ms for r in batch.readings}
            assert max(offsets) - min(offsets) <= 100
        # One each five minutes, and one more for each step
        assert len(batches) <= 2 + 2 * (len(steps) + 1) + len(steps)

    jumping.run(main())


def test_a_change_of_the_clocks_state_begins_a_batch(tmp_path):
    async def main() -> None:
        machine = Machine(jumping.START_MS / 1000, ADRIFT, boot=1)
        run = Run(tmp_path, machine)

        async def synchronise() -> None:
            await asyncio.sleep(130)
            machine.kernel = SYNCED  # it was right, by chance

        await jumping.for_seconds(290, run.poller.run(1), run.keep(), synchronise())
        run.buffer.close()
        states = [{r.instant.clock for r in batch.readings} for batch in run.batches]
        assert states == [{machine_state(machine)}, {ClockState.SYNCED}]

    jumping.run(main())


def machine_state(machine: Machine) -> ClockState:
    """What a clock says that was never synchronised on the computer that runs the test."""
    return Clock(kernel=lambda: ADRIFT, boot=1).state()


def test_whether_it_is_synchronised_is_the_kernels_word_and_held_over_once_it_was():
    kernel = ADRIFT
    clock = Clock(kernel=lambda: kernel, boot=1)
    unset = clock.state()
    assert unset in (ClockState.NEVER_SET, ClockState.HELD)
    kernel = SYNCED
    assert clock.state() == ClockState.SYNCED
    kernel = (SYNCHRONISED_BELOW_US - 1, True)
    assert clock.state() == ClockState.GNSS
    kernel = ADRIFT
    assert clock.state() == ClockState.HELD


@pytest.mark.parametrize(
    ("told", "state"),
    [("1\n", ClockState.HELD), ("0\n", ClockState.NEVER_SET), (None, ClockState.NEVER_SET)],
)
def test_a_clock_that_a_battery_kept_is_held_over_from_the_start(tmp_path, told, state):
    if told:
        (tmp_path / "hctosys").write_text(told)
    clock = Clock(kernel=lambda: ADRIFT, boot=1, rtc=lambda: set_from_rtc(tmp_path / "hctosys"))
    assert clock.state() == state


def test_the_kernel_tells_its_error():
    error_us, pps = kernel_clock()
    assert 0 <= error_us <= SYNCHRONISED_BELOW_US
    assert isinstance(pps, bool)


@pytest.mark.parametrize(("status", "pps"), [(0x0100, True), (~0x0100, False)])
def test_gnss_is_where_the_kernel_sees_the_pulse_of_a_receiver(monkeypatch, status, pps):
    def adjtimex(timex):  # as sys/timex.h has it, there STA_PPSSIGNAL is 0x0100
        seen = struct.pack("@Illlli", 0, 0, 0, 4000, 0, status)
        ctypes.memmove(timex, seen, len(seen))
        return 0

    monkeypatch.setattr("gateway.clock._libc", SimpleNamespace(adjtimex=adjtimex))
    assert kernel_clock() == (4000, pps)
    assert Clock(boot=1).state() == (3 if pps else 2)


def suspended(seconds: int) -> list[str]:
    """Return how to run a command on a box that has slept for so long; root may."""
    return ["unshare", "--time", "--boottime", str(seconds)]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*suspended(1), "true"], check=False).returncode,
    reason="no time namespace here: that takes root, and a kernel that has them",
)
def test_time_since_boot_goes_on_while_the_box_sleeps():
    asked = "from gateway.clock import Clock; print(Clock().now().boot_ms)"
    told = subprocess.check_output([*suspended(10**6), sys.executable, "-c", asked], text=True)
    assert int(told) >= 10**9


def test_the_boot_is_named_by_the_first_four_bytes_of_the_kernels_id_of_it():
    kernel = uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    assert Clock().boot == int.from_bytes(kernel.bytes[:4], "big")


def test_a_kernel_that_may_not_be_asked_is_taken_for_one_that_is_adrift(monkeypatch):
    monkeypatch.setattr("gateway.clock._libc", SimpleNamespace(adjtimex=lambda _: -1))
    assert kernel_clock() == ADRIFT


def maps(received: list[Received]) -> list[dict[str, object]]:
    payloads = [m.payload for m in received if "/batch/" in m.topic]
    found = [zlib.decompress(p) if p[0] == 0x78 else p for p in payloads]
    return list({batch["s"]: batch for batch in map(msgpack.unpackb, found)}.values())


def retime(batches: list[dict[str, object]]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", WIRE, re.DOTALL)
    names: dict[str, object] = {}
    exec(next(block for block in blocks if "def retime" in block), names)
    names["retime"](batches)


def configured(directory: Path, broker: Broker, seal_interval: str) -> Config:
    """Return a configuration with one sensor, the box itself."""
    file = directory / "config.toml"
    file.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{directory}/state"\n'
        f'[uplink]\nurl = "{broker.url}"\n[buffer]\nseal_interval = "{seal_interval}"\n'
        '[sensors.box]\ndriver = "host"\ninterval = "100ms"\n'
    )
    return load(file)


def test_a_receiver_re_times_what_the_daemon_took_before_its_clock_was_set(tmp_path):
    async def scenario() -> None:
        wrong, kernel = -5 * YEAR, ADRIFT
        clock = Clock(
            wall_ns=lambda: time.time_ns() + wrong * 10**9, kernel=lambda: kernel, boot=487347626
        )
        clock._unsynced = ClockState.NEVER_SET
        async with Broker() as broker:
            service = Service(configured(tmp_path, broker, "300ms"), clock)
            serving = asyncio.create_task(service.run())
            for step, state in ((0, SYNCED), (-HOUR, ADRIFT), (3 * YEAR, ADRIFT), (0, SYNCED)):
                have = len(maps(broker.received))
                await broker.wait_for(lambda seen, n=have + 3: len(maps(seen)) >= n)
                wrong, kernel = step, state
            have = len(maps(broker.received))
            await broker.wait_for(lambda seen: len(maps(seen)) >= have + 3)
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
            batches = sorted(maps(broker.received), key=lambda batch: batch["s"])
        true = time.time_ns() // 10**6 - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**6
        assert {batch["c"] for batch in batches} == {0, 1, 2}
        errors = [batch["t"] - batch["u"] - true for batch in batches]
        assert min(errors) < -4 * YEAR * 1000
        assert max(errors) > 2 * YEAR * 1000
        retime(batches)
        assert max(abs(batch["t"] - batch["u"] - true) for batch in batches) <= 10
        assert [batch["s"] for batch in batches] == list(range(1, len(batches) + 1))

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def states(directory: Path, kernel: tuple[int, bool], boot: int) -> set[object]:
    """Return `c` of the batches of one run of the daemon, on a box without an RTC."""
    clock = Clock(kernel=lambda: kernel, boot=boot)
    clock._unsynced = ClockState.NEVER_SET
    async with Broker() as broker:
        service = Service(configured(directory, broker, "100ms"), clock)
        serving = asyncio.create_task(service.run())
        await broker.wait_for(maps)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
        service._disk.close(LOCK)  # as the end of its process does
        return {batch["c"] for batch in maps(broker.received)}


def test_a_clock_that_was_set_is_held_over_a_start_of_the_daemon_but_not_a_boot(tmp_path):
    for _ in range(2):
        assert asyncio.run(states(tmp_path, ADRIFT, boot=1)) == {ClockState.NEVER_SET}
    assert asyncio.run(states(tmp_path, SYNCED, boot=1)) == {ClockState.SYNCED}
    assert asyncio.run(states(tmp_path, ADRIFT, boot=1)) == {ClockState.HELD}
    assert asyncio.run(states(tmp_path, ADRIFT, boot=2)) == {ClockState.NEVER_SET}


@pytest.mark.parametrize("name", ["clock", "traffic", "rates"])
def test_a_pipe_in_place_of_a_note_holds_up_no_start(name, tmp_path):
    (tmp_path / "state").mkdir()
    os.mkfifo(tmp_path / "state" / name)
    assert asyncio.run(states(tmp_path, SYNCED, boot=1)) == {ClockState.SYNCED}


class WornDisk(Disk):
    """One that can neither read nor write while it is worn."""

    worn = True

    def read(self, name, offset=0, length=-1):
        self._fail()
        return super().read(name, offset, length)

    def write(self, name, offset, data):
        self._fail()
        super().write(name, offset, data)

    def _fail(self):
        if self.worn:
            raise OSError(errno.EIO, "Input/output error")


def without_rtc(kernel: tuple[int, bool]) -> Clock:
    return Clock(kernel=lambda: kernel, boot=1, rtc=lambda: False)


def test_a_note_that_cannot_be_read_tells_nothing_and_holds_up_no_start(tmp_path):
    HoldOver(without_rtc(SYNCED), Disk(tmp_path)).note()
    disk = WornDisk(tmp_path)
    for disk.worn, state in ((True, ClockState.NEVER_SET), (False, ClockState.HELD)):
        HoldOver(clock := without_rtc(ADRIFT), disk).recall()
        assert clock.state() == state


def test_a_note_that_cannot_be_written_is_once_that_can_be_and_then_no_more(tmp_path):
    hold_over = HoldOver(without_rtc(SYNCED), disk := WornDisk(tmp_path))
    for disk.worn, notes in ((True, []), (False, ["clock"]), (False, ["clock"])):
        hold_over.note()
        assert disk.names() == notes
    assert disk.written == BLOCK


def test_of_a_note_no_more_is_read_than_it_has(tmp_path):
    HoldOver(without_rtc(SYNCED), disk := Disk(tmp_path)).note()
    with (tmp_path / "clock").open("ab") as note:
        note.write(b"more")
    HoldOver(clock := without_rtc(ADRIFT), disk).recall()
    assert clock.state() == ClockState.HELD


def test_a_note_that_somebody_removes_is_not_taken_for_the_whole_directory(tmp_path):
    disk = Disk(tmp_path)
    disk.names()
    HoldOver(Clock(kernel=lambda: SYNCED), disk).note()
    Traffic().write(disk)
    (meter := Meter(disk)).note(0.0, 0, 0)
    meter.note(RATE_AFTER, 1, 1)
    for name in ("clock", "traffic", "rates"):
        (tmp_path / name).unlink()
    assert not disk.replaced()
