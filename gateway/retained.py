"""Publishes what stays at the broker: what this gateway is, and its status, which never lies."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.publisher import Publisher
from gateway.ration import Ration
from gateway.reasons import REFUSED, TOO_LARGE, of_refusal
from gateway.suspects import Suspects

JSON = "application/json"
PATIENCE_WITH_RETAINED = 40.0
"""How much longer a PUBACK is waited for than that of a batch, where it holds up none."""

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


@dataclass(slots=True)
class Told:
    """What became of these messages on all connections to one broker."""

    said: dict[str, str] = field(default_factory=dict)
    """What was logged last of each."""
    too_large: dict[str, int] = field(default_factory=dict)
    """Bytes of those that it did not take."""


class Retained:
    """The retained messages of one connection; a broker that refuses them gets the batches."""

    def __init__(
        self,
        publisher: Publisher,
        places: asyncio.Semaphore,
        told: Told,
        suspects: Suspects,
        *,
        patience: float,
        works: asyncio.Event,
    ) -> None:
        """`places` are the broker's; `works` is set once batches go."""
        self._publisher, self._places, self._patience = publisher, places, patience
        self._said, self._too_large, self._suspects = told.said, told.too_large, suspects
        self._works = works
        self._alone = asyncio.Lock()

    async def keep(self, status: Status, every: float, changes: Ration) -> None:
        """Publish the status when it changes and every so often, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            async with self._turn("status"):
                published = loop.time()
                payload, digest = status.payload("online"), status.digest()
                await self._tell(payload, status.will("online"))
            # Asked once a second: an event from each thing that may change would tie it to them all
            while loop.time() < published + every:
                if changes.left and status.digest() != digest:
                    changes.take()
                    break
                await asyncio.sleep(1)
            else:
                self._too_large.clear()  # somebody may have raised the bound

    async def tell(self, status: Status, state: str) -> bool:
        """Publish the status, or a short one where that is too large; whether one was taken."""
        return await self._tell(status.payload(state), status.will(state))

    async def _tell(self, whole: bytes, short: bytes) -> bool:
        code = await self._publish("status", whole, "whole status")
        if code == TOO_LARGE:
            code = await self._publish("status", short, "status")
        return code < REFUSED

    async def publish(self, name: str, payload: bytes) -> None:
        """Publish a message that stays there."""
        async with self._turn(name):
            await self._publish(name, payload, name)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait until it may go: at once, but where connections broke at it behind a batch, alone.

        It may be one at which the broker ends the connection, by what it denies.
        """
        if name not in self._suspects:
            yield
            return
        await self._works.wait()
        await asyncio.sleep(self._suspects.pause(name))
        async with self._alone:
            self._suspects.tried(name)
            yield

    async def _publish(self, name: str, payload: bytes, what: str) -> int:
        """Return the reason code of its PUBACK, or that of one that is too large to be sent."""
        tried = self._too_large.get(what)
        if not self._publisher.fits(payload) or (tried and len(payload) >= tried):
            self._say(what, self._larger(name, payload))
            return TOO_LARGE
        async with self._places:
            sent = self._publisher.send(name, payload, retain=True, kind=JSON)
            code = await self._publisher.code(sent, self._patience)
        if code == TOO_LARGE:
            self._too_large[what] = len(payload)
            self._say(what, self._larger(name, payload))
        elif code >= REFUSED:
            self._suspects.suspect(name)
            self._say(what, f"the broker refuses the {name}: {of_refusal(code, sent.topic)}")
        else:
            self._suspects.clear(name)
            self._say(what, "")
        return code

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
