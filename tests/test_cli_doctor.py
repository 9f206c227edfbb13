"""`bygate doctor`: what it says of the box itself, and how it says it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from certificates import DAY, NOW, Authority
from gateway_process import ROOT
from test_buffer import opened, take
from trials import mounted

from gateway.certificate import WRITTEN
from gateway.cli import main
from gateway.cli.doctor import examine
from gateway.cli.doctor_box import buffer, clock, space, storage
from gateway.cli.finding import Finding
from gateway.clock import SYNCHRONISED_BELOW_US, Clock
from gateway.config import Config, load
from gateway.disk import volatile
from gateway.settings import BufferSettings
from hil.loopdisk import LoopDisk

NOWHERE = "mqtt://127.0.0.1:1"
TODAY = datetime(2026, 12, 1, tzinfo=UTC)


def config(directory: Path, url: str = NOWHERE, more: str = "", state: str = "state") -> Path:
    path = directory / "config.toml"
    path.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{directory}/{state}"\n'
        f'[uplink]\nurl = "{url}"\n{more}'
    )
    return path


def read(directory: Path, **more: str) -> Config:
    return load(config(directory, **more))


def found(config: Config, **how: Any) -> dict[str, Finding]:
    findings: list[Finding] = []
    asyncio.run(examine(config, findings.append, **how))
    return {each.check: each for each in findings}


def box_clock(now: datetime = TODAY, error_us: int = 4000, *, pps: bool = False) -> Clock:
    wall_ns = round(now.timestamp() * 1e9)
    return Clock(wall_ns=lambda: wall_ns, kernel=lambda: (error_us, pps), boot=7)


# The clock


@pytest.mark.parametrize(("pps", "source"), [(False, "NTP"), (True, "GNSS")])
def test_a_clock_that_is_synchronised_is_ok_with_its_error(pps, source):
    assert clock(box_clock(pps=pps)) == Finding(
        "clock", "ok", f"2026-12-01 00:00:00 UTC, synchronised by {source}, at most 4 ms off"
    )


def test_a_clock_that_is_not_synchronised_is_a_warning():
    seen = clock(box_clock(error_us=SYNCHRONISED_BELOW_US))
    assert (seen.state, "not synchronised" in seen.seen) == ("warn", True)
    assert "timedatectl" in seen.remedy


def test_a_clock_from_before_the_program_was_written_is_a_fault(tmp_path):
    old = box_clock(WRITTEN - DAY)
    assert clock(old).state == "fail"
    assert "set the clock: is NTP reached (timedatectl)?" in clock(old).remedy
    Authority().write(tmp_path / "ca.pem")
    tls = read(tmp_path, url="mqtts://127.0.0.1:1", more=f'ca_file = "{tmp_path}/ca.pem"')
    assert found(tls, of=old)["credentials"].state == "warn", "dates tell nothing then"


# Where the buffer is


def test_a_directory_on_a_disk_is_ok_with_its_room(tmp_path):
    (tmp_path / "state").mkdir()
    seen = storage(read(tmp_path))
    assert (seen.state, seen.remedy) == ("ok", None)
    assert "MiB free, 64 of them for others" in seen.seen


def test_a_directory_that_is_not_there_yet_is_no_fault_and_is_not_made(tmp_path):
    seen = storage(read(tmp_path, state="not/yet"))
    assert seen.state == "ok"
    assert f"not/yet does not exist yet, {tmp_path} can hold it" in seen.seen
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("state", ["state", "state/below"])
@pytest.mark.parametrize("stands", [Path.touch, lambda path: path.symlink_to("/none/such")])
def test_what_stands_in_its_place_is_a_fault(tmp_path, state, stands):
    stands(tmp_path / "state")
    told = found(read(tmp_path, state=state))
    assert told["storage"].state == "fail"
    assert "set [gateway] state_dir elsewhere" in told["storage"].remedy
    assert "buffer" not in told


@pytest.mark.skipif(volatile(Path("/dev/shm")) != "tmpfs", reason="no tmpfs to try it on")
@pytest.mark.parametrize("state", [".", "yet/to/come"])
def test_a_directory_in_ram_is_a_fault_in_the_daemons_words(state):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        seen = storage(read(Path(directory), state=state))
        assert seen.state == "fail"
        assert "is on tmpfs, which does not outlast a reboot: set [gateway] state_dir" in str(seen)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_disk_that_is_read_only_is_a_fault(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "--bind", state, state], ["mount", "-o", "remount,ro,bind", state]
    if any(subprocess.run(line, check=False).returncode for line in mount):
        pytest.skip("nothing can be mounted here")
    try:
        seen = storage(read(tmp_path))
    finally:
        subprocess.run(["umount", state], check=True)
    assert (seen.state, seen.seen) == ("fail", f"{state} cannot be written to")
    assert "mount -o remount,bind,rw" in seen.remedy


def test_a_disk_without_a_free_inode_is_a_fault_though_it_has_room(tmp_path):
    with ExitStack() as stack:
        disk = mounted(stack, LoopDisk(8 << 20, tmp_path, "state", inodes=16))
        with pytest.raises(OSError, match="No space left"):
            for number in range(99):
                (disk.path / f"hog-{number}").touch()
        seen = storage(read(tmp_path))
    assert (seen.state, seen.seen) == ("fail", f"{disk.path} takes no more files")
    assert "out of inodes: remove small files there" in seen.remedy


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def told_to_a_stranger(directory: Path, state: str) -> str:
    file = config(directory, state=state)
    file.chmod(0o644)
    command = (sys.executable, "-m", "gateway", "doctor", "-c", file)
    done = subprocess.run(
        ["setpriv", "--reuid=65533", "--clear-groups", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.startswith("setpriv"):
        pytest.skip("nobody else can be had here")
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("state", "fail  user 65533 may not read and write in {}: only root and the user that"),
        ("state/yet", "fail  {} cannot be looked at: user 65533 may not: give the command by"),
        ("yet", "warn  {} does not exist yet: user 65533 may not make it: systemd does, or"),
    ],
)
def test_a_directory_that_whoever_runs_it_may_not_use_is_told(open_to_all, state, says):
    (open_to_all / "state").mkdir(mode=0o700)
    said = told_to_a_stranger(open_to_all, state)
    assert says.replace("{}", f"{open_to_all}/{state}") in said
    assert "\nbuffer " not in said


MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "state"), [(63, "fail"), (64, "warn"), (127, "warn"), (128, "ok")]
)
def test_room_is_judged_by_what_is_to_be_kept_free(free, state):
    told, seen, why = space(free * MIB, 1000 * MIB, BufferSettings())
    assert (told, seen) == (state, f"{free} of 1000 MiB free, 64 of them for others")
    assert (why is None) == (state == "ok")


def test_no_more_than_a_tenth_of_a_small_disk_is_kept_free():
    assert space(12 * MIB, 60 * MIB, BufferSettings())[0] == "ok"


# What is in it


def test_what_waits_is_told_in_numbers(tmp_path):
    held = opened(tmp_path / "state")
    take(held, 1.0, 2.0)
    held.close()
    seen, _ = buffer(read(tmp_path))
    assert seen.state == "ok"
    assert seen.seen.startswith("2 readings waiting since 2001-09-09T01:46:40Z, room for ")
    assert seen.seen.endswith("(how many days is not known yet), 0 dropped so far")


def test_a_directory_without_a_buffer_is_one_that_waits_for_its_first_start(tmp_path):
    (tmp_path / "state").mkdir()
    assert buffer(read(tmp_path)) == (Finding("buffer", "ok", "nothing in it yet"), None)


def test_damage_and_refused_batches_are_warned_of(tmp_path):
    held = opened(tmp_path / "state")
    for value in (1.0, 2.0):
        take(held, value)
        held.close()
    held.set_aside(next(held.waiting()), 0x99)
    (tmp_path / "state/00000001.seg-0.damaged").touch()
    seen, _ = buffer(read(tmp_path))
    assert (seen.state, seen.remedy) == ("warn", "sudo bygate buffer names each")
    assert seen.seen.endswith("; damage 1, refused 1")


def test_a_buffer_without_room_is_warned_of(tmp_path):
    opened(tmp_path / "state")
    seen, _ = buffer(replace(read(tmp_path), buffer=BufferSettings(max_size=1)))
    assert (seen.state, "full: the oldest are dropped" in seen.remedy) == ("warn", True)


def test_what_another_version_wrote_is_a_fault(tmp_path):
    opened(tmp_path / "state")
    (tmp_path / "state/journal").write_text("bgJ5")
    seen, newest = buffer(read(tmp_path))
    assert (seen.state, newest) == ("fail", None)
    assert "written by another version of bygate" in seen.remedy


def test_a_batch_that_was_delivered_is_the_newest_until_another_is(tmp_path):
    held = opened(tmp_path / "state")
    for value in (1.0, 2.0):
        take(held, value)
        held.close()
    for each in list(held.waiting()):
        held.acknowledge(each)
    held.tick(1.0)
    _, (_, batch) = buffer(read(tmp_path))
    assert [reading.value for reading in batch.readings] == [2.0]


def test_a_batch_of_another_gateway_is_not_tried(tmp_path):
    held = opened(tmp_path / "state")
    take(held, 1.0)
    held.close()
    settings = replace(read(tmp_path).gateway, id="trd-0043")
    assert buffer(replace(read(tmp_path), gateway=settings))[1] is None


def test_a_batch_that_lies_aside_or_is_damaged_is_not_tried(tmp_path):
    held = opened(tmp_path / "state")
    for value in (1.0, 2.0, 3.0):
        take(held, value)
        held.close()
    *_, second, third = held.waiting()
    held.set_aside(third, 0x95)
    segment = tmp_path / "state" / second.segment
    data = bytearray(segment.read_bytes())
    data[second.offset + 20] ^= 1
    segment.write_bytes(data)
    _, (_, batch) = buffer(read(tmp_path))
    assert [reading.value for reading in batch.readings] == [1.0]


# What is shown to a broker


def test_a_password_file_that_will_not_do_is_told_and_nobody_logs_in(tmp_path):
    missing = f'username = "it"\npassword_file = "{tmp_path}/secret"\n'
    seen = found(read(tmp_path, more=missing))["credentials"]
    assert (seen.state, "there is no such file: put it there" in seen.remedy) == ("fail", True)


def test_the_end_of_our_certificate_is_told_from_thirty_days_before(tmp_path):
    city = Authority()
    city.write(tmp_path / "ca.pem")
    lines = "".join(f'{name}_file = "{tmp_path}/{name}.pem"\n' for name in ("ca", "cert"))
    states = []
    for days in (40, 20, -1):
        city.issue(tmp_path / "cert.pem", "it", NOW - 50 * DAY, NOW + days * DAY)
        told = found(read(tmp_path, url="mqtts://127.0.0.1:1", more=lines))["credentials"]
        states.append(told.state)
        assert "it is read at the next connection" in (told.remedy or "") or days == 40
        assert f"{NOW + days * DAY:%Y-%m-%d}" in str(told)
    assert states == ["ok", "warn", "fail"]


# How it is said


def test_a_line_for_each_check_and_1_where_one_fails(tmp_path, capsys):
    assert main(["doctor", "-c", str(config(tmp_path))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11].strip() for line in lines] == ["clock", "storage", "", NOWHERE[:11], *STEPS]
    assert lines[-1] == (
        "tcp          fail  127.0.0.1:1 Connection refused: nothing listens there: "
        "check [uplink] url, and that the broker runs"
    )


STEPS = ["dns", "tcp"]


def test_the_same_as_json(tmp_path, capsys):
    assert main(["doctor", "--json", "-c", str(config(tmp_path))]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "fail"
    assert [each["check"] for each in told["checks"]] == ["clock", "storage", *STEPS]
    assert told["checks"][-1] == {
        "check": "tcp",
        "state": "fail",
        "seen": "127.0.0.1:1 Connection refused",
        "remedy": "nothing listens there: check [uplink] url, and that the broker runs",
        "broker": NOWHERE,
    }


def test_a_mistake_in_the_configuration_is_told_before_anything_is_looked_at(tmp_path, capsys):
    path = config(tmp_path, more='[sensors.it]\ndriver = "not-on-this-one"\n')
    assert main(["doctor", "--json", "-c", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, "there is no driver 'not-on-this-one'" in err) == ("", True)


def test_help_says_what_it_does_not_look_at(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "does not look at sensors, ports, Bluetooth or the power supply" in said


def test_a_resolver_or_a_drive_that_hangs_holds_up_no_end():
    program = """
import asyncio, time
from gateway.cli.doctor import Threads
async def main():
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Threads())
    async with asyncio.timeout(0.1):
        await loop.run_in_executor(None, time.sleep, 60)
try:
    asyncio.run(main())
except TimeoutError:
    print("timed out")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("timed out\n", "")
