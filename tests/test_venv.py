"""What `.ci/venv` leaves behind; pip is played, so that nothing is downloaded."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent

PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"pip install"*) mkdir bygate.egg-info ;;
esac
"""


def test_nothing_is_left_at_the_top_but_dotfiles(tmp_path: Path):
    root, bin_ = tmp_path / "tree", tmp_path / "bin"
    shutil.copytree(ROOT / ".ci", root / ".ci")
    (root / "pyproject.toml").touch()
    bin_.mkdir()
    (bin_ / "python3").write_text(PYTHON)
    (bin_ / "python3").chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}
    subprocess.run([root / ".ci/venv"], env=environment, check=True, capture_output=True)
    assert sorted(path.name for path in root.iterdir()) == [".ci", ".venv", "pyproject.toml"]
    assert (root / ".venv/bygate-stamp").exists()
