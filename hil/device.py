"""What a simulated sensor is: its measurements, its answers, and the values it has sent.

A device knows no port, loop or clock: `hil.serialline` puts it on a pty, `hil.scripted` into
memory.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import ClassVar

from gateway.frame import Frame
from gateway.reading import Quantity, Value, Values

HISTORY = 100_000
"""Frames whose values are remembered; a stream of one a second fills it in 28 hours."""

NOTHING: Values = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Walk:
    """A slow random walk between two bounds, in steps of the device's own resolution."""

    low: float
    high: float
    decimals: int = 0

    def step(self, value: float | None, random: Random) -> float:
        """Return the value that follows `value`; the first one stands anywhere in the bounds."""
        if value is None:
            return random.uniform(self.low, self.high)
        moved = value + random.gauss(0, (self.high - self.low) / 100)
        return min(max(moved, self.low), self.high)


class Device:
    """A sensor without its line. The same seed gives the same values.

    What is in `fixed` is measured as it stands there, the rest walks. None is invalid, where the
    device can say so.
    """

    request: ClassVar[Frame | None] = None
    """How the requests stand in what comes in; None: `answer` gets the bytes as they come."""
    walks: ClassVar[Mapping[Quantity, Walk]]
    """Everything it measures, and between which bounds."""
    period: float = 0.0
    """Seconds from one unasked frame to the next; 0: it speaks when it is asked."""

    def __init__(
        self, *, seed: int = 0, period: float | None = None, fixed: Values = NOTHING
    ) -> None:
        self.fixed: dict[Quantity, Value] = dict(fixed)
        self.period = self.period if period is None else period
        self.measured = 0
        """How many measurements were taken since the device was made."""
        self.sent: deque[Values] = deque(maxlen=HISTORY)
        """The values of each frame made, as a decoder must give them once they are rounded."""
        self._random = Random(seed)
        self._now: dict[Quantity, float] = {}

    def answer(self, request: bytes) -> bytes:
        """Return what the device answers to a request; nothing when it is none of its own."""
        return b""

    def unasked(self) -> bytes:
        """Return the next frame of a device that streams."""
        return b""

    def measure(self, *quantities: Quantity) -> dict[Quantity, Value]:
        """Take and remember the values of one frame, all quantities when none are named."""
        values = {quantity: self._value(quantity) for quantity in quantities or self.walks}
        self.sent.append(values)
        self.measured += 1
        return values

    def _value(self, quantity: Quantity) -> Value:
        walk = self.walks[quantity]
        if quantity in self.fixed:
            value = self.fixed[quantity]
        else:
            value = self._now[quantity] = walk.step(self._now.get(quantity), self._random)
        return round(value, walk.decimals) if isinstance(value, float) else value
