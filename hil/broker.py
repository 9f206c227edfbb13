"""A small MQTT broker that misbehaves on request. It is a simulation: for demos and tests only.

    async with Broker() as broker:
        broker.faults = Faults(ack_code=0x97, ack_next=3)  # the next three: "quota exceeded"
        ...                                                # connect a real client to broker.url
        await broker.wait_for(10)
        assert broker.received[3].answer == 0

It speaks MQTT 5.0 and 3.1.1, QoS 0 and 1, retained messages, wills, wildcards, and TLS if given a
context. What it does not do: check a name or a password, write anything to disk, keep a session
after its connection (nothing waits for an absent client), QoS 2, shared subscriptions, subscription
identifiers, topic aliases, enhanced authentication, subscription options beyond the QoS, let
messages expire, send anything twice, or heed the limits of the client. What it can refuse of that
it refuses as the standard says; a malformed CONNECT is answered by closing only.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar

from hil import mqtt
from hil.mqtt import Connect, Cursor, Kind, Message, Reason, Refusal
from hil.seat import HOST, Seat

How = Literal["rst", "fin"]
_T = TypeVar("_T")

CONNECT_WITHIN = 10.0
"""Seconds that a client has for its CONNECT."""

LINGER = 0.5
"""Seconds that a client has to close its half after the broker closed its own."""

_BACKLOG = 4 << 20  # bytes unsent at which a subscriber is cut off


def _fault(default: _T, sentence: str) -> _T:
    value: _T = field(default=default, metadata={"sentence": sentence})
    return value


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker announces in CONNACK (MQTT 5.0 §3.2.2.3) and then insists on."""

    receive_maximum: int | None = _fault(
        None, "More publishes than this unacknowledged at once: DISCONNECT 0x93."
    )
    maximum_packet_size: int = _fault(1 << 20, "A packet of more bytes than this: DISCONNECT 0x95.")
    maximum_qos: int = _fault(1, "A publish of a higher QoS than this, 0 or 1: DISCONNECT 0x9B.")
    retain_available: bool = _fault(True, "If false, a retained publish: DISCONNECT 0x9A.")


@dataclass(frozen=True, slots=True)
class Faults:
    """How the broker misbehaves; nothing is wrong by default. `FAULTS` says what each does."""

    ack_after: float = _fault(0.0, "Acknowledges this many seconds late.")
    ack_withheld: bool = _fault(False, "Takes publishes and never acknowledges them.")
    ack_code: int | None = _fault(
        None,
        "Acknowledges with this reason; 0x80 and above refuse the message"
        " (MQTT 3.1.1 has no reasons: its connection is closed instead).",
    )
    ack_reversed: int = _fault(
        1, "Holds acknowledgements until there are this many, then sends the last first."
    )
    ack_topics: str = _fault("#", "Confines the faults of acknowledgement to topics that match.")
    ack_next: int | None = _fault(
        None, "Confines the faults of acknowledgement to the next so many publishes."
    )
    connect_code: int = _fault(0, "Refuses every connection with this reason in CONNACK.")
    connack_withheld: bool = _fault(False, "Accepts connections and never answers their CONNECT.")
    drop_after: int | None = _fault(
        None, "Drops a connection at this publish of its own, which is kept but not acknowledged."
    )
    drop_how: Literal["rst", "fin"] = _fault("rst", "How drop_after does it: by RST or by FIN.")
    end_topics: str | None = _fault(
        None, "Ends a connection at a publish to a topic that matches, which is not kept."
    )
    end_code: int = _fault(
        0, "How end_topics does it: with this reason in DISCONNECT; 0, or MQTT 3.1.1: without one."
    )
    deaf: bool = _fault(
        False, "Half-open: reads nothing and answers nothing while every connection stays open."
    )


FAULTS = {
    **{f.name: str(f.metadata["sentence"]) for f in (*fields(Faults), *fields(Limits))},
    "drop": "Drops the connections there are, by RST or by FIN.",
    "down": "Closes the server and its connections until it is brought up again on the same port.",
}
"""Everything that can be made to go wrong: its name, and one sentence each."""

_ABSENT = (  # and said to be so in CONNACK
    "session_expiry_interval",
    "subscription_identifier_available",
    "shared_subscription_available",
)
_RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
_SOUND = Faults()
_USUAL = Limits()


