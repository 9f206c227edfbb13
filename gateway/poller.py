"""Polls one sensor for ever: rhythm, deadline, judgement, outcome counts.

Drivers know nothing of time and failure; all of that is here, once. Each poll ends in one named
outcome.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from gateway.clock import Clock
from gateway.driver import (
    DRIVER_FAULTS,
    BadChecksum,
    BadFrame,
    Driver,
    GattClient,
    GattDriver,
    LocalDriver,
    NoAdapter,
    NoReply,
    Port,
    PortError,
    SensorError,
    SerialDriver,
    outcome_of,
    said,
)
from gateway.judge import IMPLAUSIBLE, NOT_A_NUMBER, judge
from gateway.ration import Outages
from gateway.reading import Quantity, Reading, Values

OK = "ok"
MISSED = "missed"
"""The outcome of a turn that fell due while one before it lasted."""
DRIVER_ERROR = "driver error"

OPENING = 5.0
"""Seconds after which a port that does not open is counted; it is still waited for."""

log = logging.getLogger(__name__)


class Way(Protocol):
    """A way to a sensor, which may be closed."""

    @property
    def why(self) -> str:
        """Why it is not open; empty while it is."""

    async def opened(self) -> None:
        """Return when it is open."""


class Link(Port, Way, Protocol):
    """What the poller needs of a port beyond what a driver may do with it."""

    @property
    def heard(self) -> int:
        """Bytes that have come in so far."""

    def reject(self) -> bool:
        """Give back the last frame: it was bad. False: it began inside the bad one before."""


class Device(Way, Protocol):
    """What the poller needs of a BLE device."""

    def connected(self, within: float) -> AbstractAsyncContextManager[GattClient]:
        """Connect, disconnect at the end; no call takes longer than `within` seconds.

        Raises NoReply, DeviceRefused or NoAdapter.
        """


@dataclass(slots=True)
class SensorState:
    """What is known of one sensor, for the status."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latest: str = ""
    """The outcome that was counted last."""
    last: dict[Quantity, Reading] = field(default_factory=dict)
    why: str | None = None
    """Why it gives nothing now; None while it does."""


