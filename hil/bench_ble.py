"""What Bluetooth costs the daemon, what it loses of it, and how late it is.

50 sensors advertise ten times a second each, every advertisement with its time of sending in it;
then strangers with names and addresses that change come beside them. The daemon is a process of its
own against a simulated BlueZ, and so is bleak alone, with a callback that does nothing: what stands
between the two is ours. Simulated BlueZ and broker run in this process and are not counted.
"""

import argparse
import asyncio
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from gateway.reading import PRESSURE
from gateway.wire import decode
from hil.arguments import seconds, whole
from hil.bluez import FORGET_AFTER, FakeBlueZ
from hil.broker import Broker
from hil.daemon import Daemon, die_with
from hil.dbusdaemon import PrivateBus
from hil.proc import cpu_seconds, rss_mb
from hil.radio import Advertiser
from hil.receiver import Receiver

DEVICES = 50
EVERY = 0.1
"""Seconds from one advertisement of a device to the next."""
SETTLES = 5.0
"""Seconds before anything is counted: imports, the first batch, memory that is taken once."""
ROTATE = 10.0
"""Seconds that a stranger keeps an address."""
LEVEL = ROTATE + FORGET_AFTER + 20
"""Seconds of strangers after which as many are forgotten as come, and the heap has settled."""
MEMORIES = 6
"""How often memory is looked at from then on."""
RUUVI = 0x0499
LAP = 60_000
"""The time of sending is told in milliseconds of a minute, as pressure in steps of 1 Pa."""

_BLEAK = """\
import asyncio, bleak
async def main():
    async with bleak.BleakScanner(lambda device, data: None,
                                  bluez={"filters": {"DuplicateData": True}}):
        await asyncio.sleep(1e6)
asyncio.run(main())
"""


@dataclass(frozen=True)
class Cost:
    """The figures of one process."""

    process: str
    cpu_ms_per_1000: float
    """Of CPU for each 1000 advertisements."""
    rss_mb: float


@dataclass(frozen=True)
class Figures:
    """The figures of one run."""

    adverts: int
    """That reached the daemon's adapter."""
    lost: int
    """Of these, those that it did not decode."""
    late_ms_median: float
    late_ms_p99: float
    """From the sending to the instant of the reading."""
    costs: list[Cost]
    ratio: float
    """CPU of the daemon to that of bleak alone."""
    strangers: int
    """At a time; each has a new address every ROTATE seconds."""
    strangers_after: float
    """Seconds that they have come and gone before memory is looked at."""
    strangers_rss_mb: list[float]
    """The daemon's memory from then on, at equal distances."""


def payload(_: int) -> bytes:
    """Return a Ruuvi payload of format 5 that tells when it is sent."""
    sent = int(time.time() * 1000) % LAP
    told = struct.pack(">BhHHhhhHBH", 5, 4860, 21_000, sent, 4, -4, 1036, 0xAC36, 66, sent)
    return told + bytes.fromhex("CBB8334C884F")


async def measure(watched: float, strangers: int, after: float) -> Figures:
    """Return the figures of so many seconds with sensors alone, and as many with strangers.

    The strangers come and go for `after` seconds before memory is looked at.
    """
    async with (
        PrivateBus() as bus,
        FakeBlueZ(bus) as bluez,
        Broker() as broker,
    ):
        sensors = [
            bluez.advertise(f"CB:B8:33:4C:88:{n:02X}", manufacturer={RUUVI: payload}, every=EVERY)
            for n in range(DEVICES)
        ]
        alone = await _bleak_alone(sensors, bus, watched)
        for sensor in sensors:
            sensor.stop()
        async with _daemon(broker, bus, sensors) as daemon:
            before = _heard(sensors)
            for sensor in sensors:
                sensor.start()
            await broker.wait_for(lambda seen: any("/batch/" in m.topic for m in seen), timeout=30)
            await asyncio.sleep(SETTLES)
            ours = await _cost("daemon", daemon.pid, sensors, watched)
            crowd = bluez.crowd(strangers, every=1, rotate=ROTATE)
            await asyncio.sleep(after)
            memory = [round(rss_mb(daemon.pid), 1)]
            for _ in range(MEMORIES):
                await asyncio.sleep(watched / MEMORIES)
                memory.append(round(rss_mb(daemon.pid), 1))
            crowd.stop()
            for sensor in sensors:
                sensor.stop()
            await asyncio.sleep(1)  # what is under way over D-Bus
            adverts = _heard(sensors) - before
            await daemon.stop()
        receiver = Receiver()
        late = []
        for message in broker.received:
            receiver.take(message)
            late += _lateness(message.payload) if "/batch/" in message.topic else []
    decoded = sum(each["outcomes"].get("ok", 0) for each in receiver.status["sensors"].values())
    late.sort()
    return Figures(
        adverts=adverts,
        lost=adverts - decoded,
        late_ms_median=late[len(late) // 2],
        late_ms_p99=late[len(late) * 99 // 100],
        costs=[alone, ours],
        ratio=round(ours.cpu_ms_per_1000 / alone.cpu_ms_per_1000, 2),
        strangers=strangers,
        strangers_after=after,
        strangers_rss_mb=memory,
    )


async def _bleak_alone(sensors: Sequence[Advertiser], bus: PrivateBus, watched: float) -> Cost:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _BLEAK),
        env=os.environ | bus.environment,
        preexec_fn=partial(die_with, os.getpid()),
    )
    try:
        await asyncio.sleep(SETTLES)
        return await _cost("bleak alone", process.pid, sensors, watched)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _daemon(
    broker: Broker, bus: PrivateBus, sensors: Sequence[Advertiser]
) -> AsyncIterator[Daemon]:
    with tempfile.TemporaryDirectory() as place:
        config = _configured(Path(place), broker.url, sensors)
        async with Daemon(config, bus.environment) as daemon:
            yield daemon


