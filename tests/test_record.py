"""Records are found again among bytes that may be damaged."""

import pytest

from gateway.reading import TEMPERATURE, ClockState, Instant, Reading
from gateway.record import Kind, Place, Record, claims, pack, records, size_of
from gateway.wire import Batch, encode

DAMAGE = b"damage"


@pytest.mark.parametrize("kind", Kind)
def test_each_is_found_behind_damage_whatever_numbers_it_has(kind: Kind):
    for number in range(1, 1000):
        record = pack(Record(kind, number, number, number, 0, bytes(number % 7), Place(0, 0, 1)))
        assert [found.sequence for found in records(DAMAGE + record)] == [number]


def batch(*wrong: int) -> tuple[bytes, bytes]:
    """Return the bytes of a batch behind damage, wrong themselves at these, and its payload."""
    reading = Reading("river", TEMPERATURE, Instant(0, 0, ClockState.SYNCED), 1.0)
    payload = encode(Batch("g", 1, 5, 7, ClockState.SYNCED, 0, [reading] * 500))
    data = bytearray(pack(Record(Kind.BATCH, 1, 5, 500, 0, payload, Place(0, 0, 1))))
    for at in wrong:
        data[at] ^= 0xFF
    return DAMAGE + data, payload


@pytest.mark.parametrize("wrong", [*((at,) for at in range(4, 13)), (11, 12)])
def test_a_batch_is_found_behind_damage_with_wrong_bytes_in_its_head(wrong: tuple[int, ...]):
    data, payload = batch(*wrong)
    assert [found.payload for found in records(data)] == [payload]


def test_what_a_batch_held_is_told_though_neither_its_length_nor_its_bytes_are_right():
    data = bytearray(batch(11)[0])
    data[len(DAMAGE) + size_of(b"")] = 0  # no payload begins so
    assert [found.readings for found in claims(bytes(data))] == [500]
