"""What a broker sends unasked costs neither memory nor the connection."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from delivery import Box, delivering, run, until
from saying import CONNACK, saying

from gateway.connection import LAST_WORDS, Connection, UplinkError
from gateway.disk import Disk
from gateway.incoming import FIRST, LARGEST_IN
from gateway.reasons import TOO_LARGE
from gateway.settings import Broker, UplinkSettings
from hil import mqtt

LAST = bytes.fromhex("e0029600")

Answer = Callable[[bytes, bytes], bytes | None]
"""Returns what a broker says of a batch, if anything, by its identifier and what it holds."""


async def connection(broker: Broker, **settings: Any) -> Connection:
    settings = UplinkSettings(url=(broker,), **settings)
    return await Connection.to(broker, settings, "trd-0042", will=b"{}")


def publish(qos: int, identifier: int) -> bytes:
    number = identifier.to_bytes(2, "big") if qos else b""
    body = b"\0\1a" + number + b"\0" + b"x" * 90
    return bytes([0x30 | qos << 1, len(body)]) + body


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_published_to_us_is_dropped(qos):
    async def scenario() -> None:
        flood = b"".join(publish(qos, n) for n in range(1, 1000)) + bytes.fromhex("3202ffff")
        async with saying(CONNACK + flood + LAST) as broker:
            client = await connection(broker)
            async with client.session():
                with pytest.raises(UplinkError, match="0x96 Message rate too high"):
                    await client.lost()
            assert client._queue.empty()
            assert len(client._incoming.first) == FIRST
            assert not client._client._in_messages
            assert not client._client._out_packet

    run(scenario())


def test_a_broker_that_ends_it_for_a_size_while_nothing_is_under_way_is_no_end_of_us():
    async def scenario() -> None:
        flood = b"".join(publish(0, 0) for _ in range(1000))
        async with saying(CONNACK + flood + bytes.fromhex("e0029500")) as broker:
            client = await connection(broker)
            async with client.session():
                with pytest.raises(UplinkError, match="0x95 Packet too large"):
                    await client.lost()

    run(scenario())


@contextlib.asynccontextmanager
async def ending_with(
    answer: Answer, connects: list[int], at: bytes = b"/batch/"
) -> AsyncIterator[Broker]:
    """Listen; a batch for which there is an answer gets it, and that is the connection's end.

    An answer without bytes is none at all, as long as the connection lasts.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append(1)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind, _, rest = await mqtt.read_packet(reader, 1 << 20)
                topic = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
                number = rest[len(topic) + 2 : len(topic) + 4]
                last = answer(number, rest) if kind != 1 and at in topic else None
                writer.write(CONNACK if kind == 1 else puback(number, 0) if last is None else last)
                if last:
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Broker(*server.sockets[0].getsockname(), tls=False)


class SlowDisk(Disk):
    """One that takes longer to keep a refused batch than a closed connection is heeded."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name.endswith(".batch"):
            time.sleep(2 * LAST_WORDS)
        super().write(name, offset, data)

    def below(self, name: str) -> "SlowDisk":
        return SlowDisk(self.directory / name)


@pytest.mark.parametrize("disk", [Disk, SlowDisk])
def test_a_refusal_right_before_the_end_is_heeded_and_told(disk, tmp_path, caplog):
    """So does mosquitto 2.0.11 with a batch above its message_size_limit."""

    async def scenario() -> None:
        connects: list[int] = []
        async with ending_with(lambda number, _: puback(number, 0x95), connects) as broker:
            box = Box(tmp_path, broker, disk=disk)
            await box.seal(3)
            async with delivering(box):
                await box.empty()
            assert len(box.refused) == 3
            assert len(connects) <= 4

    run(scenario())
    assert caplog.text.count("message_size_limit), or shorten [buffer] seal_interval") == 3


@pytest.mark.parametrize("large", [[1], [8], [1, 2], [30, 31, 45, 60]])
def test_a_batch_that_ends_the_connection_for_its_size_does_so_once(large, tmp_path):
    async def scenario() -> None:
        connects: list[int] = []
        async with ending_with(too_large_above(250), connects) as broker:
            box = Box(tmp_path, broker)
            for n in range(1, 61):
                await box.seal(value=random.randbytes(500).hex() if n in large else n)
            async with delivering(box):
                await box.empty()
            assert [int(name.split("-")[0]) for name in box.refused] == large
            assert len(connects) <= 1 + len(large)
            assert not box.state.suspects

    run(scenario())


def test_the_batch_that_is_too_large_is_told_from_others_under_way(tmp_path):
    async def scenario() -> None:
        connects: list[int] = []
        small: list[bytes] = []

        def end_at_large(number: bytes, packet: bytes) -> bytes | None:
            if len(packet) > 250:
                return bytes.fromhex("e00195")
            small.append(number)
            return b"" if len(connects) == 1 and len(small) > 5 else None

        async with ending_with(end_at_large, connects) as broker:
            box = Box(tmp_path, broker)
            for n in range(1, 11):
                await box.seal(value=random.randbytes(500).hex() if n == 8 else n)
            async with delivering(box):
                await box.empty()
            assert [name.split("-")[0] for name in box.refused] == ["8"]
            assert len(connects) == 2

    run(scenario())


def too_large_above(most: int) -> Answer:
    return lambda _, packet: bytes.fromhex("e00195") if len(packet) > most else None


def test_what_could_not_be_sent_any_more_is_not_the_one_that_is_too_large():
    async def scenario() -> None:
        async with ending_with(too_large_above(0), [], at=b"a") as broker:
            client = await connection(broker)
            async with client.session():
                sent = client.send("a", b"", kind="")
                await until(client._disconnected.done)
                larger = client.send("a", b"x", kind="")
                with pytest.raises(UplinkError, match="0x95 Packet too large"):
                    await client.lost()
                assert sent.result() == TOO_LARGE
                assert not larger.done()

    run(scenario())


@pytest.mark.parametrize("answer", ["disconnect", "puback"])
def test_a_status_that_is_too_large_gives_way_to_a_short_one(answer, tmp_path, caplog):
    """mosquitto says by a PUBACK what is above its message_size_limit, and only then."""

    async def scenario() -> None:
        connects: list[int] = []
        seen: list[bytes] = []

        def refuse(number: bytes, packet: bytes) -> bytes | None:
            seen.append(packet)
            if len(packet) <= 250:
                return None
            return bytes.fromhex("e00195") if answer == "disconnect" else puback(number, 0x95)

        async with ending_with(refuse, connects, at=b"/") as broker:
            box = Box(tmp_path, broker)
            box.status.size = 500
            await box.seal(5)
            async with delivering(box):
                await until(lambda: any(b'{"state": "online"}' in packet for packet in seen))
                await box.empty()
            assert len(connects) == 2
            assert not box.refused

    run(scenario())
    assert caplog.text.count("the status is larger than the broker takes: 1 KiB: 0x95") == 1


def puback(identifier: bytes, code: int) -> bytes:
    return b"\x40\3" + identifier + bytes([code])


def test_a_broker_of_mqtt_5_is_told_how_little_is_taken():
    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, _, rest = await mqtt.read_packet(reader, 1 << 20)
            asked.set_result(mqtt.read_connect(mqtt.Cursor(rest)))
            writer.write(CONNACK)
            await reader.read()
            writer.close()

        asked = asyncio.get_running_loop().create_future()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = Broker(*server.sockets[0].getsockname(), tls=False)
            async with (await connection(address)).session():
                connect = await asked
        bounds = {"maximum_packet_size": LARGEST_IN, "receive_maximum": 1}
        assert connect.properties == bounds

    run(scenario())
