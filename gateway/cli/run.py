"""`bygate run`: the daemon."""

import argparse
import os
import signal
import sys
from pathlib import Path

from gateway.cli import DEFAULT_CONFIG


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT, then end the process."""
    # Until the service hears it: there is nothing to save yet, but much to import
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    import asyncio
    import logging

    from gateway.config import load
    from gateway.service import Service, StateDirInUse

    config = load(args.config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)

    async def serve() -> None:
        await Service(config).run()

    try:
        asyncio.new_event_loop().run_until_complete(serve())
    except StateDirInUse as error:
        print(error, file=sys.stderr)
        return 1
    logging.shutdown()
    # Threads that hang in open() or in the resolver cannot be ended; they must not hold up the stop
    sys.stdout.flush()
    os._exit(0)
