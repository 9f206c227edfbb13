"""What a broker refuses, or drops the connection at: is it the batch, or the broker?"""

import asyncio
import errno
import gc
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from delivery import BATCHES, Box, address, both, delivering, from_batch, run, suspect, until
from mosquitto import Mosquitto

from gateway.aside import on_disk
from gateway.disk import Disk
from gateway.held import Held
from gateway.reading import COUNT, Instant, Reading
from gateway.session import IN_A_ROW, Session
from gateway.settings import Broker as Address
from gateway.suspects import LOSSES, Suspects
from hil.broker import Broker, Faults, Limits, Received

# A broker that refuses whatever comes


def test_a_broker_that_refuses_every_batch_is_told_of_and_gets_them_later(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x90, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(30)
            async with delivering(box):
                await until(lambda: "refuses every batch: 0x90 topic name" in str(box.state.why))
                await until(lambda: broker.connects > 6)
                assert box.buffer.stats().waiting_batches == 30 - IN_A_ROW
                broker.faults = Faults()
                await box.empty()
            assert len(box.refused) == IN_A_ROW
            assert box.buffer.stats().dropped == 0

    run(scenario())
    assert caplog.text.count("refuses every batch") == 1


def test_a_broker_that_refused_all_that_waited_is_not_said_to_be_connected(tmp_path, caplog):
    caplog.set_level("INFO")

    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            async with delivering(box):
                await box.empty()
                broker.drop()
                await broker.wait_for(lambda got: sum("/status" in m.topic for m in got) == 2)
                assert ": connected" not in caplog.text
                broker.faults = Faults()
                await box.seal()
                await until(lambda: ": connected" in caplog.text)

    run(scenario())


async def seal_large(box: Box, count: int) -> None:
    for _ in range(count):
        for _ in range(20):
            at = Instant(1_763_900_000_000, 0, 2)
            box.buffer.append(Reading("it", COUNT, at, random.randbytes(60).hex()))
        await box.seal()


def test_a_limit_for_packets_set_by_mistake_loses_nothing(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=500)) as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 12)
            async with delivering(box):
                await until(lambda: "every batch: 0x95 packet too large" in str(box.state.why))
                await until(lambda: broker.connects > 6)
                assert len(box.refused) == IN_A_ROW
                broker.limits = Limits()
                await box.empty()
            assert len(box.refused) == IN_A_ROW

    run(scenario())


def test_many_batches_that_are_too_large_hold_up_none_that_is_not(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=500)) as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 12)
            await box.seal(8)
            async with delivering(box):
                await box.empty()
            assert len(box.refused) == 12
            assert sorted(both(broker.received)) == list(range(13, 21))

    run(scenario())


def test_batches_that_are_too_large_between_others_are_not_in_a_row(tmp_path):
    async def scenario() -> None:
        limits, faults = Limits(maximum_packet_size=500), Faults(ack_after=0.15)
        async with Broker(limits=limits, faults=faults) as broker:
            box = Box(tmp_path, address(broker))
            for _ in range(12):
                await box.seal()
                await seal_large(box, 1)
            async with delivering(box):
                await box.empty()
            assert (broker.connects, len(box.refused)) == (1, 12)
            assert both(broker.received) == list(range(1, 24, 2))

    run(scenario())


def answering(
    broker: Broker,
    refuses: Callable[[int], object],
    after: Callable[[int], float | None] = lambda _: None,
) -> Callable[[Received], None]:
    """Have it refuse some batches, and answer some only after a while, by their sequences."""

    def answer(message: Received) -> None:
        (sequence,) = both([message]) or [0]
        code = 0x99 if refuses(sequence) else None
        broker.faults = Faults(ack_code=code, ack_after=after(sequence) or 0.0)

    broker.on_publish.append(answer)
    return answer


class Slow(Disk):
    """Takes longer for a file than a broker for an answer."""

    def below(self, name: str) -> "Slow":
        return Slow(self.directory / name)

    def sync_directory(self) -> None:
        time.sleep(0.02)
        super().sync_directory()


def test_refusals_of_every_second_batch_are_not_in_a_row_though_the_disk_is_slower(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), disk=Slow)
            await box.seal(60)
            answering(broker, lambda sequence: sequence % 2, lambda _: 0.1)
            async with delivering(box):
                await box.empty()
            assert (broker.connects, len(box.refused)) == (1, 30)

    run(scenario())


