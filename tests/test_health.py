"""The status says what is known, and null for what is not."""

import json
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jumping
import pytest
from delivery import suspect
from test_buffer import SmallDisk
from test_unreadable import WornDisk

from drivers import sds011
from gateway.buffer import Buffer
from gateway.certificate import Outlook
from gateway.clock import Clock
from gateway.connection import WINDOW
from gateway.disk import BLOCK, Disk
from gateway.driver import BadChecksum, NoReply, PortError
from gateway.health import Health
from gateway.poller import Poller
from gateway.rates import RATE_AFTER
from gateway.reading import PM2_5, TEMPERATURE, Reading
from gateway.settings import BufferSettings
from gateway.traffic import Traffic
from gateway.uplinkstate import UplinkState

DAY_MS = 86_400_000
RATE_MS = int(RATE_AFTER * 1000)


class Box:
    """A buffer and its status, on a clock that the test turns."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.ms, self.error_us = 0, 4000
        self.clock = Clock(
            wall_ns=lambda: (jumping.START_MS + self.ms) * 10**6,
            boot_ns=lambda: self.ms * 10**6,
            kernel=lambda: (self.error_us, False),
            boot=1,
        )
        settings = BufferSettings(seal_interval=60, max_size=1 << 30, keep_free=0)
        self.buffer = Buffer(disk or Disk(directory), settings, "trd-0042", 1)
        self.uplink = UplinkState()
        self.it = Poller(
            name="it", driver=sds011.Driver(), interval=1, clock=self.clock, sink=self.buffer.append
        )
        self.health = Health("trd-0042", self.clock, self.buffer, [self.it], self.uplink)
        self.buffer.tick(0.0)
        self._digest = self.health.digest()

    def take(self) -> None:
        self.buffer.append(Reading("it", TEMPERATURE, self.clock.now(), 1.5))
        self.buffer.tick(self.ms / 1000)

    def seal(self, count: int = 1) -> None:
        for _ in range(count):
            self.take()
            self.ms += 60_000
            self.buffer.tick(self.ms / 1000)

    def pass_by(self, ms: int) -> None:
        self.ms += ms
        self.buffer.tick(self.ms / 1000)

    def changed(self) -> bool:
        """Whether the digest has changed since it was asked last."""
        before, self._digest = self._digest, self.health.digest()
        return before != self._digest

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
    assert box.said("uplink")["last_ack"] is None


def test_the_last_words_do_not_say_connected_for_ever(tmp_path: Path):
    box = Box(tmp_path)
    box.uplink.connected = True
    assert box.said("uplink")["connected"] is True
    assert json.loads(box.health.payload("offline"))["uplink"]["connected"] is False


def test_the_oldest_that_waits_is_told_by_its_time(tmp_path: Path):
    box = Box(tmp_path)
    assert box.said("buffer")["oldest_waiting"] is None
    box.seal(2)
    assert box.said("buffer")["oldest_waiting"] == "2025-11-23T12:13:20Z"
    box.buffer.acknowledge(next(box.buffer.waiting()))
    assert box.said("buffer")["oldest_waiting"] == "2025-11-23T12:14:20Z"


def test_a_rate_is_told_once_there_is_one(tmp_path: Path):
    box = Box(tmp_path)
    box.seal(3)
    early = box.said("buffer")
    assert (early["room_days"], early["written_bytes_day"]) == (None, None)
    box.pass_by(RATE_MS - box.ms)
    late, stats = box.said("buffer"), box.buffer.stats()
    written = stats.written - BLOCK  # the note of the rate itself comes after it
    assert late["written_bytes_day"] == round(written * DAY_MS / RATE_MS)
    assert late["room_days"] == round(stats.room / (stats.sealed * DAY_MS / RATE_MS), 1)


def test_a_rate_is_known_at_once_after_a_start(tmp_path: Path):
    box = Box(tmp_path)
    box.seal(3)
    box.pass_by(RATE_MS - box.ms)
    before, after = box.said("buffer"), Box(tmp_path).said("buffer")
    assert after["written_bytes_day"] == before["written_bytes_day"]
    assert after["room_days"] == pytest.approx(before["room_days"], rel=0.1)


def test_a_rate_is_that_of_the_last_day(tmp_path: Path):
    box = Box(tmp_path)
    for _ in range(48):
        box.pass_by(3_600_000)
    day_before, room = box.buffer.stats().sealed, box.buffer.stats().room
    box.seal(100)
    sealed = box.buffer.stats().sealed - day_before
    hours = 24 + 100 / 60
    assert box.said("buffer")["room_days"] == pytest.approx(room / sealed * hours / 24, rel=0.05)
    for _ in range(26):
        box.pass_by(3_600_000)
    assert box.said("buffer")["room_days"] is None
    assert box.said("buffer")["written_bytes_day"] < 26 * 4096


def test_without_a_batch_there_is_no_rate(tmp_path: Path):
    box = Box(tmp_path)
    box.pass_by(DAY_MS)
    assert box.said("buffer")["room_days"] is None


def test_a_rate_that_becomes_known_is_worth_a_message_and_not_each_one_after(tmp_path: Path):
    box = Box(tmp_path)
    box.pass_by(RATE_MS - 1)
    assert not box.changed()
    box.pass_by(1)  # what is written in a day is known
    assert box.changed()
    box.seal()
    assert (box.said("buffer")["room_days"] is not None, box.changed()) == (True, True)
    box.seal()
    assert not box.changed()


def test_catching_up_takes_no_time_where_nothing_waits_and_is_unknown_without_a_pace(
    tmp_path: Path,
):
    box = Box(tmp_path)
    assert box.said("uplink")["caught_up_in_s"] == 0
    box.seal(30)
    assert box.said("uplink")["caught_up_in_s"] is None
    box.uplink.pace = 0.5
    assert box.said("uplink")["caught_up_in_s"] == 15
    box.uplink.pace = 0.01
    assert box.said("uplink")["caught_up_in_s"] == 1


def test_when_all_is_delivered_is_not_known_while_the_disk_takes_nothing(tmp_path: Path):
    box = Box(tmp_path, disk := SmallDisk(tmp_path))
    box.uplink.pace = 0.5
    box.seal(30)
    disk.dead = True
    box.buffer.acknowledge(next(box.buffer.waiting()))
    box.pass_by(60_000)
    assert box.buffer.fault
    assert box.said("uplink")["caught_up_in_s"] == 15  # all that waits is on disk
    box.seal()
    assert box.said("uplink")["caught_up_in_s"] is None
    disk.dead = False
    box.pass_by(60_000)
    box.take()
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


def test_a_clock_that_is_set_is_worth_a_message(tmp_path: Path):
    box = Box(tmp_path)
    box.error_us = 16_000_000
    assert box.changed()
    box.error_us = 15_000_000
    assert box.changed()
    box.error_us = 5000
    assert not box.changed()


def test_the_first_batch_that_nobody_hears_is_worth_a_message_and_no_other(tmp_path: Path):
    box = Box(tmp_path)
    box.uplink.unheard = 1
    assert box.changed()
    box.uplink.unheard = 2
    assert not box.changed()


def test_another_reason_is_worth_a_message_and_not_another_count_in_it(tmp_path: Path):
    box = Box(tmp_path)
    fails(box.it, NoReply("nothing to read within 0.3 s, 7 bytes came"))
    assert box.changed()
    fails(box.it, NoReply("nothing to read within 0.3 s, 8 bytes came"))
    assert not box.changed()
    fails(box.it, BadChecksum("sum ab, the frame says ac"))
    assert box.changed()
    fails(box.it, BadChecksum("sum fe, the frame says ff"))
    assert not box.changed()


def test_another_fault_of_a_port_is_worth_a_message(tmp_path: Path):
    box = Box(tmp_path)
    fails(box.it, PortError("/dev/ttyUSB0 is not there: is the adapter plugged in?"))
    assert box.changed()
    fails(box.it, PortError("/dev/ttyUSB0: no permission"))
    assert box.changed()


def test_a_batch_that_waits_for_its_turn_is_worth_no_message(tmp_path: Path):
    box = Box(tmp_path)
    box.seal()
    assert not box.changed()


def test_a_sensor_is_silent_until_it_gives_readings_and_when_it_gives_none(tmp_path: Path):
    box, states = Box(tmp_path), []
    for turn in (lambda: None, lambda: gives(box.it, 7.0), lambda: fails(box.it, NoReply("x"))):
        turn()
        states.append(box.said("sensors")["it"]["state"])
    assert states == ["silent", "ok", "silent"]


def test_a_sensor_that_gives_now_and_then_what_is_implausible_is_worth_no_message(tmp_path: Path):
    gives((box := Box(tmp_path)).it, 7.0)
    box.changed()
    gives(box.it, 99_999.0)
    assert not box.changed()


def test_a_fault_whose_path_is_no_text_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gateway.buffer.log.disabled", True)  # no worker can hand on what it logs
    (tmp_path / "\udcff").touch()
    box = Box(tmp_path / "\udcff")
    assert box.said("buffer")["faults"][0].startswith(f"{tmp_path}/?: File exists")


def test_an_uplink_that_delivers_again_is_worth_a_message(tmp_path: Path):
    box = Box(tmp_path)
    box.uplink.why = "connection lost"
    assert box.changed()
    box.uplink.why = None
    assert box.changed()


def test_the_short_status_says_who_and_how_it_is(tmp_path: Path):
    box = Box(tmp_path)
    whole, short = (json.loads(part) for part in (box.health.payload("online"), box.health.will()))
    assert short["state"] == "offline"
    assert json.loads(box.health.will("online")).items() <= whole.items()


def test_batches_that_are_held_back_are_listed_up_to_a_bound_and_no_part_of_the_forecast(
    tmp_path: Path,
):
    box = Box(tmp_path)
    box.seal(40)
    box.uplink.pace = 1.0
    suspect(box.uplink.suspects, *((sequence, 1) for sequence in range(1, 31)))
    assert box.said("uplink")["held_back"] == list(range(1, 21))
    assert box.said("uplink")["caught_up_in_s"] == 10


def fails(poller: Poller, error: Exception) -> None:
    with poller._named():
        raise error


def gives(poller: Poller, value: float) -> None:
    poller._take(poller._judged({PM2_5: value}))


def test_traffic_is_of_the_last_thirty_days():
    day = 0
    traffic = Traffic(lambda: day * 86_400.0 + 7)
    for day in range(40):  # noqa: B007
        traffic.add(100)
    assert traffic.month == 3000
    day = 100
    assert traffic.month == 0


def test_traffic_goes_on_over_starts_by_the_time_that_the_daemon_ran(tmp_path: Path):
    disk = Disk(tmp_path)
    for _ in range(3):
        times = iter([0.0, 0.0, *[15 * 86_400.0] * 9])
        traffic = Traffic(times.__next__)
        traffic.recall(disk)
        traffic.add(1)
        traffic.add(100)
        traffic.write(disk)
    assert traffic.month == 100 + 1 + 100  # of days 30 and 45


@pytest.mark.parametrize(
    "noted",
    [
        *(b"", b"[]", b"{}", b"7", b"[7]", b"[7, -1]", b"[7, null]", b"[7, 1e400]", b"[7, 1e300]"),
        *(b"[-7, 1]", b"[1e400, 1]", b"[1e300, 1]"),
    ],
)
def test_traffic_that_was_noted_and_damaged_is_counted_anew(tmp_path: Path, noted: bytes):
    Path(tmp_path, "traffic").write_bytes(noted)
    traffic = Traffic()
    traffic.recall(Disk(tmp_path))
    traffic.add(5)
    assert traffic.month == 5


def test_a_note_of_the_traffic_too_large_to_be_one_is_not_read(tmp_path: Path):
    with Path(tmp_path, "traffic").open("ab") as file:
        file.truncate(1 << 40)  # more than memory holds
    (traffic := Traffic()).recall(Disk(tmp_path))
    assert traffic.month == 0


def test_a_note_of_the_traffic_that_cannot_be_read_or_written_is_no_fault(tmp_path: Path):
    Path(tmp_path, "traffic").touch()
    traffic = Traffic()
    traffic.recall(WornDisk(tmp_path, ("traffic", 0)))
    Path(tmp_path, "traffic").unlink()
    Path(tmp_path, "traffic").mkdir()
    traffic.write(Disk(tmp_path))
    assert traffic.month == 0


def test_a_shorter_note_of_the_traffic_leaves_nothing_of_a_longer_one(tmp_path: Path):
    day = 0
    (traffic := Traffic(lambda: day * 86_400.0)).add(10**12)
    traffic.write(disk := Disk(tmp_path))
    for day in range(1, 31):  # noqa: B007
        traffic.write(disk)
    traffic.add(5)
    traffic.write(disk)
    (after := Traffic()).recall(disk)
    assert after.month == 5


@pytest.mark.parametrize("noted_on", [0, 1, 29])
def test_traffic_that_was_noted_counts_until_it_is_thirty_days_old(tmp_path: Path, noted_on: int):
    day = 0
    (traffic := Traffic(lambda: day * 86_400.0)).add(7)
    day = noted_on
    traffic.write(disk := Disk(tmp_path))
    (after := Traffic(lambda: day * 86_400.0)).recall(disk)
    day = 29
    assert after.month == 7
    day = 30
    assert after.month == 0


def test_no_day_of_the_traffic_is_lost_to_another_thread():
    day, wrong, ends = 0, 0, threading.Event()
    traffic = Traffic(lambda: day * 86_400.0)

    def look() -> None:
        while not ends.is_set():
            assert traffic.month >= 0

    (thread := threading.Thread(target=look)).start()
    often, _ = sys.getswitchinterval(), sys.setswitchinterval(1e-6)
    for day in range(100_000):
        traffic.add(1)
        wrong += traffic.month != min(day + 1, 30)
    ends.set()
    thread.join()
    sys.setswitchinterval(often)
    assert wrong == 0


def test_traffic_is_noted_once_an_hour(tmp_path: Path):
    seconds, disk = 0.0, Disk(tmp_path)
    traffic = Traffic(lambda: seconds)
    for seconds in range(2 * 3600):  # noqa: B007
        traffic.note(disk)
    assert disk.written == 2 * 4096


def test_a_buffer_that_does_not_outlast_a_reboot_is_told(tmp_path: Path):
    box = Box(tmp_path)
    assert box.said("buffer")["volatile"] is None
    box.health = Health(*("it", box.clock, box.buffer, [], box.uplink), volatile="tmpfs")
    assert box.said("buffer")["volatile"] == "tmpfs"


def test_a_forecast_and_the_end_of_a_backlog_are_each_worth_a_message(tmp_path: Path):
    box = Box(tmp_path)
    box.seal(WINDOW + 1)
    box.said("uplink")
    box.changed()
    assert not box.changed()
    box.uplink.pace = 0.5
    assert box.changed()
    for held in list(box.buffer.waiting()):
        box.buffer.acknowledge(held)
    assert box.changed()
    assert box.said("buffer")["waiting_batches"] == 0
    box.changed()  # as of the status that was published
    box.seal()
    assert not box.changed()


def test_the_start_is_told_by_the_clock_that_was_set_since(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(jumping, "START_MS", 0)
    box = Box(tmp_path)
    assert json.loads(box.health.will())["since"] == "1970-01-01T00:00:00Z"
    box.ms = 60_000
    monkeypatch.setattr(jumping, "START_MS", 1_763_900_000_000)
    assert json.loads(box.health.will())["since"] == "2025-11-23T12:13:20Z"
