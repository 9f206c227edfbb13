import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.driver import find

ROOT = Path(__file__).parent.parent
PROGRAM = "from gateway.cli import main; raise SystemExit(main())"
GOOD = "aac0 0600 0900 58d9 40 ab"
WORSE = "aac0 0600 0900 58d9 41 ab"
OK = {
    "outcome": "ok",
    "values": {"pm2_5": {"value": 0.6, "unit": "ug/m3"}, "pm10": {"value": 0.9, "unit": "ug/m3"}},
}
BAD = {"outcome": "bad checksum"}
NO_REPLY = {"outcome": "no reply"}

CAPTURES = [
    pytest.param(path.stem, capture, id=f"{path.stem}-{number}")
    for path in sorted((ROOT / "tests" / "captures").glob("*.toml"))
    for number, capture in enumerate(tomllib.loads(path.read_text())["capture"])
]

SOURCE = '''
from gateway.driver import BadFrame, Frame, SerialDriver
from gateway.reading import CO2, DISTANCE, PM2_5, TEMPERATURE

KINDS = {
    b"a": {DISTANCE: float("nan"), CO2: 5}, b"b": {TEMPERATURE: 1.5}, b"c": {CO2: 1 << 70},
    b"d": {CO2: [1]}, b"e": [], b"f": {CO2: 9_000_000}, b"g": {CO2: True, DISTANCE: -0.0}, b"h": {},
}


class Odd(SerialDriver):
    model = "Odd"
    quantities = (DISTANCE, CO2)
    frame = Frame(start=b"<", length=2)

    def decode(self, frame):
        return KINDS[frame[1:]]


class Formless(SerialDriver):
    model = "Formless"
    quantities = ()


class Talker(SerialDriver):
    """Asks for a factor, then for a number; the number may come in a second frame."""

    model = "Talker"
    quantities = (DISTANCE,)
    frame = Frame(start=b"<", end=b">")

    async def poll(self, port):
        factor = await port.request(b"factor")
        await port.write(b"wait")
        number = await port.request(b"number")
        while number == b"<busy>":
            number = await port.frame()
        if number == b"<->":
            raise BadFrame("a dash for a number")
        return None if number == b"<other>" else {DISTANCE: int(factor[1:-1]) * int(number[1:-1])}


class Mute(Talker):
    async def poll(self, port):
        return {DISTANCE: 1}
'''


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = tmp_path_factory.mktemp("site")
    info = site / "replayed-1.0.dist-info"
    info.mkdir()
    (site / "replayed.py").write_text(SOURCE)
    points = [f"{name} = replayed:{name.title()}" for name in ("odd", "formless", "talker", "mute")]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: replayed\nVersion: 1.0\n")
    points += ["lost = replayed_nowhere:Driver"]
    (info / "entry_points.txt").write_text("\n".join(["[bygate.drivers]", *points, ""]))
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
        self.told = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
        self.reasons = err.splitlines()
        return code


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Replay:
    return Replay(capsys)


def of_frame(frame: dict[str, Any], driver: str) -> dict[str, Any]:
    """What is printed for a frame of a capture."""
    if "values" not in frame:
        return frame
    units = {quantity.name: quantity.unit for quantity in find(driver).quantities}
    values = frame["values"] | dict.fromkeys(frame.get("invalid", ()))
    shown = {name: {"value": value, "unit": units[name]} for name, value in values.items()}
    return {"outcome": "ok", "values": shown}


def listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


@pytest.mark.parametrize(("name", "capture"), CAPTURES)
def test_a_capture_is_printed_as_it_says(name: str, capture: dict[str, Any], replay: Replay):
    chosen = [f"--set={key}={value}" for key, value in capture.get("settings", {}).items()]
    chosen += [
        f"--{option}={value}"
        for option in ("manufacturer", "service", "address", "characteristic")
        for value in listed(capture.get(option, []))
    ]
    code = replay(name, *chosen, *listed(capture["hex"]))
    assert replay.told == [of_frame(each, name) for each in capture["frames"]] or [NO_REPLY]
    assert code == int(any(each["outcome"] != "ok" for each in replay.told))


