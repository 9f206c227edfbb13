"""`python -m hil`: simulated hardware from a shell."""

import argparse
import ast
import asyncio
import difflib
import importlib
import inspect
import itertools
import json
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from hil.arguments import port, seconds, whole
from hil.bluezfaults import FAULTS as BLUEZ_FAULTS
from hil.device import Device
from hil.devices import DEVICES
from hil.faults import FAULTS
from hil.line import Sent
from hil.serialline import SerialLine

COMMANDS = ("serial", "bluez", "broker", "bench")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; without one, list everything that can be simulated."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and not arguments[0].startswith("-"):
            _known(arguments[0], COMMANDS, "command")
        parser = _parser()
        options, more = parser.parse_known_args(arguments)
        if more and options.run is not _bench:
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        options.more = more
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        return 0
    except argparse.ArgumentTypeError as error:
        print(f"hil: {error}", file=sys.stderr)
        return 2
    except (ImportError, OSError) as error:  # a bench may need a package that is not installed
        print(f"hil: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hil", description="Simulated hardware.")
    parser.set_defaults(run=_list)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _serial_arguments(commands.add_parser("serial", help="run one serial device till Ctrl-C"))
    _bluez_arguments(commands.add_parser("bluez", help="run BlueZ on a private D-Bus till Ctrl-C"))
    _broker_arguments(commands.add_parser("broker", help="run the scriptable MQTT broker"))
    bench = commands.add_parser(
        "bench",
        add_help=False,  # of those that are named it is their own
        help="measure, and print the figures",
        epilog="Some take more: `bench NAME --help` tells what.",
    )
    named = _one_of(benches(), "bench")
    bench.add_argument("names", nargs="*", metavar="NAME", type=named, help=", ".join(benches()))
    bench.add_argument(
        "--json", action="store_true", help="the figures as JSON, of several by name"
    )
    bench.add_argument("--quick", action="store_true", help="shorter, and less exact")
    bench.add_argument("--help", "-h", action="store_true", help="tell this, or what NAME takes")
    bench.set_defaults(run=_bench, print_help=bench.print_help)
    return parser


def _serial_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_serial)
    parser.add_argument("device", metavar="DEVICE", type=_one_of(DEVICES, "device"))
    parser.add_argument(
        "--path", metavar="LINK", help="where the port appears (default: a new one)"
    )
    parser.add_argument(
        "--fault",
        nargs="+",
        default=[],
        metavar="NAME",
        type=_one_of(["ok", *FAULTS], "fault"),
        help="what is wrong with each frame; several take turns, `ok` is a good one",
    )
    parser.add_argument("--period", type=seconds, metavar="S", help="seconds from frame to frame")
    parser.add_argument("--delay", type=seconds, default=2, metavar="S", help="how late `late` is")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="other values, other bits"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="print what is sent")


def _bluez_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_bluez)
    parser.add_argument(
        "--advertise",
        nargs="+",
        action="append",
        default=[],
        metavar=("ADDRESS", "WHAT=VALUE"),
        help="a device: manufacturer:0499=HEX service:fcd2=HEX every=S rssi=N name=TEXT",
    )
    parser.add_argument("--crowd", type=whole, default=0, metavar="N", help="so many strangers")
    parser.add_argument(
        "--file", nargs="+", default=[], type=Path, help="what is on the air, as TOML or JSON"
    )
    parser.add_argument(
        "--fault", nargs="+", default=[], metavar="NAME", type=_one_of(BLUEZ_FAULTS, "fault")
    )
    parser.add_argument("--adapters", nargs="+", default=["hci0"], metavar="NAME")
    parser.add_argument("--experimental", action="store_true", help="passive scans are possible")
    parser.add_argument("--forget-after", type=seconds, default=30, metavar="S")
    parser.add_argument("--path", type=Path, help="where the bus listens (default: a new one)")


def _broker_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_broker)
    parser.add_argument("--port", type=port, default=1883, metavar="N")
    parser.add_argument(
        "--fault",
        nargs="+",
        default=[],
        metavar="NAME[=VALUE]",
        help="what is wrong with it, such as ack_withheld or ack_code=0x97",
    )


def _one_of(names: Collection[str], kind: str) -> Callable[[str], str]:
    return lambda name: _known(name, names, kind)


