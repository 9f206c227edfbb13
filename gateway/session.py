"""One session with the broker: its window, its two lanes, and what becomes of each batch.

Live batches (sealed since this connection) go first, the backlog beside them, oldest first. A batch
leaves the buffer only after its PUBACK, whose reason code is read, and a moment later.
Window 1 at 100 ms round trip carries 9.8 batches/s, window 20 carries 136, with TCP_NODELAY 190.
But a link that swallows acknowledgements has a whole window sent again: one that is not needed
narrows.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from operator import attrgetter
from typing import NoReturn, TypeVar

from gateway.buffer import Buffer
from gateway.connection import RETAINED, Connection, UplinkError
from gateway.held import Held
from gateway.lately import Lately
from gateway.publisher import Publisher, Sent
from gateway.reasons import MALFORMED, TOO_LARGE, of_refusal, of_refused_batch
from gateway.retained import PATIENCE_WITH_RETAINED, Retained, Status
from gateway.suspects import Batch, Name
from gateway.uplinkstate import UplinkState
from gateway.wire import WireError

SUCCESS, NOBODY_SUBSCRIBES = 0x00, 0x10
NOT_THIS_BATCH = (0x90, TOO_LARGE, MALFORMED)
"""Reason codes that would come again for the same batch for ever: it is set aside."""
IN_A_ROW = 3
"""Batches that are set aside with none accepted in between, until it is said to be the broker."""
PATIENCE = 4.0
"""How much longer a PUBACK is waited for at most: broker or proxy may be slow."""
AGAIN = 30.0
"""Seconds until what the disk could not read or set aside is tried again."""
_LATEST = 20

_T = TypeVar("_T")
_sequence = attrgetter("sequence")

log = logging.getLogger(__name__)


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
        saved_within: float,
        works: Callable[[], None],
    ) -> None:
        """`works` is called when something is delivered, or nothing waits, and none was refused."""
        self.news = asyncio.Event()
        self.began = asyncio.get_running_loop().time()
        self.delivered = 0
        self.refused = False
        self._refused_batch: Batch | None = None
        self._client, self._buffer, self._writer = client, buffer, writer
        self._encode, self._works = encode, works
        self._state, self._suspects = state, state.suspects
        self._publisher, self._ack_within = Publisher(client, root, ack_within), ack_within
        self._lately = Lately(self._let_go, saved_within, state.unsaved)
        self._flying: set[Batch] = set()
        self._doubted: dict[Batch, tuple[Held, int, float]] = {}
        self._window = asyncio.Semaphore(1)
        self._places = asyncio.Semaphore(client.at_once)  # the broker counts about and status, too
        self._delivers = asyncio.Event()
        self._retained = Retained(
            *(self._publisher, self._places, state.told[state.broker], self._suspects),
            patience=PATIENCE_WITH_RETAINED if client.at_once > RETAINED else PATIENCE,
            works=self._delivers,
        )
        self._size = 1
        self._since = self._live = buffer.last
        self._backlog = 0
        self._probes = state.refused_in_a_row >= IN_A_ROW or self._suspects.in_doubt
        self._offered_again = buffer.offered_again
        self._again: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def culprit(self) -> Name | None:
        """The batch that was refused, or else what has been under way for longest."""
        return self._refused_batch if self.refused else self._publisher.oldest

    async def run(self, status: Status, every: float, about: bytes | None) -> None:
        """Deliver until the connection is lost; raises UplinkError, never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._client.lost())
            tasks.create_task(self._count())
            if about is not None:
                tasks.create_task(self._retained.publish("about", about))
            self._keeping = tasks.create_task(
                self._retained.keep(status, every, self._state.changes)
            )
            while True:
                await self._window.acquire()
                await self._places.acquire()
                self.news.clear()
                if (found := self._next()) is None:
                    await self._narrow()
                    self._leave()
                    await self._wait_for_more()
                elif (sent := await self._send(*found)) is None:
                    self._landed(found[0])
                else:
                    tasks.create_task(self._settle(found[0], sent))

    def end(self) -> None:
        """Let go of nothing more: the connection is lost."""
        self._state.traffic.add(self._client.more_carried())
        if self._again:
            self._again.cancel()
        if self.refused:  # so the broker lives
            self._lately.let_go()
        self._lately.end()
        if kept := self._lately.kept:
            self._state.unsaved.add(kept.name)

    async def _count(self) -> None:
        """Count what the connection carries, for ever."""
        while True:
            self._state.traffic.add(self._client.more_carried())
            await asyncio.sleep(1)

    async def _send(self, held: Held, lane: str) -> Sent | None:
        """Publish a batch; None: it was evicted, cannot be read for now, or is set aside."""
        self._flying.add(held.name)
        message = await self._on_writer(self._message, held)
        if message is None:
            return None
        payload, kind = message
        if not self._publisher.fits(payload):
            while len(self._flying) > 1:  # whether the broker takes these tells if it is the batch
                self._settled.clear()
                await self._settled.wait()
            await self._set_aside(held, TOO_LARGE, asyncio.get_running_loop().time())
            return None
        return self._publisher.send(f"batch/{lane}", payload, batch=held.name, kind=kind)

    async def _on_writer(self, work: Callable[..., _T], *arguments: object) -> _T | None:
        """Return what the work on the disk returns; None: the disk failed, which is not the link's.

        The buffer tells of that; it is tried again after a while.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writer, work, *arguments)
        except OSError:
            self._again = self._again or loop.call_later(AGAIN, self._look_again)
            return None

    def _look_again(self) -> None:
        self._again, self._backlog = None, 0
        self.news.set()

    def _message(self, held: Held) -> tuple[bytes, str] | None:
        payload = self._buffer.payload(held)
        try:
            return None if payload is None else self._encode(payload)
        except WireError as error:
            self._buffer.set_aside(held, MALFORMED)
            log.warning("batch %d set aside: no receiver could read it: %s", held.sequence, error)
            return None

    async def _wait_for_more(self) -> None:
        """Return when there are news, or when the backlog may go on."""
        pauses = self._backlog_pauses()
        if next(self._buffer.waiting(), None) is None and not self._state.refused_in_a_row:
            self._note_that_it_works()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._state.backlog_due if pauses else None):
                await self.news.wait()

    async def _narrow(self) -> None:
        """Have the window be at most twice what is under way: a hole costs all that it holds."""
        while self._size > max(2 * len(self._flying), 1):
            await self._window.acquire()  # at once: the window is not full
            self._size -= 1

    def _backlog_pauses(self) -> bool:
        return asyncio.get_running_loop().time() < self._state.backlog_due

    def _next(self) -> tuple[Held, str] | None:
        if any(name in self._suspects for name in self._flying):
            return None
        since = max(self._since, self._buffer.inherited)  # a disk may be there later than a broker
        if live := next(self._buffer.waiting(max(self._live, since)), None):
            self._live = live.sequence
            return live, "live"
        if self._backlog_pauses() or (old := self._next_of_backlog(since)) is None:
            return None
        now, due, gap = asyncio.get_running_loop().time(), self._state.backlog_due, self._state.gap
        self._state.backlog_due = (due if now < due + gap else now) + gap
        return old, "backlog"

    def _next_of_backlog(self, since: int) -> Held | None:
        if self._offered_again != self._buffer.offered_again:
            self._offered_again, self._backlog = self._buffer.offered_again, 0
        if latest := self._probe():
            return latest
        for old in self._buffer.waiting(self._backlog, max(self._live, since) + 1):
            self._backlog = old.sequence
            if self._free(old):
                return old
        return None if self._flying else self._suspect()

    def _probe(self) -> Held | None:
        """Return the latest batch, once, where the oldest do not go: it tells if none goes."""
        probes, self._probes = self._probes, False
        if not probes:
            return None
        latest = max(self._buffer.waiting(self._buffer.last - _LATEST), key=_sequence, default=None)
        return latest if latest and self._free(latest) else None

    def _free(self, held: Held) -> bool:
        under_way = held.name in self._flying or held == self._lately.kept
        return not (under_way or held.name in self._suspects or held.name in self._doubted)

    def _suspect(self) -> Held | None:
        for name in self._suspects.due():
            for held in self._buffer.waiting(name[0] - 1, name[0] + 1):
                if held.name == name:
                    self._suspects.tried(name)
                    return held
            self._suspects.clear(name)
        return None

    def _landed(self, held: Held) -> None:
        self._flying.discard(held.name)
        if not self._flying:
            self.news.set()
        self._settled.set()
        self._leave()

    def _leave(self) -> None:
        self._places.release()
        self._window.release()

    async def _settle(self, held: Held, sent: Sent) -> None:
        suspect = held.name in self._suspects
        patience = PATIENCE if suspect else self._state.patience
        code = await self._publisher.code(sent, patience)
        if code in (SUCCESS, NOBODY_SUBSCRIBES):
            self._delivered(held, code, sent)
            await self._set_doubted_aside()
        elif code in NOT_THIS_BATCH:
            await self._set_aside(held, code, sent.at)
        elif not suspect:
            self._refused_batch = held.name
            self._refuses("batches", of_refusal(code, sent.topic))
        self._landed(held)
        if self._size < self._client.window:
            self._size += 1
            self._window.release()

    def _delivered(self, held: Held, code: int, sent: Sent) -> None:
        state = self._state
        self._buffer.delivered(held)
        self._lately.add(held)
        self._suspects.delivered(held.name)
        state.refused_in_a_row, state.accepted_at = 0, max(state.accepted_at, sent.at)
        state.unheard += code == NOBODY_SUBSCRIBES
        state.last_ack_ms = time.time_ns() // 1_000_000
        took = asyncio.get_running_loop().time() - sent.at
        if took <= self._ack_within:
            state.patience = 1.0
        pace = took / self._size
        state.pace = pace if state.pace is None else 0.8 * state.pace + 0.2 * pace
        self.delivered += 1
        self._note_that_it_works()

    def _note_that_it_works(self) -> None:
        self._delivers.set()
        if not self.refused:  # which ends this session, and says why
            self._works()

    def _let_go(self, held: Held) -> None:
        self._buffer.acknowledge(held)
        self._state.unsaved.discard(held.name)
        self._settled.set()

    def _refuses(self, what: str, why: str) -> NoReturn:
        self.refused, self._state.why = True, f"the broker refuses {what}: {why}; all are kept"
        raise UplinkError(self._state.why)

    async def _set_aside(self, held: Held, code: int, sent_at: float) -> None:
        if held.name in self._state.unsaved:  # aside, it would be lost with its file
            self._let_go(held)
            log.warning(
                "batch %d counts as delivered: acknowledged, then sent again and refused: %s",
                *(held.sequence, of_refused_batch(code)),
            )
        else:
            await self._on_writer(self._aside, held, code, sent_at)
        self._suspects.clear(held.name)

    def _aside(self, held: Held, code: int, sent_at: float) -> None:
        # Counted and told here: the connection may be lost, and whoever waits for this be gone
        state, why = self._state, of_refused_batch(code)
        # The disk is slower than the broker, which may have taken a later one by now
        first = sent_at > state.accepted_at and not self._buffer.lies_aside(held)
        if first and state.refused_in_a_row >= IN_A_ROW:
            self._refuses("every batch", why)
        if first and state.refused_in_a_row and not self._buffer.fits_aside(held):
            self._doubted[held.name] = held, code, sent_at
            state.refused_in_a_row += 1
        elif self._buffer.set_aside(held, code):
            state.refused_in_a_row += first and sent_at > state.accepted_at
            log.error("batch %d set aside: %s", held.sequence, why)

    async def _set_doubted_aside(self) -> None:
        """Have what found no room take that of the oldest: it is the batch, not the broker."""
        for name, (held, code, sent_at) in list(self._doubted.items()):
            # Another one that is accepted meanwhile does the same
            if sent_at < self._state.accepted_at and name in self._doubted:
                del self._doubted[name]
                await self._set_aside(held, code, sent_at)

    async def drained(self) -> None:
        """Return when the buffer holds nothing more."""
        while next(self._buffer.waiting(), None):
            self._settled.clear()
            await self._settled.wait()

    async def say_goodbye(self, status: Status) -> None:
        """Publish that this gateway is offline, and disconnect so that the will does not fire."""
        if self._keeping:
            self._keeping.cancel()  # an "online" behind the "offline" would stay there
        if self.refused:
            self._places.release()  # of what was refused: the broker has answered that
        if await self._retained.tell(status, "offline"):  # else the will says it
            await self._client.say_goodbye()
