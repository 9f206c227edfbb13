"""The command line: one module for each command."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TextIO

from gateway import __version__
from gateway.mistakes import ConfigError

DEFAULT_CONFIG = Path("/etc/bygate/config.toml")
"""Where the configuration is unless `-c` says otherwise."""

COMMANDS = {
    "run": "the daemon",
    "demo": "the whole gateway on this machine with simulated sensors and a broker of its own",
    "check": "every mistake in config.toml at once, or what will run",
    "scan": "BLE sensors of known families that are heard, and the lines for config.toml",
    "drivers": "the drivers there are, or one driver's settings and quantities",
    "doctor": "clock, disk, what waits there, and each broker from its name to its acknowledgement",
    "buffer": "what waits on disk, room, damage, and what the broker refused",
    "export": "what waits to a file, for when no network will take it; nothing counts as delivered",
    "decode": "batch files or standard input as JSON or InfluxDB lines, for whoever receives them",
    "replay": "recorded bytes through a driver: what comes out, or which fault",
}
"""Each is a module here, imported only when it runs: `arguments(parser)`, `run(args) -> int`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 fine, 1 fault found, 2 wrong usage or config."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks µ gets a ?, no traceback
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        print(end="", flush=True)  # a pipe closed by `| head` is noticed here, not at exit
    except ConfigError as error:
        return _failed(str(error), 2)
    except BrokenPipeError:
        _print_no_more(sys.stdout)
        return 141
    except OSError as error:
        _print_no_more(sys.stdout)
        return _failed(f"bygate: it cannot write what it has to say: {error}", 1)
    except KeyboardInterrupt:
        return 130
    return code


def _failed(why: str, code: int) -> int:
    try:
        print(why, file=sys.stderr, flush=True)
    except OSError:  # there is nobody to tell
        _print_no_more(sys.stderr)
    return code


def _print_no_more(to: TextIO) -> None:
    """Have the interpreter not try again, at its end, to print what could not be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bygate", description="Edge gateway for city sensors.")
    parser.add_argument("--version", action="version", version=f"bygate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line)
        if [name] == list(argv[:1]):
            module = import_module(f"gateway.cli.{name}")
            module.arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return int(args.run(args))
