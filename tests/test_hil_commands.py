"""The commands that simulate and measure: what they say of what they are given."""

import json
import shutil

import pytest

import gateway.cli
import hil.__main__
from hil.bluez import FakeBlueZ
from hil.bluezcommand import put
from hil.dbusdaemon import PrivateBus
from tests.radio_scene import TAG


@pytest.mark.parametrize("given", ["x", "0", "-1", "nan", "inf", ""])
@pytest.mark.parametrize(
    "command",
    [
        ["bygate", "demo", "--seconds"],
        ["hil", "serial", "sds011", "--period"],
        ["hil", "serial", "sds011", "--delay"],
        ["hil", "bench", "idle", "--seconds"],
    ],
    ids=" ".join,
)
def test_a_time_that_is_none_is_refused_in_words(
    command: list[str], given: str, capsys: pytest.CaptureFixture[str]
):
    main = gateway.cli.main if command[0] == "bygate" else hil.__main__.main
    with pytest.raises(SystemExit, match="2"):
        main([*command[1:-1], f"{command[-1]}={given}"])
    said = capsys.readouterr().err
    assert f"argument {command[-1]}: expected seconds, such as 20 or 0.5, got {given!r}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serial", "sds011", "--seed", "x"], "--seed: expected a whole number, got 'x'"),
        (["broker", "--port", "x"], "--port: expected a whole number, got 'x'"),
        (["broker", "--port", "70000"], "--port: expected a port from 0 to 65535, got 70000"),
        (["serial", "sds011", "--seeds", "1"], "unrecognized arguments: --seeds"),
        (["bench", "wire", "--seconds", "1"], "unrecognized arguments: --seconds"),
    ],
)
def test_wrong_usage_is_told_in_words(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        hil.__main__.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["ble"], ["--strangers STRANGERS", "--seconds SECONDS"]),
        (["buffer", "idle"], ["usage: bench buffer", "usage: bench idle", "--interval"]),
        ([], ["usage: python -m hil bench", "`bench NAME --help` tells what"]),
    ],
)
def test_the_help_of_a_bench_tells_its_options(
    names: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
):
    assert hil.__main__.main(["bench", *names, "--help"]) == 0
    told = capsys.readouterr().out
    assert [part for part in said if part not in told] == []


def test_what_one_of_several_benches_does_not_take_is_refused_before_the_first_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hil.bench_buffer.recovery", pytest.fail)
    with pytest.raises(SystemExit, match="2"):
        hil.__main__.main(["bench", "buffer", "uplink", "--seconds", "5"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "bench uplink: error: unrecognized arguments: --seconds 5" in err


@pytest.mark.parametrize("options", [[], ["--json", "--quick"]], ids=" ".join)
def test_without_a_name_it_is_told_which_benches_there_are(
    options: list[str], capsys: pytest.CaptureFixture[str]
):
    assert hil.__main__.main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "hil: bench needs a name: there are ble, buffer, idle, uplink, wire\n",
    )


@pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="dbus is not installed")
def test_the_bench_of_bluetooth_counts_what_was_lost(capsys: pytest.CaptureFixture[str]):
    arguments = ["bench", "ble", "--json", "--quick", "--seconds", "2", "--strangers", "5"]
    assert hil.__main__.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["adverts"] > 1000
    assert figures["lost"] == 0
    assert 0 <= figures["late_ms_median"] <= figures["late_ms_p99"]
    assert [cost["process"] for cost in figures["costs"]] == ["bleak alone", "daemon"]
    assert len(figures["strangers_rss_mb"]) > 1


def test_a_key_that_no_device_on_the_air_has_is_named_with_those_that_are_near():
    with pytest.raises(ValueError, match=r"no 'service' of a device; did you mean .*service_data"):
        put(FakeBlueZ(PrivateBus()), {"advertiser": [{"address": TAG, "service": {}}]})


def test_several_benches_print_one_json_document(capsys: pytest.CaptureFixture[str]):
    assert hil.__main__.main(["bench", "wire", "wire", "--json", "--quick"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() == {"wire"}
    assert figures["wire"][0]["readings"] == 100
