"""`bygate buffer` on a live daemon's buffer, on a stopped one's, and where there is none."""

import asyncio
import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_process import ROOT, batches, gateway, readings, sensor
from test_buffer import SETTINGS, opened, take, values
from test_glance import torn, worn

from gateway.bounds import room
from gateway.cli import main
from gateway.disk import LOCK, Disk, volatile
from gateway.rates import NAME, RATE_AFTER
from gateway.wire import Batch
from hil.broker import Broker, Faults, Received

Said = pytest.CaptureFixture[str]
BATCHES = "bygate/v1/trd-0042/batch/+"


def config(directory: Path) -> Path:
    """Return the configuration of a gateway whose buffer is in `directory`/state."""
    path = directory / "config.toml"
    path.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{directory}/state"\n'
        '[uplink]\nurl = "mqtt://127.0.0.1:1"\n'
    )
    return path


def look(directory: Path, said: Said) -> dict[str, Any]:
    main(["buffer", "--json", "-c", str(config(directory))])
    return json.loads(said.readouterr().out)


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_waits_is_told_with_what_is_in_no_batch_yet_and_nothing_is_changed(
    tmp_path: Path, capsys: Said
):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0, 2.0, at=5000)
    buffer.tick(0.0)
    buffer.tick(60.0)
    take(buffer, 3.0, at=6000)
    buffer.tick(80.0)
    before = contents(tmp_path / "state")
    told = look(tmp_path, capsys)
    assert (told["waiting_batches"], told["waiting_readings"]) == (1, 3)
    assert told["unsealed_readings"] == 1
    assert told["oldest_waiting"] == "2001-09-09T01:46:45Z"
    assert (told["dropped"], told["damage"], told["refused"]) == (0, [], [])
    assert contents(tmp_path / "state") == before


def test_where_the_rest_of_the_configuration_is_none_the_buffer_is_read_all_the_same(
    tmp_path: Path, capsys: Said
):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    lines = config(tmp_path).read_text().replace("mqtt://", "")
    rest = '[buffer]\nmax_size = "2 MiB"\n[new]\n[sensors.it]\ndriver = "not-on-this-one"\n'
    (tmp_path / "rescue.toml").write_text(lines + rest)
    which = ("-c", str(tmp_path / "rescue.toml"))
    assert main(["buffer", "--json", *which]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["waiting_readings"], told["room_bytes"] < 2 << 20) == (1, True)
    assert main(["export", *which, str(tmp_path / "out")]) == 0


def test_what_is_wrong_with_the_buffers_own_settings_is_told(tmp_path: Path, capsys: Said):
    file = config(tmp_path)
    file.write_text(f"{file.read_text()}[buffer]\nmaxsize = 1\n[sensors.it]\n")
    for command in (["buffer"], ["export", str(tmp_path / "out")]):
        assert main([*command, "-c", str(file)]) == 2
        said = "config.toml:7: buffer.maxsize: there is no such setting; did you mean 'max_size'?"
        assert capsys.readouterr().err == f"{tmp_path}/{said}\n"