def _configured(place: Path, broker: str, sensors: Sequence[Advertiser]) -> Path:
    state = json.dumps(str(place / "state"))
    text = f'[gateway]\nid = "bench"\nstate_dir = {state}\n[uplink]\nurl = "{broker}"\n'
    text += '[buffer]\nflush_interval = "1s"\nseal_interval = "1s"\n'
    for n, sensor in enumerate(sensors):
        text += f'[sensors.tag-{n}]\ndriver = "ruuvi"\naddress = "{sensor.address}"\n'
        text += 'interval = "1s"\n'
    config = place / "config.toml"
    config.write_text(text)
    return config


async def _cost(name: str, pid: int, sensors: Sequence[Advertiser], watched: float) -> Cost:
    heard, used = _heard(sensors), cpu_seconds(pid)
    await asyncio.sleep(watched)
    heard, used = _heard(sensors) - heard, cpu_seconds(pid) - used
    return Cost(name, round(1e6 * used / max(heard, 1), 1), round(rss_mb(pid), 1))


def _heard(sensors: Sequence[Advertiser]) -> int:
    return sum(len(sensor.heard) for sensor in sensors)


def _lateness(payload: bytes) -> list[int]:
    return [
        (reading.instant.wall_ms - round(float(reading.value or 0) * 100) + 50_000) % LAP
        for reading in decode(payload).readings
        if reading.quantity == PRESSURE
    ]


def parser() -> argparse.ArgumentParser:
    """Return what its command line takes."""
    takes = argparse.ArgumentParser(prog="bench ble", description=__doc__)
    takes.add_argument("--json", action="store_true", help="figures as JSON")
    takes.add_argument("--quick", action="store_true", help="5 s each, memory before it is level")
    takes.add_argument("--seconds", type=seconds, default=30, help="how long to watch each")
    takes.add_argument("--strangers", type=whole, default=1000, help="how many come beside")
    return takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with `--json` one JSON object."""
    args = parser().parse_args(arguments)
    watched, after = (min(args.seconds, 5), 0) if args.quick else (args.seconds, LEVEL)
    found = asyncio.run(measure(watched, args.strangers, after))
    if args.json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"{DEVICES} sensors, {1 / EVERY:g} advertisements a second each\n")
    print("process        CPU ms per 1000 adverts   RSS MB")
    for cost in found.costs:
        print(f"{cost.process:14} {cost.cpu_ms_per_1000:23.1f} {cost.rss_mb:8.1f}")
    print(f"{'ratio':14} {found.ratio:23.2f}\n")
    print(f"{found.adverts} advertisements heard, {found.lost} lost")
    print(f"late by {found.late_ms_median:g} ms (median), {found.late_ms_p99:g} ms (p99)\n")
    memory = "  ".join(f"{mb:.1f}" for mb in found.strangers_rss_mb)
    came = f"{found.strangers} strangers come and go, from {found.strangers_after:g} s on"
    print(f"RSS MB while {came}: {memory}")


if __name__ == "__main__":
    main()
