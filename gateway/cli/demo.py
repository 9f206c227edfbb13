"""`bygate demo`: the whole gateway on this machine, with simulated sensors and broker."""

import argparse
import math


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate demo`."""
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help="end after so long (default: at Ctrl-C)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print no table, and what was counted at the end"
    )


def run(args: argparse.Namespace) -> int:
    """Run it; 0 if every sensor delivered and nothing was lost."""
    from hil.show import run

    return run(args.seconds, as_json=args.json)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds
