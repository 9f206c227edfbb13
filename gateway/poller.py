"""Polls or listens to one sensor for ever: rhythm, deadline, judgement, outcome counts.

Drivers know nothing of time and failure; all of that is here, once. Each poll, and each frame of an
unasked stream, ends in one named outcome.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from gateway.clock import Clock
from gateway.driver import (
    BadChecksum,
    BadFrame,
    Driver,
    LocalDriver,
    NoReply,
    Port,
    PortError,
    SensorError,
    SerialDriver,
)
from gateway.reading import Quality, Quantity, Reading, Value, Values

OK = "ok"
IMPLAUSIBLE = "implausible"
NOT_A_NUMBER = "not a number"
DRIVER_ERROR = "driver error"

OPENING = 5.0
"""Seconds after which a port that does not open is counted; it is still waited for."""

STRING_BYTES = 256
"""Longer strings are cut, and marked as clipped."""

log = logging.getLogger(__name__)


class Link(Port, Protocol):
    """What the poller needs of a port beyond what a driver may do with it."""

    @property
    def why(self) -> str:
        """Why it is not open; empty while it is."""

    @property
    def heard(self) -> int:
        """Bytes that have come in so far."""

    async def opened(self) -> None:
        """Return when the port is open."""

    def reject(self) -> bool:
        """Give back the last frame: it was bad. False: it began inside the bad one before."""


@dataclass(slots=True)
class SensorState:
    """What is known of one sensor, for the status."""

    outcomes: Counter[str] = field(default_factory=Counter)
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

    async def run(self, delay: float = 0.0) -> None:
        """Take readings for ever, the first after `delay` seconds; no drift, no queue of turns."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._first(delay)
        while True:
            await self._until(due)
            began = loop.time()
            await self._named(self._turn())
            due = max(min(due, began) + self.interval, loop.time())

    def _first(self, delay: float) -> float:
        return delay

    async def _until(self, due: float) -> None:
        """Return when the next turn is due."""
        await asyncio.sleep(due - asyncio.get_running_loop().time())

    async def _turn(self) -> None:
        """Take what this turn gives, or raise SensorError or PortError."""
        raise NotImplementedError

    async def _named(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (SensorError, PortError) as error:
            self._count(error.outcome)
            self._silent(str(error))
        except Exception as error:  # a driver's bug costs its own sensor and nothing else
            if DRIVER_ERROR not in self.state.outcomes:
                log.exception("%s: driver error, from now on counted only", self.name)
            self._count(DRIVER_ERROR)
            self._silent(f"{DRIVER_ERROR}: {type(error).__name__}: {error}")

    def _count(self, outcome: str) -> None:
        self.state.outcomes[outcome] += 1

    def _silent(self, why: str) -> None:
        if self.state.why is None:
            log.warning("%s: %s", self.name, why)
        self.state.why = why

    def _judged(self, values: Values) -> list[Reading]:
        """Return the values as readings of this instant, and count how they were."""
        if stray := [q.name for q in values if q not in self.driver.quantities]:
            raise ValueError(f"{', '.join(stray)}: not among the driver's quantities")
        instant = self.clock.now()
        readings, flaws = [], set()
        for quantity, said in values.items():
            value, quality, flaw = judge(quantity, said)
            readings.append(Reading(self.name, quantity, instant, value, quality))
            flaws.add(flaw)
        self._count(next(o for o in (NOT_A_NUMBER, IMPLAUSIBLE, OK) if o in {*flaws, OK}))
        return readings

    def _take(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self.state.last[reading.quantity] = reading
            self.sink(reading)
        if self.state.why is not None:
            log.info("%s: gives readings again", self.name)
        self.state.why = None


@dataclass(kw_only=True, eq=False)
class LocalPoller(Poller):
    """Calls a driver of the gateway itself in a thread; one that hangs is not called twice."""

    driver: LocalDriver
    threads: Executor
    _running: asyncio.Future[Values] | None = None

    async def _turn(self) -> None:
        if self._running is None or self._running.done():  # what came too late is too old
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self.threads, self.driver.poll)
        done, _ = await asyncio.wait({self._running}, timeout=self.driver.timeout)
        if not done:
            raise NoReply(f"no answer within {self.driver.timeout:g} s: does a file system hang?")
        running, self._running = self._running, None
        self._take(self._judged(running.result()))


@dataclass(kw_only=True, eq=False)
class SerialPoller(Poller):
    """Asks a sensor on a serial port, and asks at once when a lost port has come back."""

    driver: SerialDriver
    port: Link

    async def _until(self, due: float) -> None:
        if not self.port.why:
            await super()._until(due)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self.port.opened()

    async def _turn(self) -> None:
        await self._open(min(self.interval, OPENING))
        heard = self.port.heard
        bad: list[SensorError] = []
        try:
            async with asyncio.timeout(self.driver.timeout):
                values = await self._ask(bad)
        except TimeoutError:
            within = self.driver.timeout
            raise bad[0] if bad else self._nothing(within, self.port.heard - heard) from None
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

    def _nothing(self, within: float, heard: int) -> NoReply:
        cause = "wrong baud rate, parity or driver?" if heard else "check power, wiring and port"
        return NoReply(f"nothing to read within {within:g} s, {heard} bytes came: {cause}")


@dataclass(kw_only=True, eq=False)
class Listener(SerialPoller):
    """Hears a sensor that sends unasked: the latest value of each quantity per interval.

    The first value of each quantity goes out at once, so that a new sensor shows within seconds.
    """

    _latest: dict[Quantity, Reading] = field(default_factory=dict)
    _bad: SensorError | None = None
    _heard: int = 0
    _quiet: bool = True

    def _first(self, delay: float) -> float:
        return self.interval

    async def _until(self, due: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                while True:
                    await self._named(self._listen())

    async def _listen(self) -> None:
        await self.port.opened()
        frame = await self.port.frame()
        try:
            values = self.driver.decode(frame)
        except (BadFrame, BadChecksum) as error:
            self._bad = error
            if self.port.reject():
                self._count(error.outcome)
        else:
            if values is not None:
                self._hear(self._judged(values))

    def _hear(self, readings: list[Reading]) -> None:
        new = [r for r in readings if r.quantity not in self.state.last]
        self._latest.update((r.quantity, r) for r in readings if r not in new)
        self._quiet = False
        self._take(new)

    async def _turn(self) -> None:
        latest, self._latest = self._latest, {}
        heard, self._heard = self.port.heard - self._heard, self.port.heard
        bad, self._bad = self._bad, None
        quiet, self._quiet = self._quiet, True
        if not quiet:
            self._take(latest.values())
        elif self.port.why:
            raise PortError(self.port.why)
        elif bad:  # counted when it came
            self._silent(str(bad))
        else:
            raise self._nothing(self.interval, heard)


def judge(quantity: Quantity, said: Value) -> tuple[Value, int, str | None]:
    """Return the value to keep, its quality, and what is wrong with it, if anything.

    Floats are rounded to the quantity's decimals. Implausible values are kept and marked; NaN, inf
    and whole numbers beyond 64 bits become None. Raises TypeError for what is no value at all.
    """
    if said is None or isinstance(said, bool):
        return said, Quality.GOOD, None
    if isinstance(said, str):
        kept = said.encode(errors="replace")[:STRING_BYTES].decode(errors="ignore")
        return kept, Quality.GOOD if kept == said else Quality.CLIPPED, None
    if not isinstance(said, int | float):
        raise TypeError(f"{quantity.name}: {type(said).__name__} is no kind of value")
    if not (math.isfinite(said) if isinstance(said, float) else abs(said) < 1 << 63):
        return None, Quality.GOOD, NOT_A_NUMBER
    value = _rounded(said, quantity.decimals) if isinstance(said, float) else said
    low, high = quantity.low, quantity.high
    if (low is not None and value < low) or (high is not None and value > high):
        return value, Quality.SUSPECT, IMPLAUSIBLE
    return value, Quality.GOOD, None


def _rounded(said: float, decimals: int) -> float:
    value = round(said, decimals)
    # −0.0 that the sensor said is kept; −0.0 that rounding made of a small number is not
    return 0.0 if value == 0 and said != 0 else value
