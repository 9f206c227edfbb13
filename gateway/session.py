"""One session with the broker: its window, its two lanes, and what becomes of each batch.

Live batches (sealed since this connection) go first, the backlog beside them, oldest first. A batch
leaves the buffer only after its PUBACK, whose reason code is read.
Window 1 at 100 ms round trip carries 9.8 batches/s, window 20 carries 136, with TCP_NODELAY 190.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from gateway.buffer import Buffer
from gateway.certificate import Outlook
from gateway.connection import Connection, UplinkError
from gateway.ration import Ration
from gateway.spool import Held
from gateway.suspects import Suspects
from gateway.traffic import Traffic
from gateway.wire import WireError

SUCCESS, NOBODY_SUBSCRIBES = 0x00, 0x10
NOT_THIS_BATCH = {0x90: "topic name invalid", 0x95: "packet too large", 0x99: "format invalid"}
"""Reason codes that would come again for the same batch for ever: it is set aside."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class UplinkState:
    """What is known of the uplink, for the status."""

    broker: str = ""
    connected: bool = False
    why: str | None = None
    """Why it is not connected."""
    last_ack_ms: int | None = None
    """Unix ms."""
    unheard: int = 0
    """Batches that the broker took although nobody subscribes to them."""
    pace: float | None = None
    """Seconds that a batch takes now, when many are under way; None until one is acknowledged."""
    gap: float = 0.0
    """Seconds from one batch of the backlog to the next, at least."""
    traffic: Traffic = field(default_factory=Traffic)
    suspects: Suspects = field(default_factory=Suspects)
    outlook: Outlook = field(default_factory=Outlook)
    """What our certificate's dates and the clock let expect of TLS."""

    def catch_up(self, batches: int) -> float | None:
        """Return how many seconds so many batches take now; None while that cannot be told."""
        if not batches:
            return 0.0
        return None if self.pace is None else batches * max(self.pace, self.gap)


class Status(Protocol):
    """Where the retained status comes from."""

    def payload(self, state: str) -> bytes:
        """Return the status as JSON; `state` is online or offline."""

    def will(self) -> bytes:
        """Return the short one that the broker publishes when this gateway vanishes."""

    def digest(self) -> object:
        """Return what makes a status worth publishing when it changes."""