def _known(name: str, names: Collection[str], kind: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"
        raise argparse.ArgumentTypeError(f"there is no {kind} {name!r}; {hint}")
    return name


def benches() -> dict[str, str]:
    """Return every bench by name with its first line, importing none."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return {file.stem.removeprefix("bench_"): _first_line(file.read_text()) for file in files}


def _first_line(source: str) -> str:
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _about(device: type[Device]) -> str:
    return (inspect.getdoc(device) or "").partition("\n")[0]


def _list(_: argparse.Namespace) -> None:
    _table("serial DEVICE", {name: _about(device) for name, device in DEVICES.items()})
    _table("serial DEVICE --fault NAME", FAULTS)
    _table("bluez --fault NAME", BLUEZ_FAULTS)
    _table("bench NAME", benches())
    _table("broker --fault NAME", importlib.import_module("hil.broker").FAULTS)
    print("`python -m hil COMMAND --help` tells the rest, hil/README.md how to test with it.")


def _table(title: str, rows: Mapping[str, str]) -> None:
    width = max([19, *map(len, rows)])
    print(title)
    for name, what in rows.items():
        print(f"    {name:{width}} {what}")
    print()


def _serial(options: argparse.Namespace) -> None:
    asyncio.run(_run_serial(options))


async def _run_serial(options: argparse.Namespace) -> None:
    device = DEVICES[options.device](seed=options.seed, period=options.period)
    line = SerialLine(device, options.path, delay=options.delay, seed=options.seed)
    if options.fault == ["babble"]:
        line.fault = "babble"
    elif options.fault:
        line.faults = itertools.cycle("" if name == "ok" else name for name in options.fault)
    if options.verbose:
        line.on_sent = _show
    ended = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    async with line:
        print(f'{_about(type(device))}\n\n[sensors.{options.device}]\ndriver = "{options.device}"')
        print(
            f'port = "{line.path}"\n\nIt speaks while a client has the port open. Ctrl-C ends it.',
            flush=True,
        )
        await ended.wait()


def _show(sent: Sent) -> None:
    values = "  ".join(f"{quantity.name} {value}" for quantity, value in sent.values.items())
    print(f"{sent.fault or 'ok':12} {values}  {sent.data.hex(' ')}", flush=True)


def _bluez(options: argparse.Namespace) -> None:
    try:
        importlib.import_module("hil.bluezcommand").run(options)
    except ValueError as error:  # in a file of what is on the air
        raise argparse.ArgumentTypeError(error) from None


def _broker(options: argparse.Namespace) -> None:
    broker = importlib.import_module("hil.broker")
    kinds: dict[str, type[Any]] = {"faults": broker.Faults, "limits": broker.Limits}
    given = dict(_setting(text) for text in options.fault)
    names = {field.name: kind for kind, made in kinds.items() for field in fields(made)}
    for name in given:
        _known(name, names, "fault")
    chosen = {
        kind: made(**{name: value for name, value in given.items() if names[name] == kind})
        for kind, made in kinds.items()
    }
    asyncio.run(broker.serve(options.port, **chosen))


def _setting(text: str) -> tuple[str, object]:
    """Split `name=value`; a name alone means True, what is no literal is text."""
    name, equals, value = text.partition("=")
    try:
        return name, ast.literal_eval(value) if equals else True
    except (ValueError, SyntaxError):
        return name, value


def _bench(options: argparse.Namespace) -> int:
    found = {name: importlib.import_module(f"hil.bench_{name}") for name in options.names}
    if options.help:
        for tell in [bench.parser().print_help for bench in found.values()] or [options.print_help]:
            tell()
        return 0
    if not found:
        raise argparse.ArgumentTypeError(f"bench needs a name: there are {', '.join(benches())}")
    arguments = [f"--{name}" for name in ("json", "quick") if getattr(options, name)]
    arguments += options.more
    for bench in found.values():  # before the first of them has measured for minutes
        bench.parser().parse_args(arguments)
    together: dict[str, object] = {}
    for name in options.names:
        bench = found[name]
        if options.json and len(options.names) > 1:  # one document, not one a bench
            with redirect_stdout(StringIO()) as said:
                bench.main(arguments)
            together[name] = json.loads(said.getvalue())
        else:
            bench.main(arguments)
    if together:
        print(json.dumps(together, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