# The bytes go through the framing of the port


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("00ff aa" + GOOD, [OK]),
        (GOOD + GOOD, [OK, OK]),
        (GOOD[:10], [NO_REPLY]),
        (WORSE, [BAD]),
        (GOOD[:14] + GOOD, [{"outcome": "bad frame"}, OK]),
        ("", [NO_REPLY]),
    ],
)
def test_noise_half_frames_and_two_frames_are_told_as_on_the_port(
    given: str, told: list[Any], replay: Replay
):
    assert replay("sds011", given) == int(told != [OK] * len(told))
    assert replay.told == told


def test_what_comes_unasked_is_one_stream_in_however_many_hexes(replay: Replay):
    assert replay("maxbotix", *hexed("R12", "34\rR00", "", "56\r")) == 0
    assert [each["values"]["distance"]["value"] for each in replay.told] == [1234, 56]


def test_an_unasked_stream_without_a_frame_is_one_silence(replay: Replay):
    assert replay("maxbotix", *hexed("R12", "", "34")) == 1
    assert replay.told == [NO_REPLY]
    assert replay.reasons == ["no reply: 5 bytes, no frame among them"]


def test_each_hex_of_a_polled_device_is_an_answer_of_its_own(replay: Replay):
    assert replay("sds011", GOOD, GOOD[:14], GOOD[14:], GOOD) == 1
    assert replay.told == [OK, NO_REPLY, NO_REPLY, OK]


def test_a_frame_of_something_else_is_not_mine(replay: Replay):
    assert replay("nmea0183", b"$GPZDA,1*55\r\n".hex()) == 1
    assert replay.told == [{"outcome": "not mine"}]


def test_the_reason_stands_on_the_other_stream(replay: Replay):
    replay("sds011", WORSE, GOOD, "00 01")
    assert replay.reasons == [
        "bad checksum: sum 40, the frame says 41",
        "no reply: 2 bytes, no frame among them",
    ]


# What the user writes


@pytest.mark.parametrize(
    "written",
    [
        "AAC00600090058D940AB",
        "0xAAC00600090058D940AB",
        "0xaa 0xc0 0X06 0x00 0x09 0x00 0x58 0xd9 0x40 0xab",
        "aa:c0:06:00:09:00:58:d9:40:ab",
        " aa c0\t06 00 09 00 58 d9 40 ab\n",
    ],
)
def test_hex_may_be_written_in_many_ways(written: str, replay: Replay):
    assert replay("sds011", written) == 0
    assert replay.told == [OK]


def test_settings_are_the_drivers_own(replay: Replay):
    chosen = ("--set", "publish=water_level", "--set", "mounted_at=5000")
    assert replay("maxbotix", *chosen, "52 31323334 0d") == 0
    assert replay.told[0]["values"] == {"water_level": {"value": 3766, "unit": "mm"}}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sds01", "00"), "there is no driver 'sds01'; did you mean 'sds011'?"),
        (("zzz", "00"), "there is no driver 'zzz'; `bygate drivers` lists them"),
        (("host", "00"), "driver 'host' hears no device: there is nothing to replay"),
        (("formless", "00"), "driver 'formless' cannot be loaded: it declares no frame"),
        (("lost", "00"), "driver 'lost' cannot be loaded: No module named 'replayed_nowhere'"),
        (("sds011", "0g"), "HEX '0g': 'g' is no hexadecimal digit"),
        (("sds011", GOOD, "a0x"), "HEX 'a0x': 'x' is no hexadecimal digit"),
        (("sds011", "abc"), "HEX 'abc': 3 digits, a byte has two"),
        (("sds011", "٣٣"), "HEX '٣٣': '٣' is no hexadecimal digit"),
        (("maxbotix", "--set", "publish", "00"), "--set publish: expected KEY=VALUE"),
        (("maxbotix", "--set", "pub=x", "00"), "--set pub: there is no such setting; did you"),
        (("maxbotix", "--set", "no_echo=x", "00"), "--set no_echo: expected a whole number"),
        (("maxbotix", "--set=no_echo=1", "--set=no_echo=2", "00"), "--set no_echo: given twice"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: tuple[str, ...], line: str, replay: Replay):
    assert replay(*arguments) == 2
    assert replay.told == []
    assert len(replay.reasons) == 1
    assert replay.reasons[0].startswith(line)


