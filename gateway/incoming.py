"""What a broker sends us: bounded, for paho bounds nothing, and let in where paho would not.

A gateway subscribes to nothing. What comes to it are answers of some ten bytes each.
"""

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import MessageType, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

LARGEST_IN = 1 << 14
"""Bytes of the largest packet that is taken."""
LARGEST_PACKET = (1 << 28) - 1
"""Of MQTT, and of what paho lets a broker announce, which may be more: 0xffffffff is common."""
FIRST = 24
"""Bytes that tell what listens where no broker does."""

_FOR_US = (MessageType.CONNACK, MessageType.PUBACK, MessageType.PINGRESP, MessageType.DISCONNECT)
_OF_CLIENTS = ("CONNECT", "SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ")

# paho takes a code that MQTT 5 has for other packets for a broken one; mosquitto answers a publish
# above its message_size_limit with PUBACK 0x95, and the batch would come for ever
for _code, _packets_by_name in ReasonCode.names.items():
    for _packets in _packets_by_name.values():
        if _code >= 0x80:
            _packets.extend({PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.DISCONNECT})

_set_property = Properties.__setattr__


def _set_within_bounds(properties: Properties, name: str, value: object) -> None:
    if name.replace(" ", "") == "MaximumPacketSize" and isinstance(value, int):
        value = min(value, LARGEST_PACKET)
    _set_property(properties, name, value)  # type: ignore[no-untyped-call]  # paho's own


Properties.__setattr__ = _set_within_bounds  # type: ignore[method-assign]


class Unexpected(Exception):
    """What came is nothing that a broker has to say to us."""


class Incoming:
    """What comes to one of paho's clients.

    The names with an underscore are paho's own; tests/test_uplink_contract.py fails first when they
    change.
    """

    def __init__(self, client: paho.Client) -> None:
        self._client = client
        self.first = b""
        """What came first, at most FIRST bytes of it."""
        self.broke: OSError | None = None
        """The last error of the socket: where it broke, for paho takes it for a plain end."""
        client._sock_recv = self._receive  # type: ignore[method-assign]
        client._packet_handle = self._heed  # type: ignore[method-assign]

    def _receive(self, bufsize: int) -> bytes:
        """Read from the socket; paho asks for the rest of a packet, which it would all take."""
        if bufsize > LARGEST_IN:
            raise Unexpected(
                f"a packet of {bufsize} bytes came, and a broker's to us has at most {LARGEST_IN}"
            )
        try:
            received = paho.Client._sock_recv(self._client, bufsize)
        except OSError as error:
            self.broke = error
            raise
        self.first += received[: FIRST - len(self.first)]
        return received

    def _heed(self) -> MQTTErrorCode:
        """Heed a packet, unless it is of those that a client that subscribes to nothing gets not.

        What is published is dropped, and not acknowledged: so a broker that has subscribed us of
        its own accord sends no more than one.
        """
        kind = self._client._in_packet["command"] & 0xF0
        if kind == MessageType.PUBLISH:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        if kind not in _FOR_US:
            raise Unexpected(_not_for_us(kind))
        try:
            return paho.Client._packet_handle(self._client)
        except MQTTException as error:  # whose text paho tells nobody
            shown = self._client._in_packet["packet"][:FIRST].hex(" ")
            # paho means to name the property, and shows a class of Python
            what = "a property came twice" if "more than once" in str(error) else error
            text = f"a {MessageType(kind).name} came that is malformed ({shown}): {what}"
            raise Unexpected(text) from error


def _not_for_us(kind: int) -> str:
    if kind not in set(MessageType):
        return "a packet came that is none of MQTT's"
    name = MessageType(kind).name
    of_clients = name in _OF_CLIENTS
    return f"{name} came, which {'clients send' if of_clients else 'answers nothing of ours'}"


def bounds() -> Properties:
    """Return the properties of a CONNECT that tell a broker of them."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own
    properties.MaximumPacketSize, properties.ReceiveMaximum = LARGEST_IN, 1
    return properties
