"""A day of twenty sensors with faults, in seconds: real pollers, buffer and encoding."""

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import jumping

from drivers import pms5003, sds011
from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.driver import SerialDriver
from gateway.listener import SerialListener
from gateway.poller import SerialPoller
from gateway.reading import PM10, Reading
from gateway.settings import BufferSettings
from gateway.wire import decode
from hil.devices import Pms5003, Sds011
from hil.scripted import ScriptedPort

DAY, MINUTE = 86400, 60
OUTCOMES = {
    **dict.fromkeys(("", "noise before", "echo"), "ok"),
    **dict.fromkeys(("silent", "half frame", "late"), "no reply"),
    "flipped bit": "bad checksum",
    "unplugged": "no port",
}
CYCLE = ("", "silent", "", "half frame", "flipped bit", "", "late", "noise before", "echo", "")


class Day:
    """Eighteen sensors that are asked and two that stream, and what became of their readings."""

    def __init__(self, directory: Path) -> None:
        self.clock = jumping.clock()
        self.taken: list[Reading] = []
        settings = BufferSettings(flush_interval=MINUTE, seal_interval=MINUTE, keep_free=0)
        self.buffer = Buffer(Disk(directory), settings, "trd-0042", self.clock.boot)
        self.asked = [
            self.sensor(f"s{n}", Sds011(seed=n), sds011.Driver(), SerialPoller, n)
            for n in range(18)
        ]
        self.heard = [
            self.sensor(f"p{n}", Pms5003(seed=n, period=10), pms5003.Driver(), SerialListener, n)
            for n in range(2)
        ]

    def sensor(self, name: str, device: Any, driver: SerialDriver, kind: Any, n: int) -> Any:
        faults = itertools.cycle(CYCLE[n % 10 :] + CYCLE[: n % 10])
        if name == "s17":
            faults = itertools.chain(["", "", "unplugged"] * 100, itertools.repeat(""))
        port = ScriptedPort(device, driver.frame, faults=faults, seed=n)
        return kind(
            name=name,
            driver=driver,
            interval=MINUTE,
            clock=self.clock,
            sink=self.sink,
            port=port,
        )

    def sink(self, reading: Reading) -> None:
        self.taken.append(reading)
        self.buffer.append(reading)

    async def keep(self) -> None:
        while True:
            self.buffer.tick(jumping.now())
            await asyncio.sleep(MINUTE)

    async def pass_by(self) -> None:
        runs = [poller.run(n / 2) for n, poller in enumerate([*self.asked, *self.heard])]
        await jumping.for_seconds(DAY - 1, self.keep(), *runs)
        self.buffer.close()


def test_a_day_of_twenty_sensors_with_faults_is_counted_and_kept_to_the_last_reading(tmp_path):
    async def main() -> None:
        day = Day(tmp_path)
        await day.pass_by()
        for poller in day.asked:
            sent = poller.port.sent
            assert poller.state.outcomes == Counter(OUTCOMES[s.fault] for s in sent)
            good = [s.values for s in sent if OUTCOMES[s.fault] == "ok"]
            mine = [r.value for r in day.taken if r.sensor == poller.name]
            assert mine == [value for values in good for value in values.values()]
        for poller in day.asked[:17]:
            assert poller.state.outcomes == {"ok": 864, "no reply": 432, "bad checksum": 144}
        assert day.asked[17].state.outcomes == {"ok": 1437, "no port": 100}  # two more each 122 s
        for poller in day.heard:
            whole = [s for s in poller.port.sent if OUTCOMES[s.fault] == "ok" or s.fault == "late"]
            assert poller.state.outcomes["ok"] == len(whole) == 6047  # of 8639
        without_drift(day)
        kept_once(day)

    jumping.run(main())


def without_drift(day: Day) -> None:
    for n, poller in enumerate(day.asked[:17]):
        first = n * 500
        times = [r.instant.boot_ms for r in day.taken if r.sensor == poller.name]
        assert {(ms - first) % 60_000 for ms in times} <= {0, 1}  # ms are cut, not rounded
    last = max(r.instant.boot_ms for r in day.taken if r.quantity == PM10)
    assert last > (DAY - 60) * 1000


def kept_once(day: Day) -> None:
    batches = [decode(day.buffer.payload(held) or b"") for held in day.buffer.waiting()]
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
    assert len(batches) == 1440  # one a minute
    found = [row(reading) for batch in batches for reading in batch.readings]
    assert len(found) == len(day.taken) > 2 * 17 * 864
    assert sorted(found) == sorted(map(row, day.taken))


def row(reading: Reading) -> tuple[Any, ...]:
    at = reading.instant
    return reading.sensor, reading.quantity.name, at.wall_ms, reading.value, reading.quality
