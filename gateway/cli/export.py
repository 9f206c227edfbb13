"""`bygate export`: what waits to a file, such as one on a USB stick; nothing counts as delivered.

Written beside its place under another name, synced, then renamed: PATH is whole or not there, and
its sum comes last.
"""

import argparse
import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.cli import DEFAULT_CONFIG
from gateway.cli.buffer import DMESG, reading
from gateway.cli.lines import csv_head, csv_lines, influx_lines
from gateway.config import load_buffer
from gateway.encoding import json_lines
from gateway.glance import Glance, NoBuffer
from gateway.measure import counted
from gateway.wire import Batch

_LINES = {"jsonl": json_lines, "csv": csv_lines, "influx": influx_lines}
BATCHES = "batches"
_ENDINGS = {
    ".csv": "csv",
    ".influx": "influx",
    ".lp": "influx",
    ".batches": BATCHES,
    ".msgpack": BATCHES,
}
"""What the ending of PATH says of its format; any other is that of JSON lines."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate export`."""
    parser.add_argument(
        *("-c", "--config"),
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="of which [gateway] and [buffer] count, whatever else stands there",
    )
    parser.add_argument(
        "--format",
        choices=[*_LINES, BATCHES],
        help="JSON lines as `bygate decode` prints them, CSV, InfluxDB's lines, or the very "
        "batches, which `bygate decode` reads; these without the readings of the last minute, "
        "which are in no batch yet. Where it is not given, PATH's ending says it: "
        f"{', '.join(_ENDINGS)}; any other, and none: jsonl",
    )
    parser.add_argument("--overwrite", action="store_true", help="put it in place of what is there")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("path", type=Path, metavar="PATH", help="its sha256 goes to PATH.sha256")


@dataclass(slots=True)
class _Count:
    """What has gone into the file."""

    bytes: int = 0
    batches: int = 0
    readings: int = 0
    refused: int = 0
    gone: int = 0
    unreadable: int = 0
    left_out: int = 0
    """Readings that are in no batch yet, in an export of batches."""


def run(args: argparse.Namespace) -> int:
    """Write the file; 1 when that fails or something in the buffer is damaged, 2 for its path."""
    gateway, _ = load_buffer(args.config)
    count, directory, form = _Count(), gateway.state_dir, args.format or _form_of(args.path)
    try:
        _check_place(args.path, directory, overwrite=args.overwrite)
        with reading(directory):
            glance = Glance(directory, gateway.id)
        with _ending():
            digest, count.bytes = _write(args.path, _read(directory, _pieces(glance, form, count)))
    except _WrongPath as error:
        print(f"{args.path}: {error}", file=sys.stderr)
        return 2
    except (NoBuffer, _NotWritten) as error:
        print(error, file=sys.stderr)
        return 1
    told = {"path": str(args.path), "format": form, "sha256": digest, **asdict(count)}
    print(json.dumps(told, indent=2) if args.json else f"{args.path}: {_said(count)}")
    if damaged := len(glance.damage) + len(glance.broken) + len(glance.foreign) + count.unreadable:
        are = "place is" if damaged == 1 else "places are"
        seen = f"{damaged} {are} damaged or cannot be read"
        print(f"{seen}: `bygate buffer` names each; {DMESG}", file=sys.stderr)
    return int(damaged > 0)


def _form_of(path: Path) -> str:
    return _ENDINGS.get(path.suffix.lower(), "jsonl")


def _check_place(path: Path, buffer: Path, *, overwrite: bool) -> None:
    if path == Path("-"):
        raise _WrongPath("standard output has no sum: name a file")
    with suppress(OSError):  # writing will say it
        _check(path, overwrite=overwrite)
        _check(_sum_of(path), overwrite=overwrite)
        if Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(buffer)):
            raise _WrongPath("among the files of the buffer: name another directory")


def _check(there: Path, *, overwrite: bool) -> None:
    """Raise _WrongPath where a file would take the place of what is none, as of /dev/null."""
    if there.is_dir():
        raise _WrongPath(f"{there.name or there} is a directory: name a file")
    if there.is_symlink():
        raise _WrongPath(f"{there.name} is a link: name the file that it leads to")
    if os.path.lexists(there) and not there.is_file():
        raise _WrongPath(f"{there.name} is a device or a pipe: name a file")
    if there.exists() and not overwrite:
        raise _WrongPath(f"{there.name} is there already: name another, or --overwrite")


