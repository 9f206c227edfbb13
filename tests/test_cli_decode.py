import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from hypothesis import given
from wire_batches import EXAMPLE, T, batch, batches, examples, reading

from gateway import wire
from gateway.cli import main
from gateway.cli.lines import influx_lines
from gateway.encoding import json_lines

ROOT = Path(__file__).parent.parent
BYGATE = [sys.executable, "-c", "from gateway.cli import main; raise SystemExit(main())"]
BUFFERED = {"PYTHONPATH": str(ROOT)}  # whatever PYTHONUNBUFFERED says here


def decode(payloads: bytes, *files: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [*BYGATE, "decode", *files]
    return subprocess.run(command, input=payloads, capture_output=True, check=False, env=BUFFERED)


def rows(printed: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def values(printed: str | bytes) -> list[Any]:
    return [row["value"] for row in rows(printed)]


@pytest.fixture
def payloads(tmp_path: Path) -> Path:
    file = tmp_path / "batches"
    file.write_bytes(EXAMPLE + zlib.compress(EXAMPLE) + EXAMPLE)
    return file


def test_the_worked_example_has_nine_readings(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "example").write_bytes(EXAMPLE)
    assert main(["decode", str(tmp_path / "example")]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["value"] for row in found[:6]] == [7.4, 7.6, 7.3, -3.25, -3.24, -3.26]
    assert [row["value"] for row in found[6:]] == [1240, 1241, 1239]
    assert [row["time_ms"] - T for row in found[6:]] == [4_000, 14_000, 24_000]
    assert [row["quality"] for row in found] == [0] * 8 + [1]


def test_a_line_has_these_keys_in_this_order():
    assert decode(EXAMPLE).stdout.splitlines()[0].decode() == (
        '{"gateway":"trd-0042","epoch":2670477783,"sequence":4711,"sensor":"air-torget",'
        '"quantity":"pm2_5","unit":"ug/m3","time_ms":1763900000000,'
        '"boot":487347626,"boot_ms":86400123,"clock":2,"value":7.4,"quality":0}'
    )


def test_influx_lines_are_those_of_an_export(payloads: Path):
    done = decode(EXAMPLE, "--influx", payloads)
    lines = list(influx_lines(wire.decode(EXAMPLE)))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == "".join(lines * 3)


def test_maps_and_zlib_streams_may_stand_back_to_back_in_several_files(payloads: Path):
    done = decode(EXAMPLE, payloads, "-", payloads)
    assert (done.returncode, done.stderr) == (0, b"")
    assert values(done.stdout) == values(decode(EXAMPLE).stdout) * 7


@examples
@given(batches)
def test_every_value_is_printed_so_that_it_reads_back_exactly(sent: wire.Batch):
    held = wire.decode(wire.encode(sent))
    found = rows("".join(json_lines(held)))
    told = [(row["sensor"], row["time_ms"], repr(row["value"]), row["quality"]) for row in found]
    assert told == [
        (each.sensor, each.instant.wall_ms, repr(each.value), each.quality)
        for each in held.readings
    ]


def test_null_booleans_and_the_sign_of_zero_are_kept():
    odd = [None, True, False, -0.0, 0.0, 5e-324, "a\nå\u2028"]
    sent = wire.encode(batch(*(reading(value, at) for at, value in enumerate(odd))))
    assert [repr(value) for value in values(decode(sent).stdout)] == [repr(value) for value in odd]


def test_nothing_prints_nothing():
    done = decode(b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (b"\n" + EXAMPLE, b"first byte 0x0a (a newline: mosquitto_sub without -N?)"),
        (EXAMPLE[:-1], b"a map is cut off after 179 bytes"),
        (zlib.compress(EXAMPLE)[:-1], b"a zlib stream is cut off after"),
        (zlib.compress(EXAMPLE[:9]), b"a map is cut off after 9 bytes, all of its zlib stream"),
        (b"\x81\xa1v\x02", b"schema version 2: this decoder reads version 1"),
    ],
)
def test_what_stands_before_the_damage_is_printed_and_one_line_tells_it(
    damage: bytes, cause: bytes
):
    done = decode(EXAMPLE + damage)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 9)
    assert done.stderr.startswith(b"standard input: payload at byte 180: " + cause)
    assert len(done.stderr.splitlines()) == 1


def test_the_line_about_damage_names_its_file_and_the_others_are_read(
    payloads: Path, tmp_path: Path
):
    bad = tmp_path / "bad"
    bad.write_bytes(b"hello")
    done = decode(b"", bad, payloads)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 27)
    assert done.stderr.decode().startswith(f"{bad}: payload at byte 0: first byte 0x68: neither")


@pytest.mark.parametrize(
    ("file", "cause"), [("none", "No such file or directory"), (".", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path, file: str, cause: str):
    done = decode(b"", tmp_path / file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"{tmp_path / file}: cannot be read: {cause}\n"


def test_a_batch_is_printed_before_the_next_one_comes():
    command = [*BYGATE, "decode"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=BUFFERED
    ) as running:
        assert running.stdin
        assert running.stdout
        deadline = Timer(20, running.kill)
        deadline.start()
        running.stdin.write(EXAMPLE + EXAMPLE[:50])
        running.stdin.flush()
        assert values(b"".join(running.stdout.readline() for _ in range(9)))[-1:] == [1239]
        running.stdin.write(EXAMPLE[50:])
        assert len(running.communicate()[0].splitlines()) == 9
        deadline.cancel()


def test_a_reader_that_goes_away_ends_it_quietly(payloads: Path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [*BYGATE, "decode", payloads]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, env=BUFFERED)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
