"""Delivers batches over MQTT: sessions, window, two lanes, acknowledgements, status.

The only module that imports aiomqtt. Live batches (sealed since this connection) go first, the
backlog beside them, oldest first. A batch leaves the buffer only after its PUBACK, whose reason
code is read: aiomqtt drops it, and a broker's "not authorized" would look like success.
Window 1 at 100 ms round trip carries 9.8 batches/s, window 20 carries 136, with TCP_NODELAY 190.
"""

import asyncio
import itertools
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.wait import wait_base

from gateway.buffer import Buffer
from gateway.settings import LONGEST_TEXT, Broker, UplinkSettings
from gateway.spool import Held
from gateway.wire import content_type

WINDOW = 20
"""Batches under way at once, at most; the broker's ReceiveMaximum may make it less."""
ACK_WITHIN = 15.0
"""Seconds after which a missing PUBACK means that the link is dead."""
CONNECT_WITHIN = 10.0
TCP_GIVES_UP_MS = 10_000
"""TCP_USER_TIMEOUT: a pulled cable is noticed after 10.7 s; with keepalive 60 alone, not in 60."""

SUCCESS, NOBODY_SUBSCRIBES = 0x00, 0x10
NOT_THIS_BATCH = {0x90: "topic name invalid", 0x95: "packet too large", 0x99: "format invalid"}
"""Reason codes that would come again for the same batch for ever: it is set aside."""

log = logging.getLogger(__name__)


class UplinkError(Exception):
    """The broker cannot be reached, or refuses; the text says what was seen and what mends it."""


@dataclass(slots=True)
class UplinkState:
    """What is known of the uplink, for the status."""

    broker: str = ""
    connected: bool = False
    why: str | None = None
    """Why it is not connected."""
    last_ack_ms: int | None = None
    """Unix ms."""
    unheard: int = 0
    """Batches that the broker took although nobody subscribes to them."""


