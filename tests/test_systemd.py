"""The unit file, as systemd itself reads it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd/bygate.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def analyze(*arguments):
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M))
    assert analyze("verify", "--man=no", str(unit)).stderr == ""


@needs_systemd
def test_the_sandbox_leaves_little_open():
    told = analyze("security", "--offline=true", "--threshold=18", str(UNIT))
    assert told.returncode == 0, told.stdout.splitlines()[-1:]
