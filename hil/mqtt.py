"""MQTT 5.0 and 3.1.1 on the wire, as far as the simulated broker needs them.

    packet      kind · 16 + flags (1 B), length of the rest (varint), rest
    varint      7 bits a byte, low ones first, high bit: more follow (at most 4 B)
    text        length (2 B, high byte first), UTF-8 without U+0000
    properties  length (varint), then one identifier and one value each; MQTT 5 only

Whatever does not parse raises `Refusal`; nothing is read or kept beyond the limit the caller gives.
"""

from asyncio import StreamReader
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

Properties = dict[str, Any]
"""By the name the standard gives them, in snake_case: int, str, bytes or a list of str pairs."""


class Kind(IntEnum):
    """What a packet is (MQTT 5.0 §2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Reason(IntEnum):
    """Why: the reason codes that the broker gives of itself (MQTT 5.0 §2.4)."""

    SUCCESS = 0x00
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E


_RETURN_CODES = {0: 0, 0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}  # MQTT 3.1.1 §3.2.2.3

_PROPERTIES = {  # MQTT 5.0 §2.2.2.2
    0x01: ("payload_format_indicator", "u8"),
    0x02: ("message_expiry_interval", "u32"),
    0x03: ("content_type", "text"),
    0x08: ("response_topic", "text"),
    0x09: ("correlation_data", "binary"),
    0x0B: ("subscription_identifier", "varint"),
    0x11: ("session_expiry_interval", "u32"),
    0x12: ("assigned_client_identifier", "text"),
    0x15: ("authentication_method", "text"),
    0x16: ("authentication_data", "binary"),
    0x17: ("request_problem_information", "u8"),
    0x18: ("will_delay_interval", "u32"),
    0x19: ("request_response_information", "u8"),
    0x1F: ("reason_string", "text"),
    0x21: ("receive_maximum", "u16"),
    0x22: ("topic_alias_maximum", "u16"),
    0x23: ("topic_alias", "u16"),
    0x24: ("maximum_qos", "u8"),
    0x25: ("retain_available", "u8"),
    0x26: ("user_property", "pair"),
    0x27: ("maximum_packet_size", "u32"),
    0x29: ("subscription_identifier_available", "u8"),
    0x2A: ("shared_subscription_available", "u8"),
}
_OF_MESSAGES = {
    "payload_format_indicator",
    "message_expiry_interval",
    "content_type",
    "response_topic",
    "correlation_data",
    "user_property",
}
_IDENTIFIERS = {name: (identifier, form) for identifier, (name, form) in _PROPERTIES.items()}


class Refusal(Exception):
    """The client broke the protocol or a limit; `code` is what a DISCONNECT tells it."""

    def __init__(self, code: Reason) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(slots=True)
class Message:
    """An application message, or a will."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=dict)


class Connect(NamedTuple):
    """What a client asks for in its first packet (MQTT 5.0 §3.1); level 0: something else."""

    level: int
    client_id: str = ""
    clean: bool = True
    keepalive: int = 0
    properties: Mapping[str, Any] = {}
    will: Message | None = None
    username: str | None = None
    password: bytes | None = None


