"""Publishes below the gateway's topic, and tells a slow link from a dead one.

A broker acknowledges in the order in which it was sent to. So a PUBACK is waited for as long as one
after the other comes of what was sent before, or bytes of the message itself still arrive: a link
of 2 kB/s carries 20 batches of 4 kB in 40 s. A half-open one shows neither.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.connection import UplinkError
from gateway.suspects import Batch, Name

LOOKS = 15
"""How often it is looked whether bytes still arrive, until a PUBACK is given up."""
HEADERS = 64
"""Bytes of a PUBLISH beside payload and root of the topic, at most."""


class Unacknowledged(UplinkError):
    """No PUBACK has come for so long that the link, or the broker, must be dead."""


class Link(Protocol):
    """What is needed of a connection."""

    @property
    def arrived(self) -> int:
        """Bytes of ours that the other end's kernel has acknowledged."""

    @property
    def largest_packet(self) -> int:
        """Bytes of the largest packet that the broker takes."""

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, kind: str
    ) -> asyncio.Future[int]:
        """Publish with QoS 1; the result of the future is the reason code of its PUBACK."""


@dataclass(eq=False, slots=True)
class Sent:
    """A message that was published."""

    topic: str
    name: Name
    ack: asyncio.Future[int]
    at: float
    """The loop's time."""
    arrives: int
    """What `arrived` is when all of it is there, at least."""
    alive: float
    """The last sign that it is on its way."""


class Publisher:
    """What one connection carries."""

    def __init__(self, link: Link, root: str, within: float) -> None:
        self._link, self._root, self._within = link, root, within
        self._sent: list[Sent] = []  # what is not acknowledged, in the order of sending
        self._arrived = self._arrives = 0

    @property
    def largest_packet(self) -> int:
        """Bytes of the largest packet that the broker says it takes."""
        return self._link.largest_packet

    def fits(self, payload: bytes) -> bool:
        """Whether the broker takes a packet with that."""
        return len(payload) + len(self._root.encode()) + HEADERS <= self.largest_packet

    @property
    def oldest(self) -> Name | None:
        """What has been under way for longest, if anything is."""
        return next((sent.name for sent in self._sent if not sent.ack.done()), None)

    def send(
        self,
        name: str,
        payload: bytes,
        *,
        batch: Batch | None = None,
        retain: bool = False,
        kind: str,
    ) -> Sent:
        """Publish as `name` below the gateway's topic; `code` tells what becomes of it."""
        topic, now = f"{self._root}/{name}", asyncio.get_running_loop().time()
        self._arrives = max(self._arrives, self._link.arrived) + len(payload)
        ack = self._link.send(topic, payload, retain=retain, kind=kind)
        self._sent.append(sent := Sent(topic, batch or name, ack, now, self._arrives, now))
        return sent

    async def code(self, sent: Sent, patience: float = 1.0) -> int:
        """Return the reason code of its PUBACK; raises Unacknowledged when there is none."""
        now, within = asyncio.get_running_loop().time, self._within * patience
        while not sent.ack.done():
            self._look(now())
            if now() >= sent.alive + within:
                what = f" of the {sent.name}" if isinstance(sent.name, str) else ""
                raise Unacknowledged(
                    f"no acknowledgement{what} within {within:g} s: the link is dead, or the "
                    "broker hangs"
                )
            await asyncio.wait({sent.ack}, timeout=within / LOOKS)
        self._live(now(), lambda later: later.at >= sent.at)
        self._sent.remove(sent)
        return sent.ack.result()

    def _look(self, now: float) -> None:
        if (arrived := self._link.arrived) > self._arrived:
            self._arrived = arrived
            self._live(now, lambda sent: sent.arrives > arrived)

    def _live(self, now: float, those: Callable[[Sent], bool]) -> None:
        for sent in filter(those, self._sent):
            sent.alive = now
