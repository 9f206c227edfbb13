"""`python -m hil bluez`: the simulated BlueZ as a process, told what to do by options and lines."""

import argparse
import asyncio
import difflib
import inspect
import json
import os
import signal
import stat
import sys
import threading
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from hil.bluez import FakeBlueZ
from hil.dbusdaemon import PrivateBus
from hil.radio import Advertiser, Payload

Scene = Mapping[str, Any]
"""What is on the air, as TOML or JSON has it:

    advertiser = [{address = "CC:…", manufacturer = {0x0499 = "05…"}, every = 0.1}]
    peripheral = [{address = "C0:…", services = {181a = {2a6e = "d007"}}}]
    crowd = {size = 100, rotate = 10}

Bytes are hexadecimal; a list of them is gone through again and again. The other keys are the
arguments of Advertiser and Crowd.
"""

KEYS = inspect.signature(Advertiser).parameters.keys() - {"air"} | {"services"}
"""What a device in a scene may have."""

HELP = """\
    fault NAME [at PLACE] [times N]   at an adapter or address, only N times
    cure NAME [at PLACE]
    restart                           BlueZ is stopped and started
    power cut [at ADAPTER]            the adapter is pulled and plugged in
    stop ADDRESS, start ADDRESS       a device leaves the air, and comes back
    put {"advertiser": […], …}        more on the air
    heard                             how many adverts reached a client, by address"""


def run(options: argparse.Namespace) -> None:
    """Run it till Ctrl-C, or the end of the pipe that it reads."""
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    scenes = [load(file) for file in options.file]
    scenes.append({"advertiser": [spec(words) for words in options.advertise]})
    if options.crowd:
        scenes.append({"crowd": {"size": options.crowd}})
    async with (
        PrivateBus(options.path) as bus,
        FakeBlueZ(
            bus,
            adapters=options.adapters,
            forget_after=options.forget_after,
            experimental=options.experimental,
        ) as bluez,
    ):
        for scene in scenes:
            put(bluez, scene)
        for fault in options.fault:
            await bluez.begin(fault)
        print(f"export DBUS_SYSTEM_BUS_ADDRESS={bus.address}\n")
        print(f"Lines that it takes, each answered by ok; Ctrl-C ends it:\n{HELP}\n", flush=True)
        await _obey(bluez)


async def _obey(bluez: FakeBlueZ) -> None:
    lines = _typed()
    while (line := await lines.get()) is not None:
        try:
            answer = await obey(bluez, line)
        except (ValueError, KeyError, TypeError, OSError) as error:
            answer = f"error: {error}"
        print(answer, flush=True)


def _typed() -> "asyncio.Queue[str | None]":
    """Return the lines on stdin as they come; None is the end, by a signal or of a pipe."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, lines.put_nowait, None)

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return lines


async def obey(bluez: FakeBlueZ, line: str) -> str:
    """Do what a line says, and return the answer. Raises ValueError, TypeError or KeyError."""
    command, _, rest = line.strip().partition(" ")
    if command == "put":
        put(bluez, json.loads(rest))
    elif command in ("stop", "start"):
        _on_air(bluez, rest, command)
    elif command == "heard":
        return json.dumps({each.address: len(each.heard) for each in bluez.air.senders})
    elif command:
        await _act(bluez, command, rest)
    return "ok"


async def _act(bluez: FakeBlueZ, command: str, rest: str) -> None:
    rest, _, times = rest.partition(" times ")
    name, _, at = rest.partition(" at ")
    acts: dict[str, Callable[[], Awaitable[None]]] = {
        "fault": lambda: bluez.begin(name, at, int(times) if times else None),
        "cure": lambda: bluez.cure(name, at),
        "restart": bluez.restart,
        "power": lambda: bluez.power_cut(at),
    }
    if command not in acts or (command == "power" and name != "cut"):
        raise ValueError(f"what is {command!r}? It may be\n{HELP}")
    await acts[command]()


def _on_air(bluez: FakeBlueZ, address: str, command: str) -> None:
    found = [each for each in bluez.air.senders if each.address == address.upper()]
    if not found:
        raise ValueError(f"nothing at {address!r} was put on the air")
    for each in found:
        each.start() if command == "start" else each.stop()


def load(file: Path) -> Scene:
    """Return what a file puts on the air. Raises ValueError if it is neither TOML nor JSON."""
    text = file.read_text(encoding="utf-8")
    scene: Scene = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    return scene


def spec(words: list[str]) -> dict[str, Any]:
    """Read an advertiser from words: `CC:B8:… manufacturer:0499=05… service:fcd2=… every=0.1`."""
    made: dict[str, Any] = {"address": words[0], "manufacturer": {}, "service_data": {}}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        kind, _, key = name.partition(":")
        kinds = ("manufacturer", "service") if key else ("every", "rssi", "name")
        if not equals or kind not in kinds:
            raise argparse.ArgumentTypeError(
                f"{word!r} is none of manufacturer:0499=HEX, service:fcd2=HEX, every=S, rssi=N,"
                " name=TEXT"
            )
        if key:
            made[{"service": "service_data"}.get(kind, kind)][key] = value
        else:
            made[name] = {"every": float, "rssi": int}.get(name, str)(value)
    return made


def put(bluez: FakeBlueZ, scene: Scene) -> None:
    """Put all of a scene on the air. Raises ValueError if it has what nobody knows."""
    try:
        _put(bluez, scene)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this cannot be put on the air: {error}") from None


def _put(bluez: FakeBlueZ, scene: Scene) -> None:
    unknown = set(scene) - {"advertiser", "peripheral", "crowd"}
    if unknown:
        raise ValueError(f"there is no {unknown.pop()!r}: advertiser, peripheral, or crowd")
    for each in scene.get("advertiser", ()):
        bluez.advertise(**_advert(each))
    for each in scene.get("peripheral", ()):
        services = {
            uuid: {name: _read(data) for name, data in values.items()}
            for uuid, values in each["services"].items()
        }
        bluez.peripheral(services=services, **_advert({**each, "services": None}))
    if "crowd" in scene:
        bluez.crowd(**scene["crowd"])


def _advert(scene: Scene) -> dict[str, Any]:
    for name in scene.keys() - KEYS:
        hint = " or ".join(difflib.get_close_matches(name, KEYS, cutoff=0.5) or sorted(KEYS))
        raise ValueError(f"there is no {name!r} of a device; did you mean {hint}?")
    made = {name: value for name, value in scene.items() if name != "services"}
    manufacturer = made.get("manufacturer", {})
    made["manufacturer"] = {int(key, 16): _said(data) for key, data in manufacturer.items()}
    service_data = made.get("service_data", {})
    made["service_data"] = {uuid: _said(data) for uuid, data in service_data.items()}
    return made


def _said(data: str | list[str]) -> Payload:
    if isinstance(data, str):
        return bytes.fromhex(data)
    said = [bytes.fromhex(each) for each in data]
    return lambda number: said[number % len(said)]


def _read(data: str | list[str]) -> bytes | Callable[[], bytes]:
    if isinstance(data, str):
        return bytes.fromhex(data)
    values: Iterator[bytes] = cycle([bytes.fromhex(each) for each in data])
    return lambda: next(values)
