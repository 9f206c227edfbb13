"""What it means when a broker, TLS or the network lets nobody in, and the remedy beside it."""

from collections.abc import Mapping

from gateway.schema import seen
from gateway.settings import UplinkSettings

REFUSED, TOO_LARGE, MALFORMED = 0x80, 0x95, 0x99
_NOT_AUTHORIZED = 0x87

_LOG = "the broker's log may say why"
_LOGIN = "check [uplink] username and password_file"
_CODES: Mapping[int, str] = {
    0x80: _LOG,
    0x81: f'{_LOG}, or set [uplink] protocol = "3.1.1"',
    0x82: f'{_LOG}, or set [uplink] protocol = "3.1.1"',
    0x83: _LOG,
    0x84: 'set [uplink] protocol = "3.1.1"',
    0x85: "set [uplink] client_id to one that the broker takes",
    0x86: _LOGIN,
    0x87: f"{_LOGIN}, and the broker's ACL",
    0x88: "it runs and serves nobody: its log may say why; tried again until it does",
    0x89: "it has too much to do; tried again until it has not",
    0x8A: "its operator has to take our client id, login or address off its list",
    0x8B: "tried again until it is back",
    0x8C: "the broker must take a user name and password, or a certificate: change its settings",
    0x8D: "nothing of ours came through for 1.5 times [uplink] keepalive: is the link bad?",
    0x90: "the broker does not take these topics: set [uplink] topic",
    0x93: "the broker takes fewer at once than it said: its log may say why",
    0x95: "raise the broker's bound (mosquitto: max_packet_size, message_size_limit)",
    0x96: "set [uplink] backlog_rate, or raise the broker's bound",
    0x97: "raise what the broker allows this gateway",
    0x98: "its operator ended the connection: ask there",
    0x99: "the broker looks into payloads, which it must not: change its settings",
    0x9A: "the broker must take retained messages: change its settings",
    0x9B: "the broker must take QoS 1: change its settings",
    0x9C: "set [uplink] url to another broker",
    0x9D: "set [uplink] url to where it is now",
    0x9F: "does another client use our login? Else raise the broker's bound",
    0xA0: "the broker ends each connection after a while; tried again",
}
"""Reason codes, and what mends it. Source: MQTT 5.0 section 2.4"""
PUBACK = {
    0x80: "unspecified error",
    0x83: "implementation specific error",
    0x87: "not authorized",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x95: "packet too large",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
}
"""What its reason codes say that refuse a message, and 0x95, which mosquitto has there, too."""
_ROUTE = "no route: is there a network?"
_NO_TLS = "no TLS is spoken there, or none of today"
_SPEAK = "the broker must speak TLS 1.2 or 1.3"
_OLD = 'set [uplink] protocol = "3.1.1"'
_BUSY = f"has the broker too much to do (RabbitMQ: a memory or disk alarm)? Else {_LOG}"
_CHECK_URL = "check host and port in [uplink] url"
_TLS_ALERT = b"\x15\x03"
_CONNACK_3_1_1 = b"\x20\x02"
"""Of two bytes, flags and code; that of MQTT 5 has three at least."""


def of_code(code: int, name: str, properties: object = None) -> str:
    """Return what a broker says by a reason code: in words, what it adds, what mends it."""
    added = "".join(
        f", {what} {seen(value)}"
        for key, what in (("ReasonString", "it says"), ("ServerReference", "there is"))
        if (value := getattr(properties, key, None)) is not None
    )
    return f"0x{code:02x} {name}{added}: {_CODES.get(code, _LOG)}"


