"""One MQTT connection to a broker: TLS, login, publishes and the reason codes of their PUBACKs.

The only module that imports aiomqtt. It reads what aiomqtt drops: with its own `publish`, a
broker's "not authorized" would look like success.
"""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.credentials import Credentials, CredentialsError
from gateway.incoming import LARGEST_PACKET, Incoming, Unexpected, bounds
from gateway.reasons import TOO_LARGE, of_answer, of_code, of_nonsense, of_text
from gateway.settings import Broker, UplinkSettings
from gateway.traffic import arrived, carried

WINDOW = 20
"""Batches under way at once, at most; the broker's ReceiveMaximum may make it less."""
RETAINED = 2
"""Messages that may be under way beside them: about and status."""
CONNECT_WITHIN = 10.0
TCP_GIVES_UP_MS = 10_000
"""TCP_USER_TIMEOUT: a pulled cable is noticed after 10.7 s; with keepalive 60 alone, not in 60."""

LAST_WORDS = 0.1
"""Seconds for what a broker said before it closed, a batch that is set aside included."""
CLOSED = "the other end closed it"
SOON = 60.0
"""Seconds within which an end without a word may be another client's doing, which has our id."""

TAKEN_OVER = 0x8E
_ENDS = {0x8D: "no answer to a ping: the link is dead", 0x82: "what came was not MQTT {}"}
"""What paho means by reason codes that no broker sent; by all others, that it was closed."""