class Cursor:
    """Reads one value after another from the rest of a packet; raises Refusal past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            _malformed()
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data) - self._at)

    def u8(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Return the next two bytes as a number."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Return the next four bytes as a number."""
        return int.from_bytes(self.take(4), "big")

    def varint(self) -> int:
        """Return the next variable byte integer (MQTT 5.0 §1.5.5)."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Refusal(Reason.MALFORMED_PACKET)

    def binary(self) -> bytes:
        """Return the next bytes that carry their length before them."""
        return self.take(self.u16())

    def text(self) -> str:
        """Return the next string (MQTT 5.0 §1.5.4)."""
        try:
            text = self.binary().decode()
        except UnicodeDecodeError:
            _malformed()
        return _malformed() if "\0" in text else text

    def pair(self) -> tuple[str, str]:
        """Return the next two strings."""
        return self.text(), self.text()

    def topic(self) -> str:
        """Return the next string, which names a topic and has no wildcards (MQTT 5.0 §4.7.1)."""
        topic = self.text()
        return _malformed() if "+" in topic or "#" in topic else topic

    def identifier(self) -> int:
        """Return the next packet identifier, which is never 0 (MQTT 5.0 §2.2.1)."""
        return self.u16() or _malformed()

    def properties(self, level: int) -> Properties:
        """Return the next properties (MQTT 5.0 §2.2.2); MQTT 3.1.1 has none."""
        found: Properties = {}
        inner = Cursor(self.take(self.varint() if level == 5 and self else 0))
        while inner:
            name, form = _PROPERTIES.get(inner.varint()) or _malformed()
            value = getattr(inner, form)()
            if form == "pair":
                found.setdefault(name, []).append(value)
            elif name in found:
                raise Refusal(Reason.PROTOCOL_ERROR)
            else:
                found[name] = value
        return found


def _malformed() -> NoReturn:
    raise Refusal(Reason.MALFORMED_PACKET)


async def read_packet(reader: StreamReader, limit: int) -> tuple[int, int, bytes]:
    """Read one packet of at most `limit` bytes; return its kind, its flags and the rest."""
    first, byte = await reader.readexactly(2)
    length, size = byte & 0x7F, 2
    while byte & 0x80:
        if size == 5:
            raise Refusal(Reason.MALFORMED_PACKET)
        (byte,) = await reader.readexactly(1)
        length |= (byte & 0x7F) << 7 * (size - 1)
        size += 1
    if size + length > limit:
        raise Refusal(Reason.PACKET_TOO_LARGE)
    return first >> 4, first & 0x0F, await reader.readexactly(length)


def read_connect(cursor: Cursor) -> Connect:
    """Read a CONNECT (MQTT 5.0 §3.1, MQTT 3.1.1 §3.1)."""
    protocol, level = cursor.text(), cursor.u8()
    if (protocol, level) not in {("MQTT", 4), ("MQTT", 5)}:
        return Connect(level=0)
    flags, keepalive, properties = cursor.u8(), cursor.u16(), cursor.properties(level)
    if flags & 1 or flags >> 3 & 3 == 3:
        raise Refusal(Reason.MALFORMED_PACKET)
    client_id = cursor.text()
    will = _read_will(cursor, flags, level) if flags & 4 else None
    username = cursor.text() if flags & 0x80 else None
    password = cursor.binary() if flags & 0x40 else None
    clean = bool(flags & 2)
    return Connect(level, client_id, clean, keepalive, properties, will, username, password)


def _read_will(cursor: Cursor, flags: int, level: int) -> Message:
    properties = cursor.properties(level)
    properties.pop("will_delay_interval", None)  # the session ends at once, and so does the delay
    topic, payload = cursor.topic(), cursor.binary()
    return _message(Message(topic, payload, flags >> 3 & 3, bool(flags & 0x20), properties))


def read_publish(cursor: Cursor, flags: int, level: int) -> tuple[Message, int]:
    """Read a PUBLISH (MQTT 5.0 §3.3); return it and its identifier, or 0."""
    topic, qos = cursor.topic(), flags >> 1 & 3
    if qos == 3:
        raise Refusal(Reason.MALFORMED_PACKET)
    identifier = cursor.identifier() if qos else 0
    properties = cursor.properties(level)
    if "topic_alias" in properties:
        raise Refusal(Reason.TOPIC_ALIAS_INVALID)
    return _message(Message(topic, cursor.rest(), qos, bool(flags & 1), properties)), identifier


def _message(message: Message) -> Message:
    if not message.topic or not message.properties.keys() <= _OF_MESSAGES:
        raise Refusal(Reason.PROTOCOL_ERROR)
    return message


def varint(value: int) -> bytes:
    """Return a variable byte integer."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def text(value: str | bytes) -> bytes:
    """Return a string, or bytes, with its length before it."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def _value(form: str, value: Any) -> bytes:  # noqa: ANN401 - its form says what it is
    if form in ("text", "binary"):
        return text(value)
    if form == "pair":
        return text(value[0]) + text(value[1])
    size = {"u8": 1, "u16": 2, "u32": 4}.get(form)
    return int(value).to_bytes(size, "big") if size else varint(value)


def properties(values: Mapping[str, Any]) -> bytes:
    """Return properties with their length before them."""
    encoded = b""
    for name, value in values.items():
        identifier, form = _IDENTIFIERS[name]
        for one in value if form == "pair" else [value]:
            encoded += bytes([identifier]) + _value(form, one)
    return varint(len(encoded)) + encoded


def packet(kind: Kind, rest: bytes = b"", flags: int = 0) -> bytes:
    """Return a whole packet."""
    return bytes([kind << 4 | flags]) + varint(len(rest)) + rest


def connack(level: int, code: int, values: Mapping[str, Any]) -> bytes:
    """Return a CONNACK; session present is always 0 (MQTT 5.0 §3.2)."""
    if level == 5:
        return packet(Kind.CONNACK, bytes([0, code]) + properties(values))
    return packet(Kind.CONNACK, bytes([0, _RETURN_CODES.get(code, 3)]))


def puback(level: int, identifier: int, code: int) -> bytes:
    """Return a PUBACK; MQTT 3.1.1 has no place for the code (MQTT 5.0 §3.4)."""
    rest = identifier.to_bytes(2, "big")
    return packet(Kind.PUBACK, rest + bytes([code]) if code and level == 5 else rest)


def publish(level: int, message: Message, qos: int, retain: bool, identifier: int) -> bytes:
    """Return a PUBLISH (MQTT 5.0 §3.3)."""
    rest = text(message.topic) + (identifier.to_bytes(2, "big") if qos else b"")
    rest += properties(message.properties) if level == 5 else b""
    return packet(Kind.PUBLISH, rest + message.payload, qos << 1 | retain)


def suback(level: int, kind: Kind, identifier: int, codes: list[int]) -> bytes:
    """Return a SUBACK or an UNSUBACK, which is empty in MQTT 3.1.1 (MQTT 5.0 §3.9, §3.11)."""
    if level == 5:
        return packet(kind, identifier.to_bytes(2, "big") + b"\0" + bytes(codes))
    codes = [min(code, 0x80) for code in codes] if kind == Kind.SUBACK else []
    return packet(kind, identifier.to_bytes(2, "big") + bytes(codes))
