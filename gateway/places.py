"""Shares the few connections of one adapter: who is connected to next, and how long that may take.

An adapter connects to one device at a time, so one that hangs keeps all others waiting. Hence a
device is in doubt until it has been read, and the more so the oftener it took time in vain. Those
in doubt have one place among them, others go first, and the one that is being connected to is let
go of before those that wait lose their turn.

With five whose Connect hangs, healthy sensors every 5 s miss no turn after the first minute and
have no gap above 11 s in it and 7.5 s later; every 10 s none above 15 s, from the start on. When
each device had 20 s and four tries, a plain lock between them, those were 28 s and 101 s.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PLACES = 3
"""Connections that an adapter holds at once."""
PROBE = 2.5
"""Seconds that a device has at least to be connected to; it takes 0.6 to 2.1 s."""
SHARE = 0.5
"""Part of its interval that a device waits at most for one that is more in doubt."""


class Turn:
    """What one device wants of an adapter: to be connected to, and a place until it is let go of.

    Who loses a turn first is next, and one in doubt may lose some: none is passed for ever.
    """

    def __init__(self, doubt: int, interval: float) -> None:
        now = asyncio.get_running_loop().time()
        self.doubt = doubt
        self.rank = now + interval * (1 + 2 * min(doubt, 3))
        """When it would lose its turn; in doubt, when it would lose some more."""
        self.patience = now + SHARE * interval
        """Until when it can wait for one that is connected to."""
        self.began = now
        """Since when it has its place."""
        self.wanted = False
        """Whether others have waited meanwhile."""


def pause(doubt: int) -> int:
    """Return the seconds for which a device steps back that took time in vain.

    >>> pause(3), pause(6)
    (8, 64)
    """
    return 1 << doubt


class Places:
    """The connections of one adapter."""

    def __init__(self) -> None:
        self._waiting: list[Turn] = []
        self._taken: list[Turn] = []
        self._connecting: Turn | None = None
        self._deadline: asyncio.Timeout | None = None
        self._changed = asyncio.Event()
        self.recovered = float("-inf")
        """The loop's time when one that had failed for long was read again."""

    @asynccontextmanager
    async def place(self, doubt: int, interval: float) -> AsyncIterator[Turn]:
        """Wait for a place, and hold it; at first as the one that is connected to."""
        turn = Turn(doubt, interval)
        await self._wait(turn)
        try:
            yield turn
        finally:
            self._taken.remove(turn)
            self._connected(turn)

    @asynccontextmanager
    async def connecting(self, turn: Turn, within: float) -> AsyncIterator[None]:
        """Raise TimeoutError after so many seconds, or sooner if those that wait need it."""
        try:
            async with asyncio.timeout(within) as self._deadline:
                yield
        finally:
            self._connected(turn)

    async def _wait(self, turn: Turn) -> None:
        self._waiting.append(turn)
        try:
            while self._next() is not turn:
                for each in self._taken:
                    each.wanted = True
                self._hurry()
                await self._changed.wait()
        finally:
            self._waiting.remove(turn)
            self._tell()
        self._taken.append(turn)
        self._connecting = turn
        turn.began = asyncio.get_running_loop().time()

    def _next(self) -> Turn | None:
        """Return the turn that is to have the place that is free."""
        if self._connecting or len(self._taken) == PLACES:
            return None
        doubted = any(each.doubt for each in self._taken)
        able = [each for each in self._waiting if not (each.doubt and doubted)]
        return min(able, key=lambda each: each.rank, default=None)

    def _hurry(self) -> None:
        """Have the one that is connected to end before those less in doubt lose their turn."""
        turn, deadline = self._connecting, self._deadline
        if turn is None or deadline is None or deadline.expired():
            return
        ends = [each.patience for each in self._waiting if each.doubt <= turn.doubt]
        end = max(turn.began + PROBE, min(ends, default=float("inf")))
        deadline.reschedule(min(end, deadline.when() or end))

    def _connected(self, turn: Turn) -> None:
        if self._connecting is turn:
            self._connecting = self._deadline = None
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
