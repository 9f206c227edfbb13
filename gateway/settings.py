"""The settings of config.toml: each a field with its type, default, bounds and one sentence.

Reading and checking, `bygate check` and config.example.toml all go by these fields.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.driver import Driver
from gateway.measure import Duration, Size, duration, size
from gateway.schema import NOT_WRITTEN, required, seen, setting


def read_name(value: object) -> str:
    """Return the name of a gateway, port or sensor; raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        return value
    raise ValueError(f"expected 1 to 64 letters, digits, '.', '_' or '-', got {seen(value)}")


def _line(value: object) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise ValueError(f"expected text in quotes, one line, got {seen(value)}")


LONGEST_TEXT = 65_535
"""UTF-8 bytes of a text in MQTT."""


def _login(value: object) -> str:
    text = _line(value)
    if (size := len(text.encode())) > LONGEST_TEXT:
        raise ValueError(f"expected at most {LONGEST_TEXT} bytes, got {size}")
    return text


def _topic(value: object) -> str:
    topic = _line(value)
    if set(topic) & set("+#") or "" in topic.split("/") or topic[0] == "$" or len(topic) > 256:
        raise ValueError(f"expected a topic such as 'bygate/v1' without + and #, got {seen(topic)}")
    return topic


def _secret(value: object) -> Path:
    if isinstance(value, str) and value.startswith("/") and value.isprintable():
        return Path(value)
    # Not shown: whoever mistakes the file for its content wrote the secret here.
    raise ValueError("expected the path of a file, beginning with '/'")


def _location(value: object) -> tuple[float, float]:
    try:
        latitude, longitude = list(value) if isinstance(value, list) else [None, None]
        return _degrees(latitude, 90), _degrees(longitude, 180)
    except ValueError:
        expected = "[latitude, longitude] in degrees, such as [63.4333, 10.4032]"
        raise ValueError(f"expected {expected}, got {seen(value)}") from None


def _degrees(value: object, bound: int) -> float:
    if isinstance(value, int | float) and -bound <= value <= bound and not isinstance(value, bool):
        return float(value)
    raise ValueError(value)


def _address(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}", value):
        digits = re.sub("[:-]", "", value.upper())
        if digits in ("0" * 12, "F" * 12):
            raise ValueError(f"{seen(value)} is no device's address: `bygate scan` shows them")
        return ":".join(digits[at : at + 2] for at in range(0, 12, 2))
    expected = "a Bluetooth address such as 'CC:B8:33:4C:88:4F'"
    raise ValueError(f"expected {expected}, got {seen(value)}")


