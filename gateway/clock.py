"""Wall time, boot time, the boot's id, and how far the wall clock can be trusted.

A Raspberry Pi has no battery-backed clock: after a power cut wall time starts where systemd last
left it, earlier than readings already stored. So every instant is taken on both clocks, and whether
wall time is synchronised is asked of the kernel, never guessed from the year.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from gateway.reading import ClockState, Instant

SYNCHRONISED_BELOW_US = 16_000_000
"""The kernel's bound on its own error, in µs, at which it gives up (`NTP_PHASE_LIMIT`, 16 s)."""

_STA_PPSSIGNAL = 0x0100


class _Timex(ctypes.Structure):
    # struct timex of adjtimex(2); only maxerror and status are read
    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )
    maxerror: int
    status: int


def kernel_clock() -> tuple[int, bool]:
    """Return the kernel's bound on the error of wall time in µs, and whether a PPS feeds it.

    Source: adjtimex(2). Where the call is not allowed, the error is unbounded.
    """
    timex = _Timex()
    if _libc.adjtimex(ctypes.byref(timex)) < 0:
        return SYNCHRONISED_BELOW_US, False
    return timex.maxerror, bool(timex.status & _STA_PPSSIGNAL)


_libc = ctypes.CDLL(None, use_errno=True)


def set_from_rtc(told: Path = Path("/sys/class/rtc/rtc0/hctosys")) -> bool:
    """Whether the kernel took its first wall time from a battery-backed clock."""
    try:
        return told.read_text().strip() == "1"
    except OSError:
        return False


def boot_id() -> int:
    """Return the first four bytes of the kernel's boot id, as a number (`b` of a batch)."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text()[:8], 16)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Tells the time of a reading. Its sources are arguments, so that tests can turn them."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_ns: Callable[[], int] = _boot_ns,
        kernel: Callable[[], tuple[int, bool]] = kernel_clock,
        boot: int | None = None,
        rtc: Callable[[], bool] = set_from_rtc,
    ) -> None:
        self.boot = boot_id() if boot is None else boot
        self._wall_ns, self._boot_ns, self._kernel = wall_ns, boot_ns, kernel
        self._unsynced = ClockState.HELD if rtc() else ClockState.NEVER_SET

    def now(self) -> Instant:
        """Return this instant on both clocks, with the state of the wall clock."""
        return Instant(self._wall_ns() // 1_000_000, self._boot_ns() // 1_000_000, self.state())

    def state(self) -> ClockState:
        """Return how far wall time can be trusted now."""
        error_us, pps = self._kernel()
        if error_us >= SYNCHRONISED_BELOW_US:
            return self._unsynced
        self._unsynced = ClockState.HELD
        return ClockState.GNSS if pps else ClockState.SYNCED

    def hold_over(self) -> None:
        """Take it that wall time was set earlier in this boot."""
        self._unsynced = ClockState.HELD

    def error_ms(self) -> int:
        """Return the kernel's bound on the error of wall time."""
        return self._kernel()[0] // 1000
