import asyncio
import gc
import json
import random
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from delivery import BATCHES, Box, Status, address, both, delivering, lane, run, suspect, until
from mosquitto import Mosquitto
from saying import CONNACK, black_hole, resolves, saying
from tenacity import wait_fixed
from tenacity.wait import wait_base

import hil.mosquitto
from gateway.clock import Clock
from gateway.connection import WINDOW, Connection
from gateway.health import Health
from gateway.ration import BURST
from gateway.reading import COUNT, Instant, Reading
from gateway.session import PATIENCE
from gateway.settings import Broker as Address
from gateway.settings import UplinkSettings
from gateway.suspects import LOSSES, Suspects
from gateway.traffic import carried
from gateway.uplinkstate import UplinkState
from gateway.wire import decode
from hil.broker import Broker, Faults, Limits, Received
from hil.valve import Valve

# Lanes and order


def test_what_was_sealed_before_the_connection_is_backlog_and_what_comes_after_is_live(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(5)
            async with delivering(box):
                await box.empty()
                await box.seal(3)
                await box.empty()
            assert lane(broker.received, "backlog") == [1, 2, 3, 4, 5]
            assert lane(broker.received, "live") == [6, 7, 8]
            batches = [m for m in broker.received if "/batch/" in m.topic]
            assert {m.topic for m in batches} == {
                "bygate/v1/trd-0042/batch/live",
                "bygate/v1/trd-0042/batch/backlog",
            }
            assert {m.properties["content_type"] for m in batches} == {"application/msgpack"}

    run(scenario())


def test_live_batches_overtake_the_backlog_and_each_lane_is_in_order(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(receive_maximum=2)) as broker:
            broker.faults = Faults(ack_after=0.01)
            box = Box(tmp_path, address(broker))
            await box.seal(60)
            async with delivering(box):
                await broker.wait_for(10)
                await box.seal(3)
                await box.empty()
            assert lane(broker.received, "live") == [61, 62, 63]
            assert lane(broker.received, "backlog") == list(range(1, 61))
            assert both(broker.received).index(63) < 40

    run(scenario())


def test_a_cap_spaces_the_backlog_out_and_no_live_batch(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"backlog_rate": 50.0})
            await box.seal(31)
            async with delivering(box):
                await until(lambda: lane(broker.received, "backlog"))
                await box.seal(40)
                await until(lambda: len(lane(broker.received, "live")) == 40)
                assert len(lane(broker.received, "backlog")) < 31
                assert box.state.catch_up(10) == pytest.approx(0.2)
                await box.empty()
            times = [m.time for m in broker.received if m.topic.endswith("backlog")]
            assert times[-1] - times[0] >= 30 / 50 - 0.01
            assert lane(broker.received, "backlog") == list(range(1, 32))

    run(scenario())


def test_a_cap_saves_nothing_up_while_there_is_no_backlog(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"backlog_rate": 20.0})
            await box.seal()
            async with delivering(box):
                await box.empty()
                await broker.down()
                await box.seal(12)
                await asyncio.sleep(0.6)
                await broker.up()
                await box.empty()
            times = [m.time for m in broker.received if m.topic.endswith("backlog")]
            assert times[-1] - times[1] >= 11 / 20 - 0.03

    run(scenario())


def test_a_cap_holds_though_connections_break(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=4)) as broker:
            box = Box(tmp_path, address(broker), settings={"backlog_rate": 20.0})
            await box.seal(60)
            began = time.monotonic()
            async with delivering(box):
                await until(lambda: broker.connects > 5)
            assert len(both(broker.received)) <= 1 + 20 * (time.monotonic() - began)

    run(scenario())


def test_where_there_is_nothing_to_send_nothing_is_looked_for_all_the_time(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            looks: list[int] = []
            waiting = box.buffer.waiting
            box.buffer.waiting = lambda *sequences: looks.append(1) or waiting(*sequences)
            async with delivering(box):
                await broker.wait_for(1)
                await asyncio.sleep(0.3)
            assert len(looks) < 20

    run(scenario())


def test_acknowledgements_out_of_order_lose_nothing(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(70)
            async with delivering(box):
                await broker.wait_for(30)  # the window is wide now
                broker.faults = Faults(ack_reversed=4, ack_topics=BATCHES)
                await broker.wait_for(lambda got: len(both(got)) == 70)
                broker.faults = Faults()
                await box.empty()
            assert sorted(both(broker.received)) == list(range(1, 71))

    run(scenario())


# The window


def most_under_way(broker: Broker) -> list[int]:
    """Return a list that grows by how many batches are unanswered, at each publish."""
    seen: list[int] = []
    broker.on_publish.append(lambda _: seen.append(unanswered(broker.received)))
    return seen


def unanswered(messages: list[Received]) -> int:
    return sum(message.answer is None and "/batch/" in message.topic for message in messages)


@pytest.mark.parametrize(("maximum", "window"), [(1, 1), (2, 2), (5, 5), (20, 20), (None, 20)])
def test_the_window_grows_from_one_and_the_status_has_a_place_in_it(maximum, window, tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(receive_maximum=maximum)) as broker:
            seen = most_under_way(broker)
            broker.faults = Faults(ack_after=0.05)
            box = Box(tmp_path, address(broker))
            await box.seal(40 * window)
            async with delivering(box):
                await broker.wait_for(10)
                box.status.size = 1  # it is published while the window is full
                await box.empty()
            assert broker.connects == 1  # a broker whose maximum is exceeded hangs up
            assert max(seen) == window
            assert both(broker.received) == list(range(1, 40 * window + 1))
            assert len(broker.received) == 40 * window + 2

    run(scenario(), within=120)


def test_a_status_goes_out_beside_a_whole_window_that_is_not_acknowledged(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(4 * WINDOW)
            async with delivering(box):
                await broker.wait_for(2 * WINDOW)  # the window is wide now
                broker.faults = Faults(ack_withheld=True, ack_topics=BATCHES)
                await until(lambda: unanswered(broker.received) == WINDOW)
                before, box.status.size = len(broker.received), 1
                await until(lambda: len(broker.received) > before, 5)

    run(scenario())


def test_a_connection_begins_with_one_batch_until_that_is_acknowledged(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_withheld=True, ack_topics=BATCHES)
            box = Box(tmp_path, address(broker))
            await box.seal(10)
            async with delivering(box):
                await broker.wait_for(both)
                await asyncio.sleep(0.1)
                assert both(broker.received) == [1]

    run(scenario())


def test_the_window_is_that_of_a_new_connection_once_nothing_is_under_way(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_after=0.1)) as broker:
            seen = most_under_way(broker)
            box = Box(tmp_path, address(broker))
            await box.seal(100)
            async with delivering(box):
                await box.empty()
                assert max(seen) == WINDOW
                broker.faults = Faults(ack_withheld=True, ack_topics=BATCHES)
                await box.seal(30)
                await broker.wait_for(lambda got: 101 in both(got))
                await asyncio.sleep(0.1)
            assert both(broker.received) == list(range(1, 102))

    run(scenario())


# Acknowledgements


def test_withheld_acknowledgements_mean_a_dead_link_and_a_new_connection(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_withheld=True, ack_topics=BATCHES)
            box = Box(tmp_path, address(broker), ack_within=0.1)
            await box.seal(5)
            async with delivering(box):
                await until(lambda: broker.connects >= 5)
                await until(lambda: "no acknowledgement within" in (box.state.why or ""))
                assert box.state.patience == PATIENCE
                assert box.buffer.stats().waiting_batches == 5
                broker.faults = Faults()
                await box.empty()
            assert set(both(broker.received)) == {1, 2, 3, 4, 5}

    run(scenario())


def test_an_acknowledgement_is_waited_for_for_15_seconds(tmp_path, monkeypatch):
    async def scenario() -> None:
        loop, skipped = asyncio.get_running_loop(), 0.0
        true = loop.time
        monkeypatch.setattr(loop, "time", lambda: true() + skipped)
        async with Broker(faults=Faults(ack_withheld=True, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await broker.wait_for(both)
                began = loop.time()
                while box.state.why is None and skipped < 60:
                    skipped += 0.5
                    await asyncio.sleep(0.01)
                assert 14 < loop.time() - began < 30
                assert "no acknowledgement within 15 s" in (box.state.why or "")

    run(scenario(), 120)


def test_a_batch_that_nobody_subscribes_to_is_delivered_and_counted(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await box.seal(3)
                await box.empty()
                assert box.state.unheard == 3
                async with aiomqtt.Client(broker.host, broker.port) as client:
                    await client.subscribe(BATCHES, qos=1)
                    await box.seal(2)
                    await box.empty()
            assert box.state.unheard == 3
            assert box.state.last_ack_ms is not None

    run(scenario())


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x97])
def test_a_refusal_that_is_not_the_batchs_fault_keeps_everything(code, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_code=code, ack_topics=BATCHES)
            box = Box(tmp_path, address(broker))
            await box.seal(5)
            async with delivering(box):
                await until(lambda: f"0x{code:02x}" in (box.state.why or ""))
                await until(lambda: broker.connects >= 3)
                assert box.buffer.stats().waiting_batches == 5
                broker.faults = Faults()
                await box.empty()
            assert not box.buffer.stats().refused
            answered = [m for m in broker.received if m.answer in (0x00, 0x10)]
            assert set(both(answered)) == {1, 2, 3, 4, 5}

    run(scenario())


def test_a_refusal_says_what_to_look_at(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x87)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await until(lambda: "has this gateway the right to publish" in str(box.state.why))

    run(scenario())


@pytest.mark.parametrize("code", [0x90, 0x99])
def test_a_batch_that_would_be_refused_for_ever_is_set_aside_and_the_rest_flows(code, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_code=code, ack_next=1, ack_topics=BATCHES)
            box = Box(tmp_path, address(broker))
            await box.seal(6)
            async with delivering(box):
                await box.empty()
            assert box.refused == [f"1-{box.buffer.epoch}-0x{code:02x}.batch"]
            kept = (tmp_path / "refused" / box.refused[0]).read_bytes()
            assert decode(kept).sequence == 1
            assert both(broker.received) == [1, 2, 3, 4, 5, 6]
            assert broker.connects == 1

    run(scenario())


def test_a_batch_larger_than_the_broker_takes_is_never_sent_but_set_aside(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=2000)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            for _ in range(30):
                at = Instant(1_763_900_000_000, 0, 2)
                text = random.randbytes(100).hex()
                box.buffer.append(Reading("it", COUNT, at, text))
            await box.seal()
            await box.seal(3)
            async with delivering(box):
                await box.empty()
            assert broker.connects == 1
            assert [name[-10:] for name in box.refused] == ["0x95.batch"]
            assert both(broker.received) == [1, 3, 4, 5]

    run(scenario())


@pytest.mark.parametrize("maximum", [1 << 28, 0xFFFFFFFF])
def test_a_broker_may_announce_larger_packets_than_there_are(maximum, tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=maximum)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(3)
            async with delivering(box):
                await box.empty()
            assert broker.connects == 1

    run(scenario())


@pytest.mark.parametrize("maximum", [20, 100])
def test_where_packets_are_bounded_so_that_none_fits_nothing_is_lost(maximum, tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=maximum)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(8)
            async with delivering(box):
                says = "the broker's log may say" if maximum == 20 else "or shorten [buffer] seal_i"
                await until(lambda: says in str(box.state.why))
                aside = len(box.refused)
                broker.limits = Limits()
                await box.empty()
            assert sorted(both(broker.received)) == list(range(1 + aside, 9))
            assert box.buffer.stats().dropped == 0

    run(scenario())


def test_a_status_larger_than_the_broker_takes_does_not_stop_the_batches(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await broker.wait_for(1)
                broker.limits = Limits(maximum_packet_size=2000)
                broker.drop()
                await until(lambda: broker.connects == 2 and box.state.connected)
                box.status.size = 5000
                says = "larger than the broker takes: 5 KiB, in packets of at most 2000 bytes: 0x95"
                await until(lambda: says in caplog.text)
                await box.seal(3)
                await asyncio.wait_for(box.empty(), 3)
                assert broker.connects == 2

    run(scenario())


def test_a_status_that_is_too_large_leaves_a_short_one_that_is_true(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=2000)) as broker:
            box = Box(tmp_path, address(broker))
            box.status.size = 5000
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                broker.drop()
                await until(lambda: state_of(broker) == "offline")
                await until(lambda: state_of(broker) == "online")
                await box.uplink.farewell(box.status, 1)
            assert state_of(broker) == "offline"

    run(scenario())


def test_a_status_that_was_too_large_is_tried_again_when_the_next_is_due(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x95, ack_next=1)) as broker:
            box = Box(tmp_path, address(broker), settings={"status_interval": 0.05})
            box.status.size = 500
            async with delivering(box):
                await broker.wait_for(3)
            assert [len(m.payload) > 500 for m in broker.received] == [True, False, True]
            assert broker.connects == 1

    run(scenario())


def test_a_status_too_large_for_one_broker_comes_whole_to_another_and_is_told_once(
    tmp_path, caplog
):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x95, ack_next=1)) as one, Broker() as other:
            box = Box(tmp_path, address(one), address(other))
            box.status.size = 500
            async with delivering(box):
                for broker, received in ((one, 2), (other, 1), (one, 3)):
                    await broker.wait_for(received)
                    broker.drop()
            assert [len(m.payload) > 500 for m in one.received] == [True, False, False]
            assert len(other.received[0].payload) > 500

    run(scenario())
    assert caplog.text.count("larger than the broker takes") == 1


