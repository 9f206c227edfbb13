"""`bygate export`: all that waits, to the last digit, in one whole file or none."""

import asyncio
import csv
import errno
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_process import ROOT, batches, gateway, sensor
from hypothesis import given
from test_buffer import opened, take
from test_cli_buffer import bygate, config, contents, look
from test_cli_decode import rows
from test_glance import worn
from test_unreadable import broken
from wire_batches import batch, examples, reading
from wire_batches import batches as any_batches

from gateway.cli import main
from gateway.cli.lines import csv_head, csv_lines, influx_lines
from gateway.encoding import COLUMNS
from gateway.reading import Value
from gateway.wire import Batch, decode, decode_all, encode
from hil.broker import Broker, Faults

Said = pytest.CaptureFixture[str]
ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ODD: list[Value] = [None, True, False, -0.0, 0.0, 0, 1 << 63, 5e-324, "", "5", 'a"\\,\nå\u2028 =']


def export(directory: Path, name: str, *arguments: str) -> int:
    path = directory / name
    return main(["export", "-c", str(config(directory)), str(path), *arguments])


@pytest.fixture
def held(tmp_path: Path) -> list[Value]:
    """A buffer with a refused batch, two that wait, and one reading in none; its values."""
    buffer = opened(tmp_path / "state")
    for values in (["refused"], ODD, [1.5]):
        take(buffer, *values)
        buffer.tick(0.0)
        buffer.tick(60.0)
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.tick(61.0)
    take(buffer, "young")
    buffer.tick(80.0)
    return ["refused", *ODD, 1.5, "young"]


def test_json_lines_hold_what_waits_what_was_refused_and_what_is_in_no_batch(
    tmp_path: Path, held: list[Value], capsys: Said
):
    assert export(tmp_path, "out") == 0
    found = rows((tmp_path / "out").read_text())
    assert [repr(row["value"]) for row in found] == [repr(value) for value in held]
    assert [row["sequence"] for row in found] == [1, *[2] * len(ODD), 3, 4]
    assert "14 readings, 3 batches, " in capsys.readouterr().out


def test_batches_are_the_very_batches_and_decode_reads_them(
    tmp_path: Path, held: list[Value], capsys: Said
):
    assert export(tmp_path, "out", "--format", "batches") == 0
    assert "1 of them refused by the broker, 1 reading in no batch" in capsys.readouterr().out
    waiting = opened(tmp_path / "state", epoch=2)
    payloads = [waiting.payload(each) for each in waiting.waiting()][:2]
    refused = (tmp_path / "state/refused/1-1-0x99.batch").read_bytes()
    assert (tmp_path / "out").read_bytes() == refused + b"".join(payloads)
    assert main(["decode", str(tmp_path / "out")]) == 0
    found = [repr(row["value"]) for row in rows(capsys.readouterr().out)]
    assert found == [repr(value) for value in held[:-1]]


def test_the_sum_is_one_that_sha256sum_checks(tmp_path: Path, held: list[Value]):
    export(tmp_path, "out.csv", "--format", "csv")
    data, told = (tmp_path / "out.csv").read_bytes(), (tmp_path / "out.csv.sha256").read_text()
    assert told == f"{hashlib.sha256(data).hexdigest()}  out.csv\n"
    subprocess.run(["sha256sum", "-c", "out.csv.sha256"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", [b"x\xff.csv", b"a\nb", b"a\\nb", b"\\", b"a\rb\r", "å".encode()])
def test_the_sum_is_one_that_sha256sum_checks_whatever_the_name(
    tmp_path: Path, held: list[Value], name: bytes
):
    path = os.fsdecode(name)
    assert export(tmp_path, path) == 0
    subprocess.run(["sha256sum", "-c", f"{path}.sha256"], cwd=tmp_path, check=True)


def test_nothing_counts_as_delivered_and_nothing_is_changed(tmp_path: Path, held: list[Value]):
    before = contents(tmp_path / "state")
    export(tmp_path, "out")
    assert contents(tmp_path / "state") == before


def test_the_summary_as_json_tells_what_lies_where(tmp_path: Path, held: list[Value], capsys: Said):
    export(tmp_path, "out.csv", "--json")
    data, told = (tmp_path / "out.csv").read_bytes(), json.loads(capsys.readouterr().out)
    assert (told["path"], told["format"]) == (f"{tmp_path}/out.csv", "csv")
    assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert (told["bytes"], told["readings"], told["batches"]) == (len(data), len(held), 3)


def test_what_is_there_stays_unless_told_otherwise(tmp_path: Path, held: list[Value], capsys: Said):
    (tmp_path / "out").write_text("mine")
    assert export(tmp_path, "out") == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/out: out is there already: name another, or --overwrite\n"
    )
    assert (tmp_path / "out").read_text() == "mine"
    assert export(tmp_path, "out", "--overwrite") == 0
    assert len(rows((tmp_path / "out").read_text())) == len(held)


STANDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a device or a pipe: name a file"),
    "directory": (Path.mkdir, "is a directory: name a file"),
    "dangling": (lambda path: path.symlink_to("none"), "is a link: name the file that it leads to"),
    "link": (lambda path: path.symlink_to("config.toml"), "is a link: name the file"),
}