def of_answer(first: bytes, settings: UplinkSettings) -> str | None:
    """Return what listens there by how its answer begins, unless that may be such a broker."""
    text = first.decode("ascii", errors="replace").split("\r\n")[0]
    if first.startswith(_TLS_ALERT):
        return "TLS is spoken there: write mqtts:// in [uplink] url"
    if first.startswith(_CONNACK_3_1_1) and settings.protocol == "5":
        return 'what answers MQTT 5 there speaks MQTT 3.1.1: set [uplink] protocol = "3.1.1"'
    if first.startswith(_CONNACK_3_1_1) and first[3:4] == b"\x01":
        refused = "0x01 unacceptable protocol version: it takes no MQTT 3.1.1"
        return f'{refused}: set [uplink] protocol = "5"'
    if first.startswith((b"HTTP/", b"<")):
        return f"a web server answers there ({seen(text)}), or MQTT over WebSockets: {_CHECK_URL}"
    if len(text) > 3 and text.isascii() and text.isprintable():
        return f"what answers there is no broker ({seen(text)}): {_CHECK_URL}"
    return None


def of_nonsense(settings: UplinkSettings) -> str:
    """Return what it means that a broker sends what none of this version does."""
    other = "5" if settings.protocol == "3.1.1" else "3.1.1"
    return f'a fault of the broker, or of a proxy on the way; or set [uplink] protocol = "{other}"'


def of_refusal(code: int, topic: str = "its topics") -> str:
    """Return what a PUBACK says that refuses a message, and what mends it."""
    remedy = _CODES.get(code, _LOG)
    if code == _NOT_AUTHORIZED:
        remedy = f"has this gateway the right to publish to {topic}?"
    return f"0x{code:02x} {PUBACK.get(code, 'not known')}: {remedy}"


def of_refused_batch(code: int) -> str:
    """Return the same of a batch that is none the broker takes."""
    smaller = ", or shorten [buffer] seal_interval: later ones are smaller"
    return of_refusal(code) + (smaller if code == TOO_LARGE else "")


def of_text(said: str, settings: UplinkSettings, *, tls: bool) -> str:
    """Return an error in words with what mends it, where that is known.

    Who has a password or a certificate is never told to do without TLS.
    """
    version = f"does it speak MQTT {settings.protocol} there (else set [uplink] protocol)"
    cert = "another cert_file" if settings.cert_file else "cert_file"
    broke_off = f"it broke off TLS: does it want {cert}, of an authority that it trusts?"
    closed = f"{version}, or {f'want {cert}' if tls else 'TLS (mqtts:// in url)'}? Else {_LOG}"
    no_tls = f"{broke_off} Or {_NO_TLS}: is it the right port?"
    secret = settings.cert_file or settings.password_file
    instead = "is it the right port?" if secret else "mqtt:// for plain TCP, or another port"
    old = "" if settings.protocol == "3.1.1" else f"{_OLD}, if it knows no MQTT 5; or "
    remedies = {
        "Connection refused": "nothing listens there: check [uplink] url, and that the broker runs",
        "Name or service not known": "check the name in [uplink] url, and DNS",
        "idna": "check the name in [uplink] url",
        "Temporary failure in name resolution": "no DNS: is there a network?",
        "Connection timed out": "what was sent does not arrive: check cable, modem and network, "
        f"and that the broker reads it: {_LOG}",
        "Network is unreachable": _ROUTE,
        "Network is down": _ROUTE,
        "No route to host": _ROUTE,
        "closed before": closed,
        "it answered, but": of_nonsense(settings),
        "certificate has expired": "renew the broker's, or set this box's clock (timedatectl)",
        "certificate is not yet valid": "is this box's clock right (timedatectl)?",
        "certificate is not valid for": "write the name in url as it stands in the certificate",
        "CERTIFICATE_VERIFY_FAILED": "give the authority that signed the broker's as ca_file",
        "ALERT_PROTOCOL_VERSION": _SPEAK,
        "UNSUPPORTED_PROTOCOL": _SPEAK,
        "_ALERT_": broke_off,
        "EOF": no_tls,
        "Connection reset": no_tls if tls else closed,
        "[SSL:": f"{_NO_TLS}: {instead}",
        "handshake operation timed out": "no TLS is spoken there: is it the right port?",
        "Operation timed out": f"connected, but no CONNACK came: {old}{_BUSY}",
        "timed out": "no answer: check [uplink] url, firewall and network",
    }
    cause = next((remedy for mark, remedy in remedies.items() if mark in said), "")
    return f"{said}: {cause}" if cause else said
