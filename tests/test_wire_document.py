import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from test_health import Box
from wire_batches import EXAMPLE, T, U, batches, examples, reading

from gateway import wire
from gateway.driver import LONGEST_NAME
from gateway.encoding import ENCODINGS
from gateway.filling import BATCH_READINGS, Filling
from gateway.reading import Quantity

DOCUMENT = (Path(wire.__file__).parent / "WIRE.md").read_text(encoding="utf-8")


def functions():
    """Run the document's Python blocks and return what they define."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(block, names)
    return names


DECODE, RETIME = functions()["decode"], functions()["retime"]


def rows(decoded):
    """Return the rows that the document's decoder should yield, qualities of 0 left out."""
    for r in decoded.readings:
        name, unit, at = r.quantity.name, r.quantity.unit, r.instant.wall_ms
        yield r.sensor, name, unit, at, repr(r.value)
        if r.quality:
            yield r.sensor, name + ".q", "", at, repr(r.quality)


def without_good(found):
    return Counter(row for row in found if not (row[1].endswith(".q") and row[4] == "0"))


@given(batches)
@examples
def test_the_documents_decoder_agrees_with_ours(sent):
    payload = wire.encode(sent)
    theirs = ((*row[:4], repr(row[4])) for row in DECODE(payload))
    assert without_good(theirs) == without_good(rows(wire.decode(payload)))


def test_the_documents_decoder_reads_the_worked_example():
    assert list(DECODE(EXAMPLE))[3:5] == [
        ("air-torget", "temperature", "Cel", T, -3.25),
        ("air-torget", "temperature", "Cel", T + 10_002, -3.24),
    ]


def test_the_documents_worked_example_is_the_one_that_is_tested():
    lines = DOCUMENT.split("## A worked example")[1].split("```")[1].splitlines()
    assert bytes.fromhex("".join(line.split("  ")[0] for line in lines)) == EXAMPLE


def test_the_documents_decoder_has_ten_lines():
    body = DOCUMENT.split('of every value in a payload."""\n')[1].split("```")[0]
    assert len(body.splitlines()) == 10


@pytest.mark.parametrize(("claim", "letter"), [("At worst it is", "x"), ("text;", "\U0001f600")])
def test_no_batch_that_was_sealed_for_msgpack_has_longer_lines_than_the_document_says(
    claim: str, letter: str
):
    most = float(re.search(rf"{claim} ([\d.]+) MB", DOCUMENT)[1]) * 10**6
    name = letter * LONGEST_NAME
    sizes = [as_json(Quantity(name, name), "\1" * length) for length in range(40, 60)]
    assert most * 0.9 < max(sizes) <= most


def as_json(quantity: Quantity, text: str) -> int:
    """Return the bytes of the JSON lines of a batch that is full of such readings."""
    sender, most = "g" * 64, 2**32 - 1
    full = Filling(reading(0).instant, 0.0, wire.SizeBound(sender))
    long = reading(text, 0, quantity, "s" * 64, 255)
    while full.takes(long):
        pass
    assert len(full.readings) <= BATCH_READINGS
    sent = wire.Batch(sender, most, most, most, 2, 1, full.readings)
    return len(ENCODINGS["json"](wire.encode(sent))[0])


def test_batches_from_before_the_clock_was_set_are_timed_by_the_next_synchronised_one():
    batches = [
        {"s": 3, "b": 9, "c": 2, "t": T, "u": U},
        {"s": 1, "b": 9, "c": 0, "t": 5_000, "u": U - 60_000},
        {"s": 4, "b": 9, "c": 1, "t": T + 99, "u": U + 98},
        {"s": 2, "b": 8, "c": 0, "t": 7_000, "u": 7_000},
        {"s": 77, "b": 9, "c": 0, "t": 6_000, "u": U - 59_000},  # the buffer was begun anew since
    ]
    RETIME(batches)
    assert [each["t"] for each in batches] == [T, T - 60_000, T + 99, 7_000, T - 59_000]


def documented():
    """Return the keys of the document's table of the status, as `part.key`."""
    table = DOCUMENT.split("| key | meaning |\n| --- | --- |\n")[1].split("\n\n")[0]
    for row in table.splitlines():
        first, *others = row.split("|")[1].strip().split(", ")
        part = first.partition(".")[0]
        yield from (first, *(f"{part}.{other}" for other in others))


def test_the_document_names_every_key_of_the_status(tmp_path):
    status = Box(tmp_path).health.snapshot("online")
    parts = ("clock", "buffer", "uplink")
    found = {f"{part}.{key}" for part in parts for key in status[part]}
    found |= {f"sensors.NAME.{key}" for key in status["sensors"]["it"]}
    short = re.search(r'{"state": "offline".*}', DOCUMENT)[0]
    assert status.keys() == {*parts, "bluetooth", "sensors", *json.loads(short)}
    assert sorted(found | {"bluetooth.NAME"}) == sorted(documented())


def test_the_document_names_every_quality_bit_and_key():
    for word in ("suspect", "maintenance", "stale", "clipped", "fault", "time uncertain"):
        assert word in DOCUMENT
    assert re.findall(r"^\| (\w) \|", DOCUMENT, re.MULTILINE)[:13] == list("vgesbtucoplnd")
