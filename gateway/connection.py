"""One MQTT connection to a broker: TLS, login, publishes and the reason codes of their PUBACKs.

The only module that imports aiomqtt. It reads what aiomqtt drops: with its own `publish`, a
broker's "not authorized" would look like success.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.credentials import Credentials, CredentialsError
from gateway.settings import Broker, UplinkSettings
from gateway.traffic import carried

WINDOW = 20
"""Batches under way at once, at most; the broker's ReceiveMaximum may make it less."""
CONNECT_WITHIN = 10.0
TCP_GIVES_UP_MS = 10_000
"""TCP_USER_TIMEOUT: a pulled cable is noticed after 10.7 s; with keepalive 60 alone, not in 60."""

TAKEN_OVER, UNSPECIFIED = 0x8E, 0x80
"""Reason codes of DISCONNECT; the second is also paho's for an end without one."""

_VERSIONS = {"5": aiomqtt.ProtocolVersion.V5, "3.1.1": aiomqtt.ProtocolVersion.V311}

_SILENT = logging.getLogger("gateway.paho")
_SILENT.disabled = True


class UplinkError(Exception):
    """The broker cannot be reached, or refuses; the text says what was seen and what mends it."""


class TakenOver(UplinkError):
    """The broker let go of us for another client of the same id, as we make it do to that one."""


class Connection(aiomqtt.Client):
    """aiomqtt's client, for one connection only, with what it leaves out.

    The names with an underscore are aiomqtt's own; tests/test_uplink_contract.py fails first when
    they change.
    """

    @classmethod
    async def to(
        cls, broker: Broker, settings: UplinkSettings, gateway: str, *, will: bytes
    ) -> Self:
        """Return one that is not connected yet; password and certificates are read."""
        try:
            credentials = await Credentials.read(settings, tls=broker.tls)
        except CredentialsError as error:
            raise UplinkError(str(error)) from error
        return cls(broker, settings, gateway, credentials, will)

    def __init__(
        self,
        broker: Broker,
        settings: UplinkSettings,
        gateway: str,
        credentials: Credentials,
        will: bytes,
    ) -> None:
        status = f"{settings.topic}/{gateway}/status"
        super().__init__(
            broker.host,
            broker.port,
            username=settings.username,
            password=credentials.password,
            identifier=settings.client_id or gateway,
            logger=_SILENT,  # what paho says of a malformed packet comes as an error, too
            protocol=_VERSIONS[settings.protocol],
            will=aiomqtt.Will(status, will, qos=1, retain=True),
            keepalive=round(settings.keepalive),
            timeout=CONNECT_WITHIN,
            tls_context=credentials.tls,
            max_inflight_messages=WINDOW + 1,  # one for the status
            socket_options=(
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_GIVES_UP_MS),
            ),
        )
        self._client.connect_timeout = CONNECT_WITHIN
        self._acks: dict[int, asyncio.Future[int]] = {}
        self._connack: Properties | None = None
        self._carried = self._told = 0
        self._id = settings.client_id or gateway

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Connection"]:
        """Connect; close at the end without waiting, which on a half-open link takes for ever."""
        try:
            await self.__aenter__()
            heed_cancel()  # asyncio.wait_for prefers its result to it, before Python 3.12
            if self._disconnected.done():  # by what came together with the CONNACK
                raise self._loss()
            yield self
        except (aiomqtt.MqttError, UnicodeError) as error:  # a..b is no name that DNS could have
            raise UplinkError(_remedy(error)) from error
        finally:
            self._client._sock_close()

    @property
    def _disconnected(self) -> asyncio.Future[None]:
        return self._end

    @_disconnected.setter
    def _disconnected(self, end: asyncio.Future[None]) -> None:
        # aiomqtt sets another when the first is done before it is entered, and forgets the cause
        if not hasattr(self, "_end"):
            self._end = end
            end.add_done_callback(self._ended)

    def _ended(self, end: asyncio.Future[None]) -> None:
        error = None if end.cancelled() else end.exception()
        if not self._connected.done():  # else it would be waited for till the time is up
            said = f"closed before the broker had answered: {_cause(error)}"
            self._connected.set_exception(aiomqtt.MqttError(said))
            self._connected.exception()  # nobody may wait for it any more

    def more_carried(self) -> int:
        """Return how many bytes this connection has cost since it was asked last."""
        self._count(self._client.socket())
        told, self._told = self._told, self._carried
        return self._told - told

    def _count(self, sock: object) -> None:
        if isinstance(sock, socket.socket) and sock.fileno() >= 0:
            self._carried = carried(sock)

    async def lost(self) -> None:
        """Wait until the connection is lost, and raise."""
        await asyncio.wait({self._disconnected})
        raise self._loss()

    def _loss(self) -> UplinkError:
        error = self._disconnected.exception()
        if isinstance(error, aiomqtt.MqttCodeError) and _code(error) == TAKEN_OVER:
            return TakenOver(
                f"another client connected with our id {self._id!r}, and the broker let go of us: "
                "give each its own: set [uplink] client_id"
            )
        return UplinkError(f"connection lost: {_cause(error)}")

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, kind: str
    ) -> asyncio.Future[int]:
        """Publish with QoS 1; the result of the future is the reason code of its PUBACK.

        MQTT 3.1.1 has neither reason codes nor properties: there it is always 0.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's own
        properties.ContentType = kind
        info = self._client.publish(topic, payload, 1, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            if self._disconnected.done():
                raise self._loss()
            raise UplinkError(f"cannot publish: {aiomqtt.MqttCodeError(info.rc)}")
        ack = self._acks[info.mid] = asyncio.get_running_loop().create_future()
        return ack

    async def say_goodbye(self) -> None:
        """Disconnect in good order, so that the will does not fire."""
        self._client.disconnect()
        await asyncio.wait({self._disconnected})

    @property
    def at_once(self) -> int:
        """How many publishes the broker takes before it has acknowledged the first."""
        return getattr(self._connack, "ReceiveMaximum", 1 << 16)

    @property
    def window(self) -> int:
        """How many batches may be under way, which leaves a place to the status."""
        return min(WINDOW, max(self.at_once - 1, 1))

    @property
    def largest_packet(self) -> int:
        """Bytes of the largest packet that the broker takes."""
        return getattr(self._connack, "MaximumPacketSize", 1 << 28)

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self._connack = properties
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not (self._connected.done() or self._disconnected.done()):
            self._disconnected.set_exception(aiomqtt.MqttCodeError(reason_code))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_socket_close(self, client: paho.Client, userdata: object, sock: socket.socket) -> None:
        self._count(sock)
        super()._on_socket_close(client, userdata, sock)

    def _on_publish(
        self,
        client: paho.Client,
        userdata: object,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        ack = self._acks.pop(mid, None)
        if ack is not None and not ack.done():
            ack.set_result(reason_code.value)


def heed_cancel() -> None:
    """Raise the cancel that this task was sent, where something swallowed it."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _code(error: aiomqtt.MqttCodeError) -> int | None:
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc


