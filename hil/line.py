"""A simulated device with its faults in time: what a pty and a port in memory have in common."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from gateway.frame import Framer
from gateway.reading import Values
from hil.device import HISTORY, NOTHING, Device
from hil.faults import BABBLE_BYTES, BABBLE_PERIOD, known, spoiled


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame of the device: its values, the fault that met it ("": none), and the bytes."""

    values: Values
    fault: str
    data: bytes


class Line(ABC):
    """Plays a device and its faults with timers of the running loop.

    `faults` names a fault for each of the next frames, "" for none; when it is used up, `fault`
    holds. Both can be set at any time. `delay` is by how many seconds a late frame is late, and
    for how long an adapter stays away that `faults` unplugged.
    """

    def __init__(
        self,
        device: Device,
        *,
        fault: str = "",
        faults: Iterable[str] = (),
        delay: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.device = device
        self.delay = delay
        self.sent: deque[Sent] = deque(maxlen=HISTORY)
        """Every frame the device made while somebody could hear it."""
        self.on_sent: Callable[[Sent], object] = lambda sent: None
        """Called with each of them."""
        self._random = Random(seed)
        self._requests = Framer(device.request) if device.request else None
        self._timers: set[asyncio.TimerHandle] = set()
        self._beat: asyncio.TimerHandle | None = None
        self._plugged = False
        self._fault = known(fault)
        self.faults = faults

    @property
    def faults(self) -> Iterator[str]:
        """The faults of the next frames, one each; set to any iterable, an endless one too."""
        return self._faults

    @faults.setter
    def faults(self, faults: Iterable[str]) -> None:
        if isinstance(faults, Collection):
            faults = [known(fault) for fault in faults]
        self._faults = iter(faults)

    @property
    def fault(self) -> str:
        """The fault that holds until another is set; "" for none."""
        return self._fault

    @fault.setter
    def fault(self, fault: str) -> None:
        was, self._fault = self._fault, known(fault)
        if fault == "unplugged":
            self.unplug()
        elif was == "unplugged":
            self.replug()
        self._restart()

    @property
    def plugged(self) -> bool:
        """Whether the adapter is there."""
        return self._plugged

    @property
    def good(self) -> list[Values]:
        """The values of all frames that no fault met, oldest first."""
        return [sent.values for sent in self.sent if sent.values and not sent.fault]

    def unplug(self) -> None:
        """Pull the adapter: the port and what was under way are gone."""
        self._stop()
        if self._plugged:
            self._plugged = False
            self._vanish()

    def replug(self) -> None:
        """Put the adapter back."""
        if not self._plugged:
            self._stop()
            self._appear()
            self._plugged = True
            self._restart()

    @abstractmethod
    def _appear(self) -> None:
        """Make the port."""

    @abstractmethod
    def _vanish(self) -> None:
        """Take the port away."""

    @abstractmethod
    def _carry(self, data: bytes) -> bool:
        """Bring bytes to the client; False when they did not fit."""

    def _heard(self) -> bool:
        """Return whether a client has the port open."""
        return True

    def _received(self, data: bytes) -> None:
        """Take what the client wrote."""
        if self._requests is None:
            self._say(self.device.answer, data)
        else:
            self._requests.feed(data)
            while (request := self._requests.next()) is not None:
                self._say(self.device.answer, request)
        if self._beat is None:  # a request may have made the device stream
            self._restart()

    def _say(self, make: Callable[[bytes], bytes], request: bytes = b"") -> None:
        before = self.device.measured
        frame = make(request)
        if not frame:
            return
        values = self.device.sent[-1] if self.device.measured > before else NOTHING
        fault = next(self._faults, self._fault)
        data = spoiled(fault, frame, request, self._random)
        if fault == "late":
            self._later(self.delay, partial(self._carry, data))
        elif data and not self._carry(data):
            fault = "lost"
        self.sent.append(Sent(values, fault, data))
        self.on_sent(self.sent[-1])
        if fault == "unplugged":
            self.unplug()
            self._later(self.delay, self.replug)

    def _interval(self) -> float:
        return BABBLE_PERIOD if self._fault == "babble" else self.device.period

    def _restart(self) -> None:
        """Begin the rhythm of unasked frames anew, if there is one."""
        if self._beat:
            self._beat.cancel()
            self._beat = None
        if self._plugged and self._interval():
            loop = asyncio.get_running_loop()
            self._beat = loop.call_later(self._interval(), self._on_beat)

    def _on_beat(self) -> None:
        beat, loop = self._beat, asyncio.get_running_loop()
        if self._heard() and self._fault == "babble":
            self._carry(self._random.randbytes(BABBLE_BYTES))
        elif self._heard():
            self._say(lambda _: self.device.unasked())
        if beat and beat is self._beat:  # else a fault has ended the rhythm, or changed it
            due = max(beat.when() + self._interval(), loop.time())
            self._beat = loop.call_at(due, self._on_beat) if self._interval() else None

    def _later(self, delay: float, act: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() >= loop.time()}
        self._timers.add(loop.call_later(delay, act))

    def _stop(self) -> None:
        for timer in {*self._timers, *([self._beat] if self._beat else [])}:
            timer.cancel()
        self._timers, self._beat = set(), None
