"""The daemon as its own process, with a configuration file of its own, and what to ask of it."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.reading import Reading, Value
from gateway.wire import Batch, decode
from hil.broker import Received

ROOT = Path(__file__).parent.parent


class Gateway:
    """`bygate run` in a directory; `log` holds its lines so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []

    async def says(self, text: str, within: float = 10.0) -> str:
        """Return the first line with `text`, read so far or still to come."""
        for line in self.log:
            if text in line:
                return line
        async with asyncio.timeout(within):
            while raw := await self.process.stderr.readline():
                self.log.append(raw.decode())
                if text in self.log[-1]:
                    return self.log[-1]
        raise AssertionError(f"ended without saying {text!r}: {self.log}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Return the exit code; fails after 5 s."""
        self.process.send_signal(number)
        async with asyncio.timeout(5):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def gateway(
    directory: Path,
    url: str,
    sensors: str = "",
    program: tuple[str, ...] = ("-m", "gateway"),
    **buffer: str,
) -> AsyncIterator:
    """Run the daemon; it is killed at the end, where it still runs."""
    lines = {"flush_interval": "200ms", "seal_interval": "400ms", **buffer}
    config = directory / "config.toml"
    config.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{directory}/state"\n'
        f'[uplink]\nurl = "{url}"\n'
        "[buffer]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()) + sensors
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program, "run", "-c", config),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Gateway(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def sensor(name: str, driver: str, port: Path | str | None = None, **settings: object) -> str:
    """Return a table of config.toml."""
    values = {"driver": driver, "port": port, "interval": "200ms", **settings}
    pairs = [f"{k} = {_toml(v)}\n" for k, v in values.items() if v is not None]
    return f"[sensors.{name}]\n" + "".join(pairs)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'


def batches(received: list[Received]) -> list[Batch]:
    """Return the batches among the messages, each once."""
    decoded = [decode(message.payload) for message in received if "/batch/" in message.topic]
    return list({(batch.epoch, batch.sequence): batch for batch in decoded}.values())


def readings(received: list[Received]) -> list[Reading]:
    """Return their readings, those of every batch once."""
    return [reading for batch in batches(received) for reading in batch.readings]


def measured(received: list[Received]) -> list[Reading]:
    """Return what sensors gave: without the outcomes that the gateway tells of them."""
    return [r for r in readings(received) if not r.quantity.name.startswith("outcome_")]


def values(received: list[Received], sensor: str, quantity: str) -> list[Value]:
    """Return the values of one series, in the order of their time."""
    found = [r for r in readings(received) if (r.sensor, r.quantity.name) == (sensor, quantity)]
    return [r.value for r in sorted(found, key=lambda r: r.instant.wall_ms)]
