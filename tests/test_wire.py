import random
import zlib
from dataclasses import replace
from itertools import accumulate, chain, repeat

import msgpack
import pytest
import trials
from hypothesis import given
from hypothesis import strategies as st
from wire_batches import (
    EXAMPLE,
    EXAMPLE_BATCH,
    T,
    U,
    batch,
    batches,
    examples,
    reading,
    said,
    values,
)

from gateway import wire
from gateway.payload import pack, unpack
from gateway.reading import (
    LAEQ,
    MOTION,
    PM2_5,
    TEMPERATURE,
    WATER_LEVEL,
    ClockState,
    Quality,
    Quantity,
)

NAN, INF = float("nan"), float("inf")


def fields_of(*readings, **header):
    return unpack(memoryview(wire.encode(batch(*readings, **header))))[0]


def column(*column_values, quantity=TEMPERATURE):
    """Return k and the x of a series with these values."""
    readings = [reading(value, at, quantity) for at, value in enumerate(column_values)]
    _, _, (_, _, *packed) = fields_of(*readings)["d"][0]
    assert said(wire.decode(wire.encode(batch(*readings))).readings) == said(readings)
    return packed


def times(*offsets):
    return fields_of(*(reading(1.0, at) for at in offsets))["d"][0][1]


def decoded_column(*packed, unit="Cel"):
    times = [0, 1] if len(packed) > 2 else [0]
    block = ["a", times, ["temperature", unit, *packed]]
    return [r.value for r in wire.decode(example(n=len(packed) - 1, d=[block])).readings]


def example(**changes):
    """Return the worked example with other fields; one that is `...` is left out."""
    fields = unpack(memoryview(EXAMPLE))[0] | changes
    return pack({key: value for key, value in fields.items() if value is not ...})


# The worked example


def test_the_worked_example_encodes_byte_for_byte():
    assert wire.encode(EXAMPLE_BATCH) == EXAMPLE


def test_the_worked_example_decodes():
    decoded = wire.decode(EXAMPLE)
    assert said(decoded.readings) == said(EXAMPLE_BATCH.readings)
    assert replace(decoded, readings=()) == replace(EXAMPLE_BATCH, readings=())


def test_what_was_decoded_encodes_to_the_same_bytes():
    assert wire.encode(wire.decode(EXAMPLE)) == EXAMPLE


# Round trip


@given(batches)
@examples
def test_every_batch_comes_back_as_it_was(sent):
    received = wire.decode(wire.encode(sent))
    assert said(received.readings) == said(sent.readings)
    assert replace(received, readings=()) == replace(sent, readings=())


@given(st.lists(values, min_size=1, max_size=30), st.integers(0, 24))
@examples
def test_every_mix_of_values_comes_back_as_it_was(mix, decimals):
    column(*mix, quantity=Quantity("x", "", decimals))


@given(batches)
@examples
def test_boot_time_comes_back_from_u_and_the_distance_to_t(sent):
    received = wire.decode(wire.encode(sent))
    assert {r.instant.boot_ms - r.instant.wall_ms for r in received.readings} <= {U - T}


def test_a_batch_without_readings_comes_back():
    assert wire.decode(wire.encode(batch())).readings == []


def test_a_quantity_of_the_catalogue_comes_back_as_itself():
    decoded = wire.decode(EXAMPLE).readings
    assert {id(r.quantity) for r in decoded} == {id(PM2_5), id(TEMPERATURE), id(WATER_LEVEL)}


def test_a_quantity_in_another_unit_than_the_catalogue_has_keeps_its_unit():
    kelvin = Quantity("temperature", "K", 2)
    assert column(293.15, quantity=kelvin) == [2, 29315]
    (decoded,) = wire.decode(wire.encode(batch(reading(293.15, 0, kelvin)))).readings
    assert decoded.quantity == Quantity("temperature", "K")


# The map


def test_a_batch_is_sent_as_whichever_of_map_and_zlib_stream_is_shorter():
    few = wire.encode(batch(reading(1.0)))
    many = wire.encode(batch(*(reading(1.0, at) for at in range(100))))
    assert (few[0], many[0]) == (0x8B, 0x78)
    assert (wire.content_type(few), wire.content_type(many)) == (
        "application/msgpack",
        "application/zlib",
    )


def test_keys_stand_in_the_order_of_the_table():
    fields = fields_of(reading(1.0), previous=(7, 8), dropped=9)
    assert "".join(fields) == "vgesbtucoplnd"
    assert (fields["p"], fields["l"]) == ([7, 8], 9)


