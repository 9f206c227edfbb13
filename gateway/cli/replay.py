"""`bygate replay`: recorded bytes through a driver: what comes out, or which fault."""

import argparse
import asyncio
import json
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gateway.cli import replay_ble
from gateway.cli.faults import checked, mistakes_named, wrong
from gateway.config import settings_from_text
from gateway.driver import (
    AdvertisementDriver,
    Driver,
    DriverBroken,
    GattDriver,
    NoReply,
    Outcome,
    SerialDriver,
    find,
    names,
    outcome,
    outcomes,
)
from gateway.frame import Framer
from gateway.judge import NOT_A_NUMBER, judge
from gateway.poller import OK
from gateway.reading import Values
from gateway.schema import nearest, seen

_LINKS: Mapping[type[Driver], tuple[str, tuple[str, ...]]] = {
    SerialDriver: ("what comes from a port", ()),
    AdvertisementDriver: ("advertisements", ("manufacturer", "service", "address")),
    GattDriver: ("characteristics", ("characteristic",)),
}
"""What can be replayed, and the options that say what HEX is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate replay`."""
    parser.add_argument("driver", metavar="DRIVER", help="`bygate drivers` lists them")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="a setting of the driver",
    )
    parser.add_argument(
        "hex",
        nargs="+",
        metavar="HEX",
        help="what came from the device: answers, advertisements or values of characteristics; "
        "-: one a line from standard input",
    )
    replay_ble.arguments(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines are printed anyway")


def run(args: argparse.Namespace) -> int:
    """Print an outcome for each frame; return 1 when one of them is not ok."""
    driver = _driver(args)
    answers = [_bytes(text) for text in _texts(args.hex)]
    if isinstance(driver, SerialDriver):
        found = _dialogue(driver, answers) if driver.dialogue else _frames(driver, answers)
    elif isinstance(driver, AdvertisementDriver):
        found = replay_ble.advertisements(driver, args, answers)
    else:
        found = replay_ble.readings(driver, args, answers)
    codes = [_print_outcome(each) for each in found]
    return (
        max(codes) if codes else _print_outcome(Outcome(NoReply.outcome, b"", why=_no_frame(b"")))
    )


def _print_outcome(found: Outcome) -> int:
    shown = _shown(found)
    print(json.dumps(shown), flush=True)
    if found.why:
        print(f"{found.name}: {' '.join(found.why.split())}", file=sys.stderr)
    return 0 if shown["outcome"] == OK else 1


def _shown(found: Outcome) -> dict[str, object]:
    """Return what is printed; a number that JSON and the gateway do not have is null."""
    if found.values is None:
        return {"outcome": found.name}
    name, values = found.name, {}
    for quantity, value in found.values.items():
        flaw = judge(quantity, value)[2]
        name = flaw if flaw == NOT_A_NUMBER else name
        shown = None if flaw == NOT_A_NUMBER else value
        values[quantity.name] = {"value": shown, "unit": quantity.unit}
    return {"outcome": name, "values": values}


# What was given


def _driver(args: argparse.Namespace) -> SerialDriver | AdvertisementDriver | GattDriver:
    name = args.driver
    try:
        driver = settings_from_text(find(name), _pairs(args.settings))
    except LookupError:
        hint = nearest(name, names()) or "; `bygate drivers` lists them"
        raise wrong(f"there is no driver {name!r}{hint}") from None
    except DriverBroken as error:
        raise wrong(" ".join(str(error).split())) from error
    if not isinstance(driver, SerialDriver | AdvertisementDriver | GattDriver):
        raise wrong(f"driver {name!r} hears no device: there is nothing to replay")
    reads, fit = next(said for kind, said in _LINKS.items() if isinstance(driver, kind))
    for option in sorted({each for _, some in _LINKS.values() for each in some} - set(fit)):
        if getattr(args, option):
            instead = ", ".join(f"--{each}" for each in fit) or "leave it out"
            raise wrong(f"--{option}: driver {name!r} reads {reads}: {instead}")
    return driver


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for key, value in map(_pair, texts):
        if key in pairs:
            raise wrong(f"--set {key}: given twice")
        pairs[key] = value
    return pairs


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise wrong(f"--set {text}: expected KEY=VALUE")
    return key, value


def _texts(arguments: Iterable[str]) -> Iterator[str]:
    for text in arguments:
        yield from filter(None, map(str.strip, sys.stdin)) if text == "-" else (text,)


def _bytes(text: str) -> bytes:
    digits = re.sub(r"\b0[xX]|[\s:]", "", text)
    if other := re.search(r"[^0-9a-fA-F]", digits):
        raise wrong(f"HEX {seen(text)}: {other[0]!r} is no hexadecimal digit")
    if len(digits) % 2:
        raise wrong(f"HEX {seen(text)}: {len(digits)} digits, a byte has two")
    return bytes.fromhex(digits)


# What becomes of it


def _frames(driver: SerialDriver, answers: Iterable[bytes]) -> Iterator[Outcome]:
    """Yield the outcome of each frame that the port's framing cuts out of what came.

    A request discards what came before its answer; what comes unasked is one stream.
    """

    def decode(frame: bytes) -> Values | None:
        with mistakes_named():
            return checked(driver, driver.decode(frame))

    for data in answers if driver.polled else [b"".join(answers)]:
        silence = Outcome(NoReply.outcome, data, why=_no_frame(data))
        yield from list(outcomes(driver, data, decode)) or [silence]


def _dialogue(driver: SerialDriver, answers: Sequence[bytes]) -> Iterator[Outcome]:
    """Yield the outcome of each poll, until every answer has been given."""
    port = _Answers(driver, answers)

    async def poll() -> Values | None:
        with mistakes_named():
            return checked(driver, await driver.poll(port))

    def polled() -> Values | None:
        try:
            return asyncio.run(poll())
        except asyncio.CancelledError as silence:
            raise NoReply(str(silence)) from None

    left = len(answers) + 1
    while 0 < len(port.left) < left:  # the same number again: it asks for nothing
        left = len(port.left)
        yield outcome(b"", polled)


class _Answers:
    """The port of a dialogue: a HEX for each request; where none helps, the deadline passes."""

    def __init__(self, driver: SerialDriver, answers: Iterable[bytes]) -> None:
        self.left = deque(answers)
        self._framer = Framer(driver.frame)

    async def request(self, data: bytes) -> bytes:
        """Discard what is left of the answer before, return the next answer's first frame."""
        self._framer.clear()
        return await self.frame()

    async def frame(self) -> bytes:
        """Return the next frame of this answer, or else the first of the next."""
        frame, heard = self._framer.next(), b""
        if frame is None and self.left:
            heard = self.left.popleft()
            self._framer.feed(heard)
            frame = self._framer.next()
        if frame is None:
            raise asyncio.CancelledError(_no_frame(heard))
        return frame

    async def write(self, data: bytes) -> None:
        """Take what nobody hears."""


def _no_frame(data: bytes) -> str:
    return f"{len(data)} bytes, no frame among them" if data else "0 bytes"
