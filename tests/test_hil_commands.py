"""The commands that simulate and measure: what they say of what they are given."""

import asyncio
import json

import pytest

import gateway.cli
import hil.__main__
from hil import bench_idle


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


def test_a_bench_has_its_options_and_shows_each_figure_as_it_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shown = []

    async def measure(interval: str, seconds: float) -> bench_idle.Cost:
        shown.append(capsys.readouterr().out)
        await asyncio.sleep(0)
        return bench_idle.Cost(interval, 30.0, seconds, 0.2, 1.0)

    monkeypatch.setattr(bench_idle, "measure", measure)
    arguments = ["--seconds", "7", "--interval", "5s", "9s"]
    assert hil.__main__.main(["bench", "idle", *arguments]) == 0
    assert "first reading s" in shown[0]
    assert "5s     30.0" in shown[1]
    assert "9s     30.0              7.00" in capsys.readouterr().out
    assert hil.__main__.main(["bench", "idle", "--json", *arguments]) == 0
    assert [line["interval"] for line in json.loads(capsys.readouterr().out)] == ["5s", "9s"]