def test_p_and_l_are_left_out_when_there_is_nothing_to_say():
    assert "".join(fields_of(reading(1.0))) == "vgesbtucond"


def test_t_and_u_are_the_instant_of_the_earliest_reading_wherever_it_stands():
    fields = fields_of(reading(1.0, 50), reading(2.0, 7, PM2_5), reading(3.0, 60))
    assert (fields["t"], fields["u"]) == (T + 7, U + 7)


def test_n_counts_nil_and_quality_columns_too():
    assert fields_of(reading(None, 0), reading(1.0, 1, quality=1))["n"] == 4


# Blocks and times


def test_quantities_read_together_share_a_block_in_order_of_first_appearance():
    readings = [reading(1.0, 0, q, s) for q in (PM2_5, TEMPERATURE) for s in "ba"]
    blocks = fields_of(*readings)["d"]
    assert [block[0] for block in blocks] == ["b", "a"]
    assert [c[0] for c in blocks[0][2:]] == ["pm2_5", "temperature"]


def test_quantities_not_read_at_the_same_times_stand_in_separate_blocks():
    blocks = fields_of(reading(1.0, 0), reading(2.0, 9), reading(3.0, 0, PM2_5))["d"]
    assert [(block[1], block[2][0]) for block in blocks] == [
        ([0, 9], "temperature"),
        ([0], "pm2_5"),
    ]


def test_readings_are_sorted_by_time_and_equal_times_keep_their_order():
    readings = [reading(v, at) for v, at in ((3.0, 9), (1.0, 5), (2.0, 5), (0.0, 1))]
    assert fields_of(*readings)["d"] == [
        ["a", [0, 4, 0, -4], ["temperature", "Cel", 0, 0, 1, 1, 1]]
    ]


def test_the_step_is_the_lower_median_of_the_gaps():
    assert times(0, 10, 30) == [0, 10, 0, 10]
    assert times(0, 10, 30, 60) == [0, 20, -10, 0, 10]


def test_trailing_residuals_of_zero_are_dropped():
    assert times(0, 10, 20, 30) == [0, 10]
    assert times(0, 12, 22, 32) == [0, 10, 2]


def test_the_times_of_one_reading_are_its_offset_alone():
    assert times(0) == [0]


# Columns


def test_k_is_the_smallest_that_holds_all():
    assert column(20.0, 21.0) == [0, 20, 1]
    assert column(20.0, 20.5, 20.25) == [2, 2000, 50, -25]


def test_k_is_the_quantitys_decimals_where_one_is_odd_and_the_odd_one_stands_as_it_is():
    assert column(1.5, 0.12345, 1.75) == [3, 1500, 0.12345, 250]


def test_values_are_divided_not_multiplied():
    assert 35 * 0.01 != 0.35
    assert column(0.35, 0.41) == [2, 35, 6]


def test_integers_have_k_minus_one():
    assert column(1240, 1241, 1239) == [-1, 1240, 1, -2]


def test_none_is_nil_and_leaves_the_sum_alone():
    assert column(1.5, None, 1.6) == [1, 15, None, 1]


def test_a_bool_or_string_among_numbers_is_a_literal_that_leaves_the_sum_alone():
    assert column(5, True, 7, "calm", 6) == [-1, 5, True, 2, "calm", -1]


@pytest.mark.parametrize(
    "mix",
    [(1, 2.5), (1.5, -0.0), (2.0**53, 1.0), (2**53, 1), (2.0**53 / 1000, 0.001), (1e308, 5e-324)],
    ids=["ints and floats", "-0.0", "2^53", "int 2^53", "2^53 / 10^k", "huge"],
)
def test_k_is_nil_where_running_sums_cannot_hold_the_values(mix):
    assert column(*mix) == [None, *mix]


def test_the_largest_values_that_running_sums_hold_are_held():
    assert column(2**53 - 1, 0) == [-1, 2**53 - 1, 1 - 2**53]
    assert column(9007199254740.75, 0.125)[0] == 3
    assert column(9007199254741.0, 0.125)[0] is None


def test_a_column_is_mostly_literals_when_it_has_fewer_deltas_than_literals():
    assert column(0.1, 0.12345) == [3, 100, 0.12345]
    assert column(0.1, 0.12345, 0.54321) == [None, 0.1, 0.12345, 0.54321]
    assert column(0.1, 0.12345, None, None)[0] == 3


