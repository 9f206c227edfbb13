"""The daemon killed at random instants while readings and acknowledgements flow."""

import asyncio
import shutil
import time
from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import counting_driver
import pytest
from delivery import until
from gateway_process import batches, gateway, measured, sensor
from trials import found, times

from gateway.disk import Disk
from gateway.journal import Journal
from gateway.record import Kind, records
from gateway.wire import decode
from hil.broker import Broker

SENSORS = ("a", "b", "c")
FLUSH = 0.1
AT_RISK = 2 * FLUSH + 0.8
"""Seconds that may be lost: an interval, a tick, and what a busy disk takes for a sync."""


def on_disk(state: Path, copy: Path) -> set[tuple[str, object]]:
    """Return every reading that the files hold."""
    state.mkdir(exist_ok=True)
    shutil.copytree(state, copy, dirs_exist_ok=True)
    held = [r for frame in Journal(Disk(copy)).recover(-1)[0] for r in frame.readings]
    for segment in copy.glob("*.seg"):
        found = [r for r in records(segment.read_bytes()) if r.kind == Kind.BATCH]
        held += [reading for record in found for reading in decode(record.payload).readings]
    shutil.rmtree(copy)
    return {(r.sensor, r.value) for r in held}


def test_killed_at_any_instant_it_delivers_all_that_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kills, random = times(20, 500), Random(20)
    counting_driver.install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = {name: tmp_path / name for name in SENSORS}
    sensors = "".join(
        sensor(name, "counting", interval="100ms", file=file) for name, file in files.items()
    )
    state = tmp_path / "state"
    flushed: set[tuple[str, object]] = set()
    overdue: set[tuple[str, object]] = set()
    runs: list[dict[str, int]] = [dict.fromkeys(SENSORS, 0)]

    def taken() -> dict[str, int]:
        return {name: counting_driver.counted(file) for name, file in files.items()}

    async def scenario() -> None:
        async with Broker() as broker:
            for _ in range(kills):
                seal = random.choice(("300ms", "5s"))  # the longer leaves it to the journal
                intervals = {"flush_interval": f"{FLUSH * 1000:.0f}ms", "seal_interval": seal}
                came = len(broker.received)
                async with gateway(tmp_path, broker.url, sensors, **intervals) as daemon:
                    if random.random() < 0.8:  # else perhaps amid its start
                        await until(lambda: taken() != runs[-1], within=30)
                    await asyncio.sleep(random.uniform(0.2, 2.0))
                    killed = time.monotonic()
                    daemon.process.kill()
                    await daemon.process.wait()
                left = on_disk(state, tmp_path / "copy")
                arrived = {(r.sensor, r.value) for r in measured(broker.received[came:])}
                due = old(killed - AT_RISK)
                assert not due - left - arrived, "lost more than the interval"
                overdue.update(due)
                flushed.update(left)
                runs.append(taken())
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await daemon.says("connected")
                assert await daemon.stop() == 0
            check(broker)

    def old(before: float) -> set[tuple[str, object]]:
        """Return what was taken in this run before that."""
        ends = {n: bisect_left(counting_driver.noted(file), before) for n, file in files.items()}
        return {(name, n) for name in SENSORS for n in range(runs[-1][name], ends[name])}

    def check(broker: Broker) -> None:
        arrived = Counter((r.sensor, r.value) for r in measured(broker.received))
        assert not flushed - arrived.keys()
        assert set(arrived.values()) == {1}
        for name in SENSORS:
            for before, after in pairwise(run[name] for run in runs):
                there = [(name, number) in arrived for number in range(before, after)]
                assert there == sorted(there, reverse=True), "a hole that no kill explains"
        names = sorted((b.sequence, b.epoch, b.previous) for b in batches(broker.received))
        assert [sequence for sequence, _, _ in names] == list(range(1, len(names) + 1))
        for (before, old, _), (_, new, previous) in pairwise(names):
            assert previous == ((old, before) if new != old else None)
        assert {b.dropped for b in batches(broker.received)} == {0}
        total = sum(runs[-1].values())
        found(f"{kills} kills: {total} taken, {len(overdue)} due, {len(flushed)} flushed")
        assert len(flushed) > total / 2
        assert len(overdue) > kills

    asyncio.run(scenario())
