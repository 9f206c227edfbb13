"""`bygate run`: the daemon."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from gateway.cli import DEFAULT_CONFIG

log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM, SIGINT or SIGHUP, then end the process."""
    # Until the service hears it: there is nothing to save yet, but much to import
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    import asyncio
    import logging

    from gateway.config import load
    from gateway.service import Service, StateDirInUse

    config = load(args.config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)

    async def serve() -> bool:
        return await Service(config).run()

    code = 1
    try:
        code = 0 if asyncio.new_event_loop().run_until_complete(serve()) else 1
    except StateDirInUse as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        log.exception("bygate ends by a mistake of its own; what was flushed is kept")
    finally:
        # Threads that hang in open() or the resolver cannot be ended; they must not hold up the end
        logging.shutdown()
        os._exit(code)
