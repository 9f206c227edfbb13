"""How often a trial is made: `tests/run` tries each a few times, `tests/run --long` in full."""

import os

LONG = os.environ.get("BYGATE_TESTS") == "long"


def times(short: int, full: int) -> int:
    """Return how often to try."""
    return full if LONG else short
