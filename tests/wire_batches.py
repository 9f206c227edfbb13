"""Batches for tests of the wire format: the worked example and whatever hypothesis makes up."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from trials import times

from gateway.reading import HUMIDITY, PM2_5, TEMPERATURE, WATER_LEVEL, Instant, Quantity, Reading
from gateway.wire import Batch

examples = settings(max_examples=times(200, 10_000))

EXAMPLE = bytes.fromhex(
    "8ba17601a167a87472642d30303432a165ce9f2c41d7a173cd1267a162ce1d0c55aaa174cf0000019ab0a20700"
    "a175ce05265c7ba16302a16fcd125aa16e0ca1649294aa6169722d746f726765749300cd270f0396a5706d325f35"
    "a575672f6d33014a02fd96ab74656d7065726174757265a343656c02d1febb01fe94a5726976657292cd0fa0cd27"
    "1096ab77617465725f6c6576656ca26d6dffcd04d801fe96ad77617465725f6c6576656c2e71a0ff000001"
)

T, U = 1_763_900_000_000, 86_400_123


def reading(value, at=0, quantity=TEMPERATURE, sensor="a", quality=0):
    return Reading(sensor, quantity, Instant(T + at, U + at, 2), value, quality)


def batch(*readings, **fields):
    header = {"gateway": "g", "epoch": 1, "sequence": 2, "boot": 3, "clock": 2, "oldest": 1}
    return Batch(**(header | fields), readings=readings)


def said(readings):
    """Count what was read; `repr` tells 1, 1.0 and True apart, and −0.0 from 0.0."""
    return Counter(
        (r.sensor, r.quantity.name, r.quantity.unit, r.instant.wall_ms, repr(r.value), r.quality)
        for r in readings
    )


EXAMPLE_BATCH = batch(
    reading(7.4, 0, PM2_5, "air-torget"),
    reading(-3.25, 0, TEMPERATURE, "air-torget"),
    reading(1240, 4000, WATER_LEVEL, "river"),
    reading(7.6, 10_002, PM2_5, "air-torget"),
    reading(-3.24, 10_002, TEMPERATURE, "air-torget"),
    reading(1241, 14_000, WATER_LEVEL, "river"),
    reading(7.3, 20_001, PM2_5, "air-torget"),
    reading(-3.26, 20_001, TEMPERATURE, "air-torget"),
    reading(1239, 24_000, WATER_LEVEL, "river", quality=1),
    gateway="trd-0042",
    epoch=2670477783,
    sequence=4711,
    boot=487347626,
    oldest=4698,
)

quantities = st.sampled_from(
    [
        *(TEMPERATURE, HUMIDITY, PM2_5, WATER_LEVEL, TEMPERATURE.part(2)),
        *(Quantity("temperature", "K", 9), Quantity("x"), Quantity("x.q"), Quantity("", "", 22)),
    ]
)
rounded = st.builds(lambda n, k: n / 10**k, st.integers(-99_999, 99_999), st.integers(0, 4))
values = st.one_of(
    rounded,
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from((0.0, -0.0, 5e-324, 2.0**53, 2.0**53 - 1, -(2.0**53) / 10, 1e308, 0.07)),
    st.integers(-1000, 1000),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.booleans(),
    st.none(),
    st.text(max_size=60),
)
offsets = st.one_of(
    st.integers(0, 5).map(lambda step: step * 60_000), st.integers(0, 100), st.integers(0, 1 << 42)
)
uints = st.integers(0, (1 << 64) - 1)
uint32s = st.integers(0, (1 << 32) - 1)


@st.composite
def series(draw):
    """Make up one series of one kind of value, or of a mix."""
    kind = draw(st.sampled_from((rounded, values, st.integers(), st.floats(-1e3, 1e3))))
    quantity, sensor = draw(quantities), draw(st.sampled_from(("air-torget", "å", "")))
    instants = draw(st.lists(offsets, min_size=1, max_size=12))
    qualities = draw(st.sampled_from((st.just(0), st.integers(0, 63), st.integers(0, 255))))
    return [reading(_held(draw(kind)), at, quantity, sensor, draw(qualities)) for at in instants]


def _held(value):
    return value if type(value) is not int or -(1 << 63) <= value < 1 << 64 else 0


batches = st.builds(
    Batch,
    gateway=st.text(max_size=40),
    epoch=uint32s,
    sequence=uints,
    boot=uint32s,
    clock=st.just(2),
    oldest=uints,
    readings=st.lists(series(), max_size=6).map(lambda runs: [r for run in runs for r in run]),
    previous=st.none() | st.tuples(uint32s, uints),
    dropped=uints,
)
