"""What holds for every driver. Run as a module it renews the table in drivers/README.md."""

import argparse
import ast
import dataclasses
import inspect
import io
import random
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache, partial, reduce
from operator import xor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.advertisement import full_uuid
from gateway.cli import replay_ble
from gateway.cli.columns import folded
from gateway.driver import (
    Advertisement,
    AdvertisementDriver,
    BleDriver,
    Driver,
    GattDriver,
    LocalDriver,
    Outcome,
    SensorError,
    SerialDriver,
    find,
    heard,
    names,
    outcome,
    outcomes,
)
from gateway.reading import CATALOGUE, Quantity, Value
from gateway.schema import settings_of
from tests.bthome_sealed import ADDRESS, KEY, sealed

CAPTURES = Path(__file__).parent / "captures"
README = Path(__file__).parent.parent / "drivers" / "README.md"
MARKS = ("<!-- table of drivers -->\n", "<!-- end of table -->")

DRIVERS = names()
SERIAL = [name for name in DRIVERS if issubclass(find(name), SerialDriver)]
BLE = [name for name in DRIVERS if issubclass(find(name), BleDriver)]
OPTIONS = ("manufacturer", "service", "address", "characteristic")
"""What a capture says of its bytes, as `bygate replay` takes it."""

FORBIDDEN = {"asyncio", "logging", "os", "pathlib", "serial", "socket", "threading", "time"}

SEALS = {
    "nmea0183": lambda body: b"$%b*%02X\r\n" % (body, reduce(xor, body, 0)),
    "pms5003": lambda body: body[:-2] + (sum(body[:-2]) & 0xFFFF).to_bytes(2, "big"),
    "sds011": lambda body: body[:8] + bytes([sum(body[2:8]) & 0xFF, 0xAB]),
}
"""Puts a right checksum on any bytes, so that the fuzzing reaches what lies behind the check."""


def module(name: str) -> ModuleType:
    found = inspect.getmodule(find(name))
    assert found is not None
    return found


@cache
def captures(name: str) -> list[dict[str, Any]]:
    path = CAPTURES / f"{name}.toml"
    return tomllib.loads(path.read_text())["capture"] if path.exists() else []


EVERY_CAPTURE = [
    pytest.param(path.stem, capture, id=f"{path.stem}-{number}")
    for path in sorted(CAPTURES.glob("*.toml"))
    for number, capture in enumerate(captures(path.stem))
]


def made(name: str, **chosen: object) -> Any:
    declared = settings_of(find(name))
    return find(name)(**{key: declared[key].read(value) for key, value in chosen.items()})


@cache
def variants(name: str) -> list[Any]:
    """The driver with every set of settings that its captures use."""
    sets = [capture.get("settings", {}) for capture in captures(name)]
    return [made(name, **one) for one in [{}, *sets]]


def listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def replayed(name: str, capture: dict[str, Any]) -> list[dict[str, Any]]:
    return shown(told(made(name, **capture.get("settings", {})), capture))


