"""`bygate scan`: BLE sensors of known families that are heard, with the lines for config.toml.

Who advertises anything else, a phone or a watch, is neither listed nor kept.
"""

import argparse
import asyncio
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.cli.columns import columns
from gateway.config import BLEAK
from gateway.driver import (
    DRIVER_FAULTS,
    Advertisement,
    AdvertisementDriver,
    BleDriver,
    DeviceRefused,
    DriverBroken,
    SensorError,
    find,
    names,
)
from gateway.judge import judge
from gateway.reading import Quantity, Value
from gateway.schema import settings_of
from gateway.service import stray
from gateway.settings import BluetoothSettings

SECONDS = 10.0
"""Most sensors advertise at least once in so long."""

PHONES = (0x0006, 0x004C, 0x0075, 0x00E0, 0x018E, 0x027D, 0x038F)
"""Microsoft, Apple, Samsung, Google twice, Huawei, Xiaomi (Bluetooth Assigned Numbers, 7)."""


@dataclass(slots=True)
class Found:
    """A sensor that was heard."""

    address: str
    driver: str
    kind: type[BleDriver]
    rssi: int | None = None
    values: dict[Quantity, Value] = field(default_factory=dict)
    why: str = ""

    @property
    def unasked(self) -> bool:
        """Whether it tells its values in its advertisements."""
        return issubclass(self.kind, AdvertisementDriver)

    def name(self, digits: int) -> str:
        """Return a name for it, with so many digits of its address."""
        return f"{self.driver}-{self.address.replace(':', '').lower()[-digits:]}"

    def table(self, name: str) -> str:
        """Return the lines to paste into config.toml."""
        lines = [f"[sensors.{name}]", f'driver = "{self.driver}"', f'address = "{self.address}"']
        if "key" in settings_of(self.kind) and self.why:
            lines.append("#key = the 32 hexadecimal digits that its maker's app shows, in quotes")
        return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate scan`."""
    parser.add_argument(
        "--seconds", type=_seconds, default=SECONDS, metavar="N", help="listen so long (10)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        type=_adapter,
        metavar="NAME",
        help="a Bluetooth adapter such as hci0; several if given several times",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was heard; 1 when no adapter could be used to the end."""
    try:
        from gateway.ble import survey
    except ImportError as error:
        print(f"bygate scan: {error}: pip install {BLEAK}", file=sys.stderr)
        return 2
    faults = logging.StreamHandler()  # our own; what is wrong with the adapters is said below
    faults.setLevel(logging.ERROR)
    logging.getLogger("gateway").addHandler(faults)
    survey_of = Survey()
    adapters = list(dict.fromkeys(args.adapter or BluetoothSettings().adapter))
    if not args.json:
        print(f"listening with {', '.join(adapters)} for {args.seconds:g} s", file=sys.stderr)
    why = asyncio.run(_listen(survey(adapters, args.seconds, survey_of.hear)))
    failed = len(why) == len(adapters)
    found = sorted(survey_of.sensors, key=lambda each: -(each.rssi or -128))
    tables = _tables(found)
    if args.json:
        listed = [
            _as_json(each) | {"config": table} for each, table in zip(found, tables, strict=True)
        ]
        print(json.dumps(listed, indent=2))
    elif found:
        print("\n\n".join([_as_text(found), "For config.toml:", *tables]))
    elif not failed:
        print(_nothing(survey_of.heard))
    for reason in dict.fromkeys(why.values()):
        print(reason, file=sys.stderr)
    return int(failed)


async def _listen(surveying: Awaitable[dict[str, str]]) -> dict[str, str]:
    asyncio.get_running_loop().set_exception_handler(stray)
    return await surveying


class Survey:
    """What was heard so far; `heard` counts the advertisements of all, and says no more of them."""

    def __init__(self) -> None:
        self.heard = 0
        self.found: dict[tuple[str, str], Found] = {}
        self._kinds = dict(_kinds())

    def hear(self, advertisement: Advertisement) -> None:
        """Keep what comes from a sensor of a known family, and nothing else."""
        self.heard += 1
        for name, kind in self._kinds.items():
            if kind.hears(advertisement):
                self._note(name, kind, advertisement)

    @property
    def sensors(self) -> list[Found]:
        """What was found; nobody need connect to a sensor whose advertisements a driver knows."""
        unasked = {each.address for each in self.found.values() if each.unasked}
        return [e for e in self.found.values() if e.unasked or e.address not in unasked]

    def _note(self, name: str, kind: type[BleDriver], advertisement: Advertisement) -> None:
        key = advertisement.address, name
        values, why = _read(kind, advertisement)
        if not values and not advertisement.manufacturer_data.keys().isdisjoint(PHONES):
            self.found.pop(key, None)  # a part of it alone may have passed for a sensor's
            return
        if values is None:
            return
        found = self.found.setdefault(key, Found(advertisement.address, name, kind))
        found.rssi, found.why = advertisement.rssi, why
        found.values |= values


def _kinds() -> Iterator[tuple[str, type[BleDriver]]]:
    for name in names():
        try:
            kind = find(name)
        except DriverBroken:
            continue
        if issubclass(kind, BleDriver):
            yield name, kind


def _read(
    kind: type[BleDriver], advertisement: Advertisement
) -> tuple[Mapping[Quantity, Value] | None, str]:
    """Return the values in an advertisement and what to say of it; None: not of this family."""
    if not issubclass(kind, AdvertisementDriver):
        return {}, "is read by connecting"
    try:
        return kind().decode(advertisement), ""
    except DeviceRefused as error:
        return {}, str(error)
    except (SensorError, *DRIVER_FAULTS):
        return None, ""


def _tables(found: list[Found]) -> list[str]:
    """Return the lines for each, under names that differ."""
    short = Counter(each.name(4) for each in found)
    return [each.table(each.name(4 if short[each.name(4)] == 1 else 12)) for each in found]


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "address": found.address,
        "rssi": found.rssi,
        "driver": found.driver,
        "link": found.kind.link,
        "model": found.kind.model,
        "values": {q.name: {"value": v, "unit": q.unit} for q, v in _judged(found)},
        "why": found.why or None,
    }


def _as_text(found: list[Found]) -> str:
    rows = [
        (each.address, _signal(each.rssi), each.driver, each.kind.model, _says(each))
        for each in found
    ]
    return columns(("ADDRESS", "SIGNAL", "DRIVER", "MODEL", "SAYS"), *rows)


def _signal(rssi: int | None) -> str:
    return "-" if rssi is None else f"{rssi} dBm"


def _says(found: Found) -> str:
    if found.why:
        return found.why
    judged = [(q, value) for q, value in _judged(found) if value is not None]
    shown = [f"{q.name} {value} {q.unit}".strip() for q, value in judged]
    return ", ".join(shown[:4]) + (", …" if len(shown) > 4 else "")


def _judged(found: Found) -> list[tuple[Quantity, Value]]:
    return [(quantity, judge(quantity, value)[0]) for quantity, value in found.values.items()]


def _nothing(heard: int) -> str:
    if heard:
        return f"no sensor of a known family among {heard} advertisements: nearer? `bygate drivers`"
    return "nothing was heard at all: is there an antenna, and does the sensor have a battery?"


def _adapter(text: str) -> str:
    try:
        settings_of(BluetoothSettings)["adapter"].read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    seconds = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds
