"""config.example.toml, made from the settings themselves."""

from collections.abc import Iterator
from textwrap import wrap

from gateway.config import (
    BluetoothSettings,
    BufferSettings,
    GatewaySettings,
    PortSettings,
    SensorSettings,
    SiteSettings,
    UplinkSettings,
)
from gateway.schema import Setting, settings_of

_HEAD = """\
# The settings of bygate: copy to /etc/bygate/config.toml, then `bygate check`.
# What is commented out shows its default, or an example where it says so.
# Durations and sizes carry their unit: "250ms", "60s", "10min", "1h", "1d"; "64 KiB", "512 MiB".
"""
_MORE = """\

# A driver's own settings stand here too: `bygate drivers NAME` shows them.
[sensors.air-yard]
driver = "pms5003"
port = "/dev/serial0"

[sensors.mast]
driver = "nmea0183"
port = "usb-adapter"
interval = "10s"

[sensors.hall]
driver = "ruuvi"
# {address}
address = "CC:B8:33:4C:88:4F"

[sensors.box]
driver = "host"
interval = "5min"
"""
_TABLES = {
    "gateway": GatewaySettings,
    "uplink": UplinkSettings,
    "buffer": BufferSettings,
    "bluetooth": BluetoothSettings,
    "site": SiteSettings,
    "ports.usb-adapter": PortSettings,
    "sensors.air-street": SensorSettings,
}
_WRITTEN = {"sensors.air-street": {"port"}}
_ELSEWHERE = {"sensors.air-street": {"address"}}
"""Settings that the table cannot have, and that stand in `_MORE`."""


def example() -> str:
    """Return every setting with its sentence, the optional ones commented out."""
    tables = "".join(_table(name, kind) for name, kind in _TABLES.items())
    address = settings_of(SensorSettings)["address"].doc
    return _HEAD + tables + _MORE.format(address=address)


def _table(name: str, kind: type) -> str:
    shown = [s for s in settings_of(kind).values() if s.name not in _ELSEWHERE.get(name, ())]
    lines = [line for setting in shown for line in _setting(name, setting)]
    return "\n".join(["", f"# {kind.__doc__}", f"[{name}]", *lines, ""])


def _setting(table: str, setting: Setting) -> Iterator[str]:
    yield from wrap(f"# {setting.doc}", 99, subsequent_indent="# ", break_on_hyphens=False)
    if setting.required or setting.name in _WRITTEN.get(table, ()):
        yield f"{setting.name} = {setting.shown}"
    else:
        mark = "" if setting.example is None else "  # for example"
        yield f"#{setting.name} = {setting.shown}{mark}"
