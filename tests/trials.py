"""How often a trial is made: `tests/run` tries each a few times, `tests/run --long` in full."""

import logging
import os
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import pytest

from hil.loopdisk import LoopDiskError

T = TypeVar("T")

LONG = os.environ.get("BYGATE_TESTS") == "long"


def times(short: int, full: int) -> int:
    """Return how often to try."""
    return full if LONG else short


def found(figures: str) -> None:
    """Say what came of a trial: `tests/run --long -n 0 --log-cli-level INFO` shows it."""
    logging.getLogger("trial").info(figures)


def mounted(stack: ExitStack, disk: AbstractContextManager[T]) -> T:
    """Return a disk that is mounted until the stack ends; skips the test where that cannot be."""
    try:
        return stack.enter_context(disk)
    except LoopDiskError as error:
        pytest.skip(f"no disk of its own can be made here, that takes root: {error}")
