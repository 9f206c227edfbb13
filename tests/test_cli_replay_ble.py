"""`bygate replay` of advertisements and characteristics; test_cli_replay.py has the captures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main

RUUVI = "0512fc5394c37c0004fffc040cac364200cdcbb8334c884f"
PLUS = "b42e2a68-ade7-11e4-89d3-123b93f75cba"
WAVE = "01380d800b002200bd094cc31d036c0000007d05"
KEY = "--set=key=231d39c1d7cc1ab1aee224cd096db932"
ADDRESS = "--address=54:48:E6:8F:80:A5"
COUNTED = ("41e445f3c9962b332211006c7c4519", "413e932cc7175f34221100553876af")

SOURCE = '''
from gateway.driver import AdvertisementDriver, GattDriver
from gateway.reading import CO2, TEMPERATURE


class Two(AdvertisementDriver):
    """Hears two kinds of advertisement; divides by the first byte."""

    model = "Two"
    quantities = (CO2,)
    companies = (0x1234,)
    services = ("fcd2",)

    def decode(self, advertisement):
        data = advertisement.manufacturer(0x1234) or advertisement.service("fcd2")
        return {CO2: 10 // data[0]} if data else None


class Asked(GattDriver):
    """Asks by writing; the answer comes by itself."""

    model = "Asked"
    quantities = (CO2,)
    services = ("1234",)
    characteristics = ("aaaa", "bbbb")

    async def poll(self, client):
        await client.write("aaaa", b"wake")
        found = await client.request("aaaa", b"value", "bbbb")
        return {(CO2 if found != b"T" else TEMPERATURE): found[0]}
'''


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = tmp_path_factory.mktemp("site")
    info = site / "replayed_ble-1.0.dist-info"
    info.mkdir()
    (site / "replayed_ble.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: replayed-ble\nVersion: 1.0\n")
    points = "two = replayed_ble:Two\nasked = replayed_ble:Asked\n"
    (info / "entry_points.txt").write_text(f"[bygate.drivers]\n{points}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site


class Replay:
    """Runs the command in this process; `told` and `reasons` are what it last printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> int:
        code = main(["replay", *arguments])
        out, err = self._capsys.readouterr()
        self.told = [json.loads(line) for line in out.splitlines()]
        self.reasons = err.splitlines()
        return code

    @property
    def values(self) -> list[dict[str, Any]]:
        """The values of each line."""
        return [{n: v["value"] for n, v in one["values"].items()} for one in self.told]

    @property
    def outcomes(self) -> list[str]:
        """The outcome of each line."""
        return [one["outcome"] for one in self.told]


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Replay:
    return Replay(capsys)


def test_what_hex_is_need_not_be_said_where_the_driver_declares_one_thing(replay: Replay):
    assert replay("ruuvi", RUUVI) == 0
    assert replay.values[0]["temperature"] == 24.3
    assert replay("ruuvi", "--manufacturer", "0x0499", RUUVI) == 0
    assert replay("ruuvi", "--manufacturer", "1177", RUUVI) == 0
    assert replay("bthome", "--service", "0000FCD2-0000-1000-8000-00805F9B34FB", "400161") == 0
    assert replay.values == [{"battery": 97}]


def test_each_hex_is_an_advertisement(replay: Replay):
    assert replay("bthome", "400161", "4001", "403a01", "41a472") == 1
    assert replay.outcomes == ["ok", "bad frame", "not mine", "bad frame"]
    assert len(replay.reasons) == 2


def test_a_counter_that_does_not_grow_is_replayed(replay: Replay):
    assert replay("bthome", KEY, ADDRESS, *COUNTED, *COUNTED) == 1
    assert replay.outcomes == ["ok", "ok", "replayed", "replayed"]
    assert replay.told[2] == {"outcome": "replayed"}
    assert replay.reasons[0] == "replayed: counter 1122867 after 1122868"


def test_a_driver_that_hears_two_things_is_told_which(replay: Replay):
    assert replay("two", "--manufacturer", "0x1234", "05", "00") == 1
    assert replay.outcomes == ["ok", "driver error"]
    assert replay("two", "--service", "fcd2", "02") == 0
    assert replay.values == [{"co2": 5}]


