"""The connections of one adapter: who is next, and how long others wait for those that hang."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import jumping

from gateway.places import PROBE, Places

HANGS = 1000.0


@dataclass
class Device:
    """A device that comes at a moment, takes so long to connect to, and then to be read."""

    at: float = 0.0
    takes: float = 1.0
    reads: float = 0.0
    doubt: int = 0
    interval: float = 60.0
    connected: float | None = None
    over: float | None = None
    wanted: bool = False

    async def come(self, places):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.at)
        with suppress(TimeoutError):
            async with places.place(self.doubt, self.interval) as turn:
                async with places.connecting(turn, 20):
                    await asyncio.sleep(self.takes)
                self.connected = round(loop.time(), 3)
                await asyncio.sleep(self.reads)
        self.over, self.wanted = round(loop.time(), 3), turn.wanted


def come(*devices):
    """Let devices come to one adapter, and return them when all have gone."""

    async def trial():
        places = Places()
        async with asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.come(places))

    jumping.run(trial())
    return devices


def test_one_that_hangs_has_all_its_patience_while_nobody_waits():
    (ill,) = come(Device(takes=HANGS, doubt=6))
    assert (ill.connected, ill.over, ill.wanted) == (None, 20, False)


def test_one_that_hangs_is_let_go_of_before_another_loses_its_turn():
    ill, healthy = come(Device(takes=HANGS, doubt=1), Device(at=3, interval=10))
    assert (ill.over, healthy.connected) == (8, 9)
    assert ill.wanted


def test_one_has_time_to_be_connected_to_however_short_the_interval_of_another():
    ill, healthy = come(Device(takes=HANGS, doubt=6), Device(at=1, interval=1))
    assert (ill.over, healthy.connected) == (PROBE, PROBE + 1)


def test_one_that_others_wait_for_from_the_start_has_no_longer():
    first, ill, healthy = come(
        Device(takes=1),
        Device(at=0.1, takes=HANGS, doubt=1, interval=1),
        Device(at=0.5, interval=2, doubt=1),
    )
    assert (first.connected, ill.over, healthy.connected) == (1, 1 + PROBE, 2 + PROBE)


def test_one_that_is_slow_is_not_hurried_by_those_more_in_doubt():
    slow, ill = come(Device(takes=15), Device(at=1, takes=HANGS, doubt=6, interval=1))
    assert (slow.connected, ill.over) == (15, 35)


def test_those_in_doubt_have_one_place_and_the_others_the_rest():
    silent = [Device(reads=10, doubt=1) for _ in range(2)]
    healthy = [Device(at=2, reads=10) for _ in range(3)]
    come(*silent, *healthy)
    assert sorted(each.connected for each in silent) == [1, 14]
    assert sorted(each.connected for each in healthy) == [3, 4, 12]


def test_one_connects_at_a_time_and_three_are_connected():
    devices = come(*(Device(reads=10) for _ in range(4)))
    assert sorted(device.connected for device in devices) == [1, 2, 3, 12]


def test_those_least_in_doubt_go_first():
    _, ill, hiccup, healthy = come(
        Device(takes=2, interval=1),
        Device(at=0.1, doubt=6),
        Device(at=1, doubt=2),
        Device(at=1.5),
    )
    assert [healthy.connected, hiccup.connected, ill.connected] == [3, 4, 5]


def test_one_with_a_short_interval_goes_before_one_with_a_long():
    _, slow, fast = come(Device(), Device(at=0.1), Device(at=0.5, interval=5))
    assert (fast.connected, slow.connected) == (2, 3)


def test_those_in_doubt_are_passed_by_all_others_but_not_for_ever():
    healthy = [Device(at=n * 0.9, interval=30) for n in range(100)]
    new, *_ = come(Device(at=0.1, doubt=1, interval=30), *healthy)
    assert 60 < new.connected < 75


def test_one_that_goes_as_its_turn_comes_leaves_it_to_the_next():
    async def trial():
        places, last = Places(), Device(at=0.5, doubt=1)
        async with asyncio.TaskGroup() as tasks:
            async with places.place(0, 60):
                going = tasks.create_task(Device(at=1).come(places))
                tasks.create_task(last.come(places))
                await asyncio.sleep(2)
            going.cancel()
        assert last.connected == 3

    jumping.run(asyncio.wait_for(trial(), 60))
