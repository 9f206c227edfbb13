"""Batches through a link and a broker that fail in every way they can, one after the other."""

from pathlib import Path
from random import Random

from delivery import BATCHES, Box, both, delivering, lane, run, until
from trials import found, times

from gateway.reading import COUNT, Instant, Reading
from gateway.settings import Broker as Address
from hil.broker import Broker, Faults, Limits
from hil.valve import Valve

BETWEEN = 120
"""Batches from one fault to the next."""
MEANWHILE = 4
"""Batches sealed during a fault; in the field one a minute is, and an ack is missed after 15 s."""


LARGEST = 400


class Link:
    """A gateway, a valve and a broker; each fault lasts until its method returns."""

    def __init__(self, box: Box, valve: Valve, broker: Broker, random: Random) -> None:
        self.box, self.valve, self.broker, self.random = box, valve, broker, random

    async def reset(self) -> None:
        self.valve.cut("rst")

    async def ended(self) -> None:
        self.valve.cut("fin")

    async def swallows_batches(self) -> None:
        await self._hole("up")

    async def swallows_acks(self) -> None:
        await self._hole("down")

    async def _hole(self, way: str) -> None:
        self.valve.holes = {way}
        await self._meanwhile()
        await until(lambda: not self.box.state.connected)
        self.valve.holes = set()

    async def refused(self) -> None:
        await self.valve.shut()
        self.valve.cut("rst")
        await self._meanwhile()
        await self.valve.open()

    async def restarted(self) -> None:
        await self.broker.down()
        await self._meanwhile()
        await self.broker.up()

    async def not_acknowledged(self) -> None:
        await self._broker_does(Faults(ack_withheld=True, ack_topics=BATCHES))

    async def not_authorized(self) -> None:
        await self._broker_does(Faults(ack_code=0x87, ack_topics=BATCHES))

    async def _broker_does(self, faults: Faults) -> None:
        self.broker.faults = faults
        await self._meanwhile()
        await until(lambda: not self.box.state.connected)
        self.broker.faults = Faults()

    async def _meanwhile(self) -> None:
        await self.box.seal(self.random.randint(1, MEANWHILE))


FAULTS = (
    *(Link.reset, Link.ended, Link.swallows_batches, Link.swallows_acks),
    *(Link.refused, Link.restarted, Link.not_acknowledged, Link.not_authorized),
)


def add_what_makes_a_batch_too_large(box: Box, random: Random) -> None:
    for _ in range(LARGEST // 8):
        at = Instant(1_763_900_000_000 + box.sealed, box.sealed, 2)
        box.buffer.append(Reading("it", COUNT, at, random.random()))


def test_batches_survive_whatever_link_and_broker_do(tmp_path: Path):
    total = times(500, 5000)

    async def scenario() -> None:
        random = Random(total)
        too_large: set[int] = set()
        limits = Limits(maximum_packet_size=LARGEST)
        async with Broker(limits=limits) as broker, Valve(broker.port) as valve:
            near = Address(valve.host, valve.port, tls=False)
            box = Box(tmp_path, near, ack_within=1.0)
            link = Link(box, valve, broker, random)
            async with delivering(box):
                while box.sealed < total:
                    for number, fault in enumerate(random.sample(FAULTS, len(FAULTS))):
                        for _ in range(random.randint(1, 2 * BETWEEN - 1)):
                            await box.seal()
                        await until(lambda: box.state.connected)
                        if number != 1:  # that one finds a backlog with a window full under way
                            await until(lambda: box.delivered)
                        await fault(link)
                    too_large.add(box.sealed + 1)
                    add_what_makes_a_batch_too_large(box, random)
                    await box.seal()
                await until(lambda: box.delivered, within=60)
        assert set(both(broker.received)) == set(range(1, box.sealed + 1)) - too_large
        assert box.refused == sorted(f"{n}-{box.buffer.epoch}-0x95.batch" for n in too_large)
        assert box.buffer.stats().dropped == 0
        live = lane(broker.received, "live")
        assert live == sorted(set(live))
        # What the broker did not authorize it has not taken: no receiver gets it twice
        taken = both([m for m in broker.received if m.answer != 0x87])
        again = len(taken) - len(set(taken))
        found(f"{len(set(taken))} batches, {valve.connects} connections, {again} sent again")
        assert again <= 0.05 * len(taken)

    run(scenario(), within=3600)
