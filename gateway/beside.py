"""Faults of the disk that are met beside the ticks, with one batch each.

Each lasts until that very thing works again, or there is nothing of it any more to try: what the
ticks do says nothing of that. Of several of a kind the first is told, once.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.disk import remedy
from gateway.held import Held

log = logging.getLogger(__name__)


class Beside:
    """Those of one directory, by what is tried with which batch; the writer's, but for `told`."""

    def __init__(self, directory: Path) -> None:
        self.count = 0
        """How often one was told."""
        self._directory = directory
        self._met: defaultdict[str, set[Held]] = defaultdict(set)
        self._faults: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Held]]:
        return iter([(what, held) for what, met in self._met.items() for held in met])

    @property
    def told(self) -> list[str]:
        """What is not done at present, and what mends it."""
        return list(dict.fromkeys(list(self._faults.values())))

    @contextmanager
    def trying(self, what: str, held: Held) -> Iterator[None]:
        """Note that it fails, or works."""
        try:
            yield
        except OSError as error:
            self.meet(what, held, error)
            raise
        self.end([(what, held)])

    def meet(self, what: str, held: Held, error: OSError) -> None:
        """Note that it fails, and tell of the first of its kind."""
        self._met[what].add(held)
        if what in self._faults:
            return
        fault = remedy(error, self._directory)
        if fault not in self._faults.values():
            log.error("buffer: %s", fault)
            self.count += 1
        self._faults[what] = fault

    def end(self, those: Iterable[tuple[str, Held]]) -> None:
        """Forget these, and tell where none of the kind is left."""
        for what, held in those:
            self._met[what].discard(held)
            fault = None if self._met[what] else self._faults.pop(what, None)
            if fault and fault not in self._faults.values():
                log.warning("buffer: no longer: %s", fault)
