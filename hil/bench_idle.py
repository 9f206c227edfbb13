"""What the daemon costs while three serial sensors are polled, and how soon it begins.

The daemon is a process of its own with the default intervals; simulated devices and the broker run
in this one and are not counted.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.wire import Batch, decode
from hil.arguments import seconds
from hil.broker import Broker, Received
from hil.daemon import Daemon
from hil.devices import Maxbotix, Pms5003, Sds011
from hil.proc import cpu_seconds, rss_mb
from hil.serialline import SerialLine

_CONFIG = """\
[gateway]
id = "bench"
state_dir = "{state}"
[uplink]
url = "{url}"
"""
_SENSOR = """\
[sensors.{name}]
driver = "{name}"
port = "{port}"
interval = "{interval}"
"""


@dataclass(frozen=True)
class Cost:
    """The figures of one run."""

    interval: str
    rss_mb: float
    cpu_percent: float
    """Of one core, once it has settled."""
    first_reading_s: float
    """From the start of the process to the instant of the first reading."""
    first_batch_s: float


async def measure(interval: str, watched: float) -> Cost:
    """Return what three sensors at that interval cost over so many seconds."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        async with (
            Broker() as broker,
            SerialLine(Sds011(), directory / "sds011") as air,
            SerialLine(Pms5003(), directory / "pms5003") as dust,
            SerialLine(Maxbotix(), directory / "maxbotix") as river,
        ):
            config = directory / "config.toml"
            lines = (air, dust, river)
            config.write_text(
                _CONFIG.format(state=directory / "state", url=broker.url)
                + "".join(
                    _SENSOR.format(name=line.path.name, port=line.path, interval=interval)
                    for line in lines
                )
            )
            began = time.time()
            async with Daemon(config) as daemon:
                await broker.wait_for(lambda seen: bool(_batches(seen)), timeout=90)
                first_batch = time.time() - began
                before = cpu_seconds(daemon.pid)
                await asyncio.sleep(watched)
                used = cpu_seconds(daemon.pid) - before
                rss = rss_mb(daemon.pid)
                first = min(r.instant.wall_ms for r in _batches(broker.received)[0].readings)
    took = first / 1000 - began
    return Cost(interval, rss, 100 * used / watched, round(took, 3), round(first_batch, 3))


def _batches(received: list[Received]) -> list[Batch]:
    return [decode(message.payload) for message in received if "/batch/" in message.topic]


def parser() -> argparse.ArgumentParser:
    """Return what its command line takes."""
    takes = argparse.ArgumentParser(prog="bench idle", description=__doc__)
    takes.add_argument("--json", action="store_true", help="figures as JSON")
    takes.add_argument("--quick", action="store_true", help="10 s each")
    takes.add_argument("--seconds", type=seconds, default=30, help="how long to watch each")
    takes.add_argument("--interval", nargs="+", default=["60s", "10s", "1s"], help="of the polls")
    return takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with `--json` one JSON list of its lines."""
    args = parser().parse_args(arguments)
    watched = min(args.seconds, 10) if args.quick else args.seconds
    costs = (asyncio.run(measure(interval, watched)) for interval in args.interval)
    if args.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=1))
        return
    print("3 serial sensors; the daemon alone, simulated devices and broker not counted\n")
    print("interval   RSS MB   CPU % of a core   first reading s   first batch s", flush=True)
    for cost in costs:
        print(
            f"{cost.interval:>8} {cost.rss_mb:8.1f} {cost.cpu_percent:17.2f}"
            f" {cost.first_reading_s:17.2f} {cost.first_batch_s:15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
