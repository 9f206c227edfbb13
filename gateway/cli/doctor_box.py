"""The part of `bygate doctor` that is about this box: clock, storage, buffer, credentials."""

import os
import pwd
from contextlib import suppress
from datetime import UTC, datetime
from errno import ENOSPC, EROFS
from pathlib import Path

from gateway.bounds import kept_free
from gateway.certificate import WRITTEN, outlook
from gateway.cli.buffer import look, reading
from gateway.cli.finding import FAIL, OK, WARN, Finding
from gateway.clock import Clock
from gateway.config import Config
from gateway.credentials import Credentials, CredentialsError, off_the_loop
from gateway.disk import VOLATILE, Disk, remedy, volatile
from gateway.glance import Glance, NoBuffer, NoneYet
from gateway.measure import counted
from gateway.reading import ClockState
from gateway.settings import BufferSettings, UplinkSettings
from gateway.wire import Batch

_SOURCES = {
    ClockState.SYNCED: "synchronised by NTP",
    ClockState.GNSS: "synchronised by GNSS",
    ClockState.HELD: "not synchronised, set from the RTC or earlier",
    ClockState.NEVER_SET: "not synchronised since the boot",
}
_MIB = 1 << 20


def clock(of: Clock) -> Finding:
    """Look at the wall clock."""
    at = of.now()
    shown = datetime.fromtimestamp(at.wall_ms / 1000, UTC)
    seen = f"{shown:%Y-%m-%d %H:%M:%S} UTC, {_SOURCES[ClockState(at.clock)]}"
    if fault := outlook(None, shown).fault if shown < WRITTEN else None:
        return Finding("clock", FAIL, seen, fault)
    if at.clock < ClockState.SYNCED:
        why = "is NTP reached (timedatectl)? Readings are kept, and receivers set their time right"
        return Finding("clock", WARN, seen, why)
    return Finding("clock", OK, f"{seen}, at most {of.error_ms()} ms off")


# Where the buffer is


def storage(config: Config) -> Finding:
    """Look at the state directory, or at what it will be made in."""
    directory, settings = config.gateway.state_dir, config.buffer
    try:
        directory.lstat()
        return _unfit(directory) or _room(str(directory), directory, settings)
    except (FileNotFoundError, NotADirectoryError):
        return _none_yet(directory, settings)
    except OSError as error:
        why = remedy(error, directory)
        if isinstance(error, PermissionError):  # that it is closed to us is no fault of bygate's
            why = f"{_me()} may not: give the command by sudo"
        return Finding("storage", FAIL, f"{directory} cannot be looked at", why)


def _none_yet(directory: Path, settings: BufferSettings) -> Finding:
    parent = next(path for path in directory.parents if os.path.lexists(path))
    seen = f"{directory} does not exist yet"
    if not parent.is_dir():
        why = f"{parent} is no directory: set [gateway] state_dir elsewhere"
        return Finding("storage", FAIL, seen, why)
    if unfit := _volatile(parent) or _read_only(parent):
        return unfit
    if not _may(parent):
        why = f"{_me()} may not make it: systemd does, or sudo install -d -o bygate {directory}"
        return Finding("storage", WARN, seen, why)
    return _room(f"{seen}, {parent} can hold it", parent, settings)


def _unfit(directory: Path) -> Finding | None:
    if not directory.is_dir():
        why = "remove what stands there, or set [gateway] state_dir elsewhere"
        return Finding("storage", FAIL, f"{directory} is no directory", why)
    return _volatile(directory) or _read_only(directory) or _closed(directory)


def _volatile(directory: Path) -> Finding | None:
    if kind := volatile(directory):
        what, _, why = VOLATILE.partition(": ")
        return Finding("storage", FAIL, f"{directory} is on {kind}, which {what}", why)
    return None


def _read_only(directory: Path) -> Finding | None:
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        why = remedy(OSError(EROFS, os.strerror(EROFS)), directory)
        return Finding("storage", FAIL, f"{directory} cannot be written to", why)
    return None


def _closed(directory: Path) -> Finding | None:
    if _may(directory):
        return None
    why = (
        "only root and the user that bygate runs as may: give the command by sudo; where that one "
        f"may not, sudo chown -R bygate {directory}"
    )
    return Finding("storage", FAIL, f"{_me()} may not read and write in {directory}", why)


def _may(directory: Path, do: int = os.R_OK | os.W_OK | os.X_OK) -> bool:
    return os.access(directory, do, effective_ids=True)


