"""`bygate decode`: batches as lines, one a reading, for whoever receives them."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.cli.lines import influx_lines
from gateway.encoding import json_lines
from gateway.wire import Batch, WireError, decode_all

_CHUNK = 1 << 20
_Lines = Callable[[Batch], Iterator[str]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate decode`."""
    parser.add_argument(
        "files",
        nargs="*",
        default=["-"],
        metavar="FILE",
        help="payloads back to back; - or none: standard input",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--influx",
        action="store_const",
        dest="lines",
        const=influx_lines,
        default=json_lines,
        help="print InfluxDB's lines, as `bygate export` writes them: for execd of Telegraf",
    )
    form.add_argument("--json", action="store_true", help="JSON lines are printed anyway")


def run(args: argparse.Namespace) -> int:
    """Print the readings in all files; 1 for a damaged file, 2 for one that cannot be read."""
    return max([_print_readings(file, args.lines) for file in args.files])


class _Unreadable(Exception):
    """A file that cannot be opened or read."""


def _print_readings(file: str, lines: _Lines) -> int:
    name = "standard input" if file == "-" else file
    try:
        for batch in decode_all(_chunks(file)):
            # At once: a batch may be followed by damage, or, piped from the broker, by a long wait
            sys.stdout.writelines(lines(batch))
            sys.stdout.flush()
    except WireError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except _Unreadable as error:
        print(f"{name}: cannot be read: {error}", file=sys.stderr)
        return 2
    return 0


def _chunks(file: str) -> Iterator[bytes]:
    """Yield what comes as it comes: a pipe's bytes without waiting for a whole chunk."""
    try:
        with open(0, "rb", closefd=False) if file == "-" else Path(file).open("rb") as stream:
            while chunk := stream.read1(_CHUNK):
                yield chunk
    except OSError as error:
        raise _Unreadable(error.strerror) from error
