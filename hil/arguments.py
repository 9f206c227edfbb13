"""Numbers on a command line, refused in words."""

import argparse
import math


def seconds(text: str) -> float:
    """Return a time; raises argparse's error for what is none, or not more than 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, such as 20 or 0.5, got {text!r}")
    return found


def whole(text: str) -> int:
    """Return a whole number; raises argparse's error for what is none."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def port(text: str) -> int:
    """Return a TCP port; 0 is any that is free. Raises argparse's error for what is none."""
    if not 0 <= (found := whole(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return found
