"""`bygate demo`: the whole gateway on this machine, with simulated sensors and broker."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate demo`."""
    from hil.arguments import seconds

    parser.add_argument(
        "--seconds", type=seconds, metavar="N", help="end after so long (default: at Ctrl-C)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print no table, and what was counted at the end"
    )


def run(args: argparse.Namespace) -> int:
    """Run it; 0 if every sensor delivered and nothing was lost."""
    from hil.show import run

    return run(args.seconds, as_json=args.json)