# Losing the connection


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_connection_that_breaks_again_and_again_loses_nothing(how, after, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(10)
            broker.faults = Faults(drop_after=after, drop_how=how)
            async with delivering(box):
                await until(lambda: broker.connects >= 2)
                broker.faults = Faults()
                await box.seal(10)
                await box.empty()
            same_name_same_bytes(broker.received)
            assert set(both(broker.received)) == set(range(1, 21))

    run(scenario())


def same_name_same_bytes(messages: list[Received]) -> None:
    names: dict[tuple[int, int], bytes] = {}
    for message in messages:
        if "/batch/" in message.topic:
            batch = decode(message.payload)
            assert names.setdefault((batch.epoch, batch.sequence), message.payload) == (
                message.payload
            )
    assert not any(message.duplicate for message in messages)  # none from a client of old


def test_a_storm_of_faults_loses_nothing_and_repeats_only_under_the_same_name(tmp_path):
    async def scenario() -> None:
        rng = random.Random(5)
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), ack_within=0.3)
            async with delivering(box):
                for number in range(12):
                    await box.seal(25)
                    enough = len(broker.received) + rng.randrange(1, 12)
                    await until(lambda n=enough: len(broker.received) >= n or box.delivered)
                    match number % 3:
                        case 0:
                            broker.drop(rng.choice(("rst", "fin")))
                        case 1:
                            broker.faults = Faults(ack_withheld=True, ack_next=3)
                        case 2:
                            await broker.down()
                            await broker.up()
                await box.empty()
            same_name_same_bytes(broker.received)
            sequences = both(broker.received)
            assert set(sequences) == set(range(1, 301))

    run(scenario(), 60)


def test_a_half_open_link_is_given_up_and_made_anew(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), ack_within=0.2)
            async with delivering(box):
                await broker.wait_for(1)
                broker.faults = Faults(deaf=True)
                await box.seal(3)
                await until(lambda: "the link is dead" in (box.state.why or ""))
                broker.faults = Faults()
                await box.empty()

    run(scenario())


def test_a_broker_that_says_goodbye_is_found_again(tmp_path, caplog):
    caplog.set_level("INFO")

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await broker.wait_for(1)
                await broker.down()
                await until(lambda: "Connection refused" in (box.state.why or ""))
                assert box.state.lost == 1
                assert "Connection refused" in caplog.text
                await box.seal(2)
                await broker.up()
                await box.empty()
            assert lane(broker.received, "backlog") == [1, 2]
        told = [message for message in caplog.messages if message.endswith(": connected")]
        assert told == [f"uplink {address(broker).url}: connected"] * 2

    run(scenario())


def test_brokers_are_tried_in_turn(tmp_path):
    async def scenario() -> None:
        async with Broker() as one, Broker() as other:
            await one.down()
            box = Box(tmp_path, address(one), address(other))
            await box.seal(3)
            async with delivering(box):
                await box.empty()
                assert box.state.broker == other.url

    run(scenario())


def test_of_several_brokers_the_fault_of_each_is_told_and_once(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as one, Broker(faults=Faults(connect_code=0x87)) as other:
            await one.down()
            box = Box(tmp_path, address(one), address(other))
            async with delivering(box):
                await until(lambda: other.connects > 3)
            for url in (one.url, other.url):
                assert sum(f"uplink {url}: " in line for line in caplog.messages) == 1

    run(scenario())


@pytest.mark.parametrize("after", [1, 3])
def test_a_broker_that_drops_everyone_is_not_stormed(after, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=after)) as broker:
            box = Box(tmp_path, address(broker), wait=None)
            await box.seal(100)
            async with delivering(box):
                await asyncio.sleep(3)
            assert 1 <= broker.connects <= 14

    run(scenario())


def test_pauses_grow_from_half_a_second_to_a_minute_at_most(tmp_path):
    wait = Box(tmp_path, Address("127.0.0.1", 1, tls=False), wait=None).uplink._wait

    def longest(attempt: int) -> float:
        return max(wait(SimpleNamespace(attempt_number=attempt)) for _ in range(1000))

    bounds = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    for attempt, bound in [*enumerate(bounds, 1), (10_000, 60)]:
        assert 0.9 * bound < longest(attempt) <= bound


class Waits(wait_base):
    """Remembers how many attempts were made in a row."""

    def __init__(self) -> None:
        self.attempts: list[int] = []

    def __call__(self, retry_state: Any) -> float:
        self.attempts.append(retry_state.attempt_number)
        return 0.02


def attempts(tmp_path: Path, delivered: int, **arguments: Any) -> list[int]:
    """Return the attempts at a broker that drops each connection after so many batches."""
    waits = Waits()

    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=delivered + 2)) as broker:
            box = Box(tmp_path, address(broker), wait=waits, **arguments)
            await box.seal(200)
            async with delivering(box):
                await until(lambda: broker.connects > 2)

    run(scenario())
    return waits.attempts


def test_pauses_grow_where_connections_deliver_nothing(tmp_path):
    assert attempts(tmp_path, 0)[:2] == [1, 2]


def test_pauses_begin_anew_after_a_connection_that_delivered_something_or_lasted(tmp_path):
    assert attempts(tmp_path / "something", 1) == []
    assert attempts(tmp_path / "lasted", 0, steady=0.0) == []


def test_not_all_gateways_that_lost_a_broker_come_back_at_once(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), steady=0.0)
            async with delivering(box):
                await until(lambda: box.state.connected)
                random.seed(5)  # which begins with 0.62
                began = time.monotonic()
                broker.drop()
                await until(lambda: broker.connects == 2)
                assert time.monotonic() - began > 0.6

    run(scenario())