def shown(found: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [{"outcome": one.name} if one.values is None else named(one.values) for one in found]


def told(driver: Any, capture: dict[str, Any]) -> Iterable[Outcome]:
    data = [bytes.fromhex(text) for text in listed(capture["hex"])]
    options = {option: capture.get(option) for option in OPTIONS}
    options["characteristic"] = listed(capture.get("characteristic", []))
    if isinstance(driver, SerialDriver):
        return outcomes(driver, *data)
    if isinstance(driver, GattDriver):
        return replay_ble.readings(driver, argparse.Namespace(**options), data)
    return replay_ble.advertisements(driver, argparse.Namespace(**options), data)


def named(values: Any) -> dict[str, Any]:
    good = {quantity.name: value for quantity, value in values.items() if value is not None}
    invalid = [quantity.name for quantity, value in values.items() if value is None]
    return {"values": good} | ({"invalid": invalid} if invalid else {})


def typed(frames: list[dict[str, Any]]) -> list[dict[str, type]]:
    return [{n: type(v) for n, v in frame.get("values", {}).items()} for frame in frames]


# Captures: recorded bytes and what they mean.


@pytest.mark.parametrize(("name", "capture"), EVERY_CAPTURE)
def test_a_capture_means_what_it_says(name: str, capture: dict[str, Any]):
    found = replayed(name, capture)
    assert found == capture["frames"]
    assert typed(found) == typed(capture["frames"])


@pytest.mark.parametrize("name", SERIAL + BLE)
def test_a_driver_of_a_device_has_captures_good_and_bad(name: str):
    frames = [frame for capture in captures(name) for frame in capture["frames"]]
    assert any("values" in frame for frame in frames)
    assert any(frame.get("outcome", "").startswith("bad ") for frame in frames)
    assert name in BLE or any(not capture["frames"] for capture in captures(name))


@pytest.mark.parametrize(("name", "capture"), EVERY_CAPTURE)
def test_a_capture_has_a_source_and_no_key_that_means_nothing(name: str, capture: dict[str, Any]):
    needed = {"source", "hex", "frames"}
    assert needed <= capture.keys() <= needed | {"settings", *(OPTIONS if name in BLE else ())}
    assert all(frame.keys() <= {"outcome", "values", "invalid"} for frame in capture["frames"])


def test_a_quantity_has_one_type_whatever_the_driver():
    types: dict[str, set[type]] = {}
    for name in SERIAL + BLE:
        for capture in captures(name):
            for frame in typed(capture["frames"]):
                for quantity, kind in frame.items():
                    types.setdefault(quantity, set()).add(kind)
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}


# Any bytes: declared quantities or a sensor's error.


def check(driver: Driver, values: Any) -> None:
    assert values is None or values.keys() <= declared(type(driver))
    for quantity, value in (values or {}).items():
        assert plain(quantity, value), (quantity.name, value)


@cache
def declared(driver: type[Driver]) -> set[Quantity]:
    return set(driver.quantities)


def plain(quantity: Quantity, value: Value) -> bool:
    return value is None or type(value) in ((float,) if quantity.decimals else (float, int, bool))