class _Client(aiomqtt.Client):
    """aiomqtt's client for one connection, with what it leaves out.

    The names with an underscore are aiomqtt's own; tests/test_uplink_contract.py fails first when
    they change.
    """

    def __init__(self, settings: UplinkSettings, gateway: str, broker: Broker, will: bytes) -> None:
        status = f"{settings.topic}/{gateway}/status"
        secret = settings.password_file
        super().__init__(
            broker.host,
            broker.port,
            username=settings.username,
            password=_password(secret) if secret else None,
            identifier=settings.client_id or gateway,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(status, will, qos=1, retain=True),
            keepalive=round(settings.keepalive),
            timeout=CONNECT_WITHIN,
            tls_context=_tls(settings) if broker.tls else None,
            max_inflight_messages=WINDOW + 1,  # one for the status
            socket_options=(
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_GIVES_UP_MS),
            ),
        )
        self._client.connect_timeout = CONNECT_WITHIN
        self._acks: dict[int, asyncio.Future[int]] = {}
        self._connack: Properties | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator["_Client"]:
        """Connect; close at the end without waiting, which on a half-open link takes for ever."""
        try:
            await self.__aenter__()
            _heed_cancel()  # asyncio.wait_for prefers its result to it, before Python 3.12
            yield self
        except (aiomqtt.MqttError, UnicodeError) as error:  # a..b is no name that DNS could have
            raise UplinkError(_remedy(error)) from error
        finally:
            self._client._sock_close()
            if self._disconnected.done() and not self._disconnected.cancelled():
                self._disconnected.exception()

    async def lost(self) -> None:
        """Wait until the connection is lost, and raise."""
        await asyncio.wait({self._disconnected})
        raise UplinkError(f"connection lost: {self._disconnected.exception() or 'closed'}")

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, kind: str = ""
    ) -> asyncio.Future[int]:
        """Publish with QoS 1; the result of the future is the reason code of its PUBACK."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's own
        if kind:
            properties.ContentType = kind
        info = self._client.publish(topic, payload, 1, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
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


class Status(Protocol):
    """Where the retained status comes from."""

    def payload(self, state: str) -> bytes:
        """Return the status as JSON; `state` is online or offline."""

    def will(self) -> bytes:
        """Return the short one that the broker publishes when this gateway vanishes."""

    def digest(self) -> object:
        """Return what makes a status worth publishing when it changes."""


class Uplink:
    """Delivers what the buffer holds, for ever, whatever the network does."""

    def __init__(
        self,
        settings: UplinkSettings,
        gateway: str,
        buffer: Buffer,
        writer: Executor,
        *,
        wait: wait_base | None = None,
        ack_within: float = ACK_WITHIN,
    ) -> None:
        self.state = UplinkState()
        self._ack_within = ack_within
        self._settings, self._gateway = settings, gateway
        self._buffer, self._writer = buffer, writer
        self._wait = wait_random_exponential(0.5, max=60) if wait is None else wait
        self._root = f"{settings.topic}/{gateway}"
        self._session: _Session | None = None
        self._left = False

    def wake(self) -> None:
        """Say that the buffer may hold more than before."""
        if self._session:
            self._session.news.set()

    async def run(self, status: Status) -> None:
        """Hold one session after the other, each with a client of its own.

        (A client that was entered again was deaf in 19 of 40 reconnects.) Pauses grow to 60 s, and
        start afresh after a session that delivered something.
        """
        brokers = itertools.cycle(self._settings.url)
        while not self._left:
            async for attempt in AsyncRetrying(
                wait=self._wait,
                retry=retry_if_exception_type(UplinkError),
                before_sleep=self._failed,
            ):
                with attempt:
                    await self._hold_session(next(brokers), status)
            await asyncio.sleep(random.uniform(0, 1))  # not all gateways of a city at once

    def _failed(self, call: RetryCallState) -> None:
        self._say(str(call.outcome and call.outcome.exception()))

    def _say(self, why: str) -> None:
        if self.state.why != why:
            log.warning("uplink %s: %s", self.state.broker, why)
        self.state.why = why

    async def _hold_session(self, broker: Broker, status: Status) -> None:
        """Raise UplinkError, unless the session delivered something before it was lost."""
        self.state.broker = broker.url
        session: _Session | None = None
        failure: BaseException | None = None
        try:
            client = _Client(self._settings, self._gateway, broker, status.will())
            async with client.session():
                session = self._session = _Session(
                    *(client, self._root, self._buffer, self._writer, self._ack_within)
                )
                self.state.connected, self.state.why = True, None
                log.info("uplink %s: connected", broker.url)
                await session.run(status, self._settings.status_interval, self.state)
        except* (OSError, UplinkError) as group:
            failure = _first(group)
        finally:
            self.state.connected, self._session = False, None
        _heed_cancel()  # a task group prefers its child's error to it
        if self._left:
            return
        if session is None or not session.delivered or session.refused:
            raise UplinkError(str(failure)) from failure
        self._say(str(failure))

    async def farewell(self, status: Status, within: float) -> None:
        """Deliver what waits as far as that is possible within so many seconds, and say goodbye."""
        self._left = True
        if session := self._session:
            with suppress(TimeoutError, UplinkError):
                async with asyncio.timeout(within):
                    await session.drained()
            with suppress(TimeoutError, UplinkError):
                async with asyncio.timeout(1):
                    await session.say_goodbye(status)


class _Session:
    """One connection: its window, its two lanes, and what became of them."""

    def __init__(
        self, client: _Client, root: str, buffer: Buffer, writer: Executor, ack_within: float
    ) -> None:
        self.news = asyncio.Event()
        self.delivered = 0
        self.refused = False
        self._client, self._root, self._buffer, self._writer = client, root, buffer, writer
        self._ack_within = ack_within
        self._window = asyncio.Semaphore(1)
        # The broker counts the status, too; one that takes a single publish has it take turns
        self._place_of_status = self._window if client.at_once == 1 else asyncio.Semaphore(1)
        self._size = 1
        self._since = self._live = buffer.last
        self._backlog = 0
        self._settled = asyncio.Event()
        self._status: asyncio.Task[None] | None = None

    async def run(self, status: Status, every: float, state: UplinkState) -> None:
        """Deliver until the connection is lost; raises UplinkError, never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._client.lost())
            self._status = tasks.create_task(self._keep_status(status, every))
            while True:
                await self._window.acquire()
                self.news.clear()
                if (found := self._next()) is None:
                    self._window.release()
                    await self.news.wait()
                    continue
                held, lane = found
                payload = await asyncio.get_running_loop().run_in_executor(
                    self._writer, self._buffer.payload, held
                )
                if payload is None:  # evicted meanwhile, and counted
                    self._window.release()
                    continue
                if not self._fits(payload):
                    await self._set_aside(held, 0x95)
                    self._window.release()
                    continue
                topic = f"{self._root}/batch/{lane}"
                ack = self._client.send(topic, payload, kind=content_type(payload))
                tasks.create_task(self._settle(held, ack, state))

    def _next(self) -> tuple[Held, str] | None:
        if live := next(self._buffer.waiting(self._live), None):
            self._live = live.sequence
            return live, "live"
        if old := next(self._buffer.waiting(self._backlog, self._since + 1), None):
            self._backlog = old.sequence
            return old, "backlog"
        return None

    async def _settle(self, held: Held, ack: asyncio.Future[int], state: UplinkState) -> None:
        code = await _within(self._ack_within, ack)
        if code in (SUCCESS, NOBODY_SUBSCRIBES):
            self._buffer.acknowledge(held.sequence)
            state.unheard += code == NOBODY_SUBSCRIBES
            state.last_ack_ms = time.time_ns() // 1_000_000
            self.delivered += 1
        elif code in NOT_THIS_BATCH:
            await self._set_aside(held, code)
        else:
            self.refused = True
            raise UplinkError(
                f"the broker refuses batches: 0x{code:02x} {_REASONS.get(code, '')}; all are kept"
            )
        if self._size < self._client.window:
            self._size += 1
            self._window.release()
        self._window.release()
        self._settled.set()

    def _fits(self, payload: bytes) -> bool:
        return len(payload) + len(self._root) + 64 <= self._client.largest_packet

    async def _set_aside(self, held: Held, code: int) -> None:
        log.error(
            "batch %d set aside: 0x%02x %s, %d bytes",
            *(held.sequence, code, NOT_THIS_BATCH[code], held.length),
        )
        await asyncio.get_running_loop().run_in_executor(
            self._writer, self._buffer.set_aside, held, code
        )

    async def _keep_status(self, status: Status, every: float) -> None:
        """Publish the status when it changes, and every so many seconds."""
        loop = asyncio.get_running_loop()
        while True:
            digest, published = status.digest(), loop.time()
            await self._publish_status(status, "online")
            # Asked once a second: an event from each thing that may change would tie it to them all
            while (  # noqa: ASYNC110
                status.digest() == digest and loop.time() < published + every
            ):
                await asyncio.sleep(1)

    async def _publish_status(self, status: Status, state: str) -> None:
        topic, payload = f"{self._root}/status", status.payload(state)
        if not self._fits(payload):
            log.warning("the status is larger than the broker takes: %d bytes", len(payload))
            return
        async with self._place_of_status:
            ack = self._client.send(topic, payload, retain=True, kind="application/json")
            code = await _within(self._ack_within, ack)
        if code >= 0x80:
            log.warning("the broker refuses the status: 0x%02x %s", code, _REASONS.get(code, ""))

    async def drained(self) -> None:
        """Return when the buffer holds nothing more."""
        while next(self._buffer.waiting(), None):
            self._settled.clear()
            await self._settled.wait()

    async def say_goodbye(self, status: Status) -> None:
        """Publish that this gateway is offline, and disconnect so that the will does not fire."""
        if self._status:
            self._status.cancel()  # an "online" behind the "offline" would stay there
        await self._publish_status(status, "offline")
        await self._client.say_goodbye()


