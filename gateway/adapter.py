"""One Bluetooth adapter, which scans for ever.

A scan is begun anew when BlueZ or the adapter went away under it, and when nothing at all has been
heard for 90 s. If that does not help the adapter is switched off and on, then bluetooth.service is
restarted, then it is said that the adapter needs a power cut; each of these once.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

from bleak import BleakScanner
from bleak.args.bluez import BlueZScannerArgs, OrPattern
from bleak.assigned_numbers import AdvertisementDataType
from bleak.backends.bluezdbus.manager import get_global_bluez_manager
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import BleakBluetoothNotAvailableError, BleakError
from dbus_fast import DBusError, Message

from gateway.bluez import (
    ADAPTER,
    BLUEZ,
    CALL,
    DENIED,
    NO_ANSWER,
    RETRY,
    STOP,
    Bluez,
    path_of,
    refusal,
    time_left,
    words,
)
from gateway.places import Places
from gateway.trouble import Trouble

SILENCE = 90.0
"""Seconds without any advertisement at all after which a scan is taken for dead."""
QUIET = 2.0
"""Seconds without any advertisement after which BlueZ is asked whether it still answers."""
IDLE = 1.0
"""Seconds that BlueZ may say it does not scan: it pauses for moments by itself."""
NO_SIGNAL = -127
"""What bleak gives for the signal where BlueZ has none: as of old data, when a scan has ended."""
OFF = 1.0
"""Seconds that an adapter stays off before it is switched on again."""

POWER_CUT = "the adapter needs a power cut, or there is nothing near"

FLAGS = (b"\x02", b"\x04", b"\x05", b"\x06", b"\x1a")
"""The usual flags of an advertisement: what a passive scan asks BlueZ for (CSS, part A, 1.3)."""

BLEAK_FAULTS = (BleakError, DBusError, OSError, EOFError, TimeoutError, AssertionError)
"""What calls of bleak end with; dbus-fast ends a connection whose socket is full by EOFError."""

Heard = Callable[["Adapter", BLEDevice, AdvertisementData], None]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Adapter:
    """One Bluetooth adapter, which scans for ever; `before` is awaited before each scan."""

    def __init__(
        self,
        name: str,
        bluez: Bluez,
        heard: Heard,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        passive: bool,
        silence: float,
        ask: Path | None,
    ) -> None:
        self.name = name
        self.places = Places()
        self._bluez, self._tell_heard, self._before = bluez, heard, before
        self._passive, self._silence, self._ask = passive, silence, ask
        self._trouble = Trouble(name)
        self._dark = False
        self._restarted = False
        self._heard = float("-inf")
        self._asked = float("-inf")
        """The loop's time when it was last known whether BlueZ answers."""
        self._doubtful: tuple[BLEDevice, AdvertisementData] | None = None
        """What came last, without a signal: heard, or old; the next call of `advertised` tells."""
        self.since = float("inf")
        """The loop's time from which on it has listened without a break."""
        self._breaks = 0

    @property
    def why(self) -> str:
        """Why nothing can be heard with it; empty while something can."""
        return self._trouble.why

    @property
    def known(self) -> bool:
        """Whether it has begun to scan, or why not is known."""
        return self._trouble.known

    @property
    def state(self) -> str:
        """The same in short, for the status: "ok", "silent" or "power cut needed"."""
        return self._trouble.state

    @property
    def repeats(self) -> bool:
        """Whether each advertisement is reported, even one that changes nothing, and it alone.

        With DuplicateData BlueZ begins with each anew (5.66, device_set_manufacturer_data);
        without, as for a passive scan, it keeps all entries for ever.
        """
        return not self._passive

    def unsure(self, within: float) -> bool:
        """Whether it has heard nothing at all for so long, and BlueZ was not asked since."""
        silent = self._heard < asyncio.get_running_loop().time() - within
        return silent and self._asked < self._heard

    @property
    def breaks(self) -> int:
        """How often something has happened that ends scans and connections."""
        return self._bluez.breaks(self.name)

    async def run(self) -> None:
        """Scan for ever."""
        await self._bluez.looked.wait()
        while True:
            try:
                await self._ready()
                async with self._scan():
                    silent = await self._over()
                if broke := self._bluez.broke(self.name):  # it may have passed by now
                    self._trouble.begins(broke)
                if silent:
                    await self._climb()
            except BLEAK_FAULTS as error:
                self._trouble.begins(self._bluez.why(self.name) or reason(self.name, error))
                await self._pause(RETRY)

    async def _ready(self) -> None:
        """Return when nothing is known to stand in the way of a scan."""
        if self._dark:
            await self._switch_on()
        while why := self._bluez.why(self.name):
            self._trouble.begins(why)
            await self._pause(RETRY)
            await self._bluez.look()

    # One scan

    @asynccontextmanager
    async def _scan(self) -> AsyncIterator[None]:
        self._breaks = self.breaks
        self._bluez.broke(self.name)
        scanner = await self._started()
        self._heard = asyncio.get_running_loop().time()
        self._scans()
        try:
            yield
        finally:
            await self._stop(scanner)

    async def _started(self) -> BleakScanner:
        if not self._passive:
            return await self._start("active", {"filters": {"DuplicateData": True}})
        kind = AdvertisementDataType.FLAGS
        try:
            return await self._start(
                "passive", {"or_patterns": [OrPattern(0, kind, flags) for flags in FLAGS]}
            )
        except BleakError as error:
            scanner = await self._start("active", {"filters": {"DuplicateData": True}})
            log.warning("%s: scans actively, for passively it cannot: %s", self.name, error)
            self._passive = False
            return scanner

    async def _start(
        self, mode: Literal["active", "passive"], how: BlueZScannerArgs
    ) -> BleakScanner:
        scanner = BleakScanner(
            self._detected, scanning_mode=mode, bluez={**how, "adapter": self.name}
        )
        try:
            async with self._bluez.starting:
                await bounded(self._listen(scanner), CALL)
        except BLEAK_FAULTS:
            with suppress(*BLEAK_FAULTS):
                await bounded(self._end(), STOP)
            raise
        return scanner

    async def _end(self) -> None:
        """End a scan that BlueZ has begun after it was given up: it would refuse every other."""
        bus, path = (await get_global_bluez_manager())._bus, path_of(self.name)
        if bus is not None:
            end = Message(destination=BLUEZ, path=path, interface=ADAPTER, member="StopDiscovery")
            await bus.call(end)

    async def _listen(self, scanner: BleakScanner) -> None:
        if self._before is not None:
            await self._before()
        await scanner.start()

    async def _stop(self, scanner: BleakScanner) -> None:
        with suppress(*BLEAK_FAULTS):  # it is gone already, or goes with its connection
            await bounded(scanner.stop(), CALL)

    def _detected(self, device: BLEDevice, data: AdvertisementData) -> None:
        self._doubtful = None
        if data.rssi == NO_SIGNAL:
            self._doubtful = device, data
        else:
            self._hears(device, data)

    def advertised(self, path: str) -> None:
        """Take what came last from the device at `path` for heard, though without a signal."""
        doubtful, self._doubtful = self._doubtful, None
        if doubtful and doubtful[0].details["path"] == path:
            self._hears(*doubtful)

    def _hears(self, device: BLEDevice, data: AdvertisementData) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self.why:
            self._trouble.hears()
            self._scans()
        self._tell_heard(self, device, data)

    def _scans(self) -> None:
        """Say so, and wake who waits for it, unless it is yet to be seen whether it hears."""
        self._trouble.passes()
        if not self.why:
            self.since = asyncio.get_running_loop().time()
            self._bluez.tell()

    async def _over(self) -> bool:
        """Return when the scan is dead; whether it was silence that showed it."""
        loop = asyncio.get_running_loop()
        idle = float("inf")
        while self.breaks == self._breaks:
            now = loop.time()
            idle = min(now, idle) if self._idle else float("inf")
            silent = self._heard + self._silence
            if now >= (dead := min(idle + IDLE, silent)):
                return dead == silent
            if now >= (ask := max(self._heard, self._asked) + QUIET):
                await self._ping()
            else:
                await self._pause(min(dead, ask) - now)
        return False

    async def _ping(self) -> None:
        """Say so while BlueZ is stuck; its scan is kept, for it may go on where it was."""
        heard = self._heard
        why = await self._bluez.stuck()
        self._asked = asyncio.get_running_loop().time()
        if self._heard > heard:
            return
        if why:
            self._trouble.begins(why)
            self._heard = self._asked  # the silence is not the adapter's
        elif self.why:
            self._scans()

    @property
    def _idle(self) -> bool:
        return self._bluez.idle(self.name) and not self._passive

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._bluez.change()

    # The ladder

    async def _climb(self) -> None:
        """Do what the next rung asks for, before the next scan."""
        rung = self._trouble.rung + 1
        silent = f"{self.name} has heard nothing at all for over {rung * self._silence:g} s"
        match rung:
            case 1:
                self._trouble.climbs(f"{silent}: scans anew")
            case 2:
                self._trouble.climbs(f"{silent}: is switched off and on")
                await self._power_cycle()
            case 3:
                self._trouble.climbs(f"{silent}: bluetooth.service is to be restarted")
                self._restarted = self._restart()
            case 4:
                restart = ", and a restart of BlueZ" * self._restarted
                tried = f"a new scan, off and on{restart} did not help"
                self._trouble.climbs(f"{silent}: {tried}: {POWER_CUT}")

    async def _power_cycle(self) -> None:
        self._dark = True
        try:
            await self._bluez.power(self.name, on=False)
            await asyncio.sleep(OFF)
        finally:  # not left off by a stop
            await self._switch_on()

    async def _switch_on(self) -> None:
        await self._bluez.power(self.name, on=True)
        self._dark = False

    def _restart(self) -> bool:
        """Ask for a restart of BlueZ; False where nobody can be asked."""
        if self._ask is None:
            log.warning("nobody here restarts bluetooth.service: see systemd/README.md")
            return False
        try:
            self._ask.touch()
        except OSError as error:
            log.warning("bluetooth.service cannot be restarted by %s: %s", self._ask, error)
            return False
        return True


