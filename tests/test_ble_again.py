"""BlueZ and its adapter that end and begin again, many times: what grows of the daemon."""

import asyncio
from pathlib import Path

import pytest
from ble_box import box, flow

from hil.proc import rss_mb
from tests.radio_scene import NEEDS_DBUS, on_air, until
from tests.trials import found, times

pytestmark = NEEDS_DBUS

TURNS = times(15, 100)
GROWS = 3.0
"""MiB that the daemon may grow: it grew by 0.2 to 1.5 in fifteen turns as in a hundred.

Of what is kept at each turn a hundred leave more: 9 MiB when bleak forgot no device.
"""


async def restarted(bluez):
    await bluez.restart()


async def crashed(bluez):
    async with bluez.fault("BlueZ crashed"):
        pass


async def off_and_on(bluez):
    async with bluez.fault("powered off"):
        await asyncio.sleep(0.05)


def held(daemon):
    """Return how many descriptors, and how many MiB of memory, the daemon has."""
    pid = daemon.process.pid
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), rss_mb(pid)


@pytest.mark.parametrize("happens", [restarted, crashed, off_and_on])
@on_air
async def test_the_daemon_does_not_grow_by_it(happens, tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        hall, attic = bluez.air.senders
        hall.every = 0.02

        async def more(count):
            so_far = count()
            await until(lambda: count() > so_far)

        async def again(turns):
            for _ in range(turns):
                await happens(bluez)
                await more(lambda: len(hall.heard))
            await more(lambda: attic["2a6e"].reads)
            return held(daemon)

        bluez.crowd(50, rotate=0.05, every=0.05)
        await flow(broker, 0, "hall", "attic", "box")
        before = await again(5)
        after = await again(TURNS)
    found(f"{happens.__name__} {TURNS} times: {before[1]:.2f} MiB, then {after[1]:.2f} MiB")
    assert after[0] <= before[0] + 2  # a connection that begins as another ends
    assert after[1] < before[1] + GROWS
