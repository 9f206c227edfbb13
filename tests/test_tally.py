"""What becomes of a sensor's turns is in the data, once an hour."""

import asyncio
import itertools
from collections import defaultdict

import jumping
import pytest
from gateway_process import gateway, sensor, values

from drivers import sds011
from gateway.clock import Clock
from gateway.poller import SerialPoller
from gateway.reading import Reading
from gateway.tally import Tally, quantity_of
from hil.broker import Broker
from hil.devices import Sds011
from hil.scripted import ScriptedPort

HOUR = 3600


def test_an_outage_is_in_the_data_hour_by_hour():
    told: list[Reading] = []

    def sink(reading: Reading) -> None:
        if reading.quantity.name.startswith("outcome"):
            told.append(reading)

    async def main() -> None:
        driver, clock = sds011.Driver(), jumping.clock()
        faults = itertools.chain([""] * 60, ["silent"] * 90, itertools.repeat(""))
        port = ScriptedPort(Sds011(seed=1), driver.frame, faults=faults, seed=1)
        poller = SerialPoller(
            name="air", driver=driver, interval=60, clock=clock, sink=sink, port=port
        )
        await jumping.for_seconds(4 * HOUR + 1, poller.run(30), Tally([poller], clock).run())

    jumping.run(main())
    found = defaultdict(list)
    for each in told:
        found[each.quantity.name].append(each.value)
    assert found == {"outcome_ok": [60, 0, 30, 60], "outcome_no_reply": [60, 30, 0]}
    hours = [r.instant.boot_ms for r in told if r.quantity.name == "outcome_ok"]
    assert hours == [HOUR * 1000 * n for n in range(1, 5)]
    assert {(r.sensor, r.quantity.unit, r.quality) for r in told} == {("air", "count", 0)}


class Late(asyncio.SelectorEventLoop):
    """A loop on which time goes on by what a test adds to it, too."""

    late = 0.0

    def time(self) -> float:
        return super().time() + self.late


def test_an_hour_is_no_longer_for_what_it_takes_to_tell():
    told: list[float] = []
    loop = Late()

    def sink(_: Reading) -> None:
        told.append(loop.time() - began)
        loop.late += 1.9

    clock = Clock(kernel=lambda: (4000, False))
    driver = sds011.Driver()
    poller = SerialPoller(
        name="air",
        driver=driver,
        interval=60,
        clock=clock,
        sink=sink,
        port=ScriptedPort(Sds011(), driver.frame),
    )
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        began = loop.time()
        runner.run(jumping.for_seconds(11, Tally([poller], clock, every=2).run()))
    assert [round(at / 2) for at in told] == [1, 2, 3, 4, 5]


def test_a_sensor_that_never_answered_has_no_ok_at_all():
    told: list[Reading] = []

    async def main() -> None:
        driver, clock = sds011.Driver(), jumping.clock()
        port = ScriptedPort(Sds011(), driver.frame, faults=itertools.repeat("silent"), seed=1)
        poller = SerialPoller(
            name="air", driver=driver, interval=60, clock=clock, sink=told.append, port=port
        )
        await jumping.for_seconds(HOUR + 1, poller.run(30), Tally([poller], clock).run())

    jumping.run(main())
    assert {r.quantity.name: r.value for r in told} == {"outcome_ok": 0, "outcome_no_reply": 60}


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        ("no reply", "outcome_no_reply"),
        ("not a number", "outcome_not_a_number"),
        ("ok", "outcome_ok"),
    ],
)
def test_a_count_is_named_after_its_outcome(outcome, name):
    assert quantity_of(outcome).name == name


def test_the_counts_of_the_last_hour_come_with_the_end(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            async with gateway(tmp_path, broker.url, sensor("box", "host")) as daemon:
                await broker.wait_for(lambda seen: len(values(seen, "box", "memory_free")) >= 3)
                assert await daemon.stop() == 0
            taken = values(broker.received, "box", "memory_free")
            assert values(broker.received, "box", "outcome_ok") == [len(taken)]

    asyncio.run(asyncio.wait_for(scenario(), 30))