@dataclass(kw_only=True, eq=False)
class Poller:
    """What every way to come by readings has in common: rhythm, judgement, outcomes.

    Readings go to `sink`. Each turn, or frame of an unasked stream, ends in one named outcome.
    """

    name: str
    driver: Driver
    interval: float
    clock: Clock
    sink: Callable[[Reading], None]
    state: SensorState = field(default_factory=SensorState)
    _outages: Outages = field(default_factory=Outages)

    async def run(self, delay: float = 0.0) -> None:
        """Take readings for ever, the first after `delay` seconds; no drift, no queue of turns."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._first(delay)
        while True:
            await self._until(due)
            began = loop.time()
            with self._named():
                await self._turn()
            if _cancelled():  # a driver may have swallowed it
                raise asyncio.CancelledError
            due = self._next(min(due, began) + self.interval, loop.time())

    def _next(self, due: float, now: float) -> float:
        """Return when the next turn is; those that had no place are counted."""
        if missed := int(max(now - due, 0) / self.interval):
            self.state.outcomes[MISSED] += missed
        return max(due, now)

    def _first(self, delay: float) -> float:
        return delay

    async def _until(self, due: float) -> None:
        """Return when the next turn is due."""
        await asyncio.sleep(due - asyncio.get_running_loop().time())

    async def _turn(self) -> None:
        """Take what this turn gives, or raise SensorError or PortError."""
        raise NotImplementedError

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except NoAdapter as error:  # said once already, by the adapter, for all its sensors
            self._count(outcome_of(error))
            self.state.why = said(error)
        except (SensorError, PortError) as error:
            self._count(outcome_of(error))
            self._silent(said(error))
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            self._mistaken(error)  # the driver's own, which nobody sent
        except DRIVER_FAULTS as error:  # a driver's bug costs its own sensor and nothing else
            self._mistaken(error)

    def _mistaken(self, error: BaseException) -> None:
        if DRIVER_ERROR not in self.state.outcomes:
            log.error("%s: driver error, from now on counted only", self.name, exc_info=error)
        self._count(DRIVER_ERROR)
        self._silent(f"{DRIVER_ERROR}: {type(error).__name__}: {said(error)}")

    def _count(self, outcome: str) -> None:
        self.state.outcomes[outcome] += 1
        self.state.latest = outcome

    def _silent(self, why: str) -> None:
        if (more := self._outages.begin()) is not None:
            log.warning("%s: %s%s", self.name, why, more)
        self.state.why = why

    @cached_property
    def _declared(self) -> frozenset[Quantity]:
        """The driver's quantities; a tuple of BTHome's 237 takes long to search."""
        return frozenset(self.driver.quantities)

    def _judged(self, values: Values) -> list[Reading]:
        """Return the values as readings of this instant, and count how they were."""
        if stray := [q.name for q in values if q not in self._declared]:
            raise ValueError(f"{', '.join(stray)}: not among the driver's quantities")
        instant = self.clock.now()
        readings, flaws = [], set()
        for quantity, value in values.items():
            kept, quality, flaw = judge(quantity, value)
            readings.append(Reading(self.name, quantity, instant, kept, quality))
            flaws.add(flaw)
        self._count(next(o for o in (NOT_A_NUMBER, IMPLAUSIBLE, OK) if o in {*flaws, OK}))
        return readings

    def _take(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self.state.last[reading.quantity] = reading
            self.sink(reading)
        if self._outages.end():
            log.info("%s: gives readings again", self.name)
        self.state.why = None


@dataclass(kw_only=True, eq=False)
class LocalPoller(Poller):
    """Calls a driver of the gateway itself in a thread; one that hangs is not called twice."""

    driver: LocalDriver
    threads: Executor
    _running: asyncio.Future[Values | BaseException] | None = None

    async def _turn(self) -> None:
        if self._running is None or self._running.done():  # what came too late is too old
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self.threads, self._poll)
        done, _ = await asyncio.wait({self._running}, timeout=self.driver.timeout)
        if not done:
            raise NoReply(f"no answer within {self.driver.timeout:g} s: does a file system hang?")
        running, self._running = self._running, None
        found = running.result()
        if isinstance(found, Exception):
            raise found
        if not isinstance(found, BaseException):
            self._take(self._judged(found))
            return
        raise RuntimeError(f"it raised {type(found).__name__}") from found

    def _poll(self) -> Values | BaseException:
        """Return what is raised: a future that ends with StopIteration or SystemExit is no end."""
        try:
            return self.driver.poll()
        except BaseException as error:  # noqa: BLE001 - it is raised again by the turn
            return error


@dataclass(kw_only=True, eq=False)
class Asker(Poller):
    """Asks a sensor that may be cut off, and asks at once when the way to it is open again."""

    port: Way

    async def _until(self, due: float) -> None:
        if not self.port.why:
            await super()._until(due)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self.port.opened()


@dataclass(kw_only=True, eq=False)
class GattPoller(Asker):
    """Connects to a BLE sensor, reads it, and lets go of it."""

    driver: GattDriver
    port: Device

    async def _turn(self) -> None:
        async with self.port.connected(self.interval) as client:
            try:
                async with asyncio.timeout(self.driver.timeout):
                    values = await self.driver.poll(client)
            except TimeoutError:
                raise NoReply(f"connected, but not read within {self.driver.timeout:g} s") from None
        self._take(self._judged(values or {}))


@dataclass(kw_only=True, eq=False)
class SerialPoller(Asker):
    """Asks a sensor on a serial port."""

    driver: SerialDriver
    port: Link

    async def _turn(self) -> None:
        await self._open(min(self.interval, OPENING))
        heard = self.port.heard
        bad: list[SensorError] = []
        try:
            async with asyncio.timeout(self.driver.timeout):
                values = await self._ask(bad)
        except TimeoutError:
            within = self.driver.timeout
            raise bad[0] if bad else nothing(within, self.port.heard - heard) from None
        self._take(self._judged(values))

    async def _open(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self.port.opened()
        except TimeoutError:
            raise PortError(self.port.why or f"not open within {within:g} s") from None

    async def _ask(self, bad: list[SensorError]) -> Values:
        """Return the first good answer; what comes before it is noted in `bad`."""
        if self.driver.dialogue:
            return await self.driver.poll(self.port) or {}
        frame = await self.port.request(self.driver.request)
        while True:
            try:
                values = self.driver.decode(frame)
            except (BadFrame, BadChecksum) as error:
                bad.append(error)
                self.port.reject()
            else:
                if values is not None:
                    return values
            frame = await self.port.frame()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def nothing(within: float, heard: int) -> NoReply:
    """Return the error of a port on which `heard` bytes came `within` seconds, and no frame."""
    cause = "wrong baud rate, parity or driver?" if heard else "check power, wiring and port"
    return NoReply(f"nothing to read within {within:g} s, {heard} bytes came: {cause}")
