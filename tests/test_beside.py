"""One fault of the disk that several things meet is told once, and its end once it hinders none."""

import errno
import logging
from pathlib import Path

import pytest

from gateway.beside import Beside
from gateway.held import Held


def test_what_two_kinds_meet_is_one_fault_until_neither_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    held = Held(1, 1, 1, 0, "00000001.seg", 0, 1)
    beside = Beside(tmp_path)
    for what in ("read", "set aside"):
        beside.meet(what, held, OSError(errno.EIO, "Input/output error"))
    assert (len(beside.told), beside.count, len(caplog.records)) == (1, 1, 1)
    beside.end([("read", held)])
    assert (len(beside.told), len(caplog.records)) == (1, 1)
    beside.end([("set aside", held)])
    assert beside.told == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