def test_pauses_grow_where_the_broker_refuses_however_long_connections_last(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x87, ack_topics=BATCHES)) as broker:
            waits = Waits()
            box = Box(tmp_path, address(broker), wait=waits, steady=0.0)
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects > 2)
            assert waits.attempts[:2] == [1, 2]

    run(scenario())


def test_pauses_begin_anew_after_a_connection_that_delivered_something_and_was_refused(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            came = Counter[int]()

            def answer(message: Received) -> None:
                came[broker.connects] += len(both([message]))
                third = came[broker.connects] == 3
                broker.faults = Faults(ack_code=0x97 if third else None, ack_topics=BATCHES)

            broker.on_publish.append(answer)
            box = Box(tmp_path, address(broker), wait=(waits := Waits()))
            await box.seal(10)
            async with delivering(box):
                await box.empty()
            assert broker.connects > 2
            assert waits.attempts == []

    run(scenario())


def test_last_words_are_not_one_more_than_the_broker_takes_at_once(tmp_path):
    async def scenario() -> None:
        faults = Faults(ack_withheld=True, ack_topics=BATCHES)
        async with Broker(limits=Limits(receive_maximum=1), faults=faults) as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                await box.seal()
                await until(lambda: both(broker.received) == [1])
                await box.uplink.farewell(box.status, 0.1)
                assert box.state.connected  # else 0x93: receive maximum exceeded

    run(scenario())


@pytest.mark.parametrize("maximum", [1, 20])
def test_the_status_says_why_while_the_broker_refuses_all_batches(maximum, tmp_path):
    async def scenario() -> None:
        limits, faults = Limits(receive_maximum=maximum), Faults(ack_code=0x87, ack_topics=BATCHES)
        async with Broker(limits=limits, faults=faults) as broker:
            box = Box(tmp_path, address(broker), settings={"status_interval": 60.0})
            whys: list[str | None] = []
            payload = box.status.payload
            box.status.payload = lambda state: whys.append(box.state.why) or payload(state)
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects > 2)
                await until(lambda: state_of(broker) == "offline")
            assert "more" in json.loads(broker.retained["bygate/v1/trd-0042/status"])
            assert "refuses batches: 0x87 not authorized" in str(whys[-1])

    run(scenario())


def test_a_batch_that_is_accepted_in_the_instant_of_a_refusal_takes_no_why_away(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            whys: list[str | None] = []
            payload = box.status.payload

            def note(state: str) -> bytes:
                if state == "offline":
                    whys.append(box.state.why)
                return payload(state)

            def answer(message: Received) -> None:
                (sequence,) = both([message]) or [0]
                code, at_once = 0x87 if sequence > 4 else None, 2 if sequence > 3 else 1
                broker.faults = Faults(ack_code=code, ack_reversed=at_once, ack_topics=BATCHES)

            box.status.payload = note
            broker.on_publish.append(answer)
            await box.seal(5)
            async with delivering(box):
                await until(lambda: whys)
            assert "refuses batches: 0x87 not authorized" in str(whys[0])

    run(scenario())


def test_an_uplink_that_never_delivered_has_ceased_to_at_no_time(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            await broker.down()
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: box.state.why)
                assert box.state.lost == 0
                await broker.up()
                await box.seal()
                await box.empty()
                await broker.down()
                await until(lambda: box.state.why)
                assert box.state.lost == 1

    run(scenario())


def test_an_end_after_more_than_a_minute_is_laid_to_no_other_client(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gateway.connection.SOON", 0.0)

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: box.state.connected)
                broker.drop("fin")
                await until(lambda: "connection lost: the other end closed it" in caplog.text)
        assert "another client" not in caplog.text

    run(scenario())


def test_a_wrong_clock_is_not_told_of_where_there_is_no_tls(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(connect_code=0x88)) as broker:
            box = Box(tmp_path, address(broker), now=lambda: 0.0)
            async with delivering(box):
                await until(lambda: box.state.why)
                assert "clock" not in box.state.why

    run(scenario())


def test_pauses_grow_while_another_client_takes_our_id_and_nothing_is_suspected(tmp_path):
    async def scenario() -> None:
        faults = Faults(end_topics="bygate/v1/+/status", end_code=0x8E)
        async with Broker(faults=faults) as broker:
            waits = Waits()
            box = Box(tmp_path, address(broker), wait=waits, steady=0.0)
            async with delivering(box):
                await until(lambda: broker.connects > LOSSES)
            assert waits.attempts[:LOSSES] == [1, 2, 3]
            assert "status" not in box.state.suspects

    run(scenario())


def test_nothing_is_suspected_where_the_end_comes_together_with_the_connack(tmp_path):
    async def scenario() -> None:
        async with saying(CONNACK + bytes.fromhex("e0028b00")) as broker:
            waits = Waits()
            box = Box(tmp_path, broker, wait=waits, about=b"{}")
            async with delivering(box):
                await until(lambda: len(waits.attempts) > 2 * LOSSES)
            assert not any(name in box.state.suspects for name in ("about", "status"))

    run(scenario())


def test_a_broker_that_takes_one_batch_and_hangs_up_does_not_fill_the_log(
    tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    monkeypatch.setattr("gateway.ration.BURST", 3)

    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=3)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(60)
            async with delivering(box):
                await until(lambda: broker.connects > 12)
                assert box.state.lost > 9

    run(scenario())
    assert {record.name for record in caplog.records} <= {"gateway.uplink", "gateway.buffer"}
    said = [r.getMessage() for r in caplog.records if r.name == "gateway.uplink"]
    assert len([line for line in said if "connection lost" in line]) == 3
    assert len([line for line in said if line.endswith(": connected")]) <= 4
    assert "it comes and goes" in said[-1] or "it comes and goes" in said[-2]


def test_a_connection_alone_is_not_said_to_deliver(tmp_path, caplog):
    caplog.set_level("INFO")

    async def scenario() -> None:
        async with Broker(faults=Faults(ack_withheld=True, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker), ack_within=0.05)
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects > 2)
                assert "no acknowledgement" in box.state.why
                assert ": connected" not in caplog.text
                broker.faults = Faults()
                await box.empty()
                assert box.state.why is None
        assert caplog.text.count(": connected") == 1

    run(scenario())


def test_thirty_connections_leave_no_descriptors_and_no_tasks(tmp_path):
    def left() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x87)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects >= 5)
                await broker.down()
                await until(lambda: not box.state.connected)
                before = left()
                await broker.up()
                await until(lambda: broker.connects >= 35, 20)
                await broker.down()
                await until(lambda: not box.state.connected)
                await until(lambda: left() <= before, 3)

    run(scenario())