_LINK = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
"""Errors of a socket at which nobody closed anything."""

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
        cls, broker: Broker, settings: UplinkSettings, gateway: str, *, will: bytes | None
    ) -> Self:
        """Return one that is not connected yet; password and certificates are read.

        `will` is the status that the broker publishes if we vanish; None: none.
        """
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
        will: bytes | None,
    ) -> None:
        status = f"{settings.topic}/{gateway}/status"
        last = None if will is None else aiomqtt.Will(status, will, qos=1, retain=True)
        super().__init__(
            broker.host,
            broker.port,
            username=settings.username,
            password=credentials.password,  # type: ignore[arg-type]  # paho takes bytes, too
            identifier=settings.client_id or gateway,
            logger=_SILENT,  # what paho says of a malformed packet comes as an error, too
            protocol=_VERSIONS[settings.protocol],
            will=last,
            keepalive=round(settings.keepalive),
            properties=bounds() if settings.protocol == "5" else None,
            timeout=CONNECT_WITHIN,
            tls_context=credentials.tls,
            max_inflight_messages=WINDOW + RETAINED,
            socket_options=(
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_GIVES_UP_MS),
            ),
        )
        self._client.connect_timeout = CONNECT_WITHIN
        self._client.loop_misc = self._keep_alive  # type: ignore[method-assign]
        self._incoming = Incoming(self._client)
        self._acks: dict[int, tuple[int, asyncio.Future[int]]] = {}  # with bytes of the payload
        self._connack: Properties | None = None
        self._carried = self._told = self._last_arrived = 0
        self._id = settings.client_id or gateway
        self._settings, self._secure = settings, broker.tls
        self._began = 0.0
        self._last_word: Properties | None = None
        self._said_so = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Connection"]:
        """Connect; close at the end without waiting, which on a half-open link takes for ever."""
        try:
            await self.__aenter__()
            heed_cancel()  # asyncio.wait_for prefers its result to it, before Python 3.12
            self._began = asyncio.get_running_loop().time()
            if self._disconnected.done():  # by what came together with the CONNACK
                raise self._loss()
            self._check_abilities()
            yield self
        except aiomqtt.MqttCodeError as error:
            raise UplinkError(self._why(error)) from error
        except (aiomqtt.MqttError, UnicodeError) as error:  # a..b is no name that DNS could have
            strange = of_answer(self._incoming.first, self._settings)
            said = strange or of_text(str(error), self._settings, tls=self._secure)
            raise UplinkError(said) from error
        finally:
            self._client._sock_close()

    def _check_abilities(self) -> None:
        for name, code in (("RetainAvailable", 0x9A), ("MaximumQoS", 0x9B)):
            if not getattr(self._connack, name, 1):
                lacking = ReasonCode(PacketTypes.CONNACK, identifier=code)
                raise UplinkError(of_code(code, str(lacking)))

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
            answered = f"it answered, but not as MQTT {self._settings.protocol} does"
            what = answered if self._incoming.first else "closed before the broker had answered"
            said = aiomqtt.MqttError(f"{what}: {self._why(error)}")
            self._connected.set_exception(error if error and self._said_so else said)
            self._connected.exception()  # nobody may wait for it any more

    def more_carried(self) -> int:
        """Return how many bytes this connection has cost since it was asked last."""
        self._count(self._client.socket())
        told, self._told = self._told, self._carried
        return self._told - told

    @property
    def arrived(self) -> int:
        """Bytes of ours that the other end's kernel has acknowledged; 0 when that is over."""
        sock = self._client.socket()
        return arrived(sock) if isinstance(sock, socket.socket) else 0

    def _keep_alive(self) -> MQTTErrorCode:
        """Have paho ping when it is time, and end what gives no answer.

        A ping waits behind the batch that is under way, which may take minutes on a thin link: as
        long as its bytes arrive the time for the answer has not begun.
        """
        if not self._connected.done():
            # paho counts from before it looks up the name; silent addresses, TLS and the CONNACK
            # may take longer than keepalive, and have bounds of their own
            self._client._last_msg_out = self._client._last_bytes_received = time.monotonic()
        arrived = self.arrived
        if arrived > self._last_arrived and self._client._ping_t:
            self._client._ping_t = self._client._last_bytes_received = time.monotonic()
        self._last_arrived = arrived
        return paho.Client.loop_misc(self._client)

    def _count(self, sock: object) -> None:
        if isinstance(sock, socket.socket):
            self._carried = carried(sock)

    async def lost(self) -> None:
        """Wait until the connection is lost, and raise, when all that came before is heeded.

        mosquitto closes the connection right behind the PUBACK that refuses a batch.
        """
        await asyncio.wait({self._disconnected})
        if _reason(self._disconnected.exception()) == TOO_LARGE:  # paho means nothing by that
            self._refuse_largest()
        await asyncio.sleep(LAST_WORDS)
        raise self._loss()

    def _refuse_largest(self) -> None:
        """Answer the largest message under way as if a PUBACK had come that calls it too large.

        The broker does not say which it was, but the largest is too large if any is.
        """
        if self._acks:
            _, ack = self._acks.pop(max(self._acks, key=lambda mid: self._acks[mid][0]))
            ack.set_result(TOO_LARGE)

    def _loss(self) -> UplinkError:
        error = self._disconnected.exception()
        if _reason(error) == TAKEN_OVER:
            return TakenOver(
                f"another client connected with our id {self._id!r}, and the broker let go of us: "
                "give each its own: set [uplink] client_id"
            )
        why = self._why(error)
        if why == CLOSED and asyncio.get_running_loop().time() < self._began + SOON:
            why += (
                " within a minute and gave no reason: does another client use our id "
                f"{self._id!r}? Then set [uplink] client_id. Or have we no right to a topic of "
                "ours? Its log may say"
            )
        elif not self._said_so and " came" in why:
            why += f": {of_nonsense(self._settings)}"
        return UplinkError(f"connection lost: {why}")

    def _why(self, error: BaseException | None) -> str:
        """Return what a broker says by its CONNACK or DISCONNECT, or what else ended it."""
        if (reason := _reason(error)) is None:
            return _cause(error)
        if self._said_so:
            return of_code(reason.value, str(reason), self._last_word)
        if (broke := self._incoming.broke) and broke.errno in _LINK:
            return of_text(str(broke), self._settings, tls=self._secure)
        return _ENDS.get(reason.value, CLOSED).format(self._settings.protocol)

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, kind: str
    ) -> asyncio.Future[int]:
        """Publish with QoS 1; the result of the future is the reason code of its PUBACK.

        MQTT 3.1.1 has neither reason codes nor properties: there it is always 0.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's own
        properties.ContentType = kind
        info = self._client.publish(topic, payload, 1, retain, properties)
        ack: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if info.rc == paho.MQTT_ERR_SUCCESS:  # else `lost` tells, in its time
            self._acks[info.mid] = len(payload), ack
        return ack

    async def say_goodbye(self) -> None:
        """Disconnect in good order, so that the will does not fire."""
        self._client.disconnect()
        await asyncio.wait({self._disconnected})

    @property
    def at_once(self) -> int:
        """How many messages may be under way."""
        return min(WINDOW + RETAINED, getattr(self._connack, "ReceiveMaximum", 1 << 16))

    @property
    def window(self) -> int:
        """How many batches may be under way."""
        return min(WINDOW, self.at_once)

    @property
    def largest_packet(self) -> int:
        """Bytes of the largest packet that the broker takes."""
        return getattr(self._connack, "MaximumPacketSize", LARGEST_PACKET)

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self._connack = self._last_word = properties
        self._said_so = reason_code.is_failure
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not (self._said_so or self._disconnected.done()):
            self._said_so = flags.is_disconnect_packet_from_server
            self._last_word = properties
        if not (self._connected.done() or self._disconnected.done()):
            self._disconnected.set_exception(aiomqtt.MqttCodeError(reason_code))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_socket_register_write(
        self, client: paho.Client, userdata: object, sock: socket.socket
    ) -> None:
        # Connecting is another thread's, so it is done a moment later, when aiomqtt does not look
        # whether the socket is still open
        self._loop.call_soon_threadsafe(self._write_to, sock)

    def _write_to(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._client.loop_write)

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
        _, ack = self._acks.pop(mid)  # paho tells of each once
        ack.set_result(reason_code.value)


def heed_cancel() -> None:
    """Raise the cancel that this task was sent, where something swallowed it."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _reason(error: BaseException | None) -> ReasonCode | None:
    rc = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return rc if isinstance(rc, ReasonCode) else None


def _cause(error: BaseException | None) -> str:
    """Return why a connection ended without a reason code, on one line."""
    if error is None:
        return CLOSED
    if isinstance(error, aiomqtt.MqttError | OSError | Unexpected):
        return str(error)
    return f"what came was no MQTT: {type(error).__name__}: {' '.join(str(error).split())}"