@pytest.mark.parametrize("name", ["out", "out.sha256"])
@pytest.mark.parametrize("what", STANDS)
def test_what_is_no_file_is_never_replaced_by_one(
    tmp_path: Path, held: list[Value], capsys: Said, what: str, name: str
):
    make, why = STANDS[what]
    make(tmp_path / name)
    mode = (tmp_path / name).lstat().st_mode
    assert export(tmp_path, "out", "--overwrite") == export(tmp_path, "out") == 2
    assert f"{tmp_path}/out: {name} {why}" in capsys.readouterr().err
    assert (tmp_path / name).lstat().st_mode == mode
    assert len(list(tmp_path.glob("out*"))) == 1


def test_standard_output_is_not_offered(held: list[Value], tmp_path: Path, capsys: Said):
    assert main(["export", "-c", str(config(tmp_path)), "-"]) == 2
    assert capsys.readouterr() == ("", "-: standard output has no sum: name a file\n")


def test_without_a_buffer_there_is_no_file(tmp_path: Path, capsys: Said):
    assert export(tmp_path, "out") == 1
    assert f"{tmp_path}/state: no such directory: has bygate run yet?" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("name", ["journal", "1-1-0x99.batch"])
def test_a_disk_that_does_not_answer_is_told_and_nothing_half_is_left(
    tmp_path: Path, held: list[Value], capsys: Said, monkeypatch, name: str
):
    worn(monkeypatch, name, why=errno.ESTALE)
    assert export(tmp_path, "out") == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(f"{name}: Stale file handle: look for errors of the disk in dmesg")
    assert not list(tmp_path.glob("*out*"))


def test_nothing_is_put_among_them_where_a_link_leads_to_them(tmp_path: Path, held: list[Value]):
    (tmp_path / "state").rename(tmp_path / "disk")
    (tmp_path / "state").symlink_to("disk")
    assert export(tmp_path, "disk/out") == 2
    assert not (tmp_path / "disk/out").exists()


@pytest.mark.parametrize("name", ["state/journal", "state/refused/out", "link/00000001.seg"])
def test_nothing_is_put_among_the_files_of_the_buffer(
    tmp_path: Path, held: list[Value], capsys: Said, name: str
):
    (tmp_path / "link").symlink_to("state")
    before = contents(tmp_path / "state")
    assert export(tmp_path, name, "--overwrite") == 2
    assert "among the files of the buffer: name another directory" in capsys.readouterr().err
    assert contents(tmp_path / "state") == before


