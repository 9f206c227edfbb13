"""The real daemon as a process of its own, which ends with the one that started it."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

STOPS_WITHIN = 7.0
"""Seconds after which a daemon that was told to stop is killed; it promises five."""

NOTHING: Mapping[str, str] = MappingProxyType({})

_PR_SET_PDEATHSIG = 1
_ROOT = Path(__file__).resolve().parent.parent
_libc = ctypes.CDLL(None)


class DaemonError(Exception):
    """The daemon ended when it should not have; the text ends with what it said."""


class Daemon:
    """`bygate run` with this configuration while the context lasts.

    It has a session of its own, so that Ctrl-C reaches only us, and we stop it in our own time.
    What is in `environment` it has beside ours.
    """

    def __init__(self, config: Path, environment: Mapping[str, str] = NOTHING) -> None:
        self._config = config
        self._environment = environment
        self._log = config.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        environment = os.environ | self._environment
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), path)))
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "run", "--config", self._config),
                cwd=self._config.parent,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Kill it if it is still there."""
        self._signal(signal.SIGKILL)
        await self._process_.wait()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process_.pid

    def check(self) -> None:
        """Raise DaemonError if it has ended."""
        code = self._process_.returncode
        if code is not None:
            raise DaemonError(f"the daemon ended {_how(code)}; it said:\n{self.said()}")

    async def stop(self) -> None:
        """Tell it to stop, and wait; raises DaemonError if it did not stop in good order."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOPS_WITHIN):
                code = await self._process_.wait()
        except TimeoutError:
            said = self.said()
            raise DaemonError(
                f"the daemon did not stop within {STOPS_WITHIN:g} s; it said:\n{said}"
            ) from None
        if code:
            self.check()

    def said(self) -> str:
        """Return its last words."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-20:]) or "  nothing"

    @property
    def _process_(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the context is not open")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        if self._process_.returncode is None:
            with suppress(ProcessLookupError):
                self._process_.send_signal(number)


def die_with(parent: int) -> None:
    """Have the kernel kill this process, a child that is about to begin, when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _how(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"
