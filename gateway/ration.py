"""How often something is told: each time, until it comes and goes too often."""

import time
from collections.abc import Callable

BURST = 20
"""How often one after the other."""
AGAIN = 60.0
"""Seconds after which it is told once more."""


class Ration:
    """BURST at once, then one each `again` seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic, again: float = AGAIN) -> None:
        self._now, self._again = now, again
        self._left, self._at = float(BURST), now()

    @property
    def left(self) -> int:
        """How often it may be told now."""
        now = self._now()
        self._left, self._at = min(self._left + (now - self._at) / self._again, BURST), now
        return int(self._left)

    def take(self) -> None:
        """Note that it is told once."""
        self._left -= 1


class Outages:
    """Those of one sensor or adapter. What is not told is counted, and shown in the status."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._ration = Ration(now)
        self._told = False

    def begin(self, *, another: bool = False) -> str | None:
        """Return None if it is not to be told that one has begun, else what to add to that.

        `another`: or that one which was told has another cause, which is rationed as one more.
        """
        if (self._told and not another) or not self._ration.left:
            return None
        self._ration.take()
        self._told = True
        if self._ration.left:
            return ""
        return f" (it comes and goes: told every {AGAIN:g} s from now on, counted in the status)"

    def end(self) -> bool:
        """Whether it is to be told that it has ended."""
        told, self._told = self._told, False
        return told
