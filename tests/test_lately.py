"""A broker may be killed before it has saved what it acknowledged."""

import asyncio
from pathlib import Path

import jumping
import pytest
from delivery import BATCHES, Box, address, both, delivering, lane, run, until

from gateway.held import Held
from gateway.lately import Lately
from gateway.settings import Broker as Address
from hil.broker import Broker, Faults
from hil.valve import Valve

FOR_EVER = 3600.0


def received_with_a_break_behind(batches: int, directory: Path, saved_within: float) -> list[int]:
    """Return what a broker got when the link broke once, as soon as it had acknowledged all."""
    got: list[int] = []

    async def scenario() -> None:
        async with Broker() as broker, Valve(broker.port) as valve:
            near = Address(valve.host, valve.port, tls=False)
            box = Box(directory, near, saved_within=saved_within)
            async with delivering(box):
                await until(lambda: box.state.connected)
                await box.seal(batches)
                kept = 1 if saved_within else 0
                await until(lambda: len(both(broker.received)) == batches)
                await until(lambda: box.buffer.stats().waiting_batches == kept)
                valve.cut("rst")
                await until(lambda: broker.connects == 2 and box.state.connected)
                await box.empty()
                await box.seal()
                await until(lambda: batches + 1 in both(broker.received))
            got.extend(both(broker.received))
            assert lane(broker.received, "live") == list(range(1, batches + 2))

    run(scenario())
    return got


@pytest.mark.parametrize("batches", [1, 2, 10])
def test_what_was_acknowledged_the_moment_before_a_link_broke_is_sent_again(tmp_path, batches):
    received = received_with_a_break_behind(batches, tmp_path, FOR_EVER)
    assert received == [*range(1, batches + 1), batches, batches + 1]


def test_it_is_kept_however_long_the_link_is_away(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), saved_within=1.0)
            async with delivering(box):
                await until(lambda: box.state.connected)
                await box.seal()
                await until(lambda: box.state.last_ack_ms)
                await broker.down()
                await asyncio.sleep(1.2)
                assert not box.delivered
                await broker.up()
                await until(lambda: both(broker.received) == [1, 1])

    run(scenario())


def test_what_the_link_outlived_is_not_sent_again(tmp_path):
    assert received_with_a_break_behind(3, tmp_path, 0.0) == [1, 2, 3, 4]


def test_links_that_break_at_every_batch_hold_up_none(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(drop_after=3)) as broker:  # status, one batch, and the next
            box = Box(tmp_path, address(broker), saved_within=FOR_EVER, steady=0.0)
            await box.seal(6)
            async with delivering(box):
                await until(lambda: set(both(broker.received)) == set(range(1, 7)))
                await until(lambda: box.buffer.stats().waiting_batches <= 1)

    run(scenario())


def test_each_is_kept_for_its_own_time():
    async def main() -> None:
        gone: list[Held] = []
        lately = Lately(gone.append, 0.5, ())
        one, other = (Held(1, sequence, 1, 0, "1.seg", 0, 1) for sequence in (1, 2))
        for held in (one, other):
            lately.add(held)
            await asyncio.sleep(0.4)
        assert gone == [one]
        await asyncio.sleep(0.2)
        assert gone == [one, other]

    jumping.run(main())


def test_a_batch_is_not_sent_twice_while_it_is_kept(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_code=0x99, ack_topics=BATCHES)) as broker:
            box = Box(tmp_path, address(broker), saved_within=FOR_EVER)
            async with delivering(box):
                await box.seal()
                await until(lambda: box.refused)
                broker.faults = Faults()
                await box.seal()
                await until(lambda: len(both(broker.received)) == 2)
                (tmp_path / "refused" / "retry").touch()  # then the backlog is looked at anew
                await box.seal()
                await until(lambda: len(both(broker.received)) == 4)
            assert sorted(both(broker.received)) == [1, 1, 2, 3]

    run(scenario())
