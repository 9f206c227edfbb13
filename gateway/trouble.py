"""Says what is wrong with a Bluetooth adapter: once, and again when another cause has lasted."""

import logging
import time
from collections.abc import Callable

from gateway.ration import Outages

SETTLED = 5.0
"""Seconds that another cause of the same outage has lasted when it is worth another line."""
LAST = 4
"""The rung on which nothing is left to be done but to say so."""

log = logging.getLogger(__name__)


class Trouble:
    """What is wrong with one adapter now, and what was told of it since it began."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self.why = self._new = f"{name} does not scan yet"
        """Empty while nothing is wrong."""
        self.rung = 0
        """How many things were done against its hearing nothing; 0 while it hears."""
        self._name, self._now = name, now
        self._since = now()
        self._deaf = ""
        self._told = ""
        self._outages = Outages(now)

    @property
    def known(self) -> bool:
        """Whether it has begun to scan, or why not is known."""
        return self.why != self._new

    @property
    def state(self) -> str:
        """The same in short, for the status."""
        if not self.why:
            return "ok"
        return "power cut needed" if self.rung == LAST and self.why == self._deaf else "silent"

    def begins(self, why: str) -> None:
        """Note why it cannot scan. The first cause is told at once, another when it has lasted."""
        if why != self.why:
            self.why, self._since = why, self._now()
        if not self._told or self._now() - self._since >= SETTLED:
            self._tell()

    def climbs(self, why: str) -> None:
        """Note that it hears nothing, and tell at once what is done against that."""
        self.rung += 1
        self.why = self._deaf = why
        self._tell()

    def passes(self) -> None:
        """Note that it scans. One that was deaf is so until it hears something."""
        if self.rung:
            self.why = self._deaf
            return
        if self._outages.end():
            log.info("%s: scans again", self._name)
        self.why = self._told = ""

    def hears(self) -> None:
        """Note that it is not deaf."""
        self.rung = 0

    def _tell(self) -> None:
        if self.why == self._told or (more := self._outages.begin(another=True)) is None:
            return
        log.warning("%s%s", self.why, more)
        self._told = self.why
