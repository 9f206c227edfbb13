"""Publishes what stays at the broker: what this gateway is, and its status, which never lies."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from gateway.publisher import Publisher
from gateway.ration import Ration
from gateway.reasons import REFUSED, TOO_LARGE, of_refusal

JSON = "application/json"

log = logging.getLogger(__name__)


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
        self,
        publisher: Publisher,
        place: asyncio.Semaphore,
        traffic: Callable[[], None],
        said: dict[str, str],
    ) -> None:
        """`place` is the one in the broker's window that they have; `traffic` counts bytes.

        `said` is what was told of each message, on connections before this one, too.
        """
        self._publisher, self._place, self._count = publisher, place, traffic
        self._said = said

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
        fits = self._publisher.fits(payload)
        self._say("whole status", "" if fits else _larger("status", payload))
        await self.publish("status", payload if fits else status.will(state))

    async def publish(self, name: str, payload: bytes) -> None:
        """Publish a message that stays there."""
        if not self._publisher.fits(payload):
            self._say(name, _larger(name, payload))
            return
        async with self._place:
            sent = self._publisher.send(name, payload, retain=True, kind=JSON)
            code = await self._publisher.code(sent)
        refused = f"the broker refuses the {name}: {of_refusal(code, sent.topic)}"
        self._say(name, refused if code >= REFUSED else "")

    def _say(self, name: str, line: str) -> None:
        """Log what is wrong with a message when that is another thing than before."""
        if line and self._said.get(name) != line:
            log.warning(line)
        self._said[name] = line


def _larger(name: str, payload: bytes) -> str:
    larger = f"the {name}, {len(payload)} bytes, is larger than the broker takes"
    return f"{larger}: {of_refusal(TOO_LARGE)}"
