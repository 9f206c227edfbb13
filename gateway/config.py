"""config.toml → typed settings; all mistakes at once, each with its line and a hint.

A driver's fields are settings of the sensors that use it, read by the same rules as the gateway's.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gateway.driver import (
    DRIVER_FAULTS,
    BleDriver,
    Driver,
    DriverBroken,
    LocalDriver,
    SerialDriver,
    find,
    names,
    said,
)
from gateway.mistakes import ConfigError, Mistake
from gateway.schema import Setting, nearest, read_table, seen, settings_of
from gateway.settings import (
    PROFILES,
    BluetoothSettings,
    Broker,
    BufferSettings,
    GatewaySettings,
    PortSettings,
    SensorSettings,
    SiteSettings,
    UplinkSettings,
    read_name,
)
from gateway.toml_lines import KeyPath, key_lines, line_of

__all__ = [
    "BluetoothSettings",
    "Broker",
    "BufferSettings",
    "Config",
    "ConfigError",
    "GatewaySettings",
    "Mistake",
    "PortSettings",
    "SensorSettings",
    "SiteSettings",
    "UplinkSettings",
    "load",
    "load_buffer",
    "settings_from_text",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of config.toml; ports and sensors by their names, in the file's order."""

    gateway: GatewaySettings
    uplink: UplinkSettings
    buffer: BufferSettings
    bluetooth: BluetoothSettings
    site: SiteSettings
    ports: Mapping[str, PortSettings]
    sensors: Mapping[str, SensorSettings]


def load(path: Path | str) -> Config:
    """Return what the file says; raises one ConfigError with all its mistakes."""
    source = _parse(str(path), _text(Path(path)))
    source.check_tables()
    tables = {name: source.read((name,), kind) for name, kind in _TABLES.items()}
    ports = {name: source.read(("ports", name), PortSettings) for name in source.names("ports")}
    sensors = _Sensors(source, ports)
    found = [sensors.read(name) for name in source.names("sensors")]
    _check_login(source, tables["uplink"])
    if source.mistakes:
        raise ConfigError(source.file, source.mistakes)
    for name, defaults in PROFILES[tables["uplink"].get("profile", "normal")].items():
        tables[name] = {**defaults, **tables[name]}
    gateway = GatewaySettings(**tables["gateway"])
    return Config(
        gateway=gateway,
        uplink=UplinkSettings(**{"client_id": gateway.id, **tables["uplink"]}),
        buffer=BufferSettings(**tables["buffer"]),
        bluetooth=BluetoothSettings(**tables["bluetooth"]),
        site=SiteSettings(**tables["site"]),
        ports={name: PortSettings(**values) for name, values in ports.items()},
        sensors={sensor.name: sensor for sensor in found if sensor},
    )


def load_buffer(path: Path | str) -> tuple[GatewaySettings, BufferSettings]:
    """Return what the file says of the buffer, whatever is wrong with all else that stands there.

    So what waits can be read where drivers are missing. Defaults of a profile are not in it.
    """
    source = _parse(str(path), _text(Path(path)))
    gateway, buffer = (source.read((name,), _TABLES[name]) for name in ("gateway", "buffer"))
    if source.mistakes:
        raise ConfigError(source.file, source.mistakes)
    return GatewaySettings(**gateway), BufferSettings(**buffer)


def settings_from_text(driver: type[Driver], texts: Mapping[str, str]) -> Driver:
    """Return a driver with settings given as `--set KEY=VALUE`.

    The same checks as for the file; raises a ConfigError that names each `--set KEY`.
    """
    made, wrong = _make(driver, texts, Setting.from_text)
    if made is None:
        names = {key: f"--set {key}" if key else "" for key in wrong}
        raise ConfigError("", [Mistake(None, names[key], text) for key, text in wrong.items()])
    return made


_TABLES: Mapping[str, type] = {
    "gateway": GatewaySettings,
    "uplink": UplinkSettings,
    "buffer": BufferSettings,
    "bluetooth": BluetoothSettings,
    "site": SiteSettings,
}
_OF_SENSORS = settings_of(SensorSettings)