def _me() -> str:
    with suppress(KeyError):
        return f"user {pwd.getpwuid(os.geteuid()).pw_name!r}"
    return f"user {os.geteuid()}"


def _room(what: str, directory: Path, settings: BufferSettings) -> Finding:
    if Disk(directory).out_of_inodes():
        full = remedy(OSError(ENOSPC, os.strerror(ENOSPC)), directory)
        return Finding("storage", FAIL, f"{directory} takes no more files", full)
    state, seen, why = space(*Disk(directory).room(), settings)
    return Finding("storage", state, f"{what}: {seen}", why)


def space(free: int, total: int, settings: BufferSettings) -> tuple[str, str, str | None]:
    """Judge how many bytes are free, of a file system of so many."""
    kept = kept_free(total, settings)
    seen = f"{free // _MIB} of {total // _MIB} MiB free, {kept // _MIB} of them for others"
    if free < kept:
        why = "what waits is dropped for want of room: free space there"
        return FAIL, seen, f"{why}, or set [buffer] keep_free"
    if free < 2 * kept:
        return WARN, seen, "soon the oldest of what waits is dropped for room: free space there"
    return OK, seen, None


# What is in it


def buffer(config: Config) -> tuple[Finding | None, tuple[bytes, Batch] | None]:
    """Look at what waits; return the newest batch with it, delivered or not.

    There is no finding where `storage` has told why nothing can be looked at.
    """
    directory = config.gateway.state_dir
    if not (_may(directory, os.R_OK | os.X_OK) and directory.is_dir()):
        return None, None
    try:
        with reading(directory):
            glance = Glance(directory, config.gateway.id)
            return _of_buffer(config.buffer, glance), glance.newest()
    except NoneYet:
        return Finding("buffer", OK, "nothing in it yet"), None
    except NoBuffer as error:
        return Finding("buffer", FAIL, "it cannot be read", str(error)), None


def _of_buffer(settings: BufferSettings, glance: Glance) -> Finding:
    told = look(settings, glance)
    since = f" since {told['oldest_waiting']}" if told["oldest_waiting"] else ""
    days = told["room_days"]
    rate = "how many days is not known yet" if days is None else f"{days:g} days"
    seen = (
        f"{counted(told['waiting_readings'], 'reading')} waiting{since}, "
        f"room for {told['room_bytes'] // _MIB} MiB ({rate}), {told['dropped']} dropped so far"
    )
    faults = {key: len(told[key]) for key in ("damage", "set_aside", "refused") if told[key]}
    if faults:
        named = ", ".join(f"{key.replace('_', ' ')} {number}" for key, number in faults.items())
        return Finding("buffer", WARN, f"{seen}; {named}", "sudo bygate buffer names each")
    if not told["room_bytes"]:
        return Finding("buffer", WARN, seen, "full: the oldest are dropped: mend the uplink")
    return Finding("buffer", OK, seen)


# What is shown to a broker


async def credentials(
    settings: UplinkSettings, now: datetime
) -> tuple[Finding | None, Credentials | None]:
    """Read password, certificates and authority; there is no finding where none are needed."""
    tls = settings.url[0].tls  # they are alike
    try:
        read = await Credentials.read(settings, tls=tls)
    except CredentialsError as error:
        return Finding("credentials", FAIL, "they will not do", str(error)), None
    names = ("password_file", "ca_file", "cert_file", "key_file")
    files = [f"{name} {file}" for name in names if (file := getattr(settings, name))]
    if not (files or tls):
        return None, read
    seen = ", ".join(files) or "authorities of this system"
    return (await _dated(settings, now, seen) if tls else Finding("credentials", OK, seen)), read


async def _dated(settings: UplinkSettings, now: datetime, seen: str) -> Finding:
    if now < WRITTEN:
        why = "whether they have expired shows once the clock is right (timedatectl)"
        return Finding("credentials", WARN, seen, why)
    try:
        told = await off_the_loop(lambda: outlook(settings.cert_file, now, settings.ca_file))
    except TimeoutError:
        return Finding("credentials", FAIL, seen, "not read in time: on a drive that hangs?")
    if told.fault or told.notice:
        return Finding("credentials", FAIL if told.fault else WARN, seen, told.fault or told.notice)
    until = f"; ours valid until {told.until:%Y-%m-%d}" if told.until else ""
    return Finding("credentials", OK, f"{seen}{until}")