async def _within(seconds: float, ack: asyncio.Future[int]) -> int:
    try:
        async with asyncio.timeout(seconds):
            return await ack
    except TimeoutError:
        raise UplinkError(f"no acknowledgement within {seconds:g} s: the link is dead") from None


def _heed_cancel() -> None:
    """Raise the cancel that this task was sent, where something swallowed it."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _password(file: Path) -> str:
    try:
        password = file.read_text(errors="replace").strip()
    except OSError as error:
        remedy = "write the password into it, or correct [uplink] password_file"
        if isinstance(error, PermissionError):
            remedy = "let the user that bygate runs as read it"
        raise UplinkError(
            f"{file}: the password cannot be read: {error.strerror}: {remedy}"
        ) from error
    if (size := len(password.encode())) > LONGEST_TEXT:
        raise UplinkError(
            f"{file}: a password of {size} bytes, MQTT takes at most {LONGEST_TEXT}: "
            "is it the right file?"
        )
    return password


def _tls(settings: UplinkSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


_REASONS = {
    0x83: "implementation specific error",
    0x87: "not authorized: has this gateway the right to publish to its topic?",
    0x97: "quota exceeded",
}


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
        "timed out": "no answer: check [uplink] url, firewall and network",
        "certificate": "check [uplink] ca_file, the name in url, and this box's clock",
    }
    cause = next((remedy for seen, remedy in remedies.items() if seen in said), "")
    return f"{said}: {cause}" if cause else said