class _Source:
    """A parsed file, and the mistakes seen in it so far."""

    def __init__(self, file: str, root: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._root = root
        self._lines = lines

    def wrong(self, path: KeyPath, text: str) -> None:
        """Note a mistake."""
        self.mistakes.append(Mistake(line_of(path, self._lines), _dotted(path), text))

    def check_tables(self) -> None:
        """Note the tables that there are none of."""
        known = [*_TABLES, "ports", "sensors"]
        for name in [name for name in self._root if name not in known]:
            self.wrong((name,), f"there is no such table{nearest(name, known)}")

    def table(self, path: KeyPath) -> dict[str, Any] | None:
        """Return the table at `path`, empty when there is none; None for what is no table."""
        value: Any = self._root
        for key in path:
            value = value.get(key, {})
        if isinstance(value, dict):
            return value
        self.wrong(path, f"expected a table [{_dotted(path)}], got {seen(value)}")
        return None

    def names(self, table: str) -> list[str]:
        """Return the names of the tables in `table`."""
        names = list(self.table((table,)) or {})
        for name in names:
            try:
                read_name(name)
            except ValueError as error:
                self.wrong((table, name), f"a name that will not do: {error}")
        return names

    def read(self, path: KeyPath, kind: type) -> dict[str, Any]:
        """Return the good settings of the table at `path`."""
        table = self.table(path)
        if table is None:
            return {}
        values, wrong = read_table(table, settings_of(kind))
        self.note(path, wrong)
        return values

    def note(self, path: KeyPath, wrong: Mapping[str, str]) -> None:
        """Note the mistakes in one table by their keys; "" is the table itself."""
        for key, text in wrong.items():
            self.wrong((*path, key) if key else path, text)


class _Sensors:
    """Reads sensors one by one; knows which of them has which port or address."""

    def __init__(self, source: _Source, ports: Mapping[str, dict[str, Any]]) -> None:
        self._source = source
        self._ports = ports
        self._users: dict[str, str] = {}

    def read(self, name: str) -> SensorSettings | None:
        """Return a sensor's settings; None after a mistake."""
        path = ("sensors", name)
        table = self._source.table(path)
        if table is None:
            return None
        before = len(self._source.mistakes)
        own = {key: value for key, value in table.items() if key in _OF_SENSORS}
        values, wrong = read_table(own, _OF_SENSORS)
        self._source.note(path, wrong)
        if "port" in values:
            values["port"] = self._port(path, values["port"])
        if "address" in values and "driver" in values:
            self._check_alone(path, values["address"], values["driver"])
        if "driver" in values:
            values["driver_name"] = values["driver"]
            values["driver"] = self._driver(path, values["driver_name"], table)
        else:
            self._source.note(path, _misspelt(table))
        good = len(self._source.mistakes) == before
        return SensorSettings(name=name, **values) if good else None

    def _port(self, path: KeyPath, port: str) -> PortSettings | None:
        values = {"path": Path(port)} if port.startswith("/") else self._ports.get(port)
        key = (*path, "port")
        if values is None:
            hint = nearest(port, self._ports) or "; a path begins with '/'"
            self._source.wrong(key, f"there is no [ports.{port}]{hint}")
        if not values or "path" not in values:
            return None
        device = os.path.realpath(values["path"])
        user = self._users.setdefault(device, path[-1])
        if user != path[-1]:
            self._source.wrong(
                key, f"{device} is the port of sensor {user!r}; they cannot share it"
            )
        return PortSettings(**values)

    def _check_alone(self, path: KeyPath, address: str, driver: str) -> None:
        """Note a device that is configured twice: each of its values would be taken twice."""
        user = self._users.setdefault(f"{driver} {address}", path[-1])
        if user != path[-1]:
            twice = f"{address} is read by {driver!r} for sensor {user!r} already"
            self._source.wrong((*path, "address"), f"{twice}; remove one of the two")

    def _driver(self, path: KeyPath, name: str, table: Mapping[str, Any]) -> Driver | None:
        try:
            kind = find(name)
        except LookupError:
            hint = nearest(name, names()) or "; `bygate drivers` lists them"
            self._source.wrong((*path, "driver"), f"there is no driver {name!r}{hint}")
        except DriverBroken as error:
            self._source.wrong((*path, "driver"), _one_line(str(error)))
        else:
            self._source.note(path, _misfit(kind, table))
            theirs = {key: value for key, value in table.items() if key not in _OF_SENSORS}
            made, wrong = _make(kind, theirs)
            self._source.note(path, wrong)
            return made
        self._source.note(path, _misspelt(table))
        return None


def _misspelt(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that are near to a setting of every sensor, whatever its driver."""
    hints = {key: nearest(key, _OF_SENSORS.keys() - table.keys()) for key in table}
    return {
        key: f"there is no such setting{hint}"
        for key, hint in hints.items()
        if hint and key not in _OF_SENSORS
    }


def _misfit(kind: type[Driver], table: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the presence or absence of a port or an address, by its key."""
    needed = next((key for each, key in _PLACES.items() if issubclass(kind, each)), None)
    if needed is None:
        link = getattr(kind, "link", None)
        return {"driver": f"needs a link of kind {link!r}, which this gateway does not have"}
    wrong = {
        key: f"a {kind.link} driver has no {key}"
        for key in filter(None, _PLACES.values())
        if key in table and key != needed
    }
    if needed and needed not in table:
        instance = _OF_SENSORS[needed].instance
        wrong[needed] = f"missing, but required by a {kind.link} driver{instance}"
    if issubclass(kind, BleDriver) and (lacks := [each for each in _BLE if not find_spec(each)]):
        wrong["driver"] = f"needs the package {lacks[0]}: pip install {BLEAK}"
    return wrong


BLEAK = "'bleak>=3.1,<4'"
"""What pip is to install where Bluetooth lacks a package."""

_BLE = ("bleak", "dbus_fast")
"""Packages that are imported for BLE sensors only, the second brought by the first."""


_PLACES: Mapping[type[Driver], str] = {SerialDriver: "port", BleDriver: "address", LocalDriver: ""}
"""Where a sensor is found, by the kind of its driver."""


def _make(
    kind: type[Driver],
    table: Mapping[str, Any],
    read: Callable[[Setting, Any], object] = Setting.read,
) -> tuple[Driver | None, dict[str, str]]:
    """Return a driver with its settings, or None and what is wrong with which."""
    try:
        declared = settings_of(kind)
        if taken := declared.keys() & _OF_SENSORS.keys():
            raise TypeError(f"every sensor has the setting {min(taken)!r}")
        values, wrong = read_table(table, declared, read, _OF_SENSORS)
        return (None if wrong else kind(**values)), wrong
    except ValueError as error:
        return None, {"": _one_line(said(error))}
    except DRIVER_FAULTS as error:
        fault = f"{type(error).__name__}: {said(error)}"
        return None, {"": f"driver of {kind.__module__} is broken: {_one_line(fault)}"}


def _check_login(source: _Source, uplink: Mapping[str, Any]) -> None:
    """Note settings of the uplink that could have no effect."""
    brokers = uplink.get("url")
    for key, other in (("password_file", "username"), ("key_file", "cert_file")):
        if key in uplink and other not in uplink:
            source.wrong(("uplink", key), f"has no effect without {other}")
    for key in ("ca_file", "cert_file", "key_file"):
        if key in uplink and brokers and not brokers[0].tls:
            source.wrong(
                ("uplink", key), "has no effect, for url has no TLS; did you mean mqtts://?"
            )


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        text = "there is no such file; `bygate check --example` prints one to begin with"
    except PermissionError:
        text = "no permission to read it; use sudo, or be the user that bygate runs as"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        text = f"not UTF-8: byte 0x{error.object[error.start]:02x} on line {line}"
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
    except ValueError as error:
        text = f"cannot be read: {error}"
    raise ConfigError(str(file), [Mistake(None, "", text)])


def _parse(file: str, text: str) -> _Source:
    try:
        root = tomllib.loads(text)
    except RecursionError:
        mistake = Mistake(None, "", "not TOML: nested too deeply")
    except ValueError as error:
        mistake = _syntax_mistake(text, str(error))
    else:
        return _Source(file, root, key_lines(text))
    raise ConfigError(file, [mistake])


_TWICE = {"Cannot overwrite": "this key stands twice", "Cannot declare": "this table stands twice"}


def _syntax_mistake(text: str, said: str) -> Mistake:
    """Return a mistake for tomllib's message, whose end is the place."""
    lines = text.split("\n")
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", said, re.DOTALL)
    number = int(match[2]) if match else len(text.rstrip().split("\n"))
    what = match[1] if match else said
    what = next((plainer for start, plainer in _TWICE.items() if what.startswith(start)), what)
    bare = re.search(r"= *([0-9]+ ?[A-Za-z]+) *(?:#.*)?\r?$", lines[number - 1])
    hint = f'; did you mean "{bare[1]}", in quotes?' if bare else ""
    column = f" at column {match[3]}" if match else ""
    return Mistake(number, "", f"not TOML{column}: {_one_line(what)}{hint}")


def _dotted(path: KeyPath) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return ".".join(key if bare.fullmatch(key) else json.dumps(key) for key in path)


def _one_line(text: str) -> str:
    return " ".join(text.split())