def test_a_connection_that_ends_as_something_is_sent_leaves_no_traceback(caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            settings = UplinkSettings(url=(address(broker),))
            client = await Connection.to(settings.url[0], settings, "trd-0042", will=b"{}")
            async with client.session():
                client.send("a", b"", kind="")
            await broker.wait_for(lambda _: not broker.connections)

    run(scenario())
    assert not caplog.records


def test_an_end_that_paho_tells_twice_is_one():
    async def scenario() -> None:
        settings = UplinkSettings(url=(Address("127.0.0.1", 1, tls=False),))
        client = await Connection.to(settings.url[0], settings, "trd-0042", will=None)
        for lost in (paho.MQTT_ERR_KEEPALIVE, paho.MQTT_ERR_CONN_LOST):
            client._client._do_on_disconnect(packet_from_broker=False, v1_rc=lost)
        assert "Keep alive timeout" in str(client._disconnected.exception())

    run(scenario())


# Connecting


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_socket_sends_small_packets_at_once_and_notices_a_pulled_cable(protocol, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"protocol": protocol})
            async with delivering(box):
                await until(lambda: box.state.connected)
                sock = box.uplink._session._client._client.socket()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000

    run(scenario())


def test_a_silent_link_is_pinged_as_often_as_the_settings_say(tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            there = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / "state", there, settings={"keepalive": 1.0})
            async with delivering(box):
                await until(lambda: "Received PINGREQ from trd-0042" in broker.log)
                assert "c1, k1)" in broker.log

    run(scenario())


