"""A real mosquitto as a process of its own, with the settings that gateway/WIRE.md recommends."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from types import TracebackType
from typing import Self

import gateway
from hil.daemon import die_with
from hil.seat import HOST, Seat

STARTS_WITHIN = 10.0

_CONFIG = """\
listener {port} 127.0.0.1
user {user}
persistence_location {directory}/
{recommended}{lines}
"""


def recommended() -> str:
    """Return the lines of mosquitto.conf that gateway/WIRE.md recommends."""
    document = (Path(gateway.__file__).parent / "WIRE.md").read_text(encoding="utf-8")
    found = re.search(r"^```\n(persistence true\n.*?)^```", document, re.DOTALL | re.MULTILINE)
    assert found, "gateway/WIRE.md recommends none"
    return found[1]


class Mosquitto:
    """The broker; it runs while its context is open, and keeps what it holds in `directory`.

    `lines` are further ones of its configuration; they may change between two starts.
    """

    def __init__(self, directory: Path, lines: str = "allow_anonymous true") -> None:
        self._seat = Seat()
        self.host, self.port = HOST, self._seat.port
        self.lines, self._directory = lines, directory
        self._log = directory / "mosquitto.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients find it, without TLS."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.end(signal.SIGKILL)
        self._seat.leave()

    async def start(self) -> None:
        """Start it, and return when it listens."""
        config = self._directory / "mosquitto.conf"
        config.write_text(
            _CONFIG.format(
                **{"port": self.port, "user": getuser(), "directory": self._directory},
                **{"recommended": recommended(), "lines": self.lines},
            )
        )
        parent = os.getpid()
        path = f"{os.environ.get('PATH', '')}:/usr/sbin"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("mosquitto", "-c", str(config)),
                env={**os.environ, "PATH": path},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with(parent),
            )
        async with asyncio.timeout(STARTS_WITHIN):
            while not await self._listens():  # noqa: ASYNC110 - it tells nobody that it does
                await asyncio.sleep(0.01)

    async def _listens(self) -> bool:
        if self._process and self._process.returncode is not None:
            raise OSError(self.log)
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    async def end(self, number: signal.Signals) -> None:
        """Send it a signal that ends it, and wait for that."""
        if self._process:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()
