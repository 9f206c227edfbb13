"""A loop and a clock that jump when everyone waits: a day of polls takes seconds."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import looptime

from gateway.clock import Clock

T = TypeVar("T")

START_MS = 1_763_900_000_000


def run(main: Coroutine[Any, Any, T]) -> T:
    loop = looptime.new_event_loop(start=0, noop_cycles=10)
    with contextlib.closing(loop):
        return loop.run_until_complete(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def clock() -> Clock:
    """A synchronised clock that goes with the loop; it booted when the loop began."""
    return Clock(
        wall_ns=lambda: round(START_MS * 1e6) + round(now() * 1e9),
        boot_ns=lambda: round(now() * 1e9),
        kernel=lambda: (4000, False),
        boot=487347626,
    )


async def for_seconds(seconds: float, *work: Coroutine[Any, Any, None]) -> None:
    """Let work that never ends go on for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)


class Inline(ThreadPoolExecutor):
    """Does work where it is submitted, so that no thread races the clock."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work(*args, **kwargs))
        return future
