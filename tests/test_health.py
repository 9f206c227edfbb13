"""The status says what is known, and null for what is not."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jumping

from gateway.buffer import Buffer
from gateway.certificate import Outlook
from gateway.clock import Clock
from gateway.disk import Disk
from gateway.health import Health
from gateway.rates import RATE_AFTER
from gateway.reading import TEMPERATURE, Reading
from gateway.session import UplinkState
from gateway.settings import BufferSettings
from gateway.traffic import Traffic

DAY_MS = 86_400_000
RATE_MS = RATE_AFTER * 1000


class Box:
    """A buffer and its status, on a clock that the test turns."""

    def __init__(self, directory: Path) -> None:
        self.ms = 0
        self.clock = Clock(
            wall_ns=lambda: (jumping.START_MS + self.ms) * 10**6,
            boot_ns=lambda: self.ms * 10**6,
            kernel=lambda: (4000, False),
            boot=1,
        )
        settings = BufferSettings(seal_interval=60, max_size=1 << 30, keep_free=0)
        self.buffer = Buffer(Disk(directory), settings, "trd-0042", 1)
        self.uplink = UplinkState()
        self.health = Health("trd-0042", self.clock, self.buffer, [], self.uplink)
        self.buffer.tick(0.0)

    def seal(self, count: int = 1) -> None:
        for _ in range(count):
            reading = Reading("it", TEMPERATURE, self.clock.now(), 1.5)
            self.buffer.append(reading)
            self.buffer.tick(self.ms / 1000)
            self.ms += 60_000
            self.buffer.tick(self.ms / 1000)

    def said(self, part: str) -> Any:
        return json.loads(self.health.payload("online"))[part]


def test_the_status_has_the_keys_that_the_technician_knows(tmp_path: Path):
    box = Box(tmp_path)
    assert {
        *("waiting_batches", "waiting_readings", "oldest_waiting", "refused", "dropped"),
        *("room_days", "written_bytes_day", "faults"),
    } <= box.said("buffer").keys()
    assert {
        *("connected", "broker", "last_ack", "caught_up_in_s", "unheard", "bytes_month"),
    } <= box.said("uplink").keys()


def test_the_oldest_that_waits_is_told_by_its_time(tmp_path: Path):
    box = Box(tmp_path)
    assert box.said("buffer")["oldest_waiting"] is None
    box.seal(2)
    assert box.said("buffer")["oldest_waiting"] == "2025-11-23T12:13:20Z"
    box.buffer.acknowledge(1)
    assert box.said("buffer")["oldest_waiting"] == "2025-11-23T12:14:20Z"


def test_a_rate_is_told_once_there_is_one(tmp_path: Path):
    box = Box(tmp_path)
    box.seal(3)
    early = box.said("buffer")
    assert (early["room_days"], early["written_bytes_day"]) == (None, None)
    box.ms = RATE_MS
    late, stats = box.said("buffer"), box.buffer.stats()
    assert late["written_bytes_day"] == round(stats.written * DAY_MS / RATE_MS)
    assert late["room_days"] == round(stats.room / (stats.sealed * DAY_MS / RATE_MS), 1)


def test_without_a_batch_there_is_no_rate(tmp_path: Path):
    box = Box(tmp_path)
    box.ms = DAY_MS
    assert box.said("buffer")["room_days"] is None


def test_catching_up_takes_no_time_where_nothing_waits_and_is_unknown_without_a_pace(
    tmp_path: Path,
):
    box = Box(tmp_path)
    assert box.said("uplink")["caught_up_in_s"] == 0
    box.seal(30)
    assert box.said("uplink")["caught_up_in_s"] is None
    box.uplink.pace = 0.5
    assert box.said("uplink")["caught_up_in_s"] == 15


def test_a_capped_backlog_is_forecast_by_its_cap_where_that_is_slower(tmp_path: Path):
    box = Box(tmp_path)
    box.seal(30)
    box.uplink.gap = 0.5
    assert box.said("uplink")["caught_up_in_s"] is None
    box.uplink.pace = 0.01
    assert box.said("uplink")["caught_up_in_s"] == 15
    box.uplink.pace = 1.0
    assert box.said("uplink")["caught_up_in_s"] == 30


def test_a_certificate_that_expires_is_in_the_status_and_worth_a_message(tmp_path: Path):
    box = Box(tmp_path)
    assert box.said("uplink")["certificate"] == {"until": None, "why": None}
    before = box.health.digest()
    until = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    box.uplink.outlook = Outlook(until, notice="in 29 days: renew it")
    found = box.said("uplink")["certificate"]
    assert found == {"until": "2027-01-02T03:04:05Z", "why": "in 29 days: renew it"}
    assert box.health.digest() != before


def test_traffic_is_of_the_last_thirty_days():
    day = 0
    traffic = Traffic(lambda: day * 86_400.0 + 7)
    for day in range(40):  # noqa: B007
        traffic.add(100)
    assert traffic.month == 3000
    day = 100
    assert traffic.month == 0
