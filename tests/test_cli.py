"""What every command does where it cannot speak, or is interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BYGATE = f"{sys.executable} -m gateway"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell; fails should it take longer than a person waits."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )


@pytest.mark.parametrize("command", ["drivers", "replay sds011 aac0", "check --example"])
@pytest.mark.parametrize(
    ("to", "code", "said"),
    [
        (">/dev/full", 1, "bygate: it cannot write what it has to say: [Errno 28]"),
        (">/dev/full 2>&1", 1, ""),
        (">&-", None, ""),
        (">&- 2>&-", None, ""),
    ],
)
def test_where_nothing_can_be_written_it_ends_in_good_order(
    command: str, to: str, code: int | None, said: str
):
    done = shell(f"{BYGATE} {command} {to} </dev/null")
    assert code is None or done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_pipe_that_is_closed_early_is_no_mistake():
    done = shell(f"({BYGATE} drivers; echo $? >&2) | head -c 0")
    assert done.stderr == "141\n"


def test_a_standard_input_that_is_closed_is_named():
    done = shell(f"{BYGATE} decode <&-")
    assert (done.returncode, done.stderr) == (
        2,
        "standard input: cannot be read: Bad file descriptor\n",
    )


def test_interrupted_while_it_begins_it_says_nothing(tmp_path: Path):
    config = tmp_path / "config.toml"
    os.mkfifo(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "check", "-c", config],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with config.open("w"):  # it is about to read it
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == (None, "")
    assert process.returncode == 130