def _adapters(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list) and value else [value]
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"hci(0|[1-9][0-9]{0,2})", name)):
            raise ValueError(f"expected an adapter such as 'hci0', got {seen(name)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """The address as the user would write it, with its port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' * self.tls}://{host}:{self.port}"


_URL = re.compile(r"mqtt(s?)://(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|(\w[\w.-]*))(?::([0-9]{1,5}))?/?")


def _broker(url: object) -> Broker:
    if isinstance(url, str) and "@" in url:  # not shown: it holds a password
        raise ValueError("a URL takes no user or password: set username and password_file")
    match = _URL.fullmatch(url) if isinstance(url, str) else None
    port = int(match[4] or (8883 if match[1] else 1883)) if match else 0
    if not match or not 1 <= port <= 65535 or not _is_ipv6(match[2] or "::"):
        raise ValueError(f"expected mqtt://HOST:PORT or mqtts://HOST:PORT, got {seen(url)}")
    return Broker(match[2] or match[3], port, tls=bool(match[1]))


def _is_ipv6(address: str) -> bool:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _brokers(value: object) -> tuple[Broker, ...]:
    urls = value if isinstance(value, list) and value else [value]
    brokers = tuple(_broker(url) for url in urls)
    if len({broker.tls for broker in brokers}) > 1:
        raise ValueError("mqtts:// and mqtt:// in one list: plain TCP is no stand-in for TLS")
    return brokers


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The box itself."""

    id: str = required(
        "Name of this gateway and its level in every topic: letters, digits, '.', '_', '-'.",
        example="trd-0042",
        read=read_name,
    )
    state_dir: Path = setting(Path("/var/lib/bygate"), "Directory of the buffer.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkSettings:
    """The broker that batches are delivered to."""

    url: tuple[Broker, ...] = required(
        "Broker, mqtts:// for TLS or mqtt:// for plain TCP; of a list, each is tried in turn, and "
        "all are to take the same: what one refuses lies aside until "
        "`bygate buffer --retry-refused`.",
        example="mqtts://mqtt.example.no:8883",
        read=_brokers,
    )
    protocol: Literal["5", "3.1.1"] = setting(
        "5",
        "MQTT version; 3.1.1 for brokers that know no newer: what is refused looks lost, or taken.",
    )
    topic: str = setting("bygate/v1", "Root of all topics.", read=_topic)
    encoding: Literal["msgpack", "json"] = setting(
        "msgpack",
        "Of batches; json: JSON lines, 100 times the bytes, for receivers that read nothing else.",
    )
    username: str | None = setting(
        None, "Name to log in with at the broker.", example="trd-0042", read=_login
    )
    password_file: Path | None = setting(
        None,
        "File of the password and at most one line end, read at each connection.",
        example="/etc/bygate/mqtt-password",
        read=_secret,
    )
    client_id: str = setting(
        "",
        "MQTT client identifier, unique at the broker; the gateway's id when not given.",
        example="trd-0042",
        read=_login,
    )
    ca_file: Path | None = setting(
        None,
        "Certificates that vouch for the broker, in place of the system's.",
        example="/etc/bygate/ca.pem",
    )
    cert_file: Path | None = setting(
        None, "Certificate that this gateway shows the broker.", example="/etc/bygate/client.pem"
    )
    key_file: Path | None = setting(
        None,
        "Private key of cert_file, where that does not hold it.",
        example="/etc/bygate/client.key",
        read=_secret,
    )
    keepalive: Duration = setting(
        duration("20s"),
        "Silence after which the broker is pinged; 20s costs 26 MB a month.",
        low=1,
        high=65535,
    )
    profile: Literal["normal", "metered"] = setting(
        "normal",
        "Metered links get keepalive 5min and seal_interval 10min, unless those are set.",
    )
    backlog_rate: float | None = setting(
        None,
        "Batches of the backlog a second, at most; by default as many as broker and link take.",
        example=5.0,
        low=0.01,
        high=10_000,
    )
    status_interval: Duration = setting(
        duration("1h"),
        "The status is published when a sensor's state changes, and as often as this.",
        low=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSettings:
    """Readings on disk until the broker has them."""

    flush_interval: Duration = setting(
        duration("10s"), "Readings younger than this are lost when power is cut.", low=0.1
    )
    seal_interval: Duration = setting(
        duration("60s"), "Readings of this long are sent as one batch.", low=0.1
    )
    max_size: Size | None = setting(
        None,
        "Space for what waits; by default the smaller of 512 MiB and half the partition.",
        example="512 MiB",
        low=size("1 MiB"),
    )
    max_age: Duration | None = setting(
        None,
        "What has waited longer, by an eighth at most, is dropped and counted; never by default.",
        example="90d",
        low=3600,
    )
    keep_free: Size | None = setting(
        None,
        "Space left to others on the partition; by default the smaller of 64 MiB and a tenth.",
        example="64 MiB",
    )


PROFILES: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "normal": {},
    "metered": {
        "uplink": {"keepalive": duration("5min")},
        "buffer": {"seal_interval": duration("10min")},
    },
}
"""Defaults of a profile that are other than the usual, by table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BluetoothSettings:
    """The radio that BLE sensors are heard with."""

    adapter: tuple[str, ...] = setting(
        ("hci0",),
        "Bluetooth adapters to listen with; one alone may stand without a list.",
        read=_adapters,
    )
    scanning: Literal["active", "passive"] = setting(
        "active",
        "Passive asks no device for more, and hears less of them: see systemd/README.md.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """Where the box hangs, for whoever reads the data."""

    name: str | None = setting(None, "Name of the place.", example="Nidelva, Bakke bru", read=_line)
    location: tuple[float, float] | None = setting(
        None,
        "Latitude and longitude in degrees, north and east.",
        example=[63.4333, 10.4032],
        read=_location,
    )
    purpose: str | None = setting(
        None, "Why it measures there.", example="Warns of floods", read=_line
    )
    contact: str | None = setting(
        None, "Who answers for it.", example="sensors@example.no", read=_line
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSettings:
    """A serial port with settings of its own; sensors name it as their `port`."""

    path: Path = required(
        "Device, best by a name that stays: by-id, or by-path for adapters without serial number.",
        example="/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_AK05EMVN-if00-port0",
    )
    baudrate: int | None = setting(
        None,
        "Bits per second; by default what the driver says.",
        example=9600,
        low=50,
        high=4_000_000,
    )
    bytesize: Literal[5, 6, 7, 8] | None = setting(
        None, "Data bits; by default what the driver says.", example=8
    )
    parity: Literal["N", "E", "O"] | None = setting(
        None, "None, even or odd; by default what the driver says.", example="N"
    )
    stopbits: Literal[1, 2] | None = setting(
        None, "Stop bits; by default what the driver says.", example=1
    )
    dtr: bool | None = setting(
        None, "State of the DTR line while open; by default the system's.", example=False
    )
    rts: bool | None = setting(
        None, "State of the RTS line while open; by default the system's.", example=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSettings:
    """One sensor, by the name that its readings bear."""

    name: str = field(metadata=NOT_WRITTEN)
    driver_name: str = field(default="", metadata=NOT_WRITTEN)
    driver: Driver = required(
        "What it is; `bygate drivers` lists them.", example="sds011", read=_line
    )
    port: PortSettings | None = setting(
        None,
        "Path of its serial port, or a name from [ports].",
        example="/dev/serial/by-path/platform-xhci-usb-0:1.3:1.0-port0",
        read=_line,
    )
    address: str | None = setting(
        None,
        "Bluetooth address of a BLE sensor; `bygate scan` finds it.",
        example="CC:B8:33:4C:88:4F",
        read=_address,
    )
    interval: Duration = setting(duration("60s"), "One reading is taken in each.", low=0.1)
    durable: bool = setting(False, "Each reading is flushed to disk at once.")
