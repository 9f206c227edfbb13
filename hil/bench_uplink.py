"""How fast readings reach a broker, live, from a backlog and far away, and what that costs.

The broker is a real mosquitto, set as gateway/WIRE.md recommends, on another core, where there is
one; the gateway has one core alone. Nobody subscribes, so the broker keeps nothing.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

from gateway.buffer import Buffer
from gateway.connection import WINDOW, Connection
from gateway.disk import Disk
from gateway.reading import Reading
from gateway.settings import Broker, BufferSettings, UplinkSettings
from gateway.uplink import Uplink
from hil.backlog import GATEWAY, fill, readings
from hil.bench_buffer import Figure, show
from hil.daemon import Daemon
from hil.mosquitto import Mosquitto
from hil.proc import cpu_seconds, rss_mb
from hil.valve import Valve

ROUND_TRIP = 0.1
AHEAD = 50
"""Batches that may wait before the source of readings pauses."""

_CONFIG = """\
[gateway]
id = "bench"
state_dir = "{state}"
[uplink]
url = "{url}"
[buffer]
keep_free = "0B"
"""
_SENSOR = """\
[sensors.box{number}]
driver = "simulator"
interval = "3s"
"""


class _Status:
    """The status of a gateway that has none."""

    def payload(self, state: str) -> bytes:
        return b"{}"

    def will(self, state: str = "offline") -> bytes:
        return b"{}"

    def digest(self) -> object:
        return None


@contextmanager
def one_core() -> Iterator[None]:
    """Have one core for this process; what is started meanwhile shares it."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@asynccontextmanager
async def delivering(
    directory: Path, host: str, port: int
) -> AsyncIterator[tuple[Buffer, Uplink, ThreadPoolExecutor]]:
    """Give a buffer in a directory, and the uplink that empties it."""
    address = Broker(host, port, tls=False)
    buffer = Buffer(Disk(directory), BufferSettings(keep_free=0), GATEWAY, 7)
    with ThreadPoolExecutor(1) as writer:
        await asyncio.get_running_loop().run_in_executor(writer, buffer.tick, 0.0)
        uplink = Uplink(UplinkSettings(url=(address,)), GATEWAY, buffer, writer)
        task = asyncio.create_task(uplink.run(_Status()))
        await _until(lambda: uplink.state.connected)
        yield buffer, uplink, writer
        task.cancel()
        await asyncio.wait({task})


