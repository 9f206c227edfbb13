"""A real mosquitto, and a subscriber that knows nothing of this project."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self


class Mosquitto:
    """It runs while its context is open. `lines` of its configuration may change between starts.

    `login` is what mosquitto_sub needs to get in.
    """

    def __init__(
        self, directory: Path, lines: str = "allow_anonymous true", login: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        self.lines, self.login = lines, login
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config, self._log = directory / "mosquitto.conf", directory / "mosquitto.log"

    async def __aenter__(self) -> Self:
        await self.start()
        said = self.log.count("Received SUBSCRIBE")
        self.subscriber = await asyncio.create_subprocess_exec(
            *("mosquitto_sub", "-p", str(self.port), "-V", "5", "-q", "1", *self.login),
            *("-t", "bygate/v1/#", "-F", "%r %t %x"),
            stdout=asyncio.subprocess.PIPE,
        )
        await self._until(lambda: self.log.count("Received SUBSCRIBE") > said)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self.subscriber.kill()
        await self.subscriber.communicate()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    async def start(self) -> None:
        self._config.write_text(f"user root\nlistener {self.port} 127.0.0.1\n{self.lines}\n")
        said = self.log.count("running")
        with self._log.open("a") as log:
            self.broker = await asyncio.create_subprocess_exec(
                *("mosquitto", "-v", "-c", self._config), stderr=log
            )
        await self._until(lambda: self.log.count("running") > said)

    async def kill(self) -> None:
        self.broker.kill()
        await self.broker.wait()

    async def _until(self, holds: object) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def message(self) -> tuple[bool, str, bytes]:
        async with asyncio.timeout(10):
            retain, topic, payload = (await self.subscriber.stdout.readline()).split()
        return retain == b"1", topic.decode(), bytes.fromhex(payload.decode())

    async def retained(self, topic: str) -> bytes:
        asked = await asyncio.create_subprocess_exec(
            *("mosquitto_sub", "-p", str(self.port), "-t", topic, "-q", "1", "-C", "1", "-N"),
            *("-W", "5", "--retained-only", *self.login),
            stdout=asyncio.subprocess.PIPE,
        )
        return (await asked.communicate())[0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