def _cause(error: BaseException | None) -> str:
    """Return why a connection ended, on one line."""
    if error is None or (isinstance(error, aiomqtt.MqttCodeError) and _code(error) == UNSPECIFIED):
        return "the other end closed it"
    if isinstance(error, aiomqtt.MqttError | OSError):
        return str(error)
    return f"what came was no MQTT: {type(error).__name__}: {' '.join(str(error).split())}"


def _remedy(error: Exception) -> str:
    said = str(error)
    remedies = {
        "Connection refused": "nothing listens there: check [uplink] url, and that the broker runs",
        "Name or service not known": "check the name in [uplink] url, and DNS",
        "idna": "check the name in [uplink] url",
        "Temporary failure in name resolution": "no DNS: is there a network?",
        "Bad user name or password": "check [uplink] username and password_file",
        "Not authorized": "check [uplink] username and password_file, and the broker's ACL",
        "Network is unreachable": "no route: is there a network?",
        "No route to host": "no route: is there a network?",
        "Retain not supported": "the broker must take retained messages: change its settings",
        "QoS not supported": "the broker must take QoS 1: change its settings",
        "Unsupported protocol version": 'set [uplink] protocol = "3.1.1"',
        "closed before": "does it speak MQTT 5 there (else set [uplink] protocol), TLS or plain as "
        "url says, or want cert_file?",
        "certificate has expired": "renew the broker's, or set this box's clock (timedatectl)",
        "certificate is not yet valid": "is this box's clock right (timedatectl)?",
        "certificate is not valid for": "write the name in url as it stands in the certificate",
        "CERTIFICATE_VERIFY_FAILED": "give the authority that signed the broker's as ca_file",
        "[SSL:": "no TLS is spoken there, or none of today: mqtt:// for plain TCP, or another port",
        "timed out": "no answer: check [uplink] url, firewall and network",
    }
    cause = next((remedy for seen, remedy in remedies.items() if seen in said), "")
    return f"{said}: {cause}" if cause else said
