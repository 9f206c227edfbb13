"""A slow link is told from a dead one."""

import asyncio
import itertools
import random
from pathlib import Path

import pytest
from delivery import BATCHES, Box, address, both, delivering, run, until
from mosquitto import Mosquitto

from gateway.connection import UplinkError
from gateway.publisher import Publisher
from gateway.reading import COUNT, Instant, Reading
from gateway.settings import Broker as Address
from hil.broker import Broker, Faults, Received
from hil.valve import Valve


class Wire:
    """A connection whose bytes arrive, and whose messages are acknowledged, when the test says."""

    largest_packet = 1000

    def __init__(self) -> None:
        self.arrived = 0
        self.acks: list[asyncio.Future[int]] = []

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, kind: str
    ) -> asyncio.Future[int]:
        self.acks.append(asyncio.get_running_loop().create_future())
        return self.acks[-1]


WITHIN = 0.15


async def lives(publisher: Publisher, *sizes: int) -> float:
    """Send so many messages; return how long it takes until the first is given up."""
    began = asyncio.get_running_loop().time()
    sent = [publisher.send("batch/live", bytes(size), kind="") for size in sizes]
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as tasks:
            for one in sent:
                tasks.create_task(publisher.code(one))
    assert raised.group_contains(UplinkError, match="the link is dead")
    return asyncio.get_running_loop().time() - began


def test_a_link_on_which_nothing_arrives_is_given_up_in_time():
    async def scenario() -> None:
        assert WITHIN <= await lives(Publisher(Wire(), "a", WITHIN), 100) < 2 * WITHIN

    run(scenario())


def test_what_arrives_behind_a_message_does_not_keep_a_dead_broker_alive():
    async def scenario() -> None:
        wire = Wire()
        pings = asyncio.create_task(arriving(wire, 10, every=WITHIN / 10))
        wire.arrived = 200
        publisher = Publisher(wire, "a", WITHIN)
        asyncio.get_running_loop().call_later(WITHIN / 10, setattr, wire, "arrived", 400)
        assert await lives(publisher, 100) < 2 * WITHIN
        pings.cancel()

    run(scenario())


async def arriving(wire: Wire, size: int, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        wire.arrived += size


@pytest.mark.parametrize("sizes", [(400,), (400, 10)])
def test_a_large_message_and_one_behind_it_are_waited_for_as_long_as_they_travel(sizes):
    async def scenario() -> None:
        wire = Wire()
        wire.arrived = 1000  # before
        travels = asyncio.create_task(arriving(wire, 20, every=WITHIN / 5))
        assert 4 * WITHIN < await lives(Publisher(wire, "a", WITHIN), *sizes) < 7 * WITHIN
        travels.cancel()

    run(scenario())


def test_an_acknowledgement_gives_time_to_what_was_sent_after_it_and_not_before():
    async def acknowledging(wire: Wire, order: list[int]) -> None:
        for number in order:
            await asyncio.sleep(WITHIN / 2)
            wire.acks[number].set_result(0)

    async def scenario(order: list[int]) -> float:
        wire = Wire()
        acks = asyncio.create_task(acknowledging(wire, order))
        try:
            return await lives(Publisher(wire, "a", WITHIN), *[10] * 6)
        finally:
            acks.cancel()

    assert asyncio.run(scenario([0, 1, 2, 3, 4])) > 3 * WITHIN
    assert asyncio.run(scenario([1, 2, 3, 4, 5])) < 1.5 * WITHIN


def test_the_topic_is_counted_in_bytes():
    assert Publisher(Wire(), "æ" * 100, 1).fits(bytes(736))
    assert not Publisher(Wire(), "æ" * 100, 1).fits(bytes(737))


def test_a_broker_that_is_merely_slow_keeps_its_connection(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            due = itertools.count()

            def one_after_the_other(message: Received) -> None:
                at = began + 0.1 * next(due)
                broker.faults = Faults(ack_after=max(at - loop.time(), 0), ack_topics=BATCHES)

            loop = asyncio.get_running_loop()
            box = Box(tmp_path, address(broker), ack_within=1.0)
            await box.seal(50)
            began = loop.time()
            broker.on_publish.append(one_after_the_other)
            async with delivering(box):
                await box.empty()
            assert broker.connects == 1
            assert both(broker.received) == list(range(1, 51))

    run(scenario())


async def seal_20_kb(box: Box) -> None:
    at = Instant(1_763_900_000_000, 0, 2)
    for _ in range(500):
        box.buffer.append(Reading("it", COUNT, at, random.randbytes(60).hex()))
    await box.seal()
    assert next(box.buffer.waiting()).length > 20_000


def test_a_batch_that_takes_long_on_a_thin_link_arrives(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker, Valve(broker.port, rate=20_000) as valve:
            near = Address(valve.host, valve.port, tls=False)
            box = Box(tmp_path, near, ack_within=0.6)
            await seal_20_kb(box)
            async with delivering(box):
                await until(lambda: box.delivered, 8)
            assert broker.connects == 1

    run(scenario())


def test_a_batch_takes_longer_on_a_thin_link_than_a_ping_is_waited_for(tmp_path: Path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker, Valve(broker.port, rate=3_000) as valve:
            near = Address(valve.host, valve.port, tls=False)
            box = Box(tmp_path / "state", near, settings={"keepalive": 3.0})
            await seal_20_kb(box)
            async with delivering(box):
                await until(lambda: box.delivered, 30)
            assert broker.log.count(" as trd-0042 ") == 1

    run(scenario())


def test_a_broker_that_gives_no_answer_to_a_ping_is_given_up(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"keepalive": 1.0})
            await box.seal()
            async with delivering(box):
                await box.empty()
                broker.faults = Faults(deaf=True)
                await until(lambda: box.state.why, 8)
                assert "no answer to a ping: the link is dead" in box.state.why

    run(scenario())


def test_a_link_that_is_reset_is_said_to_be_closed(tmp_path: Path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=1, drop_how="rst")) as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: box.state.why)
                assert "the other end closed it" in box.state.why

    run(scenario())


def test_a_link_on_which_nothing_arrives_any_more_is_not_said_to_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.connection.TCP_GIVES_UP_MS", 500)

    async def scenario() -> None:
        async with Broker() as broker, Valve(broker.port, rate=20_000) as valve:
            box = Box(tmp_path, Address(valve.host, valve.port, tls=False))
            async with delivering(box):
                await until(lambda: box.state.connected)
                valve.rate = 500
                await seal_20_kb(box)
                await until(lambda: box.state.why)
                assert "timed out: what was sent does not arrive: check cable" in box.state.why

    run(scenario())
