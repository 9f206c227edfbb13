"""What gateway/connection.py leans on in aiomqtt and paho without their promising it."""

import asyncio
import contextlib
import inspect
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt._packet import decode_puback
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

import gateway.incoming  # noqa: F401 - which teaches paho codes
from hil.broker import Broker, Faults, Limits


class Told(aiomqtt.Client):
    """Notes what paho calls."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker.host, broker.port, protocol=aiomqtt.ProtocolVersion.V5)
        self.connack: Any = None
        self.codes: list[int] = []

    def _on_connect(self, *arguments: Any) -> None:
        self.connack = arguments[4]
        super()._on_connect(*arguments)

    def _on_publish(self, *arguments: Any) -> None:
        self.codes.append(arguments[3].value)


@contextlib.asynccontextmanager
async def connected(broker: Broker) -> AsyncIterator[Told]:
    client = Told(broker)
    await client.__aenter__()
    yield client
    client._client._sock_close()
    if client._disconnected.done():
        client._disconnected.exception()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_on_connect", ["self", "client", "userdata", "flags", "reason_code", "properties"]),
        ("_on_publish", ["self", "client", "userdata", "mid", "reason_code", "properties"]),
        ("_on_disconnect", ["self", "client", "userdata", "flags", "reason_code", "properties"]),
        ("_on_socket_close", ["self", "client", "userdata", "sock"]),
        ("_on_socket_register_write", ["self", "client", "userdata", "sock"]),
    ],
)
def test_a_method_that_is_overridden_is_called_with_what_we_expect(name: str, arguments: list[str]):
    assert list(inspect.signature(getattr(aiomqtt.Client, name)).parameters) == arguments


def test_the_client_below_is_pahos_and_connects_within_a_bound():
    async def scenario() -> None:
        async with Broker() as broker:
            client = Told(broker)
            assert type(client._client) is paho.Client
            assert client._client.connect_timeout > 0
            client._client.connect_timeout = 10.0

    run(scenario())


def test_what_comes_goes_through_two_methods_of_paho():
    class Heard(Told):
        def hear(self) -> None:
            below, self.asked = self._client, []
            read, heed = below._sock_recv, below._packet_handle
            below._sock_recv = lambda size: self.asked.append(size) or read(size)
            below._packet_handle = lambda: self.asked.append(below._in_packet["command"]) or heed()

    async def scenario() -> None:
        async with Broker() as broker:
            client = Heard(broker)
            client.hear()
            await client.__aenter__()
            first, second, rest, kind, *_ = client.asked
            assert (first, second, kind) == (1, 1, 0x20)
            assert rest > 2
            client._client._sock_close()

    run(scenario())


def test_the_time_for_a_ping_goes_through_one_more():
    async def scenario() -> None:
        looked = asyncio.Event()
        async with Broker() as broker:
            below = (client := Told(broker))._client
            look = below.loop_misc
            below.loop_misc = lambda: looked.set() or look()
            await client.__aenter__()
            await looked.wait()
            assert below._ping_t == 0 < below._last_bytes_received <= time.monotonic()
            assert 0 < below._last_msg_out <= time.monotonic()
            client._client._sock_close()
            client._disconnected.cancel()

    run(scenario())


def test_on_connect_bears_the_limits_of_the_broker():
    async def scenario() -> None:
        limits = Limits(receive_maximum=7, maximum_packet_size=2000)
        async with Broker(limits=limits) as broker, connected(broker) as client:
            assert client.connack.ReceiveMaximum == 7
            assert client.connack.MaximumPacketSize == 2000
        async with Broker(limits=Limits()) as broker, connected(broker) as client:
            assert not hasattr(client.connack, "ReceiveMaximum")

    run(scenario())


@pytest.mark.parametrize("code", [0x00, 0x10, 0x87, 0x99])
def test_on_publish_bears_the_reason_code_that_aiomqtt_drops(code: int):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=code)) as broker, connected(broker) as client:
            info = client._client.publish("a", b"", 1)
            assert (info.rc, info.mid) == (paho.MQTT_ERR_SUCCESS, 1)
            while not client.codes:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert client.codes == [code]

    run(scenario())


def test_a_puback_may_bear_any_refusal_that_paho_knows():
    refusals = [code for code in ReasonCode.names if code >= 0x80]
    assert 0x95 in refusals
    for code in refusals:
        packet = bytes([0, 7, code])
        assert decode_puback(0x40, packet, MQTTProtocolVersion.MQTTv5).reason.value == code


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_lost_connection_ends_the_disconnected_future(how: Any):
    async def scenario() -> None:
        async with Broker() as broker, connected(broker) as client:
            assert not client._disconnected.done()
            broker.drop(how)
            await asyncio.wait_for(asyncio.wait({client._disconnected}), 2)
            assert isinstance(client._disconnected.exception(), Exception)
            assert client._client.publish("a", b"", 1).rc != paho.MQTT_ERR_SUCCESS

    run(scenario())


def test_disconnecting_ends_it_too_and_without_an_error():
    async def scenario() -> None:
        async with Broker() as broker, connected(broker) as client:
            client._client.disconnect()
            await asyncio.wait_for(asyncio.wait({client._disconnected}), 2)
            assert client._disconnected.exception() is None

    run(scenario())


def test_closing_the_socket_takes_it_off_the_loop_and_ends_the_housekeeping():
    async def scenario() -> None:
        async with Broker(faults=Faults(deaf=False)) as broker:
            before = asyncio.all_tasks()
            async with connected(broker) as client:
                sock = client._client.socket()
                assert isinstance(sock, socket.socket)
                number = sock.fileno()
            assert client._client.socket() is None
            assert sock.fileno() == -1
            assert not asyncio.get_running_loop().remove_reader(number)
            while asyncio.all_tasks() - before:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            client._client._sock_close()  # again is nothing

    run(scenario())
