"""`bygate doctor`: whether this box can keep its readings, and get them to the broker.

It looks at clock, storage, buffer, credentials and each broker, and at no sensor, port or adapter.
Nothing is changed on disk, and nothing counts as delivered.
"""

import argparse
import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from gateway.cli import DEFAULT_CONFIG
from gateway.cli.doctor_box import buffer, clock, credentials, storage
from gateway.cli.doctor_broker import Talk
from gateway.cli.doctor_network import Network
from gateway.cli.finding import FAIL, Finding, Report, Told, worst
from gateway.clock import Clock
from gateway.config import Config, load
from gateway.connection import CONNECT_WITHIN
from gateway.service import stray

_P = ParamSpec("_P")
_T = TypeVar("_T")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate doctor`."""
    parser.description = (
        "Looks at the clock, the disk, what waits on it, password and certificates, and at each "
        "broker in turn: DNS, TCP, TLS, login, the right to publish `about` and a batch, and what "
        "the broker says of both. After a step that fails the later ones are not tried. It does "
        "not look at sensors, ports, Bluetooth or the power supply. To try it, `about` and the "
        "newest batch on disk are published once more; nothing counts as delivered by that. While "
        "the daemon runs it connects under a client id of its own, ID-doctor."
    )
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON, once all is done")


def run(args: argparse.Namespace) -> int:
    """Print a line for each check as soon as it is made; 1 when one of them fails."""
    config = load(args.config)
    found: list[Finding] = []

    def report(finding: Finding) -> None:
        if not args.json:
            _print(finding, after=found[-1] if found else None)
        found.append(finding)

    asyncio.run(examine(config, report))
    if args.json:
        print(json.dumps({"state": worst(found), "checks": list(map(asdict, found))}, indent=2))
    return int(worst(found) == FAIL)


def _print(finding: Finding, after: Finding | None) -> None:
    if finding.broker and not (after and after.broker == finding.broker):
        print(f"\n{finding.broker}")
    print(finding, flush=True)


async def examine(
    config: Config, report: Report, *, of: Clock | None = None, within: float = CONNECT_WITHIN
) -> None:
    """Make each check; `within` bounds each wait for a broker, in seconds."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(stray)
    loop.set_default_executor(Threads())
    wall = Clock() if of is None else of
    report(clock(wall))
    report(storage(config))
    waits, newest = buffer(config)
    at = datetime.fromtimestamp(wall.now().wall_ms / 1000, UTC)
    secrets, shown = await credentials(config.uplink, at)
    for finding in filter(None, (waits, secrets)):
        report(finding)
    for broker in config.uplink.url:
        told = Told(report, broker.url)
        network = Network(broker, config.uplink, told, within=within)
        began = loop.time()
        if await network.carries(shown.tls if shown else None) and shown:
            way = loop.time() - began
            await Talk(broker, config, newest, told, within=within, way=way).run()


class Threads(ThreadPoolExecutor):
    """A thread for each call, which nobody waits for at the end: resolvers and drives may hang."""

    def submit(
        self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> "Future[_T]":
        """Do the work in a thread of its own."""
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()  # from now on nobody can cancel it

        def do() -> None:
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                future.set_exception(error)

        threading.Thread(target=do, daemon=True).start()
        return future