def test_what_is_acknowledged_does_not_wait(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(1.0)
    assert look(tmp_path, capsys)["waiting_readings"] == 1


def test_days_of_room_and_writes_are_those_of_the_daemon(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    unknown = look(tmp_path, capsys)
    assert (unknown["room_days"], unknown["written_bytes_day"]) == (None, None)
    assert unknown["oldest_waiting"] is None
    take(buffer, 1.0)
    buffer.tick(0.0)
    buffer.tick(RATE_AFTER - 1)
    take(buffer, 2.0)
    stats = buffer.stats()
    buffer.tick(RATE_AFTER)
    told = look(tmp_path, capsys)
    noted = json.loads((tmp_path / "state" / NAME).read_text())
    assert stats.written < noted["written"] <= buffer.stats().written
    assert told["written_bytes_day"] == round(noted["written"] * 86_400 / RATE_AFTER)
    days = told["room_bytes"] * RATE_AFTER / 86_400 / stats.sealed
    assert told["room_days"] == round(days, 1)
    left = room(Disk(tmp_path / "state"), SETTINGS, told["bytes"])
    assert abs(told["room_bytes"] - left) < 1 << 30  # others write to this disk as well


def test_a_refused_batch_with_a_wrong_bit_in_a_value_is_damaged(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    take(buffer, 0.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (each,) = look(tmp_path, capsys)["refused"]
    assert each["readings"] == 1
    file = tmp_path / "state/refused/1-1-0x99.batch"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")  # what was 0 before
    (each,) = look(tmp_path, capsys)["refused"]
    assert each["readings"] is None


def test_a_refused_batch_that_was_set_aside_as_damaged_is_named(tmp_path: Path, capsys: Said):
    take(buffer := opened(tmp_path / "state"), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.tick(1.0)
    (tmp_path / "state/refused/1-1-0x99.batch").write_bytes(b"damaged")
    opened(tmp_path / "state", epoch=2).tick(1.0)
    told = look(tmp_path, capsys)
    assert [each.split(":")[0] for each in told["damage"]] == ["refused/1-1-0x99.batch.damaged"]


@pytest.mark.parametrize("ending", ["batch", "again"])
def test_what_to_do_about_refused_batches_is_told_until_they_are_offered_again(
    tmp_path: Path, capsys: Said, ending: str
):
    opened(tmp_path / "state")
    (tmp_path / f"state/refused/1-1-0xfe.{ending}").touch()
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    told = capsys.readouterr().out
    assert "0xfe not known" in told
    assert ("--retry-refused" in told) == (ending == "batch")


def test_refused_batches_take_whole_blocks_of_the_room(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    before = look(tmp_path, capsys)["bytes"]
    buffer.set_aside(next(buffer.waiting()), 0x99)
    assert look(tmp_path, capsys)["bytes"] == before + 4096


def rates(seconds: str = "700", written: str = "1", sealed: str = "1") -> str:
    return f'{{"seconds": {seconds}, "written": {written}, "sealed": {sealed}}}'


DAMAGED = [
    *("", "{", "[]", '{"seconds": 1}', '{"a": "' + "x" * 300, rates(seconds="1e400")),
    rates(seconds="0"),
    *(rates(written=number) for number in ("1e400", "NaN", "-1", "null", '"x"', "9" * 150)),
]


def test_rates_that_are_whole_are_known(tmp_path: Path, capsys: Said):
    opened(tmp_path / "state")
    (tmp_path / "state" / NAME).write_text(rates())
    assert look(tmp_path, capsys)["written_bytes_day"] == round(86_400 / 700)


@pytest.mark.parametrize("text", DAMAGED)
def test_rates_that_are_damaged_are_not_known(tmp_path: Path, capsys: Said, text: str):
    opened(tmp_path / "state")
    (tmp_path / "state" / NAME).write_text(text)
    assert look(tmp_path, capsys)["written_bytes_day"] is None


def test_a_record_that_a_daemon_is_writing_is_no_damage(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    newest = max((tmp_path / "state").glob("*.seg"))
    whole = newest.read_bytes()
    daemon = Disk(tmp_path / "state")
    assert daemon.lock()
    for length in range(len(whole) - 100, len(whole)):
        newest.write_bytes(whole[:length])
        told = look(tmp_path, capsys)
        assert (told["damage"], told["waiting_batches"]) == ([], 1)
    daemon.close(LOCK)
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    assert "1 readings in them" in capsys.readouterr().out


def test_damage_is_named_and_is_a_fault(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    newest = max((tmp_path / "state").glob("*.seg"))
    data = bytearray(newest.read_bytes())
    data[-200] ^= 1
    newest.write_bytes(data)
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    assert "set aside at the daemon's next start" in capsys.readouterr().out
    opened(tmp_path / "state", epoch=2)
    assert "dmesg" in look(tmp_path, capsys)["damage"][0]


def test_damage_in_the_journal_is_named_and_is_a_fault(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    for value in (1.0, 2.0, 3.0):
        take(buffer, value, durable=True)
        buffer.tick(0.0)
    with (tmp_path / "state/journal").open("r+b") as journal:
        journal.seek(4096 + 60)
        journal.write(b"wiped")
    assert buffer._disk.lock()
    assert look(tmp_path, capsys)["damage"] == []  # a daemon may be writing
    buffer._disk.close(LOCK)
    (told,) = look(tmp_path, capsys)["damage"]
    assert "journal: 4096 bytes from 4096 on damaged, 1 readings in them" in told


def test_what_cannot_be_read_is_named_though_a_daemon_runs(
    tmp_path: Path, capsys: Said, monkeypatch
):
    take(buffer := opened(tmp_path / "state"), 1.0, durable=True)
    buffer.tick(0.0)
    assert buffer._disk.lock()
    worn(monkeypatch, "journal")
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    assert (
        "\ndamage    journal: 4096 bytes from 0 on cannot be read, unknown readings in them: set "
        "aside at the daemon's next start; look for errors of the disk in dmesg\n"
    ) in capsys.readouterr().out


def test_what_was_acknowledged_is_named_where_it_cannot_be_read(
    tmp_path: Path, capsys: Said, monkeypatch
):
    opened(tmp_path / "state").close()
    worn(monkeypatch, "acked")
    (told,) = look(tmp_path, capsys)["damage"]
    assert told.startswith("acked: cannot be read: some of what waits may be delivered already")


def test_a_segment_that_is_gone_is_named_and_is_a_fault(tmp_path: Path, capsys: Said):
    take(buffer := opened(tmp_path / "state"), 1.0, 2.0)
    buffer.close()
    for segment in (tmp_path / "state").glob("*.seg"):
        segment.unlink()
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    told = capsys.readouterr().out
    assert "the first segment: 2 readings missing at byte 0: cut off or removed" in told


STANDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("none/such"),
}


def test_a_segment_that_is_cut_off_between_two_records_is_named(tmp_path: Path, capsys: Said):
    torn(tmp_path / "state", 0)
    (told,) = look(tmp_path, capsys)["damage"]
    assert told.startswith("00000001.seg: 1 readings missing at byte ")


@pytest.mark.parametrize("what", STANDS)
@pytest.mark.parametrize("name", ["journal", "acked", "rates", "refused"])
def test_what_stands_where_a_file_belongs_is_named_and_the_others_are_read(
    tmp_path: Path, capsys: Said, name: str, what: str
):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    ours = tmp_path / "state" / name
    shutil.rmtree(ours) if ours.is_dir() else ours.unlink(missing_ok=True)
    STANDS[what](ours)
    told = look(tmp_path, capsys)
    assert told["waiting_readings"] == 1
    mine = (name, what) == ("refused", "a directory")
    assert [each.split(":")[0] for each in told["damage"]] == ([] if mine else [name])


def test_a_pipe_in_place_of_a_segment_is_named_until_the_daemon_sets_it_aside(
    tmp_path: Path, capsys: Said
):
    opened(tmp_path / "state").close()
    os.mkfifo(tmp_path / "state/00000009.seg")
    (told,) = look(tmp_path, capsys)["damage"]
    assert told.startswith("00000009.seg: none of bygate's")


@pytest.mark.parametrize("what", STANDS)
def test_what_was_set_aside_for_it_is_none_of_bygates_and_is_no_damage(
    tmp_path: Path, capsys: Said, what: str
):
    opened(tmp_path / "state").close()
    (tmp_path / "state/journal").unlink(missing_ok=True)
    STANDS[what](tmp_path / "state/journal")
    opened(tmp_path / "state", epoch=2)
    told = look(tmp_path, capsys)
    assert (told["damage"], told["set_aside"]) == (
        [],
        [
            "journal-0.foreign: none of bygate's, set aside whole as it stood in place of journal: "
            "move it away"
        ],
    )
    assert main(["buffer", "-c", str(config(tmp_path))]) == 1
    assert "\naside     journal-0.foreign: none of bygate's" in capsys.readouterr().out


def test_what_was_set_aside_of_another_version_is_no_damage_and_that_version_delivers_it(
    tmp_path: Path, capsys: Said
):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    theirs = tmp_path / "state/00000001.seg"
    theirs.write_bytes((whole := theirs.read_bytes()).replace(b"bgS3", b"bgS4"))
    (tmp_path / "state/journal").unlink()
    (tmp_path / "state/journal").mkdir()
    opened(tmp_path / "state", epoch=2)
    told = look(tmp_path, capsys)
    assert (told["damage"], told["waiting_readings"]) == ([], 0)
    assert [each.partition(",")[0] for each in told["set_aside"]] == [
        "00000001.seg-0.foreign: of another version of bygate",
        "acked-0.foreign: of another version of bygate",
        "journal-0.foreign: none of bygate's",
    ]
    assert "state_dir of its own as 00000001.seg" in told["set_aside"][0]
    kept = (tmp_path / "state/00000001.seg-0.foreign").read_bytes()
    assert kept.replace(b"bgS4", b"bgS3") == whole
    (tmp_path / "own").mkdir()
    (tmp_path / "own/00000001.seg").write_bytes(whole)
    assert values(opened(tmp_path / "own")) == [1.0]


def wrong(directory: Path, said: Said) -> str:
    assert main(["buffer", "-c", str(config(directory))]) == 1
    out, err = said.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    return err


@pytest.mark.parametrize("name", ["journal", "acked", "refused/9-9-0x99.batch"])
def test_what_is_too_large_to_be_ours_is_not_read(tmp_path: Path, capsys: Said, name: str):
    opened(tmp_path / "state").close()
    with (tmp_path / "state" / name).open("ab") as file:
        file.truncate(1 << 40)  # more than memory holds
    assert look(tmp_path, capsys)["waiting_readings"] == 0


def test_without_a_directory(tmp_path: Path, capsys: Said):
    assert f"{tmp_path}/state: no such directory: has bygate run yet?" in wrong(tmp_path, capsys)
    assert not (tmp_path / "state").exists()


def test_a_file_in_its_place(tmp_path: Path, capsys: Said):
    (tmp_path / "state").write_text("")
    assert "state: not a directory: set [gateway] state_dir" in wrong(tmp_path, capsys)


def test_a_directory_of_something_else(tmp_path: Path, capsys: Said):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/photo.jpg").write_text("")
    assert "no buffer: neither a journal nor a segment" in wrong(tmp_path, capsys)


@pytest.mark.parametrize(("name", "mark"), [("00000001.seg", "bgS4"), ("journal", "bgJ5")])
def test_a_newer_version(tmp_path: Path, capsys: Said, name: str, mark: str):
    opened(tmp_path / "state")
    (tmp_path / "state" / name).write_text(mark)
    said = wrong(tmp_path, capsys)
    assert f"{name}: written by another version of bygate ({mark}, this one reads" in said


def looked_at_by_a_stranger(directory: Path, mode: int) -> subprocess.CompletedProcess[str]:
    """Run the command as somebody else, or as ourselves who are not root."""
    stranger = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    for parent in [directory, *directory.parents]:
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o055 != 0o055:
            parent.chmod(parent.stat().st_mode | 0o055)
    for path in (directory / "state").iterdir():
        path.chmod(mode | 0o111 * path.is_dir())
    path = config(directory)
    (directory / "state").chmod(mode | mode >> 2 & 0o111)
    done = subprocess.run(
        [*stranger, sys.executable, "-m", "gateway", "buffer", "-c", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    (directory / "state").chmod(0o700)
    return done


needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")


@needs_setpriv
def test_without_the_right_to_look(tmp_path: Path):
    opened(tmp_path / "state")
    done = looked_at_by_a_stranger(tmp_path, 0)
    assert done.returncode == 1
    assert f"{tmp_path}/state: Permission denied: only root and the user" in done.stderr


@needs_setpriv
def test_the_right_to_read_is_enough(tmp_path: Path):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    done = looked_at_by_a_stranger(tmp_path, 0o444)
    assert (done.returncode, done.stderr) == (0, "")
    assert "waiting   1 reading: 1 batch, 0 in none yet" in done.stdout


# With a daemon


@pytest.mark.skipif(volatile(Path("/dev/shm")) != "tmpfs", reason="no tmpfs to try it on")
def test_a_buffer_in_ram_is_said_loudly_at_the_start_and_here():
    async def scenario(directory: Path) -> None:
        async with Broker() as broker, gateway(directory, broker.url) as daemon:
            said = await daemon.says("tmpfs")
            assert said == (
                f"ERROR buffer: {directory}/state is on tmpfs, which does not outlast a reboot: "
                "set [gateway] state_dir to a directory on a disk\n"
            )
            await daemon.says("connected")
            assert (await asked(directory))["volatile"] == "tmpfs"
            assert await daemon.stop() == 0

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        asyncio.run(asyncio.wait_for(scenario(Path(directory)), 60))


@pytest.mark.parametrize(
    ("magic", "kind"),
    [(0x01021994, "tmpfs"), (0x858458F6, "ramfs"), (0x794C7630, "overlay"), (0xEF53, None)],
)
def test_a_file_system_is_known_by_the_number_that_linux_has_for_it(
    magic: int, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def statfs(_: bytes, told: ctypes.Array[ctypes.c_long]) -> int:  # numbers of linux/magic.h
        ctypes.memmove(told, struct.pack("@L", magic), ctypes.sizeof(ctypes.c_long))
        return 0

    monkeypatch.setattr("gateway.disk._libc", SimpleNamespace(statfs=statfs))
    assert volatile(tmp_path) == kind


def test_proc_is_no_kind_of_ram_that_it_warns_of():
    assert volatile(Path("/proc")) is None
    assert volatile(Path("/none/such")) is None


def test_a_refused_batch_is_listed_and_delivered_once_the_broker_is_mended(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_code=0x99, ack_topics=BATCHES)
            sensors = sensor("it", "simulator", interval="100ms")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 3)
                told = await asked(tmp_path)
                assert told["refused"][0]["reason"] == "0x99"
                assert told["refused"][0]["means"] == "payload format invalid"
                assert told["refused"][0]["readings"] > 0
                names = [each["name"] for each in told["refused"]]
                broker.faults = Faults()
                before = {(b.sequence, b.epoch): b for b in batches(broker.received)}
                assert "offered again" in await bygate("buffer", "--retry-refused", of=tmp_path)
                refused = {tuple(map(int, name.split("-")[:2])) for name in names}
                await broker.wait_for(lambda _: refused <= taken_by(broker).keys())
                assert all(taken_by(broker)[name] == before[name] for name in refused)
                while (await asked(tmp_path))["refused"]:
                    pass
                assert await daemon.stop() == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_asked_without_a_daemon_they_are_offered_at_its_next_start(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_code=0x99, ack_topics=BATCHES)
            sensors = sensor("it", "simulator", interval="100ms")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda seen: len(batches(seen)) >= 2)
                assert await daemon.stop() == 0
            broker.faults = Faults()
            lost = set(readings(broker.received))
            await bygate("buffer", "--retry-refused", of=tmp_path)
            async with gateway(tmp_path, broker.url) as daemon:
                await broker.wait_for(lambda _: lost <= set(readings(accepted_by(broker))))
                assert await daemon.stop() == 0
            assert (await asked(tmp_path))["refused"] == []

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_with_none_refused_there_is_nothing_to_offer(tmp_path: Path, capsys: Said):
    opened(tmp_path / "state")
    before = contents(tmp_path / "state")
    assert main(["buffer", "--retry-refused", "-c", str(config(tmp_path))]) == 0
    assert capsys.readouterr().out == "no refused batches: nothing to offer again\n"
    assert contents(tmp_path / "state") == before


@pytest.mark.parametrize("what", STANDS)
def test_what_stands_where_the_asking_belongs_is_no_success(
    tmp_path: Path, capsys: Said, what: str
):
    buffer = opened(tmp_path / "state")
    take(buffer, 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    STANDS[what](tmp_path / "state/refused/retry")
    assert main(["buffer", "--retry-refused", "-c", str(config(tmp_path))]) == 1
    out, err = capsys.readouterr()
    assert (out, "refused/retry: not a file" in err) == ("", True)
    assert not (tmp_path / "state/refused/none").exists()


def read_only(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)


def out_of_inodes(mounted: Path) -> None:
    with suppress(OSError):
        for number in range(99):
            (mounted / f"{number}.txt").touch()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (read_only, "Read-only file system: look for the cause in dmesg, then mount -o remount,rw"),
        (out_of_inodes, "No space left on device: out of inodes: remove small files there"),
    ],
)
def test_a_disk_that_takes_no_asking_is_told_with_what_mends_it(
    tmp_path: Path, capsys: Said, spoil: Callable[[Path], None], told: str
):
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "none", state]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        take(buffer := opened(state), 1.0)
        buffer.close()
        buffer.set_aside(next(buffer.waiting()), 0x99)
        buffer._disk.close_all()
        spoil(state)
        assert main(["buffer", "--retry-refused", "-c", str(config(tmp_path))]) == 1
        out, err = capsys.readouterr()
        assert (out, err.startswith(f"{state}/refused/retry: {told}")) == ("", True)
    finally:
        subprocess.run(["umount", "-l", state], check=True)


def taken_by(broker: Broker) -> dict[tuple[int, int], Batch]:
    return {(batch.sequence, batch.epoch): batch for batch in batches(accepted_by(broker))}


def accepted_by(broker: Broker) -> list[Received]:
    return [
        message
        for message in broker.received
        if (message.answer if message.answer is not None else 0xFF) < 0x80
    ]


async def bygate(command: str, *arguments: str | Path, of: Path) -> str:
    """Return what the command prints, a process of its own beside the daemon's."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", command, "-c", of / "config.toml", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert err == b""
    return out.decode()


async def asked(directory: Path) -> dict[str, Any]:
    return json.loads(await bygate("buffer", "--json", of=directory))
