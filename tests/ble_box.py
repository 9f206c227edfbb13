"""The daemon with a sensor that advertises, one to connect to, and one without Bluetooth."""

import time
from contextlib import asynccontextmanager

from gateway_process import gateway, readings, sensor

from hil.bluez import FakeBlueZ
from hil.broker import Broker
from hil.dbusdaemon import PrivateBus
from tests.radio_scene import METER, TAG

TURN = 1.0
SENSORS = (
    sensor("hall", "ruuvi", address=TAG, interval=f"{TURN:g}s")
    + sensor("attic", "environmental_sensing", address=METER, interval=f"{TURN:g}s")
    + sensor("box", "simulator")
)
OTHER = ("INFO uplink ", "INFO stopped")
"""How lines begin that tell of something else."""


def now_ms():
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000


def taken(broker, name):
    """Return when the daemon took the readings of a sensor that have arrived, in order."""
    return sorted({r.instant.boot_ms for r in readings(broker.received) if r.sensor == name})


async def flow(broker, since, *names):
    """Return the seconds from `since` to the first reading of each that arrives, the longest."""

    def first(name):
        return next((at for at in taken(broker, name) if at >= since), None)

    await broker.wait_for(lambda _: all(map(first, names)), timeout=20)
    return max(first(name) - since for name in names) / 1000


@asynccontextmanager
async def box(directory, monkeypatch, fault=None, more="", **daemon):
    """Give a simulated BlueZ with both sensors in the air, a broker, and the daemon at work."""
    async with (
        PrivateBus() as bus,
        FakeBlueZ(bus, forget_after=2.0) as bluez,
        Broker() as broker,
    ):
        for name, address in bus.environment.items():
            monkeypatch.setenv(name, address)
        data = bytes.fromhex("0512fc5394c37c0004fffc040cac364200cdcbb8334c884f")
        bluez.advertise(TAG, manufacturer={0x0499: data}, every=0.1)
        bluez.peripheral(METER, {"181a": {"2a6e": b"\xd0\x07"}}, every=0.1)
        if fault:
            await bluez.begin(fault)
        fast = {"flush_interval": "100ms", "seal_interval": "100ms"}
        async with gateway(directory, broker.url, SENSORS + more, **fast, **daemon) as running:
            yield bluez, broker, running


async def log_of(daemon):
    """Stop the daemon and return what it has said of Bluetooth and of sensors."""
    assert await daemon.stop() == 0
    rest = (await daemon.process.stderr.read()).decode().splitlines()
    lines = [line.strip() for line in daemon.log] + rest
    return [line for line in lines if not line.startswith(OTHER)]