def test_a_broker_is_reached_though_silent_addresses_take_longer_than_keepalive(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", 0.6)

    async def scenario() -> None:
        async with Broker() as broker:
            with black_hole() as hole:
                resolves(monkeypatch, "far.test", hole, hole, (broker.host, broker.port))
                there = Address("far.test", broker.port, tls=False)
                box = Box(tmp_path, there, settings={"keepalive": 1.0})
                await box.seal()
                async with delivering(box):
                    await box.empty()
                assert broker.connects == 1

    run(scenario())


def test_a_broker_is_reached_though_its_connack_takes_longer_than_keepalive(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker, Valve(broker.port, delay=0.6) as far:
            there = Address(far.host, far.port, tls=False)
            box = Box(tmp_path, there, settings={"keepalive": 1.0})
            await box.seal()
            async with delivering(box):
                await box.empty()

    run(scenario())


def test_a_connack_is_waited_for_as_long_as_a_connection_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", 1.5)

    async def scenario() -> None:
        async with Broker(faults=Faults(connack_withheld=True)) as broker:
            box = Box(tmp_path, address(broker), settings={"keepalive": 1.0})
            async with delivering(box):
                await until(lambda: box.state.why, within=4)
                assert "connected, but no CONNACK came" in box.state.why

    run(scenario())


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (0x86, "check [uplink] username and password_file"),
        (0x87, "and the broker's ACL"),
        (0x88, "Server unavailable"),
    ],
)
def test_a_refused_connection_says_what_to_check(code, remedy, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(connect_code=code)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await until(lambda: remedy in (box.state.why or ""))
                broker.faults = Faults()
                await box.empty()
                assert box.state.why is None

    run(scenario())


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid", "-"])
def test_a_name_that_cannot_be_resolved_is_no_end(host, tmp_path):
    async def scenario() -> None:
        box = Box(tmp_path, Address(host, 1883, tls=False))
        async with delivering(box) as task:
            await until(lambda: box.state.why or task.done())
            assert not task.done()

    run(scenario())


def test_the_password_is_read_anew_at_each_connection(tmp_path):
    async def scenario() -> None:
        secret = tmp_path / "password"
        async with Broker() as broker:
            login = {"username": "trd-0042", "password_file": secret}
            box = Box(tmp_path / "state", address(broker), settings=login)
            async with delivering(box):
                await until(lambda: str(secret) in (box.state.why or ""))
                secret.write_text("one\n")
                await broker.wait_for(1)
                assert box.state.connected

    run(scenario())


def test_a_password_that_is_no_utf_8_lets_into_a_real_mosquitto(tmp_path):
    secret, users = tmp_path / "secret", tmp_path / "users"
    secret.write_bytes(b"p\xe4ss\xff\n")
    named = ("mosquitto_passwd", "-c", "-b", users, "trd-0042", b"p\xe4ss\xff")
    subprocess.run(named, check=True)

    async def scenario() -> None:
        lines, login = f"password_file {users}", {"username": "trd-0042", "password_file": secret}
        async with hil.mosquitto.Mosquitto(tmp_path, lines) as broker:
            there = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / "state", there, settings=login)
            await box.seal()
            async with delivering(box):
                await box.empty()

    run(scenario())


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates `own` and `other`, each signed by itself, and a locked key of `own`."""
    directory = tmp_path_factory.mktemp("pem")
    for name in ("own", "other"):
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"),
            *("-subj", f"/CN={name}", "-days", "365"),
        )
    openssl(
        *("ec", "-in", directory / "own.key", "-out", directory / "locked.key"),
        *("-aes128", "-passout", "pass:secret"),
    )
    (directory / "empty").touch()
    (directory / "directory").mkdir()
    return directory


def openssl(*arguments: Any) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("files", "at_fault", "remedy"),
    [
        ({"ca_file": "none"}, "ca_file", "there is no such file: put it there"),
        ({"ca_file": "empty"}, "ca_file", "no PEM certificate in it"),
        ({"ca_file": "own.key"}, "ca_file", "no PEM certificate in it"),
        ({"ca_file": "directory"}, "ca_file", ""),
        ({"cert_file": "none"}, "cert_file", "there is no such file"),
        ({"cert_file": "own.pem"}, "cert_file", "or set key_file"),
        ({"cert_file": "empty", "key_file": "own.key"}, "cert_file", "no PEM certificate"),
        ({"cert_file": "own.pem", "key_file": "none"}, "key_file", "there is no such file"),
        ({"cert_file": "own.pem", "key_file": "other.key"}, "key_file", "not the PEM key of"),
        ({"cert_file": "own.pem", "key_file": "locked.key"}, "key_file", "locked by a passphrase"),
    ],
)
def test_a_file_of_tls_that_will_not_do_is_named_with_its_remedy(
    files, at_fault, remedy, *, pem, tmp_path, caplog
):
    async def scenario() -> None:
        settings = {key: pem / name for key, name in files.items()}
        box = Box(tmp_path, Address("127.0.0.1", 1, tls=True), settings=settings)
        async with delivering(box):
            await until(lambda: box.state.why)

    run(scenario())
    (said,) = caplog.messages
    assert f"{at_fault} {pem / files[at_fault]}: " in said
    assert remedy in said


def test_files_of_tls_that_will_do_lead_to_the_broker(pem, tmp_path):
    async def scenario() -> None:
        keys = {"ca_file": pem / "own.pem", "cert_file": pem / "own.pem"}
        settings = keys | {"key_file": pem / "own.key"}
        box = Box(tmp_path, Address("127.0.0.1", 1, tls=True), settings=settings)
        async with delivering(box):
            await until(lambda: "nothing listens there" in (box.state.why or ""))

    run(scenario())


# Status


@pytest.mark.parametrize(
    ("password", "says"),
    [
        (None, "there is no such file: put it there, or set [uplink] password_file"),
        ("x" * 70_000, "more than 65535 bytes: is it the right file?"),
    ],
)
def test_a_password_that_will_not_do_says_what_to_check(password, says, tmp_path):
    async def scenario() -> None:
        secret = tmp_path / "password"
        if password:
            secret.write_text(password)
        async with Broker() as broker:
            login = {"username": "trd-0042", "password_file": secret}
            box = Box(tmp_path / "state", address(broker), settings=login)
            async with delivering(box):
                await until(lambda: box.state.why)
                assert says in box.state.why
                secret.write_text("good")
                await until(lambda: box.state.connected)

    run(scenario())


# A batch at which the connection breaks


def test_a_batch_at_which_the_broker_breaks_off_holds_up_no_other(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(30)

            def breaks_off(message: Received) -> None:
                if both([message]) == [5]:
                    broker.drop()

            broker.on_publish.append(breaks_off)
            async with delivering(box):
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                await until(lambda: both(broker.received).count(5) > LOSSES)
                await box.seal(3)
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                assert [held.sequence for held in box.buffer.waiting()] == [5]
                tries = both(broker.received).count(5)
                assert tries <= LOSSES + 2, "alone it waits a minute"
        assert caplog.text.count("it goes last and alone") == 1

    run(scenario())


def test_a_suspect_is_delivered_when_the_fault_is_gone(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=1)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(8)
            async with delivering(box):
                await until(lambda: broker.connects > 10)
                assert box.state.patience == 1, "acknowledgements were not late, links broke"
                broker.faults = Faults()
                await box.empty()

    run(scenario())


def test_a_suspect_that_breaks_off_alone_is_tried_ever_more_rarely():
    now = 0.0
    suspects = Suspects(lambda: now)
    suspect(suspects, (7, 1))
    pauses = []
    for _ in range(9):
        assert suspects.due() == [(7, 1)]
        suspects.tried((7, 1))
        assert not suspects.lost_at((7, 1))
        began = now
        while not suspects.due():
            now += 1
        pauses.append(now - began)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    suspects.clear((7, 1))
    assert (7, 1) not in suspects
    assert not suspects.lost_at((7, 1))
    suspects.suspect((7, 1))
    suspects.tried((7, 1))
    assert suspects.pause((7, 1)) == 60, "what was cleared begins anew"


def test_what_is_suspected_again_does_not_go_sooner_for_that():
    suspects = Suspects(lambda: 0.0)
    for pause in (60, 120, 240):
        suspects.suspect("status")
        suspects.tried("status")
        suspects.suspect("status")
        assert suspects.pause("status") == pause


def test_losses_at_one_batch_after_the_other_make_no_suspect():
    suspects = Suspects()
    assert not any(suspects.lost_at((head, 1)) for head in (1, 2, 1, 2, 1, 2, 3, 3, 4, 3, 3))


def test_links_that_break_while_nothing_is_under_way_make_nothing_a_suspect(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box) as task:
                for connects in range(1, LOSSES + 3):
                    await until(lambda n=connects: task.done() or broker.connects == n)
                    await until(lambda: task.done() or box.state.connected)
                    await box.seal()
                    await until(lambda: task.done() or box.delivered)
                    await until(lambda: task.done() or box.uplink._session.culprit is None)
                    broker.drop()
                assert not task.done()

    run(scenario())


def test_what_is_found_on_a_disk_that_came_late_is_backlog(tmp_path):
    async def scenario() -> None:
        before = Box(tmp_path / "state")
        await before.seal(3)
        (tmp_path / "state").rename(tmp_path / "away")
        (tmp_path / "state").write_text("in the way")
        async with Broker() as broker:
            box = Box(tmp_path / "state", address(broker))
            async with delivering(box):
                await until(lambda: box.state.connected)
                (tmp_path / "state").unlink()
                (tmp_path / "away").rename(tmp_path / "state")
                await box.seal(2)
                await box.empty()
            assert lane(broker.received, "backlog") == [1, 2, 3]
            assert lane(broker.received, "live") == [4, 5]

    run(scenario())


# What a broker says, or what is none


@pytest.mark.parametrize(
    ("answer", "close", "says"),
    [
        ("", True, "had answered: the other end closed it: does it speak MQTT 5 there (else set"),
        ("20020001", False, 'Unsupported protocol version: set [uplink] protocol = "3.1.1"'),
        ("2003009a00", False, "Retain not supported: the broker must take retained messages"),
        ("2003009b00", False, "QoS not supported: the broker must take QoS 1"),
        ("2003000000 e0028e00", False, "another client connected with our id 'trd-0042'"),
        ("2003000000 e0028b00", False, "connection lost: 0x8b Server shutting down: tried again"),
        ("2003000000 e000", False, "connection lost: the other end closed it within a minute"),
        ("2003000000 4004000177 00", False, "connection lost: "),
        ("2003000000 e0028e7fff", False, "connection lost: "),
        ("2005000002ff00", False, "it answered, but not as MQTT 5 does: a CONNACK came"),
        ("485454502f312e312034303020", True, "a web server answers there ('HTTP/1.1 400 '), or M"),
    ],
)
def test_what_a_broker_says_is_told_on_one_line_at_once(answer, close, says, tmp_path, caplog):
    async def scenario() -> None:
        async with saying(bytes.fromhex(answer), close=close) as broker:
            box = Box(tmp_path, broker)
            async with delivering(box):
                await until(lambda: box.state.why and says in box.state.why, within=5)
                assert "\n" not in box.state.why
        gc.collect()

    run(scenario())
    assert "Traceback" not in caplog.text
    assert "never retrieved" not in caplog.text
    assert {record.name for record in caplog.records} == {"gateway.uplink"}


@pytest.mark.filterwarnings("ignore:unclosed")  # paho leaves the socket of a bad handshake to gc
def test_a_port_that_speaks_no_tls_says_so(tmp_path):
    async def scenario() -> None:
        async with saying(CONNACK, close=True) as plain:
            box = Box(tmp_path, Address(plain.host, plain.port, tls=True))
            async with delivering(box):
                await until(lambda: box.state.why)
                assert "mqtt:// for plain TCP, or another port" in box.state.why
            gc.collect()

    run(scenario())


def state_of(broker: Broker) -> str:
    return json.loads(broker.retained.get("bygate/v1/trd-0042/status", b"{}")).get("state", "")


def test_the_retained_status_is_online_and_the_will_says_offline(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                broker.faults = Faults(connect_code=0x88)
                broker.drop()
                await until(lambda: state_of(broker) == "offline")
                broker.faults = Faults()
                await until(lambda: state_of(broker) == "online")

    run(scenario())


def test_the_status_is_published_again_when_it_changes(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await broker.wait_for(1)
                box.status.size = 1
                await broker.wait_for(2, 3)

    run(scenario())


def test_a_status_that_changes_all_the_time_is_published_each_time_only_at_first(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gateway.ration.BURST", 2)

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                for changes in range(1, 30):
                    box.status.size = changes
                    await asyncio.sleep(0.15)
            assert [message.topic for message in broker.received] == [
                "bygate/v1/trd-0042/status"
            ] * 3

    run(scenario())


def test_a_status_that_comes_and_goes_is_published_with_every_third_ping(tmp_path):
    began, box = time.monotonic(), Box(tmp_path, settings={"keepalive": 0.1})
    for _ in range(BURST):
        box.state.changes.take()
    asyncio.run(until(lambda: box.state.changes.left))
    assert time.monotonic() - began >= 0.3


def test_connections_that_come_and_go_do_not_renew_how_often_a_change_is_told(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gateway.ration.BURST", 2)

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            box.state.changes.take()
            box.state.changes.take()
            async with delivering(box):
                await broker.wait_for(1)
                box.status.size = 1
                await asyncio.sleep(1.2)
            assert len(broker.received) == 1

    run(scenario())


def test_the_status_is_published_every_so_often_though_nothing_changed(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"status_interval": 1.0})
            async with delivering(box):
                await broker.wait_for(3)
            times = [message.time for message in broker.received]
            assert times[2] - times[0] > 1.9

    run(scenario())


def test_what_a_gateway_is_is_published_retained_at_each_connection(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), about=b'{"gateway": "trd-0042"}')
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                broker.drop()
                await until(lambda: broker.connects == 2 and box.state.connected)
                await box.seal()
                await box.empty()
            found = [m for m in broker.received if m.topic == "bygate/v1/trd-0042/about"]
            assert {(m.payload, m.retain, m.qos) for m in found} == {
                (b'{"gateway": "trd-0042"}', True, 1)
            }
            assert len(found) == 2

    run(scenario())


def test_what_was_sent_is_counted_and_the_pace_is_known_while_connected(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_after=0.02, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(40)
            async with delivering(box):
                assert box.state.pace is None
                await box.empty()
                assert 0 < box.state.pace < 0.2
                await broker.down()
                await until(lambda: not box.state.connected)
                sent = sum(len(m.topic) + len(m.payload) for m in broker.received)
                counted, messages = box.state.traffic.month, len(broker.received)
                assert sent + 52 * 2 < counted < sent + 350 * (messages + 10)
                assert box.state.pace is None

    run(scenario())


def test_the_status_foretells_when_a_backlog_is_delivered_and_tells_when_it_is(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"backlog_rate": 50.0})
            box.status = Health("trd-0042", Clock(), box.buffer, [], box.state)
            await box.seal(150)
            told: list[tuple[int, int | None]] = []

            def at_its_end() -> bool:
                statuses = [m for m in broker.received if m.topic.endswith("/status")]
                of = [json.loads(message.payload) for message in statuses]
                told[:] = [
                    (s["buffer"]["waiting_batches"], s["uplink"]["caught_up_in_s"]) for s in of
                ]
                return bool(told) and told[-1] == (0, 0)

            async with delivering(box):
                await until(at_its_end)
            assert told[0] == (150, None)
            assert any(0 < seconds <= 3 for _, seconds in told[1:])
            assert len(told) <= 4

    run(scenario())


def test_where_nothing_waits_but_suspects_it_is_caught_up():
    state = UplinkState()
    assert state.catch_up(0) == 0
    state.pace = 1.0
    suspect(state.suspects, (1, 1), (2, 1))
    assert state.catch_up(1) == 0  # one of them was evicted
    state.suspects.suspect("status")
    assert state.catch_up(3) == 1


def test_the_pace_is_that_of_a_whole_window(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_after=0.2, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(100)
            async with delivering(box):
                await box.empty()
                assert 0.2 / 20 <= box.state.pace < 0.1
                assert box.state.catch_up(100) < 100 * 0.1

    run(scenario())


@pytest.mark.parametrize("withheld", [False, True])
def test_what_a_connection_costs_is_counted_pings_and_all(withheld, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_withheld=withheld)) as broker:
            box = Box(tmp_path, address(broker), settings={"keepalive": 1.0})
            async with delivering(box):
                await broker.wait_for(1)
                await until(lambda: box.state.traffic.month)
                before, published = box.state.traffic.month, len(broker.received)
                await until(lambda: box.state.traffic.month >= before + 2 * (2 + 2 + 3 * 52))
                assert len(broker.received) == published

    run(scenario())


def test_the_kernel_counts_what_a_connection_carries():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        before = carried(one)
        one.sendall(b"x" * 1000)
        assert other.recv(2000)
        other.sendall(b"y" * 500)
        assert one.recv(2000)
        assert 1500 + 2 * 52 <= carried(one) - before <= 1500 + 4 * 52


@pytest.mark.parametrize(
    ("host", "family", "headers"),
    [("127.0.0.1", socket.AF_INET, 52), ("::1", socket.AF_INET6, 72)],
)
def test_headers_count_as_long_as_they_are(host: str, family: int, headers: int):
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server, socket.create_connection(server.getsockname()[:2]) as one:
        assert carried(one) // headers == 3  # the three of TCP's beginning


def test_a_broker_that_refuses_the_status_gets_the_batches(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_code=0x87, ack_topics="bygate/v1/+/status")
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await box.seal(3)
                await box.empty()
            assert broker.connects == 1

    run(scenario())
    assert "refuses the status" in caplog.text


# The end


def test_a_farewell_delivers_what_waits_and_says_offline(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box) as task:
                await until(lambda: state_of(broker) == "online")
                await box.seal(20)
                await box.uplink.farewell(box.status, 2)
                assert both(broker.received) == list(range(1, 21))
                assert state_of(broker) == "offline"
                await until(lambda: not broker.connections)
                await asyncio.wait_for(task, 3)
                assert broker.connects == 1, "it said goodbye, and came back"

    run(scenario())


def test_the_will_says_what_the_broker_refuses_at_a_farewell(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                broker.faults = Faults(ack_code=0x97, ack_topics="+/+/+/status")
                await box.uplink.farewell(box.status, 2)
            await until(lambda: not broker.connections)
            assert state_of(broker) == "offline"

    run(scenario())


@pytest.mark.parametrize("code", [None, 0x99])
def test_a_farewell_ends_with_the_last_batch_delivered_or_set_aside(code, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=code, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: state_of(broker) == "online")
                await box.seal()
                await asyncio.wait_for(box.uplink.farewell(box.status, 60), 5)
                assert box.delivered
                assert state_of(broker) == "offline"

    run(scenario())


def test_a_goodbye_waits_for_what_has_to_leave_before_it(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            settings = UplinkSettings(url=(address(broker),))
            client = await Connection.to(address(broker), settings, "trd-0042", will=b"vanished")
            async with client.session():
                broker.faults = Faults(deaf=True)
                for number in range(20):  # more than the kernels hold
                    client.send(f"it/{number}", bytes(1_000_000), kind="it")
                hears = Faults(ack_withheld=True)  # an answer that nobody reads would be a reset
                asyncio.get_running_loop().call_later(0.1, setattr, broker, "faults", hears)
                await client.say_goodbye()
            await until(lambda: not broker.connections)
            assert [message.topic for message in broker.received] == [f"it/{n}" for n in range(20)]

    run(scenario())


def test_a_farewell_waits_for_no_broker_that_is_gone(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: box.state.connected)
                await broker.down()
                await until(lambda: not box.state.connected)
                await box.seal()
                await asyncio.wait_for(box.uplink.farewell(box.status, 60), 5)

    run(scenario())


def test_no_online_comes_behind_the_offline_though_the_status_changes_all_the_time(tmp_path):
    class Restless(Status):
        def digest(self) -> object:
            self.size += 1
            return self.size

    async def scenario() -> None:
        faults = Faults(ack_after=0.1, ack_topics="bygate/v1/+/status")
        async with Broker(faults=faults) as broker:
            box = Box(tmp_path, address(broker))
            box.status = Restless()
            async with delivering(box):
                await broker.wait_for(3)
                await box.uplink.farewell(box.status, 1)
                await until(lambda: not broker.connections)
            assert json.loads(broker.received[-1].payload)["state"] == "offline"

    run(scenario())


@pytest.mark.parametrize(
    "faults",
    [Faults(deaf=True), Faults(ack_withheld=True), Faults(ack_code=0x87), Faults(drop_after=1)],
)
def test_a_farewell_on_a_bad_link_takes_no_longer_than_it_may(faults, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box) as task:
                await until(lambda: state_of(broker) == "online")
                broker.faults = faults
                await box.seal(20)
                began = time.monotonic()
                await box.uplink.farewell(box.status, 0.3)
                task.cancel()
                await asyncio.wait({task}, timeout=2)
                assert time.monotonic() - began < 2
                assert task.done()

    run(scenario())


@pytest.mark.parametrize("delay", [0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(connack_withheld=True),
        Faults(ack_withheld=True),
        Faults(drop_after=2),
        Faults(ack_code=0x87),
        Faults(deaf=True),
    ],
    ids=["sound", "no connack", "no ack", "drops", "refuses", "deaf"],
)
def test_a_cancel_ends_it_at_once_at_any_moment(delay, faults, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=faults) as broker:
            box = Box(tmp_path, address(broker), wait=wait_fixed(0.01))
            await box.seal(5)
            async with delivering(box) as task:
                await asyncio.sleep(delay)
                task.cancel()
                assert (await asyncio.wait({task}, timeout=0.5))[0]

    run(scenario())


@pytest.mark.parametrize("rounds", range(24))
def test_a_cancel_while_the_connection_is_made_is_not_lost(rounds, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box) as task:
                while not broker.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                for _ in range(rounds):  # of the loop: in one of them the CONNACK is read
                    await asyncio.sleep(0)
                task.cancel()
                assert (await asyncio.wait({task}, timeout=2))[0]

    run(scenario())


def test_a_cancel_that_comes_together_with_an_error_is_not_lost(tmp_path):
    class Both(Status):
        def digest(self) -> object:
            ends.cancel()
            raise OSError("in the same moment")

    ends: Any = None

    async def scenario() -> None:
        nonlocal ends
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            box.status = Both()
            async with delivering(box) as ends:
                assert (await asyncio.wait({ends}, timeout=2))[0]
            assert broker.connects == 1

    run(scenario())


def test_retries_wait_as_long_as_they_are_told(tmp_path):
    class Never(wait_base):
        def __call__(self, retry_state: Any) -> float:
            return 3600

    async def scenario() -> None:
        async with Broker(faults=Faults(connect_code=0x88)) as broker:
            box = Box(tmp_path, address(broker), wait=Never())
            async with delivering(box):
                await until(lambda: box.state.why)
                await asyncio.sleep(0.1)
            assert broker.connects == 1

    run(scenario())


def test_a_status_that_is_refused_is_told_once_for_all_connections(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x87)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects >= 4)
        assert caplog.text.count("the broker refuses the status") == 1

    run(scenario())


def test_a_status_that_was_taken_in_between_is_told_of_again(tmp_path, caplog):
    async def scenario() -> None:
        refusing = Faults(ack_code=0x87, ack_topics="bygate/v1/+/status")
        async with Broker(faults=refusing) as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                for size, faults in enumerate((refusing, Faults(), refusing), 1):
                    broker.faults, box.status.size = faults, size
                    await broker.wait_for(size)
                await until(lambda: caplog.text.count("the broker refuses the status") == 2)

    run(scenario())
