"""The batch that the broker acknowledged last, and may not have on its disk yet.

mosquitto 2.0 reads a message, acknowledges it, and saves before it reads the next one, where it
saves at every change: killed in between it lacks that one (in 35 of 200 kills amid traffic, never
two). So it is let go of with the next acknowledgement or a moment later, and sent again when the
connection is lost before that. Keeping more than one would cost as many at each break of a link.
"""

import asyncio
from collections.abc import Callable, Container

from gateway.held import Held
from gateway.suspects import Batch

SAVED_WITHIN = 0.5
"""Seconds after a PUBACK within which the broker has saved what it acknowledged."""


class Lately:
    """What one connection has delivered last; `let_go` is called with each batch, in order."""

    def __init__(
        self, let_go: Callable[[Held], None], within: float, again: Container[Batch]
    ) -> None:
        """Keep not what is delivered `again`: each connection may break within a moment."""
        self._let_go, self._within, self._again = let_go, within, again
        self._timer: asyncio.TimerHandle | None = None
        self.kept: Held | None = None

    def add(self, held: Held) -> None:
        """Keep a batch whose PUBACK came now, instead of the one before it."""
        self.let_go()
        self.kept = held
        if held.name in self._again:
            self.let_go()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._within, self.let_go)

    def let_go(self) -> None:
        """Let go of what is kept."""
        self.end()
        kept, self.kept = self.kept, None
        if kept:
            self._let_go(kept)

    def end(self) -> None:
        """Let go of it no more: the connection is lost."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