def _said(count: _Count) -> str:
    more = {
        f"{count.refused} of them refused by the broker": count.refused,
        f"{count.gone} delivered or dropped meanwhile": count.gone,
        f"{counted(count.left_out, 'reading')} in no batch yet, left out": count.left_out,
    }
    said = ", ".join(what for what, number in more.items() if number)
    said = f" ({said})" if said else ""
    held = ((count.readings, "reading"), (count.batches, "batch"), (count.bytes, "byte"))
    return ", ".join(counted(number, noun) for number, noun in held) + said


def _read(directory: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    with reading(directory):
        yield from pieces


def _pieces(glance: Glance, form: str, count: _Count) -> Iterator[bytes]:
    """Yield the bytes of the file, a batch at a time, the oldest first but for refused ones."""
    if form == "csv":
        yield csv_head().encode()
    for payload, batch in _sealed(glance, count):
        count.batches += 1
        count.readings += len(batch.readings)
        yield payload if form == BATCHES else _encoded(form, batch)
    for batch in glance.unsealed():
        if form == BATCHES:  # its name would stand for other bytes, once it is sealed
            count.left_out += len(batch.readings)
        else:
            count.readings += len(batch.readings)
            yield _encoded(form, batch)


def _sealed(glance: Glance, count: _Count) -> Iterator[tuple[bytes, Batch]]:
    for refused in glance.refused():
        if (batch := refused.batch) is None:
            count.unreadable += 1
        else:
            count.refused += 1
            yield refused.payload, batch
    for found in glance.batches():
        if isinstance(found, tuple):
            yield found
        elif glance.disk.exists(found.segment):
            count.unreadable += 1
        else:
            count.gone += 1


def _encoded(form: str, batch: Batch) -> bytes:
    return "".join(_LINES[form](batch)).encode()


# Writing


class _WrongPath(Exception):
    """The path is none to write to."""


class _NotWritten(Exception):
    """The file cannot be written; the message says why, and what mends it."""


_REMEDIES = {
    errno.ENOSPC: "free space there, or name another disk",
    errno.EROFS: "mount it for writing: mount -o remount,rw",
    errno.EACCES: "name a directory that you may write to, or give the command by sudo",
    errno.ENAMETOOLONG: "name it shorter",
    errno.ENOENT: "make the directory first, or mount the disk",
    errno.ENOTDIR: "name a file in a directory",
}


@contextmanager
def _ending() -> Iterator[None]:
    """Have the first signal that ends us, as of an ssh that breaks off, unwind; no other is heard.

    What is half written is removed then.
    """
    before = {of: signal.getsignal(of) for of in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _write(path: Path, pieces: Iterator[bytes]) -> tuple[str, int]:
    """Put the bytes and their sum in place, all or nothing; return that and how many they are."""
    part, total = _beside(path, "part"), _beside(path, "sum")
    try:
        digest, size = _fill(part, pieces)
        _fill(total, iter([_sum_line(digest, path.name)]))
        _put_in_place(path, part, total)
    except OSError as error:
        mend = _REMEDIES.get(error.errno or 0, "name another disk; does dmesg tell of this one?")
        text = f"{path}: cannot be written: {error.strerror}: {mend}"
        raise _NotWritten(text) from error
    finally:
        for left in (part, total):
            with suppress(OSError):
                left.unlink()
    return digest, size


def _sum_line(digest: str, name: str) -> bytes:
    """Return what `sha256sum -c` reads; a mark in front says that the name is escaped."""
    written = named = os.fsencode(name)  # as it stands on the disk, UTF-8 or not
    for char, escaped in ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        written = written.replace(char, escaped)
    mark = b"\\" if written != named else b""
    return mark + digest.encode() + b"  " + written + b"\n"


def _put_in_place(path: Path, part: Path, total: Path) -> None:
    """Rename both, the sum last: where it is, PATH is whole and on the device, and may be taken.

    The one of an older PATH goes first. Were it left until its successor comes, or its successor
    put there early, a power cut between the two would leave a whole file called damaged.
    """
    _sum_of(path).unlink(missing_ok=True)
    _sync_directory(path.parent)  # else the disk may do these in another order
    part.rename(path)
    _sync_directory(path.parent)
    total.rename(_sum_of(path))
    _sync_directory(path.parent)


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def _fill(path: Path, pieces: Iterator[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call
            raise
    finally:
        os.close(fd)