def leave_room_aside(box: Box, batches: int) -> None:
    size = on_disk(next(box.buffer.waiting()).length)
    box.buffer._settings = replace(box.buffer._settings, max_size=4 * batches * size)


def test_refusals_in_a_row_take_the_place_of_no_batch_that_was_refused_before(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 5)
            leave_room_aside(box, 2)
            box.buffer.set_aside(next(box.buffer.waiting()), 0x99)
            async with delivering(box):
                await until(lambda: "refuses every batch" in str(box.state.why))
            assert len(box.refused) == 2
            assert box.buffer.stats().dropped == 0

    run(scenario())


def test_two_refusals_in_a_row_where_there_is_no_room_hold_up_none_that_is_accepted(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 20)
            leave_room_aside(box, 2)
            answering(broker, lambda sequence: sequence % 5 in (3, 4))
            async with delivering(box):
                await box.empty()
            assert (broker.connects, sorted(box.buffer.stats().refused)) == (1, box.refused)
            assert sorted(int(name.split("-")[0]) for name in box.refused) == [18, 19]
            assert box.buffer.stats().dropped_by == {"refused by the broker": 6 * 20 + 6}

    run(scenario())


def test_what_found_no_room_is_set_aside_once_though_several_are_accepted_meanwhile(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), disk=Slow)
            await seal_large(box, 12)
            leave_room_aside(box, 1)
            refused = (6, 7, 8)
            answering(broker, refused.__contains__, lambda each: 0.0 if each in refused else 0.2)
            async with delivering(box):
                await box.empty()
            assert (broker.connects, [name.split("-")[0] for name in box.refused]) == (1, ["8"])

    run(scenario())


def test_what_found_no_room_is_sent_again_only_when_it_is_offered_again_itself(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 2)
            leave_room_aside(box, 1)
            async with delivering(box):
                await until(lambda: box.state.refused_in_a_row == 2)
                await offer_again(box)
                with pytest.raises(TimeoutError):
                    await until(lambda: len(both(broker.received)) > 3, within=0.5)
                broker.faults = Faults()
                await box.seal()
                await box.empty()
                assert [name.split("-")[0] for name in box.refused] == ["2"]
                await offer_again(box)
                await until(lambda: len(both(broker.received)) == 5)
            assert (broker.connects, both(broker.received)) == (1, [1, 2, 1, 3, 2])

    run(scenario())


def test_an_older_one_that_is_accepted_does_not_have_what_found_no_room_set_aside(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 8)
            leave_room_aside(box, 1)
            answer = answering(broker, lambda sequence: sequence > 6, {6: 1.0}.get)
            async with delivering(box):
                await until(lambda: box.state.refused_in_a_row == 2)
                await until(lambda: [held.sequence for held in box.buffer.waiting()] == [8])
                broker.on_publish.remove(answer)
                assert [name.split("-")[0] for name in box.refused] == ["7"]
                broker.faults = Faults()
                await box.seal()
                await box.empty()
            assert (broker.connects, both(broker.received)) == (1, list(range(1, 10)))
            assert [name.split("-")[0] for name in box.refused] == ["8"]

    run(scenario())