class Session:
    """One connection: its window, its two lanes, and what became of them."""

    def __init__(
        self,
        client: Connection,
        root: str,
        buffer: Buffer,
        writer: Executor,
        *,
        encode: Callable[[bytes], tuple[bytes, str]],
        state: UplinkState,
        ack_within: float,
    ) -> None:
        self.news = asyncio.Event()
        self.delivered = 0
        self.refused = False
        self._client, self._root, self._buffer, self._writer = client, root, buffer, writer
        self._encode = encode
        self._state, self._suspects, self._ack_within = state, state.suspects, ack_within
        self._flying: dict[int, None] = {}  # in the order in which they were sent
        self._window = asyncio.Semaphore(1)
        # The broker counts the status, too; one that takes a single publish has it take turns
        self._place_of_status = self._window if client.at_once == 1 else asyncio.Semaphore(1)
        self._size = 1
        self._since = self._live = buffer.last
        self._backlog, self._backlog_due = 0, 0.0
        self._offered_again = buffer.offered_again
        self._settled = asyncio.Event()
        self._status: asyncio.Task[None] | None = None

    @property
    def head(self) -> int | None:
        """The batch that has been under way for longest, if any is."""
        return next(iter(self._flying), None)

    async def run(self, status: Status, every: float, about: bytes | None) -> None:
        """Deliver until the connection is lost; raises UplinkError, never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._client.lost())
            self._status = tasks.create_task(self._keep_status(status, every, about))
            while True:
                await self._window.acquire()
                self.news.clear()
                if (found := self._next()) is None:
                    self._window.release()
                    await self._wait_for_more()
                    continue
                held, lane = found
                self._flying[held.sequence] = None
                message = await asyncio.get_running_loop().run_in_executor(
                    self._writer, self._message, held
                )
                if message is None:  # gone and counted, unreadable for now, or set aside
                    self._landed(held)
                    self._window.release()
                    continue
                payload, kind = message
                if not self._fits(payload):
                    await self._set_aside(held, 0x95)
                    self._landed(held)
                    self._window.release()
                    continue
                ack = self._client.send(f"{self._root}/batch/{lane}", payload, kind=kind)
                tasks.create_task(self._settle(held, ack))

    def _message(self, held: Held) -> tuple[bytes, str] | None:
        payload = self._buffer.payload(held)
        try:
            return None if payload is None else self._encode(payload)
        except WireError as error:
            log.warning("batch %d set aside: no receiver could read it: %s", held.sequence, error)
            self._buffer.set_aside(held, 0x99)
            return None

    async def _wait_for_more(self) -> None:
        """Return when there are news, or when the backlog may go on."""
        more = self._backlog_due if self._backlog_pauses() else None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(more):
                await self.news.wait()

    def _backlog_pauses(self) -> bool:
        return asyncio.get_running_loop().time() < self._backlog_due

    def _next(self) -> tuple[Held, str] | None:
        if any(sequence in self._suspects for sequence in self._flying):
            return None
        since = max(self._since, self._buffer.inherited)  # a disk may be there later than a broker
        if live := next(self._buffer.waiting(max(self._live, since)), None):
            self._live = live.sequence
            return live, "live"
        if self._backlog_pauses() or (old := self._next_of_backlog(since)) is None:
            return None
        now = asyncio.get_running_loop().time()
        self._backlog_due = max(self._backlog_due + self._state.gap, now)
        return old, "backlog"

    def _next_of_backlog(self, since: int) -> Held | None:
        if self._offered_again != self._buffer.offered_again:
            self._offered_again, self._backlog = self._buffer.offered_again, 0
        for old in self._buffer.waiting(self._backlog, max(self._live, since) + 1):
            self._backlog = old.sequence
            if old.sequence not in self._suspects and old.sequence not in self._flying:
                return old
        return None if self._flying else self._suspect()

    def _suspect(self) -> Held | None:
        for sequence in self._suspects.due():
            if held := next(self._buffer.waiting(sequence - 1, sequence + 1), None):
                return held
            self._suspects.clear(sequence)
        return None

    def _landed(self, held: Held) -> None:
        self._flying.pop(held.sequence, None)
        self._suspects.clear(held.sequence)
        if not self._flying:
            self.news.set()

    async def _settle(self, held: Held, ack: asyncio.Future[int]) -> None:
        state, loop = self._state, asyncio.get_running_loop()
        sent = loop.time()
        code = await _within(self._ack_within, ack)
        if code in (SUCCESS, NOBODY_SUBSCRIBES):
            self._buffer.acknowledge(held.sequence)
            state.unheard += code == NOBODY_SUBSCRIBES
            state.last_ack_ms = time.time_ns() // 1_000_000
            took = (loop.time() - sent) / self._size
            state.pace = took if state.pace is None else 0.8 * state.pace + 0.2 * took
            self.delivered += 1
        elif code in NOT_THIS_BATCH:
            await self._set_aside(held, code)
        else:
            self.refused = True
            raise UplinkError(
                f"the broker refuses batches: 0x{code:02x} {_REASONS.get(code, '')}; all are kept"
            )
        self._landed(held)
        if self._size < self._client.window:
            self._size += 1
            self._window.release()
        self._window.release()
        self._settled.set()

    def _fits(self, payload: bytes) -> bool:
        return len(payload) + len(self._root) + 64 <= self._client.largest_packet

    async def _set_aside(self, held: Held, code: int) -> None:
        log.error(
            "batch %d set aside: 0x%02x %s, %d bytes",
            *(held.sequence, code, NOT_THIS_BATCH[code], held.length),
        )
        await asyncio.get_running_loop().run_in_executor(
            self._writer, self._buffer.set_aside, held, code
        )

    async def _keep_status(self, status: Status, every: float, about: bytes | None) -> None:
        """Publish what this gateway is, and its status when it changes and every so often."""
        if about is not None:
            await self._retain("about", about)
        loop, changes = asyncio.get_running_loop(), Ration()
        while True:
            digest, published = status.digest(), loop.time()
            await self._retain("status", status.payload("online"))
            # Asked once a second: an event from each thing that may change would tie it to them all
            while loop.time() < published + every and not (
                changes.left and status.digest() != digest
            ):
                self._state.traffic.add(self._client.more_carried())
                await asyncio.sleep(1)
            if loop.time() < published + every:
                changes.take()

    async def _retain(self, name: str, payload: bytes) -> None:
        """Publish a retained document; a broker that does not take it gets the batches."""
        if not self._fits(payload):
            log.warning("the %s is larger than the broker takes: %d bytes", name, len(payload))
            return
        async with self._place_of_status:
            ack = self._client.send(
                f"{self._root}/{name}", payload, retain=True, kind="application/json"
            )
            code = await _within(self._ack_within, ack)
        if code >= 0x80:
            log.warning("the broker refuses the %s: 0x%02x %s", name, code, _REASONS.get(code, ""))

    async def drained(self) -> None:
        """Return when the buffer holds nothing more."""
        while next(self._buffer.waiting(), None):
            self._settled.clear()
            await self._settled.wait()

    async def say_goodbye(self, status: Status) -> None:
        """Publish that this gateway is offline, and disconnect so that the will does not fire."""
        if self._status:
            self._status.cancel()  # an "online" behind the "offline" would stay there
        await self._retain("status", status.payload("offline"))
        await self._client.say_goodbye()


async def _within(seconds: float, ack: asyncio.Future[int]) -> int:
    try:
        async with asyncio.timeout(seconds):
            return await ack
    except TimeoutError:
        raise UplinkError(f"no acknowledgement within {seconds:g} s: the link is dead") from None


_REASONS = {
    0x83: "implementation specific error",
    0x87: "not authorized: has this gateway the right to publish to its topic?",
    0x97: "quota exceeded",
}