@dataclass(slots=True)
class Received(Message):
    """A message as it arrived from a client, whatever became of it.

    `answer` is the reason code in the PUBACK that was sent; None: none, or none yet. `time` is the
    event loop's.
    """

    client_id: str = ""
    duplicate: bool = False
    time: float = 0.0
    answer: int | None = None


@lru_cache(maxsize=4096)
def matches(pattern: str, topic: str) -> bool:
    """Say whether a topic filter matches a topic (MQTT 5.0 §4.7)."""
    if topic.startswith("$") and pattern[0] in "+#":
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


def _filter_fault(pattern: str) -> int:
    """Return why a subscription is refused, or 0 (MQTT 5.0 §4.7.1, §3.9.3)."""
    levels = pattern.split("/")
    if levels[0] == "$share":
        return Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    misplaced = "#" in levels[:-1] or any(len(x) > 1 and ("#" in x or "+" in x) for x in levels)
    return Reason.TOPIC_FILTER_INVALID if misplaced or not pattern else 0


class Broker:
    """The broker; it listens while its context is open.

    `port` 0 takes a free one. `faults` and `limits` may be set at any time: faults take effect at
    once, limits with the next connection. Each of `on_publish` is called with every message as it
    arrives, before it is answered, and may change the faults for this very message.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = HOST,
        *,
        limits: Limits = _USUAL,
        faults: Faults = _SOUND,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self.host = host
        self.limits = limits
        self.received: list[Received] = []
        self.connects = 0
        self.on_publish: list[Callable[[Received], object]] = []
        self._tls = tls
        self._links: set[_Link] = set()
        self._clients: dict[str, _Link] = {}
        self._retained: dict[str, Message] = {}
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._open = False
        self.faults = faults

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._seat = Seat(self.port, self.host)
        self.port = self._seat.port
        await self.up()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.down()
        self._seat.leave()
        if kind is not asyncio.CancelledError:  # what failed in the body is not the group's affair
            kind = error = trace = None
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Where clients find it: `mqtt://host:port`, or `mqtts://` with TLS."""
        return f"mqtt{'s' if self._tls else ''}://{self.host}:{self.port}"

    @property
    def connections(self) -> list[str]:
        """The identifiers of the clients that are connected, oldest first."""
        return list(self._clients)

    @property
    def retained(self) -> dict[str, bytes]:
        """The payload that is retained for each topic."""
        return {topic: message.payload for topic, message in self._retained.items()}

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; setting it starts the counts of `ack_next` afresh."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._left = faults.ack_next
        for link in self._links:
            link.heed()

    async def up(self) -> None:
        """Listen, on the same port as before."""
        self._open = True
        self._server = await asyncio.start_server(
            self._accept,
            self.host,
            self.port,
            ssl=self._tls,
            ssl_handshake_timeout=CONNECT_WITHIN if self._tls else None,
        )

    async def down(self) -> None:
        """Stop listening and close every connection; what is retained stays."""
        self._open = False
        self._server.close()
        for link in tuple(self._links):
            link.end(Reason.SERVER_SHUTTING_DOWN)
        await self._until(lambda: not self._links)
        # A TLS handshake under way is asyncio's own task; it ends by CONNECT_WITHIN at the latest.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._server.wait_closed()

    def drop(self, how: How = "rst", client_id: str | None = None) -> None:
        """Close every connection, or the one of this client, without a word."""
        for link in tuple(self._links):
            if client_id in (None, link.client_id):
                link.drop(how)

    async def wait_for(
        self, wanted: int | Callable[[list[Received]], object], timeout: float = 20.0
    ) -> None:
        """Wait until so many messages were received, or until a predicate of them holds.

        The predicate is asked again whenever a message, an answer, a connection comes or goes.
        """
        holds = wanted if callable(wanted) else lambda got: len(got) >= wanted
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: holds(self.received))
        except TimeoutError:
            last = self.received[-1:]
            raise TimeoutError(f"{len(self.received)} received in {timeout} s, {last=}") from None

    async def _until(self, holds: Callable[[], object]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            return writer.transport.abort()
        link = _Link(self, reader, writer)
        self._links.add(link)
        self._tasks.create_task(link.serve())
        return None

    def _admit(self, link: "_Link") -> None:
        """Count a client in; an older connection of its name has to go (MQTT 5.0 §3.1.4)."""
        if older := self._clients.get(link.client_id):
            older.end(Reason.SESSION_TAKEN_OVER)
        self._clients[link.client_id] = link
        self._changed.set()

    def _leave(self, link: "_Link") -> None:
        """Count a client out, and publish its will (MQTT 5.0 §3.1.2.5)."""
        if self._clients.get(link.client_id) is link:
            del self._clients[link.client_id]
        will, link.will = link.will, None
        if will:
            self._route(will)
        self._changed.set()

    def _record(self, message: Received) -> Faults:
        """Remember a message, show it to whoever asked; return the faults of its answer."""
        self.received.append(message)
        self._changed.set()
        for see in self.on_publish:
            see(message)
        faults = self._faults
        if not message.qos or self._left == 0 or not matches(faults.ack_topics, message.topic):
            return _SOUND
        if self._left is not None:
            self._left -= 1
        return faults

    def _route(self, message: Message) -> int:
        """Retain a message if it says so, deliver it; return to how many clients."""
        if message.retain and message.payload:
            self._retained[message.topic] = message
        elif message.retain:
            self._retained.pop(message.topic, None)
        return sum(link.offer(message) for link in tuple(self._clients.values()))

    def _show_retained(self, pattern: str, link: "_Link") -> None:
        """Send what is retained to a new subscriber (MQTT 5.0 §3.3.1.3)."""
        for topic, message in tuple(self._retained.items()):
            if matches(pattern, topic):
                link.offer(message, retain=True)


class _Answer(NamedTuple):
    message: Received
    identifier: int
    code: int


class _Link:
    """One connection, from its first byte to its last."""

    def __init__(
        self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.client_id = ""
        self.will: Message | None = None
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._loop = asyncio.get_running_loop()
        self._limits = broker.limits
        self._level = 0
        self._subscriptions: dict[str, int] = {}
        self._publishes = 0
        self._unanswered: set[int] = set()  # identifiers of the client's publishes
        self._held: list[_Answer] = []  # what ack_reversed holds back
        self._identifier = 0  # of our own latest publish
        self._ended = False
        self._hears = asyncio.Event()
        self._patience: float | None = CONNECT_WITHIN
        self._timer = self._loop.call_later(CONNECT_WITHIN, self._watch)
        self.heed()

    @property
    def _mute(self) -> bool:
        return self._ended or not self._hears.is_set()

    async def serve(self) -> None:
        """Talk with the client until either side has had enough."""
        try:
            with suppress(OSError, EOFError):
                await self._converse()
                await self._drain()
        finally:
            self._broker._links.discard(self)
            self._depart()
            self._abort()
            with suppress(OSError):
                await self._writer.wait_closed()

    async def _converse(self) -> None:
        try:
            await self._greet()
            while not self._ended:
                await self._turn()
        except Refusal as refusal:
            self.end(refusal.code)

    async def _turn(self) -> None:
        kind, flags, cursor = await self._next()
        if self._ended:
            return
        if kind != Kind.PUBLISH and flags != _FLAGS.get(kind, 0):
            raise Refusal(Reason.MALFORMED_PACKET)
        if kind not in _HANDLERS:
            raise Refusal(Reason.PROTOCOL_ERROR)
        _HANDLERS[kind](self, flags, cursor)
        await self._writer.drain()

    async def _next(self) -> tuple[int, int, Cursor]:
        kind, flags, rest = await mqtt.read_packet(self._reader, self._limits.maximum_packet_size)
        await self._hears.wait()
        self._heard = self._loop.time()
        return kind, flags, Cursor(rest)

    async def _drain(self) -> None:
        """Read to the client's end: bytes left unread would turn our last words into a reset."""
        while await self._reader.read(1 << 16):
            pass

    async def _greet(self) -> None:
        kind, _, cursor = await self._next()
        if self._ended or kind != Kind.CONNECT:
            return self.end()
        connect = mqtt.read_connect(cursor)
        self._broker.connects += 1
        self._broker._changed.set()
        if self._broker.faults.connack_withheld:
            self._patience = None
            return await self._drain()
        if code := self._broker.faults.connect_code or self._objection(connect):
            self._send(mqtt.connack(connect.level, code, {}))
            return self.end()
        return self._welcome(connect)

    def _objection(self, connect: Connect) -> int:
        """Return why this client is refused, or 0 (MQTT 5.0 §3.1.4)."""
        will = connect.will or Message("", b"")
        nameless = not connect.client_id and not connect.clean and connect.level == 4
        objections = {
            Reason.UNSUPPORTED_PROTOCOL_VERSION: not connect.level,
            Reason.BAD_AUTHENTICATION_METHOD: "authentication_method" in connect.properties,
            Reason.CLIENT_IDENTIFIER_NOT_VALID: nameless,
            Reason.QOS_NOT_SUPPORTED: will.qos > self._limits.maximum_qos,
            Reason.RETAIN_NOT_SUPPORTED: will.retain and not self._limits.retain_available,
        }
        return next((code for code, applies in objections.items() if applies), 0)

    def _welcome(self, connect: Connect) -> None:
        announced = {k: v for k, v in asdict(self._limits).items() if v is not None}
        announced |= dict.fromkeys(_ABSENT, 0)
        if not connect.client_id:
            announced["assigned_client_identifier"] = f"client-{self._broker.connects}"
        self.client_id = connect.client_id or announced["assigned_client_identifier"]
        self._level = connect.level
        self._patience = 1.5 * connect.keepalive or None  # MQTT 5.0 §3.1.2.10
        self._watch()
        self._broker._admit(self)
        self.will = connect.will
        self._send(mqtt.connack(self._level, 0, announced))

    def heed(self) -> None:
        """Follow a change of the faults."""
        self._heard = self._loop.time()
        if self._ended or not self._broker.faults.deaf:
            self._hears.set()
        else:
            self._hears.clear()
        if self._broker.faults.ack_reversed <= len(self._held):
            self._release()

    def end(self, code: int = 0) -> None:
        """Say why (MQTT 5.0 §3.14), close our half, and let the client close its own."""
        if self._ended:
            return
        if code and self._level == 5:
            self._send(mqtt.packet(Kind.DISCONNECT, bytes([code])))
        self._depart()
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client has just gone
                self._transport.write_eof()
        else:
            self._transport.close()  # TLS says its own goodbye
        self._timer = self._loop.call_later(LINGER, self._abort)

    def drop(self, how: How) -> None:
        """Close without a word."""
        if how == "fin":
            return self.end()
        self._depart()
        with suppress(OSError):  # it is closed already
            self._transport.get_extra_info("socket").setsockopt(*_RESET)
        return self._abort()

    def _abort(self) -> None:
        # Debian's Python 3.11.2 forgets the protocol of a TLS transport that was closed twice
        with suppress(AttributeError):
            self._transport.abort()

    def _depart(self) -> None:
        self._timer.cancel()
        self._ended = True
        self._hears.set()
        self._broker._leave(self)

    def _watch(self) -> None:
        """End a connection that has been silent for too long."""
        self._timer.cancel()
        if self._patience is None:
            return
        silent = 0.0 if self._broker.faults.deaf else self._loop.time() - self._heard
        if silent >= self._patience:
            self.end(Reason.KEEP_ALIVE_TIMEOUT)
        else:
            self._timer = self._loop.call_later(self._patience - silent, self._watch)

    def _send(self, packet: bytes) -> None:
        if not self._mute:
            self._writer.write(packet)

    def _on_publish(self, flags: int, cursor: Cursor) -> None:
        sent, identifier = mqtt.read_publish(cursor, flags, self._level)
        self._insist(sent, identifier)
        message = Received(
            *(sent.topic, sent.payload, sent.qos, sent.retain, sent.properties),
            *(self.client_id, bool(flags & 8), self._heard),
        )
        faults = self._broker._record(message)
        always = self._broker.faults
        if always.end_topics and matches(always.end_topics, message.topic):
            return self.end(always.end_code)
        code, reached = faults.ack_code, 0
        if code is None or code < 0x80:
            reached = self._broker._route(message)
        self._publishes += 1
        if self._publishes == always.drop_after:
            self.drop(always.drop_how)
        elif message.qos and not faults.ack_withheld:
            natural = 0 if reached else Reason.NO_MATCHING_SUBSCRIBERS
            self._answer(_Answer(message, identifier, natural if code is None else code), faults)
        return None

    def _insist(self, message: Message, identifier: int) -> None:
        """Refuse what the limits rule out (MQTT 5.0 §3.3.4, §3.2.2.3)."""
        if message.qos > self._limits.maximum_qos:
            raise Refusal(Reason.QOS_NOT_SUPPORTED)
        if message.retain and not self._limits.retain_available:
            raise Refusal(Reason.RETAIN_NOT_SUPPORTED)
        if message.qos:
            self._unanswered.add(identifier)
        if self._level == 5 and len(self._unanswered) > (self._limits.receive_maximum or 65535):
            raise Refusal(Reason.RECEIVE_MAXIMUM_EXCEEDED)

    def _answer(self, answer: "_Answer", faults: Faults) -> None:
        if faults.ack_after:
            self._loop.call_later(faults.ack_after, self._hold, answer, faults.ack_reversed)
        else:
            self._hold(answer, faults.ack_reversed)

    def _hold(self, answer: "_Answer", group: int) -> None:
        if group <= 1:
            return self._acknowledge(answer)
        self._held.append(answer)
        return self._release() if len(self._held) >= group else None

    def _release(self) -> None:
        """Send the answers that are held, the last one first."""
        while self._held:
            self._acknowledge(self._held.pop())

    def _acknowledge(self, answer: "_Answer") -> None:
        if self._mute:
            return
        if answer.code >= 0x80 and self._level == 4:
            self.end()
            return
        self._unanswered.discard(answer.identifier)
        self._send(mqtt.puback(self._level, answer.identifier, answer.code))
        answer.message.answer = answer.code if self._level == 5 else 0
        self._broker._changed.set()

    def _on_puback(self, flags: int, cursor: Cursor) -> None:
        cursor.identifier()  # nothing is sent twice, so nothing waits for it

    def _on_subscribe(self, flags: int, cursor: Cursor) -> None:
        identifier, properties = cursor.identifier(), cursor.properties(self._level)
        if "subscription_identifier" in properties or not cursor:
            raise Refusal(Reason.PROTOCOL_ERROR)
        wanted: list[tuple[str, int]] = []
        while cursor:
            wanted.append((cursor.text(), min(cursor.u8() & 3, self._limits.maximum_qos)))
        codes = [_filter_fault(pattern) or qos for pattern, qos in wanted]
        self._send(mqtt.suback(self._level, Kind.SUBACK, identifier, codes))
        for pattern, qos in wanted:
            if not _filter_fault(pattern):
                self._subscriptions[pattern] = qos
                self._broker._show_retained(pattern, self)

    def _on_unsubscribe(self, flags: int, cursor: Cursor) -> None:
        identifier, _ = cursor.identifier(), cursor.properties(self._level)
        codes: list[int] = []
        while cursor:
            existed = self._subscriptions.pop(cursor.text(), None) is not None
            codes.append(Reason.SUCCESS if existed else Reason.NO_SUBSCRIPTION_EXISTED)
        self._send(mqtt.suback(self._level, Kind.UNSUBACK, identifier, codes))

    def _on_pingreq(self, flags: int, cursor: Cursor) -> None:
        self._send(mqtt.packet(Kind.PINGRESP))

    def _on_disconnect(self, flags: int, cursor: Cursor) -> None:
        """Part; only without a reason is the will forgotten (MQTT 5.0 §3.14.2.1)."""
        if not (cursor and cursor.u8()):
            self.will = None
        self.end()

    def offer(self, message: Message, retain: bool = False) -> bool:
        """Send a message if this client subscribes to it; say so (MQTT 5.0 §3.3.4)."""
        granted = [
            q for pattern, q in self._subscriptions.items() if matches(pattern, message.topic)
        ]
        if granted:
            qos = min(message.qos, max(granted))
            self._identifier = self._identifier % 65535 + 1
            self._send(mqtt.publish(self._level, message, qos, retain, self._identifier))
        if self._transport.get_write_buffer_size() > _BACKLOG:
            self.end(Reason.QUOTA_EXCEEDED)
        return bool(granted)


_FLAGS: dict[int, int] = {Kind.SUBSCRIBE: 2, Kind.UNSUBSCRIBE: 2}  # MQTT 5.0 §2.1.3

_HANDLERS: dict[int, Callable[[_Link, int, Cursor], None]] = {
    Kind.PUBLISH: _Link._on_publish,
    Kind.PUBACK: _Link._on_puback,
    Kind.SUBSCRIBE: _Link._on_subscribe,
    Kind.UNSUBSCRIBE: _Link._on_unsubscribe,
    Kind.PINGREQ: _Link._on_pingreq,
    Kind.DISCONNECT: _Link._on_disconnect,
}


async def serve(
    port: int = 1883,
    host: str = HOST,
    *,
    limits: Limits = _USUAL,
    faults: Faults = _SOUND,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run a broker until cancelled, and print each message as it arrives."""
    async with Broker(port, host, limits=limits, faults=faults, tls=tls) as broker:

        def show(message: Received) -> None:
            print(f"{message.topic}  {len(message.payload)} B", flush=True)
            broker.received.clear()  # it may run for days

        broker.on_publish.append(show)
        print(f"simulated broker at {broker.url}", flush=True)
        await asyncio.get_running_loop().create_future()
