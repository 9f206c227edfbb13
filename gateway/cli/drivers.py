"""`bygate drivers`: the drivers there are, or one driver's settings, quantities and frame."""

import argparse
import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

from gateway.cli.columns import columns, folded
from gateway.driver import (
    DRIVER_FAULTS,
    BleDriver,
    Driver,
    DriverBroken,
    GattDriver,
    SerialDriver,
    find,
    names,
    said,
)
from gateway.schema import Setting, nearest, plain, settings_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate drivers`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show all of this driver")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list, or one driver; exit 1 when one of them is broken."""
    known = names()
    if args.name is not None and args.name not in known:
        hint = nearest(args.name, known) or "; `bygate drivers` lists them"
        print(f"there is no driver {args.name!r}{hint}", file=sys.stderr)
        return 2
    found = [_describe(name) for name in known if args.name in (None, name)]
    if args.json:
        print(json.dumps(found if args.name is None else found[0], indent=2))
    else:
        print(_list(found) if args.name is None else _one(found[0]))
    return int(any("broken" in driver for driver in found))


def _describe(name: str) -> dict[str, Any]:
    """Return what a driver says of itself, or why it is broken."""
    try:
        return _said_by(name, find(name))
    except DriverBroken as error:
        return {"name": name, "broken": " ".join(str(error).split())}
    except DRIVER_FAULTS as error:
        return {"name": name, "broken": " ".join(f"{type(error).__name__}: {said(error)}".split())}


def _said_by(name: str, driver: type[Driver]) -> dict[str, Any]:
    module = inspect.getmodule(driver)
    return {
        "name": name,
        "link": driver.link,
        "line": _line(driver) if issubclass(driver, SerialDriver) else None,
        **_heard(driver),
        "model": driver.model,
        "checked": driver.checked,
        "quantities": [{"name": each.name, "unit": each.unit} for each in driver.quantities],
        "settings": [_setting(setting) for setting in settings_of(driver).values()],
        "doc": "\n\n".join(filter(None, (inspect.getdoc(module), _own_doc(driver)))),
    }


_HEARD = ("companies", "services", "characteristics")


def _heard(driver: type[Driver]) -> dict[str, list[str]]:
    """Return how its advertisements are known, and what is read when it is connected."""
    if not issubclass(driver, BleDriver):
        return {}
    found = {
        "companies": [f"0x{company:04x}" for company in driver.companies],
        "services": list(driver.services),
    }
    read = list(driver.characteristics) if issubclass(driver, GattDriver) else []
    return {key: value for key, value in (found | {"characteristics": read}).items() if value}


def _own_doc(driver: type[Driver]) -> str:
    doc = driver.__doc__ or ""  # without one, dataclass writes the signature there
    return "" if doc.startswith(f"{driver.__name__}(") else inspect.cleandoc(doc)


def _line(driver: type[SerialDriver]) -> str:
    return f"{driver.baudrate} {driver.bytesize}{driver.parity}{driver.stopbits}"


def _setting(setting: Setting) -> dict[str, Any]:
    default = None if setting.required else plain(setting.kind, setting.default)
    return {
        "name": setting.name,
        "type": setting.allowed,
        "required": setting.required,
        "default": default,
        "doc": setting.doc,
    }


def _list(found: list[dict[str, Any]]) -> str:
    return columns(("DRIVER", "LINK", "MODEL", "QUANTITIES"), *map(_row, found))


def _row(driver: Mapping[str, Any]) -> tuple[str, ...]:
    if "broken" in driver:
        return driver["name"], "broken", "-", driver["broken"]
    quantities = ", ".join(folded([each["name"] for each in driver["quantities"]]))
    return driver["name"], driver["link"], driver["model"], quantities


def _one(driver: Mapping[str, Any]) -> str:
    if "broken" in driver:
        return str(driver["broken"])
    check = "frames carry a checksum" if driver["checked"] else "frames carry no checksum"
    facts = [driver["link"], driver["line"], check if driver["line"] else None]
    units = {each["name"]: each["unit"] or "-" for each in driver["quantities"]}
    quantities = [(name, units[name.partition(" ")[0]]) for name in folded([*units])]
    settings = [
        (each["name"], each["type"], _default(each), each["doc"]) for each in driver["settings"]
    ]
    parts = [
        f"{driver['name']}: {driver['model']}\n{', '.join(fact for fact in facts if fact)}",
        "\n".join(f"{key}: {', '.join(driver[key])}" for key in _HEARD if key in driver),
        driver["doc"],
        columns(("SETTING", "TYPE", "DEFAULT", "MEANING"), *settings) if settings else "",
        columns(("QUANTITY", "UNIT"), *quantities),
    ]
    return "\n\n".join(part for part in parts if part)


def _default(setting: Mapping[str, Any]) -> str:
    return "required" if setting["required"] else json.dumps(setting["default"])
