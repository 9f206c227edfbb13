"""A real mosquitto, and a subscriber that knows nothing of this project."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import hil.mosquitto


class Mosquitto(hil.mosquitto.Mosquitto):
    """It tells everything in its log. `login` is what mosquitto_sub needs to get in."""

    def __init__(
        self, directory: Path, lines: str = "allow_anonymous true", login: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, f"{lines}\nlog_type all")
        self.login = login

    async def __aenter__(self) -> Self:
        await self.start()
        self.subscriber = await asyncio.create_subprocess_exec(
            *("mosquitto_sub", "-p", str(self.port), "-V", "5", "-q", "1", *self.login),
            *("-t", "bygate/v1/#", "-F", "%r %t %x"),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(10):
            while "Received SUBSCRIBE" not in self.log:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        self.subscriber.kill()
        await self.subscriber.communicate()

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

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
