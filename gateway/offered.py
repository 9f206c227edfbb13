"""Which batches lie aside, and which of them are offered again, in memory: two threads see it."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from operator import attrgetter

from gateway.aside import Aside
from gateway.held import Held

_sequence = attrgetter("sequence")

Name = tuple[int, int]
"""Sequence and epoch, as of a held batch."""


class Offered:
    """Those of one buffer. `put` is the writer's, all else may be called beside it."""

    def __init__(self) -> None:
        self.times = 0
        """How often batches were put up to be offered again."""
        self.delivered: set[Name] = set()
        """Those whose files are still to be removed."""
        self.here: frozenset[Name] = frozenset()
        """All that lie aside, offered or not."""
        self._offered: tuple[Held, ...] = ()

    def put(self, sizes: Mapping[Aside, int]) -> None:
        """Say which there are; their readings are not counted: 16 MiB take 10 s to decode."""
        offered = tuple(
            Held(aside.epoch, aside.sequence, 0, 0, aside.name, 0, size)
            for aside, size in sizes.items()
            if aside.again
        )
        if set(offered) - set(self._offered):
            self.times += 1
        self.here = frozenset(aside.batch for aside in sizes)
        self._offered = offered

    @property
    def any(self) -> bool:
        """Whether there is one to be offered again."""
        return bool(self._offered)

    def waiting(self, after: int, before: int | None) -> Iterator[Held]:
        """Yield those to be offered again with after < sequence < before, oldest first."""
        offered = self._offered
        for at in range(bisect_right(offered, after, key=_sequence), len(offered)):
            held = offered[at]
            if before is not None and held.sequence >= before:
                return
            if held.name not in self.delivered:
                yield held

    def deliver(self, name: Name) -> None:
        """Let go of a batch, if it is one of these."""
        if name in self.here:
            self.delivered.add(name)