def decode(driver: SerialDriver, data: bytes) -> None:
    try:
        check(driver, driver.decode(data))
    except SensorError as error:
        assert str(error), "a fault is told in words"


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A capture of the driver with some bytes changed, put in, left out."""
    data = bytearray(bytes.fromhex(draw(st.sampled_from(captures(name)))["hex"]))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


@pytest.mark.parametrize("name", SERIAL)
@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_give_declared_quantities_or_a_sensor_error(name: str, data: st.DataObject):
    decode(data.draw(st.sampled_from(variants(name))), data.draw(st.binary(max_size=120)))


@pytest.mark.parametrize("name", SERIAL)
@settings(max_examples=300)
@given(data=st.data())
def test_a_spoilt_stream_gives_declared_quantities_or_named_outcomes(
    name: str, data: st.DataObject
):
    driver, stream = data.draw(st.sampled_from(variants(name))), data.draw(mutated(name))
    for one in outcomes(driver, stream):
        check(driver, one.values)
        assert one.frame in stream


@pytest.mark.parametrize("name", sorted(set(SERIAL) & SEALS.keys()))
@settings(max_examples=500)
@given(data=st.data())
def test_a_spoilt_frame_with_a_right_checksum_gives_no_other_error(name: str, data: st.DataObject):
    driver = data.draw(st.sampled_from(variants(name)))
    body = data.draw(mutated(name))
    if name == "nmea0183":
        body = body.strip(b"$\r\n").rpartition(b"*")[0]
    decode(driver, SEALS[name](body))


def test_every_checked_driver_has_a_seal():
    assert {name for name in SERIAL if find(name).checked} == SEALS.keys()


ROUNDS = 10_000


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """Return any bytes, or `data` with some of its own changed, put in, left out."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(60))
    kept = bytearray(data)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(kept) + 1)
        kept[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
    return bytes(kept)


def spoilt_captures(name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield 10 000 captures whose bytes were spoilt, the same at each run, and drivers for them."""
    chance = random.Random(name)
    drivers = [made(name, **each.get("settings", {})) for each in captures(name)]
    known = list(zip(drivers, captures(name), strict=True))
    for _ in range(ROUNDS):
        driver, capture = chance.choice(known)
        texts = listed(capture["hex"])
        changed = [spoilt(chance, bytes.fromhex(text)).hex() for text in texts]
        yield driver, capture | {"hex": changed}


def decoded(driver: Any, capture: dict[str, Any]) -> Iterable[Outcome]:
    if not isinstance(driver, GattDriver):
        return told(driver, capture)
    values = {
        uuid: bytes.fromhex(text)
        for uuid, text in zip(listed(capture["characteristic"]), capture["hex"], strict=False)
    }
    return [outcome(b"", partial(driver.decode, values))]


@pytest.mark.parametrize("name", BLE)
def test_ten_thousand_spoilt_payloads_give_declared_quantities_or_named_outcomes(name: str):
    seen = set()
    for driver, capture in spoilt_captures(name):
        for one in decoded(driver, capture):
            seen.add(one.name)
            check(driver, one.values)
            assert one.why or one.name in ("ok", "not mine"), "a fault is told in words"
    assert "driver error" not in seen
    assert {"ok", "bad frame"} <= seen


def test_what_is_rightly_sealed_and_nonsense_gives_no_other_error():
    chance = random.Random(0)
    driver = made("bthome", key=KEY)
    for number in range(ROUNDS // 2):
        data = sealed(spoilt(chance, bytes.fromhex("02ca0903bf13")), number)
        said = Advertisement(address=ADDRESS, service_data={full_uuid("fcd2"): data})
        (one,) = heard(driver, [said])
        assert one.name in ("ok", "not mine", "bad frame")
        check(driver, one.values)


# The contract.


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_describes_its_device(name: str):
    driver = find(name)
    assert driver.api == 1
    assert driver.link in ("serial", "modbus", "ble", "gatt", "local")
    assert driver.model
    assert driver.quantities
    assert len(set(driver.quantities)) == len(driver.quantities)
    assert not issubclass(driver, SerialDriver) or driver.frame


@pytest.mark.parametrize("name", BLE)
def test_a_ble_driver_says_how_its_devices_are_known_and_what_is_read(name: str):
    driver: Any = find(name)
    assert driver.companies or driver.services
    assert all(0 <= company <= 0xFFFF for company in driver.companies)
    uuids = [*driver.services, *getattr(driver, "characteristics", ())]
    assert len({full_uuid(uuid) for uuid in uuids}) == len(uuids)
    assert not issubclass(driver, GattDriver) or driver.characteristics


@pytest.mark.parametrize("name", BLE)
def test_a_ble_driver_hears_its_own_captures_and_no_other(name: str):
    driver: Any = find(name)
    assert all(
        driver.hears(Advertisement(address="", service_uuids=(full_uuid(each),)))
        for each in driver.services
    )
    assert all(
        driver.hears(Advertisement(address="", manufacturer_data={each: bytes(6)}))
        for each in driver.companies
    )
    assert not driver.hears(Advertisement(address="", manufacturer_data={0x004C: b""}))


@pytest.mark.parametrize("name", DRIVERS)
def test_a_quantity_is_in_the_catalogue_or_bears_the_drivers_name(name: str):
    for quantity in find(name).quantities:
        own = quantity.name.startswith(f"{name}_") and quantity.name not in CATALOGUE
        whole, _, part = quantity.name.rpartition("_")
        parts = [CATALOGUE[whole].part(part)] if whole in CATALOGUE else []
        assert own or quantity in [CATALOGUE.get(quantity.name), *parts]


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_is_frozen_and_each_setting_has_a_default(name: str):
    driver = made(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        driver.model = "other"
    assert all(hasattr(driver, field.name) for field in dataclasses.fields(driver))


@pytest.mark.parametrize("name", DRIVERS)
def test_each_setting_is_described(name: str):
    for setting in settings_of(find(name)).values():
        assert setting.doc.endswith(".")


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_fits_on_a_page_that_begins_with_its_frame(name: str):
    assert code_lines(inspect.getsource(module(name))) <= 80
    if not issubclass(find(name), LocalDriver):
        drawn = [line for line in (module(name).__doc__ or "").splitlines() if line[:4] == "    "]
        assert drawn, "the docstring draws no frame"


def code_lines(source: str) -> int:
    """Count the lines on which something begins that is no comment; a text counts as one line."""
    shape = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))[:-1]
    return len({token.start[0] for token in tokens if token.type not in shape})


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_imports_nothing_that_the_gateway_owns(name: str):
    if issubclass(find(name), LocalDriver):
        return
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(module(name)))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported & FORBIDDEN == set()


# The one function that captures and `bygate replay` share.


class Numbers(SerialDriver):
    """Raises what the bytes of the frame ask for."""

    frame = find("sds011").frame

    def decode(self, frame: bytes):
        raise ZeroDivisionError


def test_a_mistake_in_a_driver_is_not_taken_for_a_sensors_error():
    with pytest.raises(ZeroDivisionError):
        list(outcomes(Numbers(), bytes.fromhex("aac0 0900 0900 58d9 43 ab")))


def test_a_bad_frame_says_why():
    (found,) = outcomes(made("sds011"), bytes.fromhex("aac0 0900 0900 58d9 44 ab"))
    assert found.name == "bad checksum"
    assert found.why == "sum 43, the frame says 44"


def test_no_frame_has_no_outcome():
    assert list(outcomes(made("sds011"), b"hello")) == []


def test_every_good_frame_is_found_however_often_the_search_starts_anew():
    good = bytes.fromhex("aac0 0900 0900 58d9 43 ab")
    for cut in range(len(good)):
        found = [one.name for one in outcomes(made("sds011"), good[:cut] + good + good)]
        assert found[-2:] == ["ok", "ok"]
        assert found[:-2] in ([], ["bad frame"], ["bad checksum"])


# The table of drivers in the author's guide.


def table() -> str:
    rows = ["| driver | link | model | quantities |", "| --- | --- | --- | --- |"]
    for name in DRIVERS:
        driver: type[Driver] = find(name)
        quantities = ", ".join(folded([quantity.name for quantity in driver.quantities]))
        note = "" if driver.checked else ", no checksum"
        rows.append(f"| {name} | {driver.link}{note} | {driver.model} | {quantities} |")
    return "\n".join(rows) + "\n"


def parts() -> tuple[str, str, str]:
    before, _, rest = README.read_text().partition(MARKS[0])
    between, _, after = rest.partition(MARKS[1])
    return before, between, after


def test_the_readmes_table_is_up_to_date():
    assert parts()[1] == table(), "renew it with: python -m tests.test_drivers"


def test_the_readmes_example_is_a_driver():
    """The guide's first code block is drivers/sds011.py itself."""
    code = README.read_text().partition("```python\n")[2].partition("```")[0]
    assert code == (README.parent / "sds011.py").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readmes_capture_means_what_it_says():
    (capture,) = tomllib.loads(blocks("toml")[0])["capture"]
    assert replayed("maxbotix", capture) == capture["frames"]


@pytest.mark.parametrize(("number", "base"), [(0, AdvertisementDriver), (1, GattDriver)])
def test_the_readmes_bluetooth_drivers_decode_its_captures(number: int, base: type[Driver]):
    space: dict[str, Any] = {"__name__": "guide"}
    exec(blocks("python")[1 + number], space)
    driver, capture = space["Driver"](), tomllib.loads(blocks("toml")[1])["capture"][number]
    assert isinstance(driver, base)
    assert shown(told(driver, capture)) == capture["frames"]


if __name__ == "__main__":
    before, _, after = parts()
    README.write_text(before + MARKS[0] + table() + MARKS[1] + after)
