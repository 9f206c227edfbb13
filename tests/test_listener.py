"""What the listener of a BLE sensor says of advertisements that tell nothing, or nothing new."""

import asyncio

import pytest

from gateway.advertisement import Advertisement
from gateway.clock import Clock
from gateway.driver import NoAdapter, find
from gateway.listener import AdvertisementListener

ADDRESS = "CC:B8:33:4C:88:4F"
GOOD = bytes.fromhex("0512fc5394c37c0004fffc040cac364200cdcbb8334c884f")


class Open:
    """A radio that listens since ever."""

    why = ""
    since = float("-inf")

    def __init__(self, *, silent=False):
        self.unsure = lambda within: silent


def after(turns, *data, **air):
    """Return a listener after so many turns, in each of which all of this is heard."""

    async def scenario():
        readings = []
        listener = AdvertisementListener(
            **{"name": "hall", "driver": find("ruuvi")(), "interval": 0.05, "clock": Clock()},
            **{"sink": readings.append, "air": Open(**air)},
        )
        task = asyncio.create_task(listener.run())
        outcomes = listener.state.outcomes
        while sum(n for name, n in outcomes.items() if name != "ok") < turns:
            for each in data:
                listener.hear("hci0", Advertisement(address=ADDRESS, manufacturer_data=each))
            await asyncio.sleep(0.01)
        task.cancel()
        return listener.state

    return asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize("data", [{}, {0x004C: b"\x10\x05"}])
def test_what_its_driver_does_not_read_is_said_to_be_heard(data):
    state = after(3, data)
    assert "none that its driver reads" in state.why
    assert state.outcomes["no reply"] == 3


def test_a_bad_frame_that_is_repeated_stays_the_reason_and_is_counted_each_turn():
    state = after(4, {0x0499: GOOD[:20]})
    assert "no length of a data format" in state.why
    assert set(state.outcomes) == {"bad frame"}


def test_silence_is_said_to_be_silence():
    assert "no advertisement within" in after(2).why


def test_a_sensor_is_not_blamed_while_it_is_not_known_why_nothing_at_all_is_heard():
    assert set(after(2, silent=True).outcomes) == {NoAdapter.outcome}