async def _until(holds: Callable[[], object]) -> None:
    """Look every ms: an event for a bench alone would have to go through all of the gateway."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def live(count: int, directory: Path, broker: Mosquitto) -> Iterator[Figure]:
    """Return readings a second from `append` to PUBACK, and the same as messages of one reading."""
    stream = list(islice(readings(10), 50_000))
    loop = asyncio.get_running_loop()
    async with delivering(directory, broker.host, broker.port) as (buffer, uplink, writer):
        began, cpu = time.perf_counter(), time.process_time()
        source = cycle(stream)
        for now in range(1, count // 1000 + 1):
            for reading in islice(source, 1000):
                buffer.append(reading)
            await loop.run_in_executor(writer, buffer.tick, float(now))
            uplink.wake()
            await _until(lambda: buffer.stats().waiting_batches <= AHEAD)
        await loop.run_in_executor(writer, buffer.close)
        uplink.wake()
        await _until(lambda: not buffer.stats().waiting_batches)
        ours = count / (time.perf_counter() - began)
        used = (time.process_time() - cpu) / count
    theirs = await one_by_one(stream[: count // 50], broker)
    return iter(
        (
            Figure("append to PUBACK, batches of 1000", ours, "readings/s", 1, "≥ 100 000"),
            Figure("one JSON message a reading, same client", theirs, "readings/s", theirs / ours),
            Figure("CPU of this", used * 1e6, "µs/reading"),
        )
    )


async def one_by_one(some: Sequence[Reading], broker: Mosquitto) -> float:
    """Return readings a second, each a JSON message of its own, with the same window."""
    address = Broker(broker.host, broker.port, tls=False)
    client = await Connection.to(address, UplinkSettings(url=(address,)), GATEWAY, will=b"{}")
    async with client.session():
        window = asyncio.Semaphore(WINDOW)
        began = time.perf_counter()
        for r in some:
            await window.acquire()
            topic = f"bygate/v1/{GATEWAY}/{r.sensor}/{r.quantity.name}"
            fields = {"t": r.instant.wall_ms, "v": r.value, "u": r.quantity.unit}
            payload = json.dumps(fields).encode()
            ack = client.send(topic, payload, kind="application/json")
            ack.add_done_callback(lambda _: window.release())
        for _ in range(WINDOW):
            await window.acquire()
        return len(some) / (time.perf_counter() - began)


async def far(batches: int, directory: Path, broker: Mosquitto) -> Figure:
    """Return batches a second at 100 ms round trip, from connecting to the last PUBACK."""
    fill(directory, batches * 600)
    async with Valve(broker.port, delay=ROUND_TRIP / 2) as valve:
        began = time.perf_counter()
        async with delivering(directory, valve.host, valve.port) as (buffer, _, _):
            await _until(lambda: not buffer.stats().waiting_batches)
            value = batches / (time.perf_counter() - began)
    return Figure(
        f"backlog at 100 ms round trip, window {WINDOW}", value, "batches/s", None, "≥ 150"
    )


async def drain(count: int, directory: Path, broker: Mosquitto) -> Iterator[Figure]:
    """Return how long the daemon takes for a backlog, and what it needs for that."""
    state = directory / "state"
    state.mkdir()
    fill(state, count)
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(state=state, url=broker.url))
    old = set(state.glob("*.seg"))
    async with Daemon(config) as daemon:
        began, peak = time.perf_counter(), 0.0
        while any(path.exists() for path in old):
            daemon.check()
            peak = max(peak, rss_mb(daemon.pid))
            await asyncio.sleep(0.1)
        took, used = time.perf_counter() - began, cpu_seconds(daemon.pid)
        await daemon.stop()
    million = count / 1e6
    return iter(
        (
            Figure(
                f"drain of {million:.1f} M readings, start included",
                took,
                "s",
                None,
                "≤ 60 for 6 M",
            ),
            Figure("RSS of the daemon meanwhile", peak, "MB", None, "≤ 60"),
            Figure("CPU of the daemon", used * 1e6 / count, "µs/reading"),
        )
    )


async def steady(seconds: int, directory: Path, broker: Mosquitto) -> Iterator[Figure]:
    """Return what a reading costs the daemon at 10/s, taking it included."""
    config = directory / "config.toml"
    sensors = "".join(_SENSOR.format(number=number) for number in range(5))
    config.write_text(_CONFIG.format(state=directory / "state", url=broker.url) + sensors)
    async with Daemon(config) as daemon:
        await asyncio.sleep(10)
        before = cpu_seconds(daemon.pid)
        await asyncio.sleep(seconds)
        used = cpu_seconds(daemon.pid) - before
        rss = rss_mb(daemon.pid)
        await daemon.stop()
    return iter(
        (
            Figure("CPU at 10 readings/s, all in", used * 1e6 / seconds / 10, "µs/reading"),
            Figure("RSS at 10 readings/s", rss, "MB"),
        )
    )


async def _all(*, quick: bool) -> AsyncIterator[Figure]:
    with tempfile.TemporaryDirectory() as place:
        parts = {name: Path(place, name) for name in ("broker", "live", "far", "drain", "steady")}
        for part in parts.values():
            part.mkdir()
        async with Mosquitto(parts["broker"]) as broker:
            with one_core():
                for figure in await live(200_000 if quick else 2_000_000, parts["live"], broker):
                    yield figure
                yield await far(400 if quick else 2000, parts["far"], broker)
                for figure in await drain(600_000 if quick else 6_048_000, parts["drain"], broker):
                    yield figure
                for figure in await steady(10 if quick else 60, parts["steady"], broker):
                    yield figure


def parser() -> argparse.ArgumentParser:
    """Return what its command line takes."""
    takes = argparse.ArgumentParser(prog="bench uplink", description=__doc__)
    takes.add_argument("--json", action="store_true", help="figures as JSON")
    takes.add_argument("--quick", action="store_true", help="a tenth of everything")
    return takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print figures as they come, or with `--json` all of them as one JSON list at the end."""
    args = parser().parse_args(arguments)
    asyncio.run(_print(as_json=args.json, quick=args.quick))


async def _print(*, as_json: bool, quick: bool) -> None:
    figures = []
    async for figure in _all(quick=quick):
        figures.append(asdict(figure))
        if not as_json:
            show(figure)
    if as_json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