def test_each_hex_of_one_characteristic_is_a_reading(replay: Replay):
    assert replay("environmental_sensing", "--characteristic", "2A6E", "6408", "64", "0080") == 1
    assert replay.outcomes == ["ok", "bad frame", "ok"]
    assert replay.told[2]["values"]["temperature"]["value"] is None


def test_several_characteristics_are_read_together(replay: Replay):
    pair = ("--characteristic", "2a6e", "--characteristic", "2a6f")
    assert replay("environmental_sensing", *pair, "6408", "8813") == 0
    assert replay.values == [{"temperature": 21.48, "humidity": 50.0}]


def test_a_characteristic_that_the_driver_does_not_read_is_refused(replay: Replay):
    assert replay("airthings", "--characteristic", "2a6e", WAVE) == 1
    assert replay.outcomes == ["refused"]
    assert replay.reasons[0].startswith(f"refused: the device has none of {PLUS}, ")


def test_a_driver_with_a_dialogue_is_answered_from_the_hex(replay: Replay):
    pair = ("--characteristic", "aaaa", "--characteristic", "bbbb")
    assert replay("asked", *pair, "00", "2a") == 0
    assert replay.values == [{"co2": 42}]
    assert replay("asked", *pair, "00", b"T".hex()) == 1
    assert replay.reasons == [
        "driver error: ValueError: temperature: not among the driver's quantities"
    ]
    assert replay("asked", "--characteristic", "aaaa", "00") == 1
    assert replay.reasons == ["refused: the device has no bbbb"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("two", "00"), "HEX is one of several things, say which: --manufacturer 0x1234 or --serv"),
        (
            ("airthings", WAVE),
            f"HEX is one of several things, say which: --characteristic {PLUS}, ",
        ),
        (
            ("ruuvi", "--service=fcd2", "--manufacturer=1", "00"),
            "HEX is one of several things, say",
        ),
        (("ruuvi", "--characteristic=2a6e", "00"), "--characteristic: driver 'ruuvi' reads adver"),
        (("airthings", "--service=fcd2", WAVE), "--service: driver 'airthings' reads charact"),
        (("airthings", ADDRESS, WAVE), "--address: driver 'airthings' reads characteristics: --c"),
        (("sds011", "--manufacturer=1", "00"), "--manufacturer: driver 'sds011' reads what comes"),
        (
            ("bthome", "--service=fc_2", "00"),
            "--service: expected a UUID such as fcd2, or in full,",
        ),
        (
            ("bthome", "--service=fcd", "00"),
            "--service: expected a UUID such as fcd2, or in full, ",
        ),
        (("airthings", "--characteristic=+abc", "00"), "--characteristic: expected a UUID such as"),
        (("ruuvi", "--manufacturer=0499", "00"), "--manufacturer: expected a company identifier"),
        (("ruuvi", "--manufacturer=65536", "00"), "--manufacturer: expected a company identifier"),
        (("ruuvi", "--manufacturer=1_0", "00"), "--manufacturer: expected a company identifier"),
        (("ruuvi", "--manufacturer=0x4_99", "00"), "--manufacturer: expected a company identifier"),
        (("ruuvi", "--manufacturer=1", "--manufacturer=2", "00"), "--manufacturer: given twice"),
        (("bthome", "--service=fcd2", "--service=fcd2", "00"), "--service: given twice"),
        (
            ("ruuvi", "--address=54:48", "00"),
            "--address: expected a Bluetooth address such as 'CC:",
        ),
        (
            ("airthings", "--characteristic=2a6e", "--characteristic=2a6f", "00"),
            "2 --characteristic, 1 HEX: several are read together, each with a HEX of its own",
        ),
        (
            ("airthings", "--characteristic=2a6e", "--characteristic=2A6E", "00", "00"),
            "2 --characteristic, 2 HEX: several are read together, each with a HEX of its own",
        ),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: tuple[str, ...], line: str, replay: Replay):
    assert replay(*arguments) == 2
    assert replay.told == []
    assert len(replay.reasons) == 1
    assert replay.reasons[0].startswith(line)
