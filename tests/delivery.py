"""A buffer and its uplink, and what a broker got from them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tenacity import wait_fixed

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.encoding import BOUNDS
from gateway.reading import COUNT, Instant, Reading
from gateway.settings import Broker as Address
from gateway.settings import BufferSettings, UplinkSettings
from gateway.suspects import LOSSES, Batch, Suspects
from gateway.uplink import Uplink
from gateway.wire import decode
from hil.broker import Broker, Faults, Received

BATCHES = "bygate/v1/+/batch/#"


class Status:
    """The status of a gateway that is fine."""

    size = 0

    def payload(self, state: str) -> bytes:
        return json.dumps({"state": state, "more": "x" * self.size}).encode()

    def will(self, state: str = "offline") -> bytes:
        return json.dumps({"state": state}).encode()

    def digest(self) -> object:
        return self.size


class Box:
    """A buffer and its uplink; each `seal` makes a batch of one reading that counts up."""

    def __init__(
        self, directory: Path, *brokers: Address, disk: type[Disk] = Disk, **arguments: Any
    ) -> None:
        self.directory = directory
        settings = BufferSettings(flush_interval=0, seal_interval=0, keep_free=0)
        bound = BOUNDS[arguments.get("settings", {}).get("encoding", "msgpack")]
        self.buffer = Buffer(disk(directory), settings, "trd-0042", 1, bound=bound)
        self.writer = ThreadPoolExecutor(1)
        self.status = Status()
        options = {"wait": wait_fixed(0.02), **arguments}
        settings = UplinkSettings(url=brokers, **options.pop("settings", {}))
        self.uplink = Uplink(settings, "trd-0042", self.buffer, self.writer, **options)
        self.state = self.uplink.state
        self.sealed = 0

    async def seal(self, count: int = 1, value: Any = None) -> None:
        for _ in range(count):
            at = Instant(1_763_900_000_000 + self.sealed, self.sealed, 2)
            self.buffer.append(Reading("it", COUNT, at, self.sealed if value is None else value))
            self.sealed += 1
            tick = partial(self.buffer.tick, 0.0)
            await asyncio.get_running_loop().run_in_executor(self.writer, tick)
        self.uplink.wake()

    @property
    def delivered(self) -> bool:
        return self.buffer.stats().waiting_batches == 0

    async def empty(self) -> None:
        await until(lambda: self.delivered)

    @property
    def refused(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "refused").iterdir())


def address(broker: Broker) -> Address:
    return Address(broker.host, broker.port, tls=False)


@contextlib.asynccontextmanager
async def delivering(box: Box) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(box.uplink.run(box.status))
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        box.writer.shutdown()
        assert done
        assert task.cancelled() or task.exception() is None, task.exception()


@contextlib.asynccontextmanager
async def traffic(
    seal: Callable[[], Coroutine[Any, Any, None]], pace: float
) -> AsyncIterator[None]:
    """Seal so many batches a second; the last one is whole when this ends."""
    loop, enough = asyncio.get_running_loop(), asyncio.Event()

    async def flow() -> None:
        due = loop.time()
        while not enough.is_set():
            await seal()
            due = max(due + 1 / pace, loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await enough.wait()

    flows = asyncio.create_task(flow())
    try:
        yield
    finally:
        enough.set()
        await flows


async def until(holds: Callable[[], object], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def from_batch(count: int, broker: Broker, faults: Faults) -> None:
    """Have a broker do so from that batch on: sent in a flow, it leaves room beside it."""

    def look(_: Received) -> None:
        if len(both(broker.received)) == count:
            broker.faults = faults

    broker.on_publish.append(look)


def suspect(suspects: Suspects, *batches: Batch) -> None:
    """Lose connections at each of them, while others go."""
    for batch in batches:
        assert not any(suspects.lost_at(batch) for _ in range(LOSSES))
        suspects.delivered((0, 0))
        assert suspects.lost_at(batch)


def run(scenario: Coroutine[Any, Any, None], within: float = 30) -> None:
    asyncio.run(asyncio.wait_for(scenario, within))


def lane(messages: list[Received], name: str) -> list[int]:
    """Return the sequences of a lane, as they came."""
    return [decode(m.payload).sequence for m in messages if m.topic.endswith(f"batch/{name}")]


def both(messages: list[Received]) -> list[int]:
    return [decode(m.payload).sequence for m in messages if "/batch/" in m.topic]
