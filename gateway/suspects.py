"""What connections break at, again and again: it goes last and alone.

A broker or something on the way to it may drop the connection at one message, or refuse one batch
with a code that tells nothing. Sent first at each new connection, that batch would hold up all
others for ever; dropped, it would be lost for what may be a fault of the network. MQTT 3.1.1 has no
reason codes: there nothing else tells of a batch that the broker refuses.

A broker that does so whatever batch comes makes none a suspect: others must have been delivered
since. To find out, the newest is tried first. The retained messages come at the beginning of each
connection, before any batch: they are suspected without that, and at once where the broker refuses
them, for it may hang up behind its PUBACK.
"""

import time
from collections.abc import Callable, Iterator

LOSSES = 3
"""Connections that are lost at the same message before it may be suspected."""
PAUSE = 60.0
"""Seconds until a suspect that was tried is tried again; doubles from then on."""
LONGEST_PAUSE = 3600.0

Batch = tuple[int, int]
"""Sequence and epoch of a batch: of another disk's history there may be one of that sequence."""
Name = Batch | str
"""Of a batch, or of a retained message: about or status."""


class Suspects:
    """What is suspected, over all connections."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at: Name | None = None
        self._losses = 0
        self._others_go = False
        self._tries: dict[Name, int] = {}
        self._due: dict[Name, float] = {}

    def lost_at(self, name: Name) -> bool:
        """Note that the connection was lost with this longest under way; True: now suspect.

        Only that is noted: each connection begins with one batch alone, so that sooner or later the
        guilty one is it.
        """
        if name in self._due:
            return False
        if name != self._at:
            self._at, self._losses, self._others_go = name, 0, False
        self._losses += 1
        if self._losses < LOSSES or not (self._others_go or isinstance(name, str)):
            return False
        self.suspect(name)
        return True

    def suspect(self, name: Name) -> None:
        """Have it go last and alone from now on."""
        self._tries.setdefault(name, 0)
        self._due.setdefault(name, self._now())

    @property
    def in_doubt(self) -> bool:
        """Whether it is to be found out if it is one batch, or any, at which connections break."""
        return self._losses >= LOSSES and self._at is not None and self._at not in self._due

    def tried(self, name: Name) -> None:
        """Note that a suspect goes now."""
        self._tries[name] = tries = self._tries[name] + 1
        self._due[name] = self._now() + min(PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)

    def delivered(self, batch: Batch) -> None:
        """Note that a batch was delivered; the fault may be gone for all if it was a suspect."""
        self._others_go = True
        if batch in self._due:
            self._due = dict.fromkeys(self._due, self._now())
        self.clear(batch)

    def clear(self, name: Name) -> None:
        """Forget what is gone."""
        self._tries.pop(name, None)
        self._due.pop(name, None)
        if name == self._at:
            self._at = None

    def __contains__(self, name: Name) -> bool:
        return name in self._due

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[int]:
        """Yield the sequences of the batches."""
        return iter(sorted(name[0] for name in self._due if not isinstance(name, str)))

    def due(self) -> list[Batch]:
        """Return the batches whose turn it is, once there is nothing else to send."""
        batches = [name for name in self._due if not isinstance(name, str)]
        return sorted(batch for batch in batches if not self.pause(batch))

    def pause(self, name: Name) -> float:
        """Return how many seconds it is until the turn of a suspect."""
        return max(self._due[name] - self._now(), 0.0)