async def bounded(call: Coroutine[object, object, _T], seconds: float) -> _T:
    """Return what a call of bleak does; raise TimeoutError if it takes longer.

    Given up, by time or because we stop, bleak asks BlueZ to end what it had begun. Where BlueZ
    does not answer that either it is given up again: hence a task of its own.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=time_left(seconds))
    finally:
        late = not task.done()
        for _ in range(2):
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=STOP)
    if late or task.cancelled():
        with suppress(*BLEAK_FAULTS, asyncio.CancelledError, asyncio.InvalidStateError):
            task.result()
        raise TimeoutError
    return task.result()


def reason(adapter: str, error: Exception) -> str:
    """Return what one of BLEAK_FAULTS means for an adapter, with what mends it."""
    if isinstance(error, TimeoutError):
        return str(error) or NO_ANSWER
    if isinstance(error, OSError | EOFError):
        return f"the connection to BlueZ was lost: {words(error)}: sudo systemctl restart bluetooth"
    if isinstance(error, BleakBluetoothNotAvailableError):
        remedy = "sudo rfkill unblock bluetooth; bluetoothctl power on"
        return f"{adapter}: {error.args[0]}: {remedy}"
    why = refusal(error)
    return why if why == DENIED else f"{adapter} cannot scan: {why}"
