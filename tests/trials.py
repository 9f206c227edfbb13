"""How often a trial is made: `tests/run` tries each a few times, `tests/run --long` in full."""

import logging
import os

LONG = os.environ.get("BYGATE_TESTS") == "long"


def times(short: int, full: int) -> int:
    """Return how often to try."""
    return full if LONG else short


def found(figures: str) -> None:
    """Say what came of a trial: `tests/run --long -n 0 --log-cli-level INFO` shows it."""
    logging.getLogger("trial").info(figures)
