"""A D-Bus of our own, on which a simulated BlueZ can be the system's: no root, no other service."""

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.daemon import die_with

STARTS_WITHIN = 10.0
"""Seconds in which the daemon says that it listens."""

_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
    {denied}
  </policy>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon while the context lasts; it dies with this process, however that ends.

    Clients find it by `DBUS_SYSTEM_BUS_ADDRESS`, which is to hold `address`. The address stays the
    same over `kill` and `start`. No call gets to the name that is `denied`, as BlueZ's policy has
    it for users outside its group. Raises OSError where dbus-daemon is not installed.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, denied: str = "") -> None:
        self._denied = f'<deny send_destination="{denied}" send_type="method_call"/>' * bool(denied)
        self._own = None if path else f"{tempfile.gettempdir()}/bygate-hil-{secrets.token_hex(4)}"
        self.path = Path(path or f"{self._own}/bus")
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._prepare()
        try:
            await self.start()
        except BaseException:
            self._tidy()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End it, and leave nothing on the disk."""
        await self.kill()
        self._tidy()

    @property
    def address(self) -> str:
        """Where it listens, as D-Bus writes it."""
        return f"unix:path={self.path}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment has to hold."""
        return {"DBUS_SYSTEM_BUS_ADDRESS": self.address}

    async def start(self) -> None:
        """Start it, and wait until it listens; nothing happens if it runs."""
        if self._process:
            return
        program = shutil.which("dbus-daemon")
        if not program:
            raise FileNotFoundError("dbus-daemon is missing; type: sudo apt-get install dbus")
        config, parent = self.path.with_suffix(".conf"), os.getpid()
        config.write_text(_CONFIG.format(path=self.path, denied=self._denied))
        with self.path.with_suffix(".log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(program, f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"),
                "--print-address",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )
        try:
            await self._listens(self._process)
        except BaseException:
            await self.kill()
            raise

    async def _listens(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(STARTS_WITHIN):
            if process.stdout and not await process.stdout.readline():
                said = self.path.with_suffix(".log").read_text(errors="replace").strip()
                raise OSError(f"dbus-daemon ended: {said}")

    async def kill(self) -> None:
        """Kill it with signal 9: every client's connection ends, and the address is dead."""
        process, self._process = self._process, None
        if process:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.communicate()  # waits for the end of its pipe too
            self.path.unlink(missing_ok=True)

    def _prepare(self) -> None:
        if self._own:
            Path(self._own).mkdir(mode=0o700)

    def _tidy(self) -> None:
        for suffix in (".conf", ".log"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        if self._own:
            Path(self._own).rmdir()
