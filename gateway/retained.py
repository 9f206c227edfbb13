"""Publishes what stays at the broker: what this gateway is, and its status, which never lies."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from gateway.publisher import Publisher
from gateway.ration import Ration

JSON = "application/json"
REFUSED, NOT_AUTHORIZED = 0x80, 0x87
_REASONS = {
    0x83: "implementation specific error",
    0x97: "quota exceeded",
}

log = logging.getLogger(__name__)


def refusal(code: int, topic: str) -> str:
    """Return what a reason code of 0x80 and above says, and what to look at."""
    if code == NOT_AUTHORIZED:
        said = f"not authorized: has this gateway the right to publish to {topic}?"
    else:
        said = _REASONS.get(code, "")
    return f"0x{code:02x} {said}".rstrip()


class Status(Protocol):
    """Where the retained status comes from."""

    def payload(self, state: str) -> bytes:
        """Return the status as JSON; `state` is online or offline."""

    def will(self, state: str = "offline") -> bytes:
        """Return the short one: the broker publishes it when this gateway vanishes.

        It stands for the whole one, too, where the broker takes no more.
        """

    def digest(self) -> object:
        """Return what makes a status worth publishing when it changes."""


class Retained:
    """The retained messages of one connection; a broker that refuses them gets the batches."""

    def __init__(
        self, publisher: Publisher, place: asyncio.Semaphore, traffic: Callable[[], None]
    ) -> None:
        """`place` is the one in the broker's window that they have; `traffic` counts bytes."""
        self._publisher, self._place, self._count = publisher, place, traffic

    async def keep(self, status: Status, every: float, changes: Ration) -> None:
        """Publish the status when it changes and every so often, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            digest, published = status.digest(), loop.time()
            await self.tell(status, "online")
            # Asked once a second: an event from each thing that may change would tie it to them all
            while loop.time() < published + every and not (
                changes.left and status.digest() != digest
            ):
                self._count()
                await asyncio.sleep(1)
            if loop.time() < published + every:
                changes.take()

    async def tell(self, status: Status, state: str) -> None:
        """Publish the status, or a short one where the broker takes no more."""
        payload = status.payload(state)
        if not self._publisher.fits(payload):
            log.warning("the status is larger than the broker takes: %d bytes", len(payload))
            payload = status.will(state)
        await self.publish("status", payload)

    async def publish(self, name: str, payload: bytes) -> None:
        """Publish a message that stays there."""
        if not self._publisher.fits(payload):
            log.warning("the %s is larger than the broker takes: %d bytes", name, len(payload))
            return
        async with self._place:
            sent = self._publisher.send(name, payload, retain=True, kind=JSON)
            code = await self._publisher.code(sent)
        if code >= REFUSED:
            log.warning("the broker refuses the %s: %s", name, refusal(code, sent.topic))
