"""The demonstration as whoever tries the project out meets it: a process, its output, its end."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gateway.reading import PM2_5, Instant, Reading
from gateway.wire import Batch, encode
from hil.broker import Faults
from hil.mqtt import Message
from hil.receiver import Receiver
from hil.show import Show, Summary
from hil.table import packed, table

ROOT = Path(__file__).parent.parent


needs_dbus = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="dbus is not installed")


def start(tmp_path, *arguments, **environment):
    """Start a demonstration whose temporary files lie in `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(tmp_path):
    """Return the processes that were started with something in `tmp_path`, and their commands."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(tmp_path) in command:
            found[int(process.name)] = command
    return found


def daemons(tmp_path):
    return [pid for pid, command in children(tmp_path).items() if b"\0gateway\0run" in command]


def until_a_batch_has_come(process):
    line = ""
    while not line.startswith("batch 1"):
        line = process.stdout.readline()
        assert line, process.stderr.read()


def gone(tmp_path, within=5.0):
    until = time.monotonic() + within
    while children(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    return not children(tmp_path)


@needs_dbus
def test_all_that_was_taken_is_delivered_and_counted(tmp_path):
    process = start(tmp_path, "--seconds", "8", "--json")
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    counts = json.loads(output.splitlines()[-1])
    sensors = counts["sensors"]
    assert counts["readings_lost"] == 0
    assert counts["readings_taken"] == counts["readings_delivered"] > 100
    assert sum(sensor["delivered"] for sensor in sensors.values()) == counts["readings_delivered"]
    assert counts["batches"] >= 4
    per_reading = counts["payload_bytes"] / counts["readings_delivered"]
    assert counts["bytes_per_reading"] == pytest.approx(per_reading, abs=0.01)
    drivers = {sensor["driver"]: sensor["link"] for sensor in sensors.values()}
    assert drivers == {
        **dict.fromkeys(("sds011", "pms5003", "maxbotix", "nmea0183"), "serial"),
        **dict.fromkeys(("host", "simulator"), "local"),
        **{"ruuvi": "ble", "bthome": "ble", "environmental_sensing": "gatt"},
    }
    assert all(sensor["outcomes"]["ok"] > 3 for sensor in sensors.values())
    assert sensors["air-street"]["last"]["pm2_5"]["unit"] == "ug/m3"
    assert list(tmp_path.iterdir()) == []


def test_without_dbus_daemon_one_line_says_so_and_the_rest_runs(tmp_path):
    process = start(tmp_path, "--seconds", "4", "--json", PATH="/nowhere")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines() == [
        "bygate demo: without Bluetooth sensors: dbus-daemon is missing; type: sudo apt-get install"
        " dbus"
    ]
    counts = json.loads(output)
    assert {sensor["link"] for sensor in counts["sensors"].values()} == {"serial", "local"}
    assert counts["readings_taken"] == counts["readings_delivered"] > 0


def readings_of(show, name, count):
    """Return what comes of a sensor, in readings of one instant, till there are so many."""

    async def gather():
        seen = {}
        heard = show.receiver.sensors
        while len(seen) < count:
            await asyncio.sleep(0.02)
            for reading in heard[name].last.values() if name in heard else ():
                seen.setdefault(reading.instant, {})[reading.quantity] = reading.value
        return list(seen.values())

    return gather()


@needs_dbus
def test_what_ble_sensors_say_is_what_is_delivered_to_the_last_digit():
    async def scenario():
        async with Show() as show, asyncio.timeout(20):
            came = await asyncio.gather(*(readings_of(show, name, 3) for name in show.ble))
            return dict(zip(show.ble, came, strict=True)), show.ble

    came, devices = asyncio.run(scenario())
    assert len(devices) == 3
    for name in ("school-air", "park-soil"):
        sent = list(devices[name].sent)
        places = [sent.index(values) for values in came[name]]
        assert places == sorted(set(places))
    said = [{(q, v) for q, v in each.items()} for each in devices["bus-stop"].sent]
    for values in came["bus-stop"]:  # each characteristic is measured when it is read
        assert len(values) == 3
        assert set(values.items()) <= set().union(*said)


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGINT, os.kill), (signal.SIGHUP, os.kill)],
    ids=["Ctrl-C", "SIGINT", "SIGHUP"],
)
def test_told_to_end_it_delivers_what_it_holds_and_leaves_nothing(tmp_path, number, send):
    process = start(tmp_path)
    until_a_batch_has_come(process)
    began = time.monotonic()
    send(process.pid, number)
    output, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")
    assert " 0 lost" in output
    assert time.monotonic() - began < 5
    assert (children(tmp_path), list(tmp_path.iterdir())) == ({}, [])


def test_told_twice_it_ends_at_once(tmp_path):
    process = start(tmp_path)
    until_a_batch_has_come(process)
    (daemon,) = daemons(tmp_path)
    os.kill(daemon, signal.SIGSTOP)
    process.terminate()
    assert process.stdout.readline()
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=5)
    assert process.returncode == 130
    assert (children(tmp_path), list(tmp_path.iterdir())) == ({}, [])


def test_killed_it_takes_the_daemon_with_it(tmp_path):
    process = start(tmp_path)
    until_a_batch_has_come(process)
    assert len(daemons(tmp_path)) == 1
    process.kill()
    process.communicate(timeout=5)
    assert gone(tmp_path)


def test_a_daemon_that_dies_is_told_with_its_last_words(tmp_path):
    process = start(tmp_path)
    until_a_batch_has_come(process)
    (daemon,) = daemons(tmp_path)
    os.kill(daemon, signal.SIGKILL)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 1
    assert errors.startswith("bygate demo: the daemon ended by signal 9; it said:\n")
    assert "connected" in errors
    assert list(tmp_path.iterdir()) == []


def test_what_the_daemon_could_not_deliver_is_delivered_by_another():
    async def scenario():
        async with Show() as show:
            await show.broker.wait_for(lambda _: show.receiver.batches, 10)
            show.broker.faults = Faults(ack_withheld=True, ack_topics="bygate/v1/demo/batch/+")
            await asyncio.sleep(1.5)
            show.on_batch = lambda length: None
            ending = asyncio.ensure_future(show.end())
            await show.broker.wait_for(lambda _: not show.broker.connections, 10)
            show.broker.faults = Faults()
            return await ending

    summary = asyncio.run(scenario())
    assert summary.faults == []
    assert summary.taken == summary.receiver.delivered > 0
    assert summary.receiver.duplicates > 0


def batch(sequence, *values):
    readings = [Reading("air", PM2_5, Instant(n, n, 2), value) for n, value in enumerate(values)]
    return Message("r/g/batch/live", encode(Batch("g", 7, sequence, 1, 2, 1, readings)))


def test_a_batch_that_comes_twice_is_counted_once():
    receiver = Receiver()
    for message in (batch(1, 2.5, 3.5), batch(2, 4.5), batch(1, 2.5, 3.5)):
        receiver.take(message)
    assert (receiver.delivered, receiver.batches, receiver.duplicates) == (3, 2, 1)
    assert receiver.sensors["air"].delivered == 3


def test_what_is_no_batch_is_a_fault():
    receiver = Receiver()
    receiver.take(Message("r/g/batch/live", b"\x80"))
    assert len(Summary(0, receiver, {}).faults) == 1


def test_a_lost_reading_and_a_mute_sensor_are_faults():
    receiver = Receiver()
    receiver.take(batch(1, 2.5))
    said = {"driver": "sds011", "link": "serial", "outcomes": {}, "why": "no reply"}
    summary = Summary(3, receiver, {"air": said, "yard": said})
    assert summary.as_json()["readings_lost"] == 2
    assert summary.faults == ["yard: delivered nothing, no reply", "2 of 3 readings lost"]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [(None, "aaa  bbb\nccc\ndddddddd"), (2, "aaa  bbb\nccc +1"), (1, "aaa +3"), (3, None)],
)
def test_values_are_packed_into_the_lines_there_are(lines, shown):
    values = ["aaa", "bbb", "ccc", "dddddddd"]
    assert packed(values, 8, lines) == (shown or packed(values, 8))


def test_the_table_fits_into_80_columns():
    receiver = Receiver()
    receiver.take(batch(1, *[12.5] * 9))
    said = {"driver": "x", "link": "serial", "why": None, "outcomes": {"no reply": 3, "ok": 812}}
    out = StringIO()
    console = Console(file=out, width=80)
    console.print(table(receiver, {"air": said, "n" * 12: said | {"why": "y" * 200}}, 80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "pm2_5 12.5 ug/m3" in out.getvalue()
