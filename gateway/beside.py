"""Faults of the disk that are met beside the ticks, with one batch each.

Each lasts until that very thing works again, or there is nothing of it any more to try: what the
ticks do says nothing of that. Of several of a kind the first is told, once.
"""

import logging
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
        self._met: dict[tuple[str, Held], str] = {}

    def __iter__(self) -> Iterator[tuple[str, Held]]:
        return iter(list(self._met))

    @property
    def told(self) -> list[str]:
        """What is not done at present, and what mends it."""
        return list(dict.fromkeys(list(self._met.values())))

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
        same = (fault for (tried, _), fault in self._met.items() if tried == what)
        fault = next(same, None) or remedy(error, self._directory)
        if fault not in self._met.values():
            log.error("buffer: %s", fault)
            self.count += 1
        self._met[what, held] = fault

    def end(self, those: Iterable[tuple[str, Held]]) -> None:
        """Forget these, and tell where none of the kind is left."""
        for one in those:
            fault = self._met.pop(one, None)
            if fault and fault not in self._met.values():
                log.warning("buffer: no longer: %s", fault)
