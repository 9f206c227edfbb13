"""A radio of the gateway's beside a simulated BlueZ, in one event loop."""

import asyncio
import functools
import gc
import os
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ble import Radio
from hil.bluez import FakeBlueZ
from hil.bluezprocess import BlueZProcess
from hil.dbusdaemon import PrivateBus

NEEDS_DBUS = pytest.mark.skipif(
    not shutil.which("dbus-daemon"), reason="no dbus-daemon: apt install dbus"
)

LONG = os.environ.get("BYGATE_TESTS") == "long"
LIMIT = 120 if LONG else 30
"""Seconds after which a test has failed."""

TAG = "CC:B8:33:4C:88:4F"
METER = "C0:00:00:00:00:01"


def on_air(test):
    """Run a test in a loop of its own, no longer than LIMIT."""

    @functools.wraps(test)
    def run(*arguments, **named):
        async def limited():
            asyncio.get_running_loop().set_exception_handler(lost)
            async with asyncio.timeout(LIMIT):
                await test(*arguments, **named)

        asyncio.run(limited())

    return run


def lost(loop, context):
    """Log what no task has met, but nothing of the many futures that a lost connection leaves.

    They are met by the garbage collector, at any time. In Python 3.11 that can be within a call of
    ast.parse, which fails if another is made meanwhile, as to log a traceback is (gh-106905).
    """
    if not isinstance(context.get("exception"), OSError | EOFError):
        loop.default_exception_handler(context)


async def until(true):
    """Return when a condition holds; the test's own deadline ends a wait in vain."""
    while not true():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def resources():
    """Return how many descriptors, tasks and objects there are."""
    gc.collect()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return descriptors, len(asyncio.all_tasks()), len(gc.get_objects())


class Ears:
    """What the radio has told of one address, in order."""

    def __init__(self, radio: Radio, address: str = TAG) -> None:
        self.heard = []
        self._more = asyncio.Event()
        radio.listen(address, self._hear)

    def _hear(self, _, advertisement):
        self.heard.append(advertisement)
        self._more.set()

    async def next(self):
        """Return what is heard next, and the seconds until then."""
        count, began = len(self.heard), time.monotonic()
        while len(self.heard) == count:
            self._more.clear()
            await self._more.wait()
        return self.heard[count], time.monotonic() - began


@asynccontextmanager
async def apart(scene, **settings):
    """Give a simulated BlueZ that is a process of its own, and a radio that runs on it."""
    async with BlueZProcess(scene, "--forget-after", "0.5") as bluez:
        os.environ |= bluez.environment
        radio = Radio(["hci0"], **settings)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(radio.run())
            yield bluez, radio
            running.cancel()
        await settled()


@asynccontextmanager
async def scene(adapters=("hci0",), *, bluez=None, denied="", **settings):
    """Give a simulated BlueZ and a radio that runs on it."""
    async with (
        PrivateBus(denied=denied) as bus,
        FakeBlueZ(bus, adapters=adapters, **(bluez or {})) as fake,
    ):
        os.environ |= bus.environment
        radio = Radio(adapters, **settings)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(radio.run())
            yield fake, radio
            running.cancel()
        await settled()


async def settled():
    """Close bleak's own connection, which it would keep as long as the loop."""
    from bleak.backends.bluezdbus.manager import _global_instances

    manager = _global_instances.pop(asyncio.get_running_loop(), None)
    if manager and manager._bus:
        manager._bus.disconnect()
        await asyncio.wait({manager._bus_watcher_task})