def test_one_that_is_accepted_while_the_disk_sets_one_aside_begins_the_row_anew(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(7)
            set_aside, delivered = box.buffer.set_aside, box.buffer.delivered
            accepted, go = list[int](), threading.Event()

            def later(held: Held, reason: int) -> bool:
                return go.wait(10) and set_aside(held, reason)

            def note(held: Held) -> None:
                delivered(held)
                accepted.append(held.sequence)

            box.buffer.set_aside, box.buffer.delivered = later, note
            answering(broker, lambda each: each == 6 or each > 7, {6: 0.3, 7: 0.6}.get)
            async with delivering(box):
                await until(lambda: 7 in accepted)
                go.set()
                await box.empty()
                await box.seal(IN_A_ROW)
                await box.empty()
            assert (broker.connects, len(box.refused)) == (1, 1 + IN_A_ROW)

    run(scenario())


def test_what_is_refused_before_one_that_is_accepted_is_not_of_the_row_behind_that(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(10 + IN_A_ROW)
            after = {8: 0.4, 9: 1.0} | dict.fromkeys(range(11, 11 + IN_A_ROW), 0.7)
            answering(broker, lambda each: each == 9 or each > 10, after.get)
            async with delivering(box):
                await box.empty()
            assert (broker.connects, len(box.refused)) == (1, 1 + IN_A_ROW)

    run(scenario())


def test_and_is_set_aside_at_once_though_that_row_finds_no_room(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 12)
            leave_room_aside(box, 1)
            answering(broker, lambda each: each == 9 or each > 10, {9: 1.0}.get)
            async with delivering(box):
                await until(lambda: box.state.refused_in_a_row == 2)
                await until(lambda: [name.split("-")[0] for name in box.refused] == ["9"])
                assert box.state.refused_in_a_row == 2
            assert broker.connects == 1

    run(scenario())


def test_one_that_is_refused_where_there_is_no_room_takes_the_place_of_the_oldest(tmp_path):
    async def scenario() -> None:
        faults = Faults(ack_code=0x99, ack_next=1, ack_topics=BATCHES)
        async with Broker(faults=faults) as broker:
            box = Box(tmp_path, address(broker))
            await seal_large(box, 3)
            first, second, _ = box.buffer.waiting()
            leave_room_aside(box, 2)
            for held in (first, second):
                box.buffer.set_aside(held, 0x99)
            async with delivering(box):
                await box.empty()
            assert [name[:2] for name in box.refused] == ["2-", "3-"]
            assert broker.connects == 1

    run(scenario())


async def offer_again(box: Box) -> None:
    (box.directory / "refused" / "retry").touch()
    tick = partial(box.buffer.tick, 0.0)
    await asyncio.get_running_loop().run_in_executor(box.writer, tick)
    box.uplink.wake()


def test_batches_that_are_offered_again_and_refused_again_are_not_kept_from_lying_aside(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(8)
            for held in list(box.buffer.waiting()):
                box.buffer.set_aside(held, 0x99)
            (tmp_path / "refused" / "retry").touch()
            box.buffer.tick(0.0)
            async with delivering(box):
                await box.empty()
                await until(lambda: not next(box.buffer.waiting(), None))
                await box.seal()  # it is the first that is refused
                await until(lambda: len(box.refused) == 9)
            assert broker.connects == 1
            assert {name[-6:] for name in box.refused} == {".batch"}

    run(scenario())


def test_nor_where_so_many_were_refused_in_a_row_that_no_new_one_would_lie_there(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(IN_A_ROW)
            async with delivering(box):
                await box.empty()
                await offer_again(box)
                await until(lambda: len(both(broker.received)) == 2 * IN_A_ROW)
                await box.empty()
            assert broker.connects == 1

    run(scenario())


def test_a_topic_that_is_denied_is_named_and_the_status_says_so(tmp_path):
    class Told(type(Box(tmp_path / "one").status)):
        def payload(self, state: str) -> bytes:
            whys.append(box.state.why)
            return super().payload(state)

    whys: list[str | None] = []
    box: Any = None

    async def scenario() -> None:
        nonlocal box
        async with Broker(faults=Faults(ack_code=0x87, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            box.status = Told()
            await box.seal()
            async with delivering(box):
                await until(lambda: broker.connects > 2)
                broker.faults = Faults()
                await box.empty()
                assert box.state.why is None

    run(scenario())
    assert "the right to publish to bygate/v1/trd-0042/batch/backlog?" in str(whys[1])


def test_a_batch_that_is_under_way_is_not_sent_again_to_find_out_if_any_goes(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            box.state.refused_in_a_row = IN_A_ROW
            box.state.backlog_due = asyncio.get_running_loop().time() + 1000
            async with delivering(box):
                await until(lambda: box.state.connected)
                from_batch(5, broker, Faults(ack_reversed=2, ack_topics=BATCHES))
                await box.seal(5)
                await broker.wait_for(lambda got: both(got) == [1, 2, 3, 4, 5])
                await until(lambda: box.buffer.stats().waiting_batches <= 2)
                box.state.backlog_due = 0.0
                box.uplink.wake()
                await box.seal()
                await box.empty()
            assert both(broker.received) == [1, 2, 3, 4, 5, 6]

    run(scenario())


def test_one_batch_finds_out_if_any_goes_and_then_the_oldest_go_first(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            box.state.refused_in_a_row = IN_A_ROW
            await box.seal(5)
            async with delivering(box):
                await box.empty()
            assert both(broker.received) == [5, 1, 2, 3, 4]

    run(scenario())


def test_a_suspect_is_not_the_one_to_find_out_by_if_any_goes(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(3)
            box.state.refused_in_a_row = IN_A_ROW
            suspect(box.state.suspects, (3, box.buffer.epoch))
            async with delivering(box):
                await box.empty()
            assert both(broker.received) == [1, 2, 3]

    run(scenario())


# What was acknowledged before, and is refused when it is sent again


@pytest.mark.parametrize(
    ("kind", "of"),
    [("faults", Faults(ack_code=0x99)), ("limits", Limits(maximum_packet_size=500))],
)
def test_what_is_refused_when_it_is_sent_again_is_delivered(kind, of, tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), saved_within=3600.0)
            await seal_large(box, 1)
            async with delivering(box):
                await until(lambda: box.state.last_ack_ms)
                setattr(broker, kind, of)
                broker.drop()
                await box.empty()
            assert (box.refused, box.state.refused_in_a_row) == ([], 0)
            assert not box.state.unsaved

    run(scenario())


def test_and_so_it_is_though_connections_are_lost_before_the_broker_answers(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), saved_within=3600.0)
            await box.seal()
            async with delivering(box):
                await until(lambda: box.state.last_ack_ms)
                broker.faults = Faults(drop_after=2)  # behind the status
                broker.drop()
                await until(lambda: len(both(broker.received)) == 2)
                broker.faults = Faults(ack_code=0x99, ack_topics=BATCHES)
                await box.empty()
            assert both(broker.received) == [1, 1, 1]
            assert box.refused == []

    run(scenario())


def test_so_is_one_that_was_refused_before_it_was_acknowledged(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_next=1, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker), saved_within=3600.0)
            await box.seal()
            async with delivering(box):
                await until(lambda: box.refused)
                await offer_again(box)
                await until(lambda: box.state.last_ack_ms)
                broker.faults = Faults(ack_code=0x99, ack_topics=BATCHES)
                broker.drop()
                await until(lambda: not next(box.buffer.waiting(), None))
            box.buffer.tick(0.0)
            assert both(broker.received) == [1, 1, 1]
            assert (box.refused, box.buffer.stats().dropped) == ([], 0)

    run(scenario())


# A broker that refuses one batch with a code that tells nothing


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspect is tried again soon."""
    monkeypatch.setattr("gateway.suspects.PAUSE", 0.1)


def refuses(broker: Broker, sequence: int, code: int) -> None:
    def answer(message: Received) -> None:
        broker.faults = Faults(ack_code=code if both([message]) == [sequence] else None)

    broker.on_publish.append(answer)


@pytest.mark.parametrize("code", [0x80, 0x83, 0x91, 0x97])
def test_a_batch_that_is_refused_for_no_reason_holds_up_no_other(code, tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            refuses(broker, 3, code)
            box = Box(tmp_path, address(broker))
            await box.seal(30)
            async with delivering(box):
                await until(lambda: both(broker.received).count(3) == LOSSES + 2)
                assert list(box.state.suspects) == [3]
                connects = broker.connects
                await box.seal(3)
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                assert (connects, box.state.why) == (broker.connects, None)
            assert not box.refused

    run(scenario())
    assert caplog.text.count("batch 3: it does not go") == 1
    assert f"refuses batches: 0x{code:02x} " in caplog.text


@pytest.mark.usefixtures("soon")
def test_a_suspect_that_is_refused_alone_ends_no_connection_and_goes_in_the_end(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            refuses(broker, 3, 0x80)
            box = Box(tmp_path, address(broker))
            await box.seal(3)
            suspect(box.state.suspects, (3, box.buffer.epoch))
            async with delivering(box):
                await until(lambda: 3 in both(broker.received))
                broker.on_publish.clear()
                broker.faults = Faults()
                await asyncio.sleep(0.1)
                await box.seal()
                await box.empty()
            assert broker.connects == 1

    run(scenario())


def test_a_suspect_goes_alone(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_after=0.1, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(7)
            suspect(box.state.suspects, (1, box.buffer.epoch))
            under_way: list[list[int]] = []

            def look(_: Received) -> None:
                under_way.append(both([m for m in broker.received if m.answer is None]))

            broker.on_publish.append(look)
            async with delivering(box):
                await box.empty()
            assert [held for held in under_way if 1 in held] == [[1]]

    run(scenario())


def test_a_batch_that_is_set_aside_leaves_nothing_in_doubt(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            assert not any(box.state.suspects.lost_at((1, box.buffer.epoch)) for _ in range(LOSSES))
            assert box.state.suspects.in_doubt
            async with delivering(box):
                await until(lambda: not box.state.suspects.in_doubt)

    run(scenario())


def test_a_suspect_that_was_evicted_is_forgotten(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            suspect(box.state.suspects, (3, box.buffer.epoch))
            async with delivering(box):
                await until(lambda: not len(box.state.suspects))

    run(scenario())


def test_a_suspect_of_another_disk_is_no_batch_of_that_number_here(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), saved_within=3600.0)  # so that it stays
            await box.seal()
            suspect(box.state.suspects, (1, box.buffer.epoch + 1))
            async with delivering(box):
                await until(lambda: not len(box.state.suspects))
                await box.seal()
                await until(lambda: 2 in both(broker.received))
            assert both(broker.received) == [1, 2]

    run(scenario())


@pytest.mark.parametrize("code", [0x87, 0x97])
def test_a_broker_that_refuses_all_for_a_while_makes_none_a_suspect(code, tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=code, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal(10)
            async with delivering(box):
                await until(lambda: broker.connects > 4 * LOSSES)
                assert not list(box.state.suspects)
                refused = len(both(broker.received))
                broker.faults = Faults()
                await box.empty()
            assert len(both(broker.received)) <= refused + 1 + 10

    run(scenario())


# A broker that ends the connection at what is retained


def taken(broker: Broker) -> set[str]:
    """Return the last level of each topic on which something was acknowledged."""
    return {m.topic.split("/")[-1] for m in broker.received if m.answer is not None}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("code", [0, 0x87])
@pytest.mark.parametrize("denied", ["about", "status", "+"])
def test_a_broker_that_ends_the_connection_at_about_or_status_gets_the_batches(
    denied, code, protocol, tmp_path, caplog
):
    async def scenario() -> None:
        faults = Faults(end_topics=f"bygate/v1/+/{denied}", end_code=code)
        async with Broker(faults=faults) as broker:
            settings = {"protocol": protocol}
            box = Box(tmp_path, address(broker), about=b"{}", settings=settings)
            await box.seal(30)
            async with delivering(box):
                await box.empty()
                await until(lambda: box.state.connected)
                await until(
                    lambda: {"about", "status"} - {denied} <= taken(broker) or denied == "+"
                )
                await box.seal(3)
                await box.empty()
            assert broker.connects <= 2 * LOSSES + 3
            assert not list(box.state.suspects)

    run(scenario())
    for name in {"about", "status"} & {denied} or {"about", "status"}:
        assert f"{name}: the connection was lost {LOSSES} times" in caplog.text
        assert f"no right to publish to bygate/v1/trd-0042/{name}?" in caplog.text


def test_a_link_that_breaks_three_times_at_the_status_is_not_said_to_be_a_right_that_is_missing(
    tmp_path, caplog
):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=1)) as broker:
            box = Box(tmp_path, address(broker))
            async with delivering(box):
                await until(lambda: "status: the connection was lost" in caplog.text)

    run(scenario())
    assert "is the link bad, or has this gateway no right" in caplog.text


def test_a_mosquitto_that_hangs_up_behind_the_refusal_of_about_and_status_gets_the_batches(
    tmp_path,
):
    async def scenario() -> None:
        acl = tmp_path / "acl"
        acl.write_text("topic write bygate/v1/+/batch/#\n")
        lines = f"allow_anonymous true\nacl_file {acl}\nmax_queued_messages 0"  # so does 2.0.11
        async with Mosquitto(tmp_path, lines) as broker:
            there = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / "state", there, about=b"{}")
            await box.seal(30)
            async with delivering(box):
                await box.empty()

    run(scenario())


@pytest.mark.usefixtures("soon")
def test_a_status_that_was_denied_comes_once_it_is_not(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(end_topics="bygate/v1/+/+")) as broker:
            box = Box(tmp_path, address(broker), about=b"{}")
            await box.seal()
            async with delivering(box):
                await box.empty()
                broker.faults = Faults()
                await until(lambda: {"about", "status"} <= taken(broker))
                await until(lambda: "status" not in box.state.suspects)

    run(scenario())


@pytest.mark.usefixtures("soon")
def test_what_is_retained_and_innocent_is_not_paused_with_what_is_guilty(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(end_topics="bygate/v1/+/about")) as broker:
            box = Box(tmp_path, address(broker), about=b"{}")
            for name in ("about", "status"):
                assert [box.state.suspects.lost_at(name) for _ in range(LOSSES)][-1]
            async with delivering(box):
                await until(lambda: "status" in taken(broker))

    run(scenario())


@pytest.mark.parametrize("maximum", [None, 20, 3])
def test_what_is_retained_and_not_acknowledged_ends_no_connection(maximum, tmp_path):
    async def scenario() -> None:
        limits = Limits(receive_maximum=maximum)
        faults = Faults(ack_withheld=True, ack_topics="bygate/v1/+/+")
        async with Broker(limits=limits, faults=faults) as broker:
            box = Box(tmp_path, address(broker), about=b"{}", ack_within=0.1)
            async with delivering(box):
                await until(lambda: len(broker.retained) == 2)
                await asyncio.sleep(0.3)  # nothing at all is acknowledged meanwhile
                await box.seal(50)
                await box.empty()
            assert broker.connects == 1

    run(scenario())


def test_a_broker_that_takes_one_at_once_and_does_not_acknowledge_about_gets_batches(tmp_path):
    async def scenario() -> None:
        faults = Faults(ack_withheld=True, ack_topics="bygate/v1/+/about")
        async with Broker(limits=Limits(receive_maximum=1), faults=faults) as broker:
            box = Box(tmp_path, address(broker), about=b"{}", ack_within=0.15)
            async with delivering(box):
                await until(lambda: broker.received)
                await box.seal(3)
                await box.empty()

    run(scenario())


def test_a_broker_that_acknowledges_later_than_it_may_is_waited_for_longer(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_after=0.4)) as broker:
            box = Box(tmp_path, address(broker), about=b"{}", ack_within=0.2)
            await box.seal(30)
            async with delivering(box):
                await box.empty()
                assert broker.connects <= 3  # it waits twice as long, and where need be four times
                assert box.state.patience > 1
                broker.faults = Faults()
                await box.seal()
                await box.empty()
                assert box.state.patience == 1

    run(scenario())


# A broker that drops the connection whatever comes


def drops_at(broker: Broker, sequences: set[int]) -> None:
    def drop(message: Received) -> None:
        if set(both([message])) & sequences:
            broker.drop()

    broker.on_publish.append(drop)


def test_a_broker_that_drops_at_every_batch_makes_none_a_suspect(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            bad = set(range(1, 100))
            drops_at(broker, bad)
            await box.seal(20)
            async with delivering(box):
                await until(lambda: broker.connects > 5 * LOSSES)
                assert not list(box.state.suspects)
                bad.clear()
                await asyncio.wait_for(box.empty(), 5)

    run(scenario())


def test_several_batches_at_which_the_broker_breaks_off_hold_up_no_other(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker))
            drops_at(broker, {1, 2, 3, 7})
            await box.seal(10)
            async with delivering(box):
                await until(lambda: list(box.state.suspects) == [1, 2, 3, 7])
                await until(lambda: box.buffer.stats().waiting_batches == 4)
                assert box.state.catch_up(4) == 0

    run(scenario())


def test_a_batch_that_a_slow_proxy_delays_is_waited_for_when_it_goes_alone(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:

            def late(message: Received) -> None:
                broker.faults = Faults(ack_after=0.5 * (both([message]) == [1]))

            broker.on_publish.append(late)
            box = Box(tmp_path, address(broker), ack_within=0.2)
            await box.seal(3)
            suspect(box.state.suspects, (1, box.buffer.epoch))
            async with delivering(box):
                await box.empty()
            assert both(broker.received) == [2, 3, 1]
            assert broker.connects == 1

    run(scenario())


def test_when_a_suspect_is_delivered_all_are_due():
    now = 0.0
    suspects = Suspects(lambda: now)
    suspect(suspects, (1, 1), (2, 1))
    suspects.tried((1, 1))
    suspects.tried((2, 1))
    assert not suspects.due()
    suspects.delivered((2, 1))
    assert suspects.due() == [(1, 1)]


def test_a_suspicion_needs_another_that_was_delivered_since():
    suspects = Suspects()
    suspects.delivered((3, 1))
    assert not any(suspects.lost_at((2, 1)) for _ in range(9))
    assert suspects.in_doubt
    suspects.delivered((3, 1))
    assert suspects.lost_at((2, 1))
    assert not suspects.in_doubt


# What the disk does, and what a batch holds


class Failing(Disk):
    """A disk that neither reads nor writes files of such an ending."""

    at = "none"

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if name.endswith(Failing.at):
            raise OSError(errno.ENXIO, "no such device")
        return super().read(name, offset, length)

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name.endswith(Failing.at):
            raise OSError(errno.ENOSPC, "full")
        super().write(name, offset, data)

    def below(self, name: str) -> "Failing":
        return Failing(self.directory / name)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk fails at is tried again at once."""
    monkeypatch.setattr("gateway.session.AGAIN", 0.1)


@pytest.mark.usefixtures("at_once")
def test_a_batch_that_cannot_be_read_ends_no_session_and_comes_later(tmp_path, caplog, monkeypatch):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), disk=Failing)
            await box.seal(3)
            monkeypatch.setattr(Failing, "at", ".seg")
            tries: list[int] = []
            payload = box.buffer.payload
            box.buffer.payload = lambda held: tries.append(1) or payload(held)
            async with delivering(box):
                await until(lambda: len(tries) > 6)  # again, and again
                assert "no such device" in str(box.buffer.stats().faults)
                monkeypatch.setattr(Failing, "at", "none")
                await box.empty()
            assert broker.connects == 1
            assert box.state.lost == 0

    run(scenario())
    assert not [record for record in caplog.records if record.name != "gateway.beside"]


def test_a_session_that_waits_for_the_disk_is_gone_when_it_ends(tmp_path, monkeypatch):
    def sessions() -> int:
        gc.collect()
        return sum(isinstance(thing, Session) for thing in gc.get_objects())

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), disk=Failing)
            await box.seal(3)
            monkeypatch.setattr(Failing, "at", ".seg")
            before = sessions()
            async with delivering(box):
                await until(lambda: box.buffer.stats().faults)
                broker.drop()
                await until(lambda: broker.connects == 2 and box.state.connected)
                await until(lambda: sessions() <= before + 1)

    run(scenario())


@pytest.mark.usefixtures("at_once")
def test_a_batch_that_a_full_disk_cannot_set_aside_waits(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Failing, "at", ".batch")

    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_next=5, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker), disk=Failing)
            await box.seal()
            async with delivering(box):
                await until(lambda: len(both(broker.received)) > 1)
                assert "free space there" in str(box.buffer.stats().faults)
                assert "set aside" not in caplog.text
                monkeypatch.setattr(Failing, "at", "none")
                await until(lambda: box.delivered and box.refused)
            assert broker.connects == 1

    run(scenario())
    assert caplog.text.count("batch 1 set aside") == 1


def test_a_batch_that_is_gone_when_it_is_refused_is_not_said_to_be_set_aside(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker))
            await box.seal()
            (held,) = box.buffer.waiting()

            def evict(message: Received) -> None:
                if both([message]) == [1]:
                    box.buffer.acknowledge(held)

            broker.on_publish.append(evict)
            async with delivering(box):
                await until(lambda: both(broker.received))
                await box.seal()
                await until(lambda: box.refused)
            assert [name[:2] for name in box.refused] == ["2-"]

    run(scenario())
    assert "batch 2 set aside" in caplog.text
    assert "batch 1 set aside" not in caplog.text


def test_a_batch_that_this_version_cannot_decode_is_set_aside(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings={"encoding": "json"})
            await box.seal()
            held = next(box.buffer.waiting())
            box.buffer._spool.append(held.epoch, 2, 1, 1_763_900_000_000, b"\x81\xa1v\x09")
            box.buffer._intake.go_on_behind(2)
            await box.seal()
            async with delivering(box):
                await box.empty()
            assert box.refused == [f"2-{held.epoch}-0x99.batch"]
            assert len(broker.received) == 3

    run(scenario())
    assert "batch 2 set aside: no receiver could read it" in caplog.text