def test_a_column_without_any_number_is_mostly_literals():
    assert column(True, False, quantity=MOTION) == [None, True, False]
    assert column(None, None) == [None, None, None]
    assert column("calm") == [None, "calm"]


def test_an_enumeration_travels_as_its_integer():
    sent = reading(ClockState.SYNCED), reading(ClockState.GNSS, 1, quality=Quality.FAULT)
    assert fields_of(*sent)["d"][0][2:] == [
        ["temperature", "Cel", -1, 2, 1],
        ["temperature.q", "", -1, 0, 16],
    ]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1 << 64, -(1 << 63) - 1, 1j, b"x"])
def test_what_fits_no_number_of_msgpack_is_nil(value):
    readings = [reading(v, at) for at, v in enumerate((1.5, value, 2.5))]
    assert fields_of(*readings)["d"][0][2][2:] == [1, 15, None, 10]


def test_a_long_string_is_cut_to_256_bytes_at_a_character_boundary():
    (cut,) = wire.decode(wire.encode(batch(reading("å" * 127 + "€" * 9)))).readings
    assert cut.value == "å" * 127
    (whole,) = wire.decode(wire.encode(batch(reading("å" * 128)))).readings
    assert whole.value == "å" * 128


def test_a_string_that_is_no_unicode_does_not_stop_the_batch():
    (decoded,) = wire.decode(wire.encode(batch(reading("a\ud800b")))).readings
    assert decoded.value == "a?b"


def test_a_name_that_is_no_unicode_is_a_wire_error():
    with pytest.raises(wire.WireError, match="cannot be packed"):
        wire.encode(batch(reading(1.0, sensor="\ud800")))


# Quality


def test_a_quality_column_stands_behind_its_quantity_when_not_all_are_zero():
    sent = reading(1.5, 0), reading(1.5, 1, quality=33), reading(1.5, 2, quality=1)
    block = fields_of(*sent, reading(58.1, 0, LAEQ, quality=0))["d"][0]
    assert block[3] == ["temperature.q", "", -1, 0, 33, -32]


def test_no_quality_column_stands_where_all_are_zero():
    blocks = fields_of(reading(1.5), reading(2.5, 0, PM2_5, quality=256))["d"]
    assert [c[0] for c in blocks[0][2:]] == ["temperature", "pm2_5"]


def test_a_quantity_whose_own_name_ends_in_q_is_not_taken_for_a_quality():
    sent = reading(5, 0, Quantity("x")), reading(7, 0, Quantity("x.q"), quality=1)
    assert said(wire.decode(wire.encode(batch(*sent))).readings) == said(sent)


# Decoding what others encoded


def test_an_integer_valued_float_is_a_delta():
    assert decoded_column(1, 15.0, 2.5, 1) == [1.5, 2.5, 1.6]
    assert decoded_column(-1, 15.0, 1) == [15, 16]


def test_unknown_keys_are_ignored():
    assert wire.decode(example(z=[{"y": 1}])) == wire.decode(EXAMPLE)


def test_an_unknown_version_is_refused_by_name():
    with pytest.raises(wire.WireError, match="version 2: this decoder reads version 1"):
        wire.decode(example(v=2, d="what only version 2 knows"))


