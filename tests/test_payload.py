import random
import tracemalloc
import zlib

import msgpack
import pytest

from gateway.payload import MAX_INFLATED, WireError, content_type, pack, unpack

NESTED = b"\x81\xa1a"


def opened(data):
    return unpack(memoryview(data))


def test_the_shorter_of_map_and_zlib_stream_is_packed():
    assert pack({"a": 1}) == b"\x81\xa1a\x01"
    assert pack({"a": "x" * 99})[0] == 0x78


def test_a_map_and_a_zlib_stream_open_alike_and_say_how_long_they_were():
    for fields in ({"a": 1}, {"a": "x" * 99}):
        payload = pack(fields)
        assert opened(payload + b"more") == (fields, len(payload))


@pytest.mark.parametrize(("count", "first"), [(0, 0x80), (15, 0x8F), (16, 0xDE), (70_000, 0xDF)])
def test_maps_of_every_size_are_known_by_their_first_byte(count, first):
    plain = msgpack.packb(dict.fromkeys(map(str, range(count))))
    assert plain[0] == first
    assert opened(plain) == (dict.fromkeys(map(str, range(count))), len(plain))


@pytest.mark.parametrize("data", [b"", b"\x90", b"\n", b"{}", b"\x1f\x8b"])
def test_what_begins_as_neither_is_refused(data):
    for read in (opened, content_type):
        with pytest.raises(WireError, match="neither a msgpack map nor a zlib stream"):
            read(data)


@pytest.mark.parametrize("inner", [b"\x01", b"\x91\x01", b"\x80\x80", b"", b"\xc1"])
def test_a_zlib_stream_holds_one_map_and_nothing_else(inner):
    with pytest.raises(WireError):
        opened(zlib.compress(inner))


def refused_in_little_memory(data, message):
    tracemalloc.start()
    with pytest.raises(WireError, match=message):
        opened(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak < 4 * MAX_INFLATED


def test_a_stream_that_inflates_beyond_the_cap_is_refused_before_it_is_inflated():
    assert refused_in_little_memory(zlib.compress(bytes(1 << 25)), "more than 4194304 bytes")


@pytest.mark.parametrize("packed", [bytes, zlib.compress])
def test_long_lists_in_lists_that_never_come_are_not_allocated(packed):
    heads = NESTED + b"\xdd\x00\x3f\x00\x00" * 10
    assert refused_in_little_memory(packed(heads + bytes((1 << 22) - 99)), "cut off")


def test_a_map_as_large_as_the_cap_opens_and_one_byte_more_is_refused():
    def sized(size):
        return NESTED + b"\xc6" + (size - 8).to_bytes(4, "big") + bytes(size - 8)

    assert opened(sized(MAX_INFLATED))[1] == MAX_INFLATED
    assert len(opened(zlib.compress(sized(MAX_INFLATED)))[0]["a"]) == MAX_INFLATED - 8
    with pytest.raises(WireError, match="cut off after 4194304 bytes"):
        opened(sized(MAX_INFLATED + 1))


def test_nesting_beyond_reason_is_refused():
    with pytest.raises(WireError, match="broken msgpack"):
        opened(NESTED + b"\x91" * 100_000)


@pytest.mark.parametrize(
    "rest",
    [b"\xa1\xff\x01", b"\x01\x01", b"\xa1b\xc7\x05\xff12345", b"\xa1b\xc1", b"\xa1a\x02"],
    ids=["not UTF-8", "key not text", "bad timestamp", "reserved byte", "key twice"],
)
def test_a_map_that_breaks_a_rule_of_msgpack_is_refused(rest):
    with pytest.raises(WireError):
        opened(b"\x82\xa1a\x01" + rest)


def test_what_fits_no_msgpack_type_is_not_packed():
    for value in (1 << 64, "\ud800", object()):
        with pytest.raises(WireError, match="cannot be packed"):
            pack({"a": value})


def test_a_payload_larger_than_any_broker_takes_is_not_packed():
    noise = random.Random(1).randbytes(120_000)
    with pytest.raises(WireError, match="at most 120000"):
        pack({"a": noise})


def test_a_map_that_readers_would_not_inflate_is_not_packed():
    with pytest.raises(WireError, match="at most 120000 and 4194304"):
        pack({"a": bytes(MAX_INFLATED)})
