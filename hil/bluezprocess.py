"""The simulated BlueZ as a process of its own, so that it costs the one that tests nothing."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hil.daemon import die_with

_ROOT = Path(__file__).resolve().parent.parent


class BlueZProcess:
    """`python -m hil bluez` while the context lasts, with `scene` on the air.

    `options` are those of the command line. Raises OSError if it does not start.
    """

    def __init__(self, scene: Mapping[str, Any] | None = None, *options: str) -> None:
        self.environment: dict[str, str] = {}
        """What a client's environment has to hold."""
        self._scene = scene or {}
        self._options = options

    async def __aenter__(self) -> Self:
        parent = os.getpid()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hil", "bluez", *self._options),
            cwd=_ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),
        )
        try:
            name, _, value = (await self._line()).removeprefix("export ").partition("=")
            self.environment = {name: value}
            while await self._line():  # to the blank line, then the help to the next
                pass
            while await self._line():
                pass
            await self.tell(f"put {json.dumps(self._scene)}")
        except BaseException:
            await self._end(signal.SIGKILL)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End it."""
        await self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    async def tell(self, line: str) -> str:
        """Have it do what a line says, and return its answer. Raises ValueError if it cannot."""
        if self._process.stdin:
            self._process.stdin.write(f"{line}\n".encode())
        answer = await self._line()
        if answer.startswith("error: "):
            raise ValueError(answer.removeprefix("error: "))
        return answer

    async def _line(self) -> str:
        line = await self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise OSError("the simulated BlueZ ended; it says above why")
        return line.decode().rstrip("\n")

    async def _end(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(how)
        await self._process.communicate()  # waits for the end of its pipes too
