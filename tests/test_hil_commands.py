"""The commands that simulate and measure: what they say of what they are given."""

import pytest

import gateway.cli
import hil.__main__


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
