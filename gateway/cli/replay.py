"""`bygate replay`: recorded bytes through a driver: what comes out, or which fault."""

import argparse
import asyncio
import json
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from gateway.config import ConfigError, Mistake, settings_from_text
from gateway.driver import (
    DriverBroken,
    NoReply,
    Outcome,
    SensorError,
    SerialDriver,
    find,
    names,
    outcome,
    outcomes,
)
from gateway.frame import Framer
from gateway.judge import NOT_A_NUMBER, judge
from gateway.poller import DRIVER_ERROR, OK
from gateway.reading import Values
from gateway.schema import nearest, seen


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
        help="what came from the device, of a polled one an answer each; -: a line each from stdin",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines are printed anyway")


def run(args: argparse.Namespace) -> int:
    """Print an outcome for each frame; return 1 when one of them is not ok."""
    driver = _driver(args.driver, args.settings)
    answers = [_bytes(text) for text in _texts(args.hex)]
    found = _dialogue(driver, answers) if driver.dialogue else _frames(driver, answers)
    return max([_print_outcome(each) for each in found], default=0)


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


def _driver(name: str, settings: Iterable[str]) -> SerialDriver:
    try:
        driver = settings_from_text(find(name), dict(map(_pair, settings)))
    except LookupError:
        hint = nearest(name, names()) or "; `bygate drivers` lists them"
        raise _wrong(f"there is no driver {name!r}{hint}") from None
    except DriverBroken as error:
        raise _wrong(" ".join(str(error).split())) from error
    if not isinstance(driver, SerialDriver):
        raise _wrong(f"driver {name!r} hears no device on a port: there is nothing to replay")
    return driver


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise _wrong(f"--set {text}: expected KEY=VALUE")
    return key, value


def _texts(arguments: Iterable[str]) -> Iterator[str]:
    for text in arguments:
        yield from filter(str.strip, sys.stdin) if text == "-" else (text,)


def _bytes(text: str) -> bytes:
    digits = re.sub(r"\b0[xX]|[\s:]", "", text)
    if wrong := re.search(r"[^0-9a-fA-F]", digits):
        raise _wrong(f"HEX {seen(text)}: {wrong[0]!r} is no hexadecimal digit")
    if len(digits) % 2:
        raise _wrong(f"HEX {seen(text)}: {len(digits)} digits, a byte has two")
    return bytes.fromhex(digits)


def _wrong(text: str) -> ConfigError:
    return ConfigError("", [Mistake(None, "", text)])


# What becomes of it


def _frames(driver: SerialDriver, answers: Iterable[bytes]) -> Iterator[Outcome]:
    """Yield the outcome of each frame that the port's framing cuts out of what came.

    A request discards what came before its answer; what comes unasked is one stream.
    """

    def decode(frame: bytes) -> Values | None:
        with _mistakes_named():
            return _checked(driver, driver.decode(frame))

    for data in answers if driver.polled else [b"".join(answers)]:
        silence = Outcome(NoReply.outcome, data, why=_no_frame(data))
        yield from list(outcomes(driver, data, decode)) or [silence]


def _dialogue(driver: SerialDriver, answers: Sequence[bytes]) -> Iterator[Outcome]:
    """Yield the outcome of each poll, until every answer has been given."""
    port = _Answers(driver, answers)

    async def poll() -> Values | None:
        with _mistakes_named():
            return _checked(driver, await driver.poll(port))

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


class _DriverError(SensorError):
    """A driver's own mistake, in words."""

    outcome = DRIVER_ERROR


@contextmanager
def _mistakes_named() -> Iterator[None]:
    try:
        yield
    except SensorError:
        raise
    except Exception as error:
        raise _DriverError(f"{type(error).__name__}: {error}") from error


def _checked(driver: SerialDriver, values: Values | None) -> Values | None:
    """Return the values; raises what the gateway would raise at those that are none."""
    if values is None:
        return None
    for quantity, value in values.items():
        if quantity not in driver.quantities:
            raise ValueError(f"{quantity.name}: not among the driver's quantities")
        judge(quantity, value)
    return values
