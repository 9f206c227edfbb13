"""JSON lines, for receivers that read nothing else."""

import json
import math
import random

import pytest
from delivery import Box, address, delivering, run, until
from hypothesis import given
from mosquitto import Mosquitto
from wire_batches import batches

from gateway.encoding import ENCODINGS, LinesBound
from gateway.reading import TEMPERATURE, Instant, Reading
from gateway.settings import Broker as Address
from gateway.wire import DEFAULT_SIZE, Batch, decode, encode
from hil.broker import Broker, Faults, Limits, Received

JSON = {"encoding": "json"}
SERIES = {"sensor", "quantity", "unit", "time_ms", "value", "quality"}
BATCH = {"gateway", "epoch", "sequence", "boot", "boot_ms", "clock"}


def lines(message: Received) -> list[dict[str, object]]:
    return [json.loads(line) for line in message.payload.splitlines()]


def batch_messages(broker: Broker) -> list[Received]:
    return [m for m in broker.received if "/batch/" in m.topic]


def test_a_batch_arrives_as_a_line_for_each_reading_to_the_last_digit(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings=JSON)
            rng, sent = random.Random(1), []
            for n in range(200):
                at = Instant(1_763_900_000_000 + n, n, 2)
                value = rng.choice([rng.uniform(-50, 50), rng.random() * 1e-300, -0.0, 1e308])
                sent.append(Reading("it", TEMPERATURE, at, value, n % 2))
                box.buffer.append(sent[-1])
            await box.seal(1, None)
            held = decode(box.buffer.payload(next(box.buffer.waiting())))
            async with delivering(box):
                await box.empty()
            (message,) = batch_messages(broker)
            found = lines(message)[:200]
            assert message.properties["content_type"] == "application/x-ndjson"
            assert [repr(line["value"]) for line in found] == [repr(r.value) for r in sent]
            assert [line["time_ms"] for line in found] == [r.instant.wall_ms for r in sent]
            assert [line["boot_ms"] for line in found] == [r.instant.boot_ms for r in sent]
            assert [line["quality"] for line in found] == [r.quality for r in sent]
            assert found[0].keys() == SERIES | BATCH
            head = {"gateway": "trd-0042", "epoch": box.buffer.epoch, "sequence": 1, "boot": 1}
            assert {**found[0], **head, "clock": 2} == found[0]
            assert len(lines(message)) == len(held.readings)

    run(scenario())


def test_lanes_and_repetitions_are_as_ever(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=3)) as broker:
            box = Box(tmp_path, address(broker), settings=JSON)
            await box.seal(3)
            async with delivering(box):
                await until(lambda: broker.connects > 1)
                broker.faults = Faults()
                await box.empty()
                await until(lambda: box.state.connected)
                await box.seal(2)
                await box.empty()
            found = [
                (m.topic.rpartition("/")[2], lines(m)[0]["sequence"])
                for m in batch_messages(broker)
            ]
            assert {s for _, s in found} == {1, 2, 3, 4, 5}
            assert found[-2:] == [("live", 4), ("live", 5)]

    run(scenario())


def test_what_is_set_aside_stays_as_it_was_in_the_buffer(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=2000)) as broker:
            box = Box(tmp_path, address(broker), settings=JSON)
            for n in range(100):
                at = Instant(1_763_900_000_000 + n, n, 2)
                box.buffer.append(Reading("it", TEMPERATURE, at, n / 7))
            await box.seal()
            await box.seal()
            async with delivering(box):
                await box.empty()
            (name,) = box.refused
            assert len(decode((tmp_path / "refused" / name).read_bytes()).readings) == 101
            assert [lines(m)[0]["sequence"] for m in batch_messages(broker)] == [2]

    run(scenario())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_batch_that_is_damaged_meanwhile_is_counted_and_the_others_arrive(tmp_path, encoding):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"encoding": encoding})
            await box.seal(5)
            hit = list(box.buffer.waiting())[2]
            spoilt = bytearray((tmp_path / hit.segment).read_bytes())
            spoilt[hit.offset + hit.length - 2] ^= 1
            (tmp_path / hit.segment).write_bytes(spoilt)
            async with delivering(box):
                await box.empty()
                await box.seal()
                await box.empty()
            assert len(batch_messages(broker)) == 5
            assert box.buffer.stats().dropped_by == {"damaged on disk": 1}
            assert len(list(tmp_path.glob("*.damaged"))) == broker.connects == 1

    run(scenario())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_of_which_nothing_can_be_made_are_set_aside(tmp_path, encoding):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"encoding": encoding})
            await box.seal()
            box.buffer._spool.append(7, 2, 1, 0, b"no batch at all")
            box.buffer._intake.go_on_behind(2)
            await box.seal()
            async with delivering(box):
                await box.empty()
            assert box.refused == ["2-7-0x99.batch"]
            assert len(batch_messages(broker)) == 2

    run(scenario())


def test_a_real_mosquitto_hands_the_lines_on(tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            address = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / "state", address, settings=JSON)
            await box.seal(1, 20.25)
            async with delivering(box):
                topic = ""
                while not topic.endswith("/batch/backlog"):
                    _, topic, payload = await broker.message()
            assert json.loads(payload)["value"] == 20.25

    run(scenario())


def test_a_batch_is_full_at_64_kib_of_lines(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings=JSON)
            for n in range(2000):
                at = Instant(1_763_900_000_000 + n, n, 2)
                box.buffer.append(Reading(f"sensor-{n % 10}", TEMPERATURE, at, math.sin(n)))
            await box.seal()
            async with delivering(box):
                await box.empty()
            sizes = [len(m.payload) for m in batch_messages(broker)]
            assert sum(len(lines(m)) for m in batch_messages(broker)) == 2001
            assert max(sizes) <= DEFAULT_SIZE
            assert min(sizes[:-1]) > DEFAULT_SIZE * 0.8

    run(scenario())


@given(batches)
def test_no_batch_has_longer_lines_than_its_bound(sent):
    bound = LinesBound(sent.gateway)
    size = max(map(bound.add, sent.readings), default=0)
    payload, _ = ENCODINGS["json"](encode(sent))
    assert len(payload) <= size


HUGE = pytest.param(10**5000, id="more digits than Python writes")


@pytest.mark.parametrize("value", ["\0" * 300, "\U0001f600" * 900, HUGE, math.nan, math.inf])
def test_a_value_that_is_cut_or_left_out_is_within_the_bound(value):
    bound = LinesBound("g")
    size = bound.add(reading := Reading("it", TEMPERATURE, Instant(1, 1, 2), value))
    payload, _ = ENCODINGS["json"](encode(Batch("g", 1, 1, 1, 2, 1, [reading])))
    assert len(payload) <= size < 2000
