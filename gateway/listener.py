"""Listens to one sensor that sends unasked: the latest value of each quantity per interval.

The first value of each quantity goes out at once, so that a new sensor shows within seconds; so
does what a sensor says after a silence.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.driver import (
    Advertisement,
    AdvertisementDriver,
    BadChecksum,
    BadFrame,
    NoAdapter,
    NoReply,
    PortError,
    Replayed,
    SensorError,
    SerialDriver,
    outcome_of,
    said,
)
from gateway.poller import DRIVER_ERROR, Link, Poller, nothing
from gateway.reading import Quantity, Reading

AFTER_MISTAKE = 0.1
"""Seconds of a pause after a driver error, so that one that comes at once does not fill the CPU."""


@dataclass(kw_only=True, eq=False)
class Listener(Poller):
    """What both kinds of listening have in common. What is heard ends in one named outcome."""

    _latest: dict[Quantity, Reading] = field(default_factory=dict)
    _bad: SensorError | None = None
    _quiet: bool = True

    def _first(self, delay: float) -> float:
        return self.interval

    def _hear(self, readings: list[Reading]) -> None:
        silent = self.state.why is not None
        new = [r for r in readings if silent or r.quantity not in self.state.last]
        self._latest.update((r.quantity, r) for r in readings if r not in new)
        self._quiet = False
        self._take(new)

    async def _turn(self) -> None:
        latest, self._latest = self._latest, {}
        bad, self._bad = self._bad, None
        quiet, self._quiet = self._quiet, True
        missed = self._missed()
        if not quiet:
            self._take(latest.values())
        elif bad and not isinstance(missed, PortError):  # counted when it came
            self._silent(said(bad))
        else:
            raise missed

    def _missed(self) -> SensorError | PortError:
        """Return why nothing was heard since it was asked last."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class SerialListener(Listener):
    """Hears a sensor on a serial port."""

    driver: SerialDriver
    port: Link
    _heard: int = 0

    async def _until(self, due: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                while True:
                    mistakes = self.state.outcomes[DRIVER_ERROR]
                    with self._named():
                        await self._listen()
                    if self.state.outcomes[DRIVER_ERROR] > mistakes:
                        await asyncio.sleep(AFTER_MISTAKE)  # it may not have waited at all

    async def _listen(self) -> None:
        await self.port.opened()
        frame = await self.port.frame()
        try:
            values = self.driver.decode(frame)
        except (BadFrame, BadChecksum) as error:
            self._bad = error
            if self.port.reject():
                self._count(outcome_of(error))
        else:
            if values is not None:
                self._hear(self._judged(values))

    def _missed(self) -> SensorError | PortError:
        heard, self._heard = self.port.heard - self._heard, self.port.heard
        return PortError(self.port.why) if self.port.why else nothing(self.interval, heard)


class Air(Protocol):
    """What a listener needs of the radio."""

    @property
    def why(self) -> str:
        """Why nothing can be heard; empty while it can."""

    @property
    def since(self) -> float:
        """The loop's time from which on something could be heard."""

    def unsure(self, within: float) -> bool:
        """Whether nothing at all was heard for so long, and it is not known yet why."""


@dataclass(kw_only=True, eq=False)
class AdvertisementListener(Listener):
    """Hears the advertisements of a BLE sensor.

    A sensor whose values are steady repeats itself. A repetition is not decoded and counted again,
    but shows that its values still hold; where a counter ought to have grown it shows nothing.
    """

    driver: AdvertisementDriver
    air: Air
    _last: Advertisement | None = None
    _read: Advertisement | None = None
    _readings: list[Reading] = field(default_factory=list)
    _counter: int | None = None
    _counters: dict[str, int] = field(default_factory=dict)
    _unread: SensorError | None = None
    _repeats: int = 0
    _others: int = 0

    def hear(self, adapter: str, advertisement: Advertisement) -> None:
        """Take what an adapter heard of this sensor's address; called by the radio, never raises.

        Another adapter may hear late, or keep longer, what the first has heard: its counter must
        grow by itself, and what is not newer than what is known shows nothing.
        """
        with self._named():
            if _holds(advertisement, self._read) and self._counter is None:
                instant = self.clock.now()
                self._hear([replace(reading, instant=instant) for reading in self._readings])
            elif _holds(advertisement, self._read):
                self._repeats += 1
            elif advertisement == self._last:
                self._others += 1
            else:
                self._last = advertisement
                self._decode(adapter, advertisement)

    def _decode(self, adapter: str, advertisement: Advertisement) -> None:
        try:
            values = self.driver.decode(advertisement)
            new = values is not None and self._grew(adapter, self.driver.counter(advertisement))
        except SensorError as error:
            self._bad = self._unread = error
            self._count(outcome_of(error))
            return
        if values is None:
            self._others += 1
        elif not new:
            self._repeats += 1
        else:
            self._read, self._unread = advertisement, None
            self._readings = self._judged(values)
            self._hear(self._readings)

    def _grew(self, adapter: str, counter: int | None) -> bool:
        """Whether it is new, as far as a counter tells; raises Replayed if it is repeated."""
        if counter is None:
            self._counter = None
            return True
        last = self._counters.get(adapter, counter)
        if counter < last:
            raise Replayed(
                f"counter {counter} after {last}: somebody repeats what the sensor said, or it "
                "began anew: after a change of its battery, systemctl restart bygate"
            )
        self._counters[adapter] = counter
        if self._counter is not None and counter <= self._counter:
            return False
        self._counter = counter
        return True

    def _missed(self) -> SensorError | PortError:
        others, self._others = self._others, 0
        repeats, self._repeats = self._repeats, 0
        if unheard := self._unheard():
            return NoAdapter(unheard)
        within = f"within {self.interval:g} s"
        if not (count := others + repeats):
            return NoReply(f"no advertisement {within}: check address, battery and distance")
        if self._unread:
            return self._unread
        return NoReply(f"{count} advertisements {within}, {_nothing(others, repeats)}")

    def _unheard(self) -> str:
        """Return why the sensor cannot be blamed for silence; empty where it can."""
        if self.air.why:
            return self.air.why
        listened = asyncio.get_running_loop().time() - self.air.since
        if listened < self.interval:
            return f"the adapter listens only since {listened:.1f} s"
        if self.air.unsure(self.interval):
            return "the adapter hears nothing at all: BlueZ is asked whether it answers"
        return ""


def _nothing(others: int, repeats: int) -> str:
    """Return what advertisements are that tell nothing: none is read, or they repeat."""
    if not repeats:
        return "none that its driver reads"
    return "none says anything new" if others else "all repeat what it said before"


def _holds(advertisement: Advertisement, earlier: Advertisement | None) -> bool:
    """Whether an advertisement has all that an earlier one had."""
    return (
        earlier is not None
        and earlier.manufacturer_data.items() <= advertisement.manufacturer_data.items()
        and earlier.service_data.items() <= advertisement.service_data.items()
    )