# A driver's own mistakes, and values that JSON does not have


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("<x", "driver error: KeyError: b'x'"),
        ("<b", "driver error: ValueError: temperature: not among the driver's quantities"),
        ("<d", "driver error: TypeError: co2: list is no kind of value"),
        ("<e", "driver error: AttributeError: 'list' object has no attribute 'items'"),
    ],
)
def test_a_drivers_mistake_costs_its_frame_only(frame: str, reason: str, replay: Replay):
    assert replay("odd", (frame + "<h").encode().hex()) == 1
    assert replay.told == [{"outcome": "driver error"}, {"outcome": "ok", "values": {}}]
    assert replay.reasons == [reason]


@pytest.mark.parametrize(("frame", "rest"), [("<a", {"co2": 5}), ("<c", {})])
def test_what_the_gateway_takes_for_no_number_is_null(
    frame: str, rest: dict[str, int], replay: Replay
):
    assert replay("odd", frame.encode().hex()) == 1
    (told,) = replay.told
    values = {name: value["value"] for name, value in told["values"].items()}
    assert told["outcome"] == "not a number"
    assert {name: value for name, value in values.items() if value is not None} == rest


def test_values_are_printed_as_decode_returns_them(replay: Replay):
    assert replay("odd", b"<f<g".hex()) == 0
    assert replay.told[0]["values"]["co2"]["value"] == 9_000_000
    assert [repr(each["value"]) for each in replay.told[1]["values"].values()] == ["True", "-0.0"]


# A driver with a dialogue


def test_the_answers_go_through_the_drivers_dialogue(replay: Replay):
    assert replay("talker", *hexed("<2>", "noise<21>", "<3>", "<busy><5>")) == 0
    assert [each["values"]["distance"]["value"] for each in replay.told] == [42, 15]


def test_what_is_left_of_an_answer_is_not_the_answer_to_the_next_request(replay: Replay):
    assert replay("talker", *hexed("<2><99>", "<21>")) == 0
    assert [each["values"]["distance"]["value"] for each in replay.told] == [42]


@pytest.mark.parametrize(
    ("answers", "outcome", "reason"),
    [
        (["<2>"], "no reply", "no reply: 0 bytes"),
        (["<2"], "no reply", "no reply: 2 bytes, no frame among them"),
        (["<2>", "<busy>", "later"], "no reply", "no reply: 5 bytes, no frame among them"),
        (["<2>", "<->"], "bad frame", "bad frame: a dash for a number"),
        (["<2>", "<x>"], "driver error", "driver error: ValueError: invalid literal for int()"),
        (["<2>", "<other>"], "not mine", ""),
    ],
)
def test_a_dialogue_that_fails_says_how(
    answers: list[str], outcome: str, reason: str, replay: Replay
):
    assert replay("talker", *hexed(*answers)) == 1
    assert replay.told == [{"outcome": outcome}]
    assert "\n".join(replay.reasons).startswith(reason)


def test_a_dialogue_that_asks_for_nothing_is_held_once(replay: Replay):
    assert replay("mute", *hexed("<1>", "<2>")) == 0
    assert len(replay.told) == 1


def hexed(*answers: str) -> list[str]:
    return [answer.encode().hex() for answer in answers]


# As a process


def process(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "replay", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, input=given, env=env, capture_output=True, text=True, check=False
    )


def test_the_worked_example_prints_one_line_and_nothing_else():
    done = process("sds011", GOOD)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        '{"outcome": "ok", "values": {"pm2_5": {"value": 0.6, "unit": "ug/m3"}, '
        '"pm10": {"value": 0.9, "unit": "ug/m3"}}}\n'
    )


def test_hex_may_come_from_standard_input_line_by_line():
    done = process("sds011", "-", GOOD, given=f"{GOOD}\n\n{WORSE}\n")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [OK, BAD, OK]
    assert done.returncode == 1


def test_a_line_of_standard_input_is_quoted_without_its_end():
    done = process("sds011", "-", given=f"{GOOD}\n zz\r\n")
    assert (done.returncode, done.stderr) == (2, "HEX 'zz': 'z' is no hexadecimal digit\n")


def test_no_hex_is_wrong_usage():
    done = process("sds011")
    assert (done.returncode, done.stdout) == (2, "")
    assert "required: HEX" in done.stderr


@pytest.mark.parametrize("driver", ["sds011", "nmea0183", "bthome"])
def test_nothing_on_standard_input_is_no_reply(driver: str):
    done = process(driver, "-")
    assert (done.returncode, done.stdout) == (1, '{"outcome": "no reply"}\n')