PLACES = {
    "state": (2, "state is a directory: name a file"),
    "x" * 250: (1, "cannot be written: File name too long: name it shorter"),
    "none/out": (1, "cannot be written: No such file or directory: make the directory first"),
    "config.toml/out": (1, "cannot be written: Not a directory: name a file in a directory"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_will_not_do_is_told(
    tmp_path: Path, held: list[Value], capsys: Said, name: str
):
    code, why = PLACES[name]
    assert export(tmp_path, name) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"{tmp_path}/{name}: {why}" in err


def test_links_that_lead_round_in_a_ring_are_told(tmp_path: Path, held: list[Value], capsys: Said):
    (tmp_path / "ring").symlink_to("ring")
    assert export(tmp_path, "ring/out") == 1
    assert "Too many levels of symbolic links" in capsys.readouterr().err


def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path: Path, held: list[Value]):
    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    (tmp_path / "stick").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "export", "-c", config(tmp_path), tmp_path / "stick/out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=bounded,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "stick/out: cannot be written: File too large: " in done.stderr
    assert list((tmp_path / "stick").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("film", [4096, 0], ids=["at once", "when its sum comes"])
def test_a_full_stick_is_told_and_nothing_half_is_left(
    tmp_path: Path, held: list[Value], capsys: Said, film: int
):
    stick = tmp_path / "stick"
    stick.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=8", "none", stick], check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        (stick / "film").write_bytes(bytes(film))
        assert export(tmp_path, "stick/out.csv") == 1
        assert "No space left on device: free space there" in capsys.readouterr().err
        assert [file.name for file in stick.iterdir()] == ["film"]
    finally:
        subprocess.run(["umount", stick], check=True)


@pytest.mark.parametrize("ends", ENDS)
def test_a_signal_that_ends_it_leaves_nothing_half(
    tmp_path: Path, held: list[Value], ends: signal.Signals
):
    assert ended_by(ends, tmp_path) == 128 + ends
    assert not list(tmp_path.glob("*out*"))


def test_under_nohup_it_goes_on_when_the_terminal_goes(tmp_path: Path, held: list[Value]):
    assert ended_by(signal.SIGHUP, tmp_path, "SIG_IGN") == 0
    assert len(rows((tmp_path / "out").read_text())) == len(held)


@pytest.mark.usefixtures("held")
def test_signals_end_what_comes_behind_it_as_before(tmp_path: Path):
    before = [signal.getsignal(ends) for ends in ENDS]
    assert export(tmp_path, "out") == 0
    assert [signal.getsignal(ends) for ends in ENDS] == before


def ended_by(ends: signal.Signals, directory: Path, before: str = "SIG_DFL") -> int:
    """Export, with that signal as a file is synced, and as one is removed; return the exit code."""
    (directory / "sitecustomize.py").write_text(
        "import os, signal\n"
        f"signal.signal({int(ends)}, signal.{before})\n"
        "def fsync(fd, sync=os.fsync):\n"
        f"    os.kill(os.getpid(), {int(ends)})\n"
        "    sync(fd)\n"
        "def unlink(path, remove=os.unlink):\n"
        f"    os.kill(os.getpid(), {int(ends)})\n"
        "    remove(path)\n"
        "os.fsync, os.unlink = fsync, unlink\n"
    )
    return subprocess.run(
        [
            *(sys.executable, "-m", "gateway", "export", "-c", config(directory)),
            directory / "out",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(directory)},
        check=False,
    ).returncode


def test_a_damaged_batch_is_told_and_the_others_are_exported(tmp_path: Path, capsys: Said):
    buffer = opened(tmp_path / "state")
    for value in (1.0, 2.0, 3.0):
        take(buffer, value)
        buffer.close()
    file = max((tmp_path / "state").glob("*.seg"))
    data = bytearray(file.read_bytes())
    data[data.index(b"bgS3", 100) + 70] ^= 1
    file.write_bytes(data)
    assert export(tmp_path, "out") == 1
    assert "1 place is damaged or cannot be read: `bygate buffer` names" in capsys.readouterr().err
    assert [row["value"] for row in rows((tmp_path / "out").read_text())] == [1.0, 3.0]


def test_what_is_delivered_meanwhile_is_told_and_no_fault(
    tmp_path: Path, held: list[Value], capsys: Said, monkeypatch
):
    def getpid(asked=os.getpid) -> int:  # for the name of the file, once it is known what waits
        (tmp_path / "state/00000001.seg").unlink(missing_ok=True)
        return asked()

    monkeypatch.setattr(os, "getpid", getpid)
    assert export(tmp_path, "out") == 0
    assert "(1 of them refused by the broker, 2 delivered or" in capsys.readouterr().out


def test_a_batch_that_cannot_be_read_any_more_is_told_and_the_others_are_exported(
    tmp_path: Path, held: list[Value], capsys: Said, monkeypatch
):
    def getpid(asked=os.getpid) -> int:  # once it is known what waits
        worn(monkeypatch, "00000001.seg")
        return asked()

    monkeypatch.setattr(os, "getpid", getpid)
    assert export(tmp_path, "out") == 1
    out, err = capsys.readouterr()
    assert "meanwhile" not in out
    assert err == (
        "2 places are damaged or cannot be read: `bygate buffer` names each; look for errors of "
        "the disk in dmesg\n"
    )
    assert [row["value"] for row in rows((tmp_path / "out").read_text())] == ["refused", "young"]


@pytest.mark.parametrize(("why", "code"), [(errno.EINVAL, 0), (errno.EIO, 1)])
def test_a_network_drive_that_syncs_no_directory_will_do_and_a_disk_that_fails_will_not(
    tmp_path: Path, held: list[Value], monkeypatch, why: int, code: int
):
    def fsync(fd: int, sync=os.fsync) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_dir():
            raise OSError(why, os.strerror(why))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert export(tmp_path, "out") == code
    left = ["out", "out.sha256"] if code == 0 else []
    assert sorted(path.name for path in tmp_path.glob("*out*")) == left


def test_a_link_that_somebody_laid_for_what_is_written_beside_leads_nowhere(
    tmp_path: Path, held: list[Value]
):
    (tmp_path / "theirs").write_text("whole")
    (tmp_path / f".out.{os.getpid()}.part").symlink_to("theirs")
    assert export(tmp_path, "out") == 1
    assert (tmp_path / "theirs").read_text() == "whole"


def test_a_damaged_batch_that_was_refused_is_told_and_the_others_are_exported(
    tmp_path: Path, held: list[Value], capsys: Said
):
    (tmp_path / "state/refused/1-1-0x99.batch").write_bytes(b"damaged")
    assert export(tmp_path, "out") == 1
    assert "1 place is damaged or cannot be read: `bygate buffer` names" in capsys.readouterr().err
    assert len(rows((tmp_path / "out").read_text())) == len(held) - 1


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(
    ("name", "left"),
    [
        *(("00000001.seg", 2), ("journal", 13), ("acked", 15), ("refused.list", 14)),
        *(("refused/1-1-0x99.batch", 13), ("refused", 13), ("rates", 14)),
    ],
)
def test_what_is_broken_is_named_and_all_else_is_exported(
    tmp_path: Path, capsys: Said, monkeypatch, name: str, left: int
):
    (tmp_path / "state/rates").touch()
    broken(monkeypatch, Path(name).name)
    assert export(tmp_path, "out") == 1
    assert "`bygate buffer` names each" in capsys.readouterr().err
    assert len(rows((tmp_path / "out").read_text())) == left
    named = f"{tmp_path}/state/{name}: Bad message: its file system is damaged: umount it and run"
    assert any(told.startswith(named) for told in look(tmp_path, capsys)["damage"])


def test_what_stands_in_place_of_the_journal_is_told_and_the_batches_are_exported(
    tmp_path: Path, held: list[Value], capsys: Said
):
    (tmp_path / "state/journal").unlink()
    os.mkfifo(tmp_path / "state/journal")
    assert export(tmp_path, "out") == 1
    assert "1 place is damaged or cannot be read: `bygate buffer` names" in capsys.readouterr().err
    assert len(rows((tmp_path / "out").read_text())) == len(held) - 1


# Ends its process before a step that can be seen from without: as SIGKILL would, or a power cut
DYING = """
import os

def mortal(call):
    def step(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments, **named)
    return step

left = int(os.environ["STEPS"])
for name in ("rename", "unlink", "fsync"):
    setattr(os, name, mortal(getattr(os, name)))
"""


def killed_before(step: int, directory: Path) -> bool:
    """Export over what is there, to be killed before that step; whether that came about."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gateway", "export", "-c", config(directory)),
            *("--overwrite", directory / "out"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(directory), "STEPS": str(step)},
        check=False,
    )
    return done.returncode == 9


def test_killed_at_any_step_a_sum_that_is_there_is_that_of_the_file(
    tmp_path: Path, held: list[Value]
):
    (tmp_path / "sitecustomize.py").write_text(DYING)
    file, told, step, seen = tmp_path / "out", tmp_path / "out.sha256", 0, set()
    killed = True
    while killed:
        file.write_text("older")
        told.write_text(f"{hashlib.sha256(b'older').hexdigest()}  out\n")
        killed = killed_before(step, tmp_path)
        whole = hashlib.sha256(file.read_bytes()).hexdigest()
        assert not told.exists() or told.read_text() == f"{whole}  out\n"
        seen.add((file.read_bytes() == b"older", told.exists()))
        step += 1
    assert seen == {(True, True), (True, False), (False, False), (False, True)}


def noted(monkeypatch: pytest.MonkeyPatch, directory: Path) -> list[str]:
    """Return what is synced, renamed and removed from now on, in its order; it is done as well."""
    steps: list[str] = []
    sync, rename, remove = os.fsync, os.rename, os.unlink

    def noting_sync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        steps.append(f"sync {path.name}" if path == directory else f"sync {path.stat().st_size}")
        sync(fd)

    def noting_rename(source: Path, target: Path) -> None:
        steps.append(f"rename to {target.name}")
        rename(source, target)

    def noting_remove(path: Path) -> None:
        remove(path)
        steps.append(f"remove {path.name}")

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "rename", noting_rename)
    monkeypatch.setattr(os, "unlink", noting_remove)
    return steps


def test_all_of_it_is_on_the_device_before_it_gets_its_name_and_its_name_before_the_sum(
    tmp_path: Path, held: list[Value], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out.sha256").write_text("of an older one")
    steps = noted(monkeypatch, tmp_path)
    assert export(tmp_path, "out", "--overwrite") == 0
    monkeypatch.undo()
    sizes = [(tmp_path / name).stat().st_size for name in ("out", "out.sha256")]
    assert steps == [
        *(f"sync {size}" for size in sizes),
        *("remove out.sha256", f"sync {tmp_path.name}"),
        *("rename to out", f"sync {tmp_path.name}"),
        *("rename to out.sha256", f"sync {tmp_path.name}"),
    ]


# Formats


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        *(("out.csv", b"gateway,epoch"), ("OUT.CSV", b"gateway,epoch")),
        *(("out.lp", b"temperature,"), ("out.influx", b"temperature,")),
        *(("out.batches", b"\x8b\xa1v\x01"), ("out.msgpack", b"\x8b\xa1v\x01")),
        *(("out", b'{"gateway"'), ("out.jsonl", b'{"gateway"'), ("out.csv.txt", b'{"gateway"')),
    ],
)
def test_the_format_is_what_the_name_ends_in(
    tmp_path: Path, held: list[Value], name: str, begins: bytes
):
    assert export(tmp_path, name) == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_format_that_is_given_outdoes_the_ending(tmp_path: Path, held: list[Value]):
    assert export(tmp_path, "out.csv", "--format", "jsonl") == 0
    assert len(rows((tmp_path / "out.csv").read_text())) == len(held)


def from_csv(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@examples
@given(any_batches)
def test_csv_reads_back_exactly(sent: Batch):
    held = decode(encode(sent))
    found = from_csv(csv_head() + "".join(csv_lines(held)))
    values = [json.loads(row["value"]) if row["value"] else None for row in found]
    assert list(map(repr, values)) == [repr(each.value) for each in held.readings]
    assert [row["sensor"] for row in found] == [each.sensor for each in held.readings]


def test_csv_has_the_keys_of_json_lines_as_columns():
    assert csv_head().strip().split(",") == list(COLUMNS)


def points(*values: Value) -> list[str]:
    sent = batch(*(reading(value, at) for at, value in enumerate(values)))
    return list(influx_lines(sent))


def test_influx_fields_are_named_by_type_and_escaped():
    fields = [line.split(" ", 1)[1].rsplit(",quality=", 1)[0] for line in points(*ODD[1:])]
    assert fields == [
        *("value_bool=true", "value_bool=false", "value=-0.0", "value=0.0", "value_int=0i"),
        *("value_int=9223372036854775808u", "value=5e-324", 'value_str=""', 'value_str="5"'),
        'value_str="a\\"\\\\,\nå\u2028 ="',
    ]


def test_an_invalid_value_is_a_point_without_value_and_the_clock_is_told():
    (line,) = points(None)
    assert line.split(" ", 1)[1].startswith("quality=0i,clock=2i,boot=")
    assert line.endswith("000000\n")


# With a daemon


def test_what_is_exported_from_a_running_daemon_is_what_is_delivered_then(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(connect_code=0x88)
            sensors = sensor("it", "simulator", interval="100ms")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await daemon.says("uplink")
                exported: list[Batch] = []
                while len(exported) < 4:
                    path = tmp_path / "out"
                    form = ("--format", "batches", "--overwrite")
                    await bygate("export", path, *form, of=tmp_path)
                    exported = list(decode_all(iter([path.read_bytes()])))
                broker.faults = Faults()
                names = [(each.epoch, each.sequence) for each in exported]
                await broker.wait_for(
                    lambda seen: set(names) <= {(b.epoch, b.sequence) for b in batches(seen)},
                    timeout=20,
                )
                delivered = {(b.epoch, b.sequence): b for b in batches(broker.received)}
                assert [delivered[name] for name in names] == exported
                assert await daemon.stop() == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))
