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
        too_large: dict[str, int],
    ) -> None:
        """`place` is the one in the broker's window that they have; `traffic` counts bytes.

        `said` is what was told of each message, `too_large` how many bytes of it the broker did
        not take; on connections before this one, too.
        """
        self._publisher, self._place, self._count = publisher, place, traffic
        self._said, self._too_large = said, too_large

    async def keep(self, status: Status, every: float, changes: Ration) -> None:
        """Publish the status when it changes and every so often, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            published = loop.time()
            payload, digest = status.payload("online"), status.digest()
            await self._tell(payload, status.will("online"))
            # Asked once a second: an event from each thing that may change would tie it to them all
            while loop.time() < published + every and not (
                changes.left and status.digest() != digest
            ):
                self._count()
                await asyncio.sleep(1)
            if loop.time() < published + every:
                changes.take()
            else:
                self._too_large.clear()  # somebody may have raised the bound

    async def tell(self, status: Status, state: str) -> None:
        """Publish the status, or a short one where the broker takes no more."""
        await self._tell(status.payload(state), status.will(state))

    async def _tell(self, whole: bytes, short: bytes) -> None:
        if not await self._publish("status", whole, "whole status"):
            await self._publish("status", short, "status")

    async def publish(self, name: str, payload: bytes) -> None:
        """Publish a message that stays there."""
        await self._publish(name, payload, name)

    async def _publish(self, name: str, payload: bytes, what: str) -> bool:
        """Return False when the broker takes no message of that size."""
        tried = self._too_large.get(what)
        if not self._publisher.fits(payload) or (tried and len(payload) >= tried):
            self._say(what, self._larger(name, payload))
            return False
        async with self._place:
            sent = self._publisher.send(name, payload, retain=True, kind=JSON)
            code = await self._publisher.code(sent)
        if code == TOO_LARGE:
            self._too_large[what] = len(payload)
            self._say(what, self._larger(name, payload))
            return False
        refused = f"the broker refuses the {name}: {of_refusal(code, sent.topic)}"
        self._say(what, refused if code >= REFUSED else "")
        return True

    def _say(self, name: str, line: str) -> None:
        """Log what is wrong with a message when that is another thing than before."""
        if line and self._said.get(name) != line:
            log.warning(line)
        self._said[name] = line

    def _larger(self, name: str, payload: bytes) -> str:
        what = f"the {name} is larger than the broker takes: {-(-len(payload) >> 10)} KiB"
        if not self._publisher.fits(payload):
            what += f", in packets of at most {self._publisher.largest_packet} bytes"
        return f"{what}: {of_refusal(TOO_LARGE)}"
