"""Batches at which the connection is lost, again and again: they go last and alone.

A broker or something on the way to it may drop the connection at one batch. Sent first at each new
connection, that batch would hold up all others for ever; dropped, it would be lost for what may be
a fault of the network. MQTT 3.1.1 has no reason codes: there nothing else tells of a batch that the
broker refuses.

A broker that drops the connection whatever batch comes makes no batch a suspect, but at most one:
between two suspicions something must have been delivered. To find out, the newest is tried first.
"""

import time
from collections.abc import Callable, Iterator

LOSSES = 3
"""Connections that are lost with the same batch at the head before it is suspected."""
PAUSE = 60.0
"""Seconds until a suspect that was lost alone is tried again; doubles from then on."""
LONGEST_PAUSE = 3600.0

Name = tuple[int, int]
"""Sequence and epoch of a batch: of another disk's history there may be one of that sequence."""


class Suspects:
    """Which batches are suspected, over all connections."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._head: Name | None = None
        self._losses = 0
        self._delivered = True
        self._tries: dict[Name, int] = {}
        self._due: dict[Name, float] = {}

    def lost_at(self, head: Name) -> bool:
        """Note that the connection was lost with this batch longest under way; True: now suspect.

        Only the head is noted: each connection begins with one batch alone, so that sooner or later
        the guilty one is it.
        """
        if head in self._due:
            self._tries[head] = tries = self._tries[head] + 1
            self._due[head] = self._now() + min(PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)
            return False
        self._losses = self._losses + 1 if head == self._head else 1
        self._head = head
        if self._losses < LOSSES or not self._delivered:
            return False
        self._delivered = False
        self._tries[head], self._due[head] = 0, self._now()
        return True

    @property
    def in_doubt(self) -> bool:
        """Whether it is to be found out if it is one batch, or any, at which connections break."""
        return self._losses >= LOSSES and self._head not in self._due

    def delivered(self, name: Name) -> None:
        """Note that a batch was delivered; the fault may be gone for all if it was a suspect."""
        self._delivered = True
        if name in self._due:
            self._due = dict.fromkeys(self._due, self._now())
        self.clear(name)

    def clear(self, name: Name) -> None:
        """Forget a batch that is gone."""
        self._tries.pop(name, None)
        self._due.pop(name, None)
        if name == self._head:
            self._losses = 0

    def __contains__(self, name: Name) -> bool:
        return name in self._due

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[int]:
        """Yield their sequences."""
        return iter(sorted(sequence for sequence, _ in self._due))

    def due(self) -> Iterator[Name]:
        """Yield those whose turn it is, once there is nothing else to send."""
        now = self._now()
        yield from [name for name, at in sorted(self._due.items()) if at <= now]