@pytest.mark.parametrize(
    "changes",
    [
        {"v": True}, {"v": ...}, {"g": 7}, {"e": 1 << 32}, {"s": -1}, {"b": 1.0}, {"c": None},
        {"o": ...}, {"t": 1 << 53}, {"u": -1}, {"l": None}, {"p": [1]}, {"p": [1, -1]}, {"p": 5},
        {"n": 11}, {"n": 13}, {"n": 1 << 18 | 1}, {"d": {}}, {"d": ...}, {"d": ["a"]},
        {"d": [7]}, {"d": [{0: "a", 1: [0], 2: []}]}, {"d": [["a", [0], 7]]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_field_that_breaks_a_rule_is_a_wire_error(changes):
    with pytest.raises(wire.WireError):
        wire.decode(example(**changes))


ONE, TWO, THREE = ["x", "", 1, 74], ["x", "", 1, 74, 1], ["x", "", 1, 74, 1, 1]


@pytest.mark.parametrize(
    "block",
    [
        ["a", [0]], [7, [0], ONE], ["a", [0], "x"], ["a", [0], ["x", "", 1]],
        ["a", [0], [7, "", 1, 1]], ["a", [0], ["x", None, 1, 1]], ["a", [0, 1], TWO, ONE, THREE],
        ["a", [], ONE], ["a", [0.0], ONE], ["a", [True], ONE], ["a", 0, ONE], ["a", [0, 1], ONE],
        ["a", [0], TWO], ["a", [0, 1, 1, 1], TWO],
        ["a", [-1], ONE], ["a", [9, -1], TWO], ["a", [9, 1, -2], TWO], ["a", [1 << 53], ONE],
        ["a", [0], ["x", "", 23, 1]], ["a", [0], ["x", "", -2, 1]], ["a", [0], ["x", "", True, 1]],
        ["a", [0], ["x", "", None, []]], ["a", [0], ["x", "", 0, b"x"]],
        ["a", [0], ["x", "", 0, NAN]], ["a", [0], ["x", "", None, INF]],
        ["a", [0], ["x", "", 0, 1e308]], ["a", [0], ["x", "", -1, 1 << 53]],
        ["a", [0], ONE, ["x.q", "", -1, -1]], ["a", [0], ONE, ["x.q", "", -1, "bad"]],
    ],
    ids=repr,
)  # fmt: skip
def test_a_block_that_breaks_a_rule_is_a_wire_error(block):
    count = sum(len(each) - 3 for each in block[2:])
    with pytest.raises(wire.WireError):
        wire.decode(example(n=count, d=[block]))


def test_reading_ends_at_the_first_block_that_goes_beyond_n():
    columns = [["x", "", 0, *[1] * 1000]] * 60
    with pytest.raises(wire.WireError, match="d holds 60000 values or more, n says 5"):
        wire.decode(example(n=5, d=[["a", [0, 1], *columns], "not even a block"]))


def test_more_values_than_a_reader_takes_are_not_decoded():
    column = ["x", "", 0, *[1] * (wire.MAX_VALUES + 1)]
    with pytest.raises(wire.WireError, match="n is 262145, more than 262144"):
        wire.decode(example(n=wire.MAX_VALUES + 1, d=[["a", [0, 1], column]]))


def test_more_values_than_a_reader_takes_are_not_encoded():
    many = [reading(1.0, at) for at in range(wire.MAX_VALUES + 1)]
    with pytest.raises(wire.WireError, match="at most 262144"):
        wire.encode(batch(*many))


def test_bytes_behind_the_batch_are_a_wire_error():
    with pytest.raises(wire.WireError, match="1 bytes follow"):
        wire.decode(EXAMPLE + b"\n")


def test_payloads_back_to_back_are_decoded_one_by_one():
    many = wire.encode(batch(*(reading(1.0, at) for at in range(100))))
    lengths = [len(each.readings) for each in wire.decode_all([EXAMPLE + many + many + EXAMPLE])]
    assert lengths == [9, 100, 100, 9]


def test_a_broken_payload_among_others_is_named_by_its_offset():
    stream = wire.decode_all([EXAMPLE + b"\n" + EXAMPLE])
    assert next(stream) == wire.decode(EXAMPLE)
    with pytest.raises(wire.WireError, match="payload at byte 180: first byte 0x0a"):
        next(stream)


@examples
@given(batches, batches)
def test_payloads_may_come_in_chunks_of_any_size(one, other):
    stream = wire.encode(one) + wire.encode(other)
    size = 1 + len(stream) // 7
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = [said(each.readings) for each in wire.decode_all(chunks)]
    assert found == [said(each.readings) for each in wire.decode_all([stream])]


def test_the_offset_of_a_broken_payload_counts_from_the_first_chunk():
    stream = EXAMPLE * 3 + b"\n"
    chunks = [stream[at : at + 100] for at in range(0, len(stream), 100)]
    with pytest.raises(wire.WireError, match="payload at byte 540: first byte 0x0a"):
        list(wire.decode_all(chunks))


def test_a_payload_that_is_cut_off_at_the_end_is_told():
    stream = wire.decode_all([EXAMPLE, EXAMPLE[:-1]])
    assert next(stream) == wire.decode(EXAMPLE)
    with pytest.raises(wire.WireError, match="payload at byte 180: a map is cut off after 179"):
        next(stream)


def test_a_map_cut_off_in_a_whole_zlib_stream_is_told_before_more_bytes_come():
    chunks = iter([zlib.compress(EXAMPLE[:-1]), b"never asked for"])
    with pytest.raises(wire.WireError, match="payload at byte 0: a map is cut off after 179"):
        list(wire.decode_all(chunks))
    assert next(chunks) == b"never asked for"


def test_a_zlib_stream_that_never_ends_is_given_up():
    empty_block, chunk = b"\x00\x00\x00\xff\xff", 1 << 20
    endless = chain([b"\x78\x9c"], repeat(empty_block * (chunk // 5)))
    with pytest.raises(wire.WireError, match=r"a zlib stream is cut off after \d{7} bytes"):
        list(wire.decode_all(endless))


# Anything may arrive


def batch_or_error(payload):
    try:
        decoded = wire.decode(payload)
    except wire.WireError as error:
        assert str(error)
        return
    again = wire.decode(wire.encode(decoded))
    assert said(again.readings) == said(decoded.readings)


@given(st.binary(max_size=200), st.sampled_from((b"", b"\x78\x9c", b"\x8b\xa1v\x01", EXAMPLE)))
@examples
def test_arbitrary_bytes_give_a_batch_or_a_wire_error(tail, head):
    batch_or_error(head + tail)


scalars = st.one_of(
    *(st.none(), st.booleans(), st.floats(), st.binary(max_size=3), st.text(max_size=3)),
    *(st.integers(-2, 5), st.sampled_from((1 << 53, (1 << 64) - 1, -(1 << 63), "x.q", [], {}))),
)
lists = st.lists(scalars, max_size=6)
columns = lists | st.tuples(st.sampled_from(("x", "x.q", 1)), st.just(""), scalars, scalars)


@given(st.lists(st.tuples(scalars, lists, columns, columns), max_size=2), st.integers(0, 5))
@examples
def test_arbitrary_blocks_give_a_batch_or_a_wire_error(blocks, n):
    batch_or_error(example(d=blocks, n=n))


def mutant(rng, payload):
    data = bytearray(payload)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0x00, 0x7F, 0x80, 0x90, 0xC0, 0xCB, 0xD3, 0xDD, 0xDF, 0xFF))
        elif kind == 2:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at:at] = data[: rng.randrange(12)]
    return bytes(data) or b"\x80"


def test_mutated_payloads_give_a_batch_or_a_wire_error():
    rng = random.Random(20)
    zipped = wire.encode(batch(*(reading(at / 7, at) for at in range(40))))
    plain = msgpack.packb(unpack(memoryview(zipped))[0])
    for number in range(trials.times(600, 10_000)):
        batch_or_error(mutant(rng, (EXAMPLE, zipped, plain)[number % 3]))


def test_every_cut_of_a_payload_is_a_wire_error():
    zipped = wire.encode(batch(*(reading(1.0, at) for at in range(100))))
    for payload in (EXAMPLE, zipped):
        for length in range(len(payload)):
            with pytest.raises(wire.WireError):
                wire.decode(payload[:length])


# The bound


def bound_of(sent):
    bound = wire.SizeBound(sent.gateway)
    for each in sent.readings:
        bound.add(each)
    return bound.size


@given(batches)
@examples
def test_no_batch_is_larger_than_its_bound(sent):
    assert within_bound(sent)


def within_bound(sent):
    return len(msgpack.packb(wire._fields(sent)[1])) <= bound_of(sent)


def test_the_longest_times_numbers_and_qualities_are_within_the_bound():
    at = accumulate([0] * 50 + [1 << 40] + [1 << 41] * 50, initial=0)
    long = [(1 << 64) - 1, -(1 << 63)]
    sent = [reading(long[i % 2], ms, quality=i % 2 * 255) for i, ms in enumerate(at)]
    assert within_bound(batch(*sent))


def test_the_longest_strings_are_within_the_bound():
    for text in ("å" * 128, "\ud800" * 300):
        assert within_bound(batch(*(reading(text, at) for at in range(100))))


def test_the_longest_names_are_within_the_bound():
    units = [Quantity("å" * 300, "€" * i) for i in range(50)]
    assert within_bound(
        batch(*(reading(0, i, each, "s" * 70_000, 1) for i, each in enumerate(units)))
    )


def test_the_longest_header_is_within_the_bound():
    short, long = (1 << 32) - 1, (1 << 64) - 1
    header = {"epoch": short, "boot": short, "sequence": long, "oldest": long, "dropped": long}
    assert within_bound(batch(**header, previous=(short, long), gateway="g" * 999))


def test_a_thousand_ordinary_readings_of_a_hundred_series_fit_into_the_default_size():
    names = [f"sensor-somewhere-{n:03}" for n in range(100)]
    sent = batch(*(reading(20.1, at, LAEQ, name) for at in range(10) for name in names))
    assert bound_of(sent) < wire.DEFAULT_SIZE / 1.8
