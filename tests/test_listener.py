"""What the listener of a BLE sensor says of advertisements that tell nothing, or nothing new."""

import asyncio

import pytest

from gateway.advertisement import Advertisement, full_uuid
from gateway.clock import Clock
from gateway.driver import NoAdapter, find
from gateway.key import Key
from gateway.listener import AdvertisementListener

ADDRESS = "CC:B8:33:4C:88:4F"
GOOD = bytes.fromhex("0512fc5394c37c0004fffc040cac364200cdcbb8334c884f")


RUUVI = find("ruuvi")()
BLU = "54:48:E6:8F:80:A5"
KEY = Key("231d39c1d7cc1ab1aee224cd096db932")
SEALED = Advertisement(
    address=BLU,
    service_data={full_uuid("fcd2"): bytes.fromhex("41a47266c95f730011223378237214")},
)


def advert(data):
    return Advertisement(address=ADDRESS, manufacturer_data=data)


class Open:
    """A radio that listens since ever."""

    why = ""
    since = float("-inf")

    def __init__(self, *, silent=False):
        self.unsure = lambda within: silent


def after(turns, *data, once=None, driver=RUUVI, **air):
    """Return a listener after so many turns, in each of which all of this is heard.

    What is heard `once` is so before.
    """

    async def scenario():
        readings = []
        listener = AdvertisementListener(
            **{"name": "hall", "driver": driver, "interval": 0.05, "clock": Clock()},
            **{"sink": readings.append, "air": Open(**air)},
        )
        task = asyncio.create_task(listener.run())
        for each in filter(None, [once]):
            listener.hear("hci0", each)
        outcomes = listener.state.outcomes
        while sum(n for name, n in outcomes.items() if name != "ok") < turns:
            for each in data:
                listener.hear("hci0", each)
            await asyncio.sleep(0.01)
        task.cancel()
        return listener.state

    return asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize("data", [{}, {0x004C: b"\x10\x05"}])
def test_what_its_driver_does_not_read_is_said_to_be_heard(data):
    state = after(3, advert(data))
    assert "none that its driver reads" in state.why
    assert state.outcomes["no reply"] == 3


def test_a_bad_frame_that_is_repeated_stays_the_reason_and_is_counted_each_turn():
    state = after(4, advert({0x0499: GOOD[:20]}))
    assert "no length of a data format" in state.why
    assert set(state.outcomes) == {"bad frame"}


def test_silence_is_said_to_be_silence():
    assert "no advertisement within" in after(2).why


def test_a_sensor_is_not_blamed_while_it_is_not_known_why_nothing_at_all_is_heard():
    assert set(after(2, silent=True).outcomes) == {NoAdapter.outcome}


def test_one_that_says_only_something_else_is_not_said_to_repeat_itself():
    state = after(3, advert({0x004C: b"\x10\x05"}), once=advert({0x0499: GOOD}))
    assert "none that its driver reads" in state.why


def test_one_that_repeats_what_ought_to_change_is_said_to():
    sealed = find("bthome")(key=KEY)
    state = after(3, SEALED, once=SEALED, driver=sealed)
    assert "all repeat what it said before" in state.why
    state = after(3, SEALED, Advertisement(address=BLU), once=SEALED, driver=sealed)
    assert "none says anything new" in state.why
