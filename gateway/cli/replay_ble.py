"""The part of `bygate replay` that is about BLE: advertisements, values of characteristics."""

import argparse
import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from gateway.advertisement import full_uuid
from gateway.cli.faults import checked, mistakes_named, wrong
from gateway.config import SensorSettings
from gateway.driver import (
    Advertisement,
    AdvertisementDriver,
    DeviceRefused,
    GattDriver,
    Outcome,
    heard,
    outcome,
)
from gateway.reading import Values
from gateway.schema import seen, settings_of

_T = TypeVar("_T")


class _Once(argparse.Action):
    """An option that stands once: argparse would take the last without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise wrong(f"--{self.dest}: given twice")
        setattr(namespace, self.dest, values)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what HEX is."""
    parser.add_argument(
        "--manufacturer",
        action=_Once,
        metavar="COMPANY",
        help="HEX is manufacturer data of 0x0499, say",
    )
    parser.add_argument(
        "--service", action=_Once, metavar="UUID", help="HEX is service data of fcd2, say"
    )
    parser.add_argument(
        "--address", action=_Once, help="the Bluetooth address that it was sent from"
    )
    parser.add_argument(
        "--characteristic",
        action="append",
        default=[],
        metavar="UUID",
        help="HEX is its value; of several a HEX each, read together",
    )


def advertisements(
    driver: AdvertisementDriver, args: argparse.Namespace, answers: Sequence[bytes]
) -> Iterator[Outcome]:
    """Return the outcome of each advertisement, the counter checked from one to the next."""
    made = _made(driver, args)

    def decode(advertisement: Advertisement) -> Values | None:
        with mistakes_named():
            return checked(driver, driver.decode(advertisement))

    return heard(driver, map(made, answers), decode)


def _made(
    driver: AdvertisementDriver, args: argparse.Namespace
) -> Callable[[bytes], Advertisement]:
    """Return what makes an advertisement of a HEX, by the options or else by what is declared."""
    kinds = [("manufacturer", f"0x{each:04x}") for each in driver.companies]
    kinds += [("service", each) for each in driver.services]
    given = [(each, getattr(args, each)) for each in ("manufacturer", "service")]
    given = [(kind, text) for kind, text in given if text is not None]
    if len(given or kinds) != 1:
        several = " or ".join(f"--{kind} {text}" for kind, text in given or kinds)
        raise wrong(f"HEX is one of several things, say which: {several}")
    address = "" if args.address is None else _option("address", args.address, _address)
    kind, text = (given or kinds)[0]
    if kind == "service":
        uuid = _option("service", text, _uuid)
        return lambda data: Advertisement(address=address, service_data={uuid: data})
    company = _option("manufacturer", text, _company)
    return lambda data: Advertisement(address=address, manufacturer_data={company: data})


def readings(
    driver: GattDriver, args: argparse.Namespace, answers: Sequence[bytes]
) -> Iterator[Outcome]:
    """Yield the outcome of each reading."""
    uuids = [_option("characteristic", each, _uuid) for each in _asked(driver, args)]
    together = len(uuids) > 1
    if len({*uuids}) < len(uuids) or (together and len(uuids) != len(answers)):
        raise wrong(
            f"{len(uuids)} --characteristic, {len(answers)} HEX: "
            "several are read together, each with a HEX of its own"
        )
    for data in [answers] if together else [[each] for each in answers]:
        yield outcome(b"", partial(_poll, driver, dict(zip(uuids, data, strict=True))))


def _asked(driver: GattDriver, args: argparse.Namespace) -> Sequence[str]:
    asked = args.characteristic or driver.characteristics
    if not args.characteristic and len(asked) != 1:
        raise wrong(f"HEX is one of several things, say which: --characteristic {', '.join(asked)}")
    return [str(each) for each in asked]


def _poll(driver: GattDriver, values: Mapping[str, bytes]) -> Values | None:
    with mistakes_named():
        return checked(driver, asyncio.run(_held(driver, values)))


async def _held(driver: GattDriver, values: Mapping[str, bytes]) -> Values | None:
    return await driver.poll(_Characteristics(values))


class _Characteristics:
    """A connected device that has what was given; what is written to it changes nothing."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self._values = values

    def has(self, characteristic: str) -> bool:
        """Whether the characteristic was given."""
        return full_uuid(characteristic) in self._values

    async def read(self, characteristic: str) -> bytes:
        """Return the value that was given."""
        if not self.has(characteristic):
            raise DeviceRefused(f"the device has no {characteristic}")
        return self._values[full_uuid(characteristic)]

    async def write(self, characteristic: str, data: bytes) -> None:
        """Take what nobody hears."""

    async def request(self, characteristic: str, data: bytes, answer: str) -> bytes:
        """Return the value that was given for the answer."""
        return await self.read(answer)


# What the user writes


def _option(name: str, text: str, read: Callable[[str], _T]) -> _T:
    try:
        return read(text)
    except ValueError as error:
        raise wrong(f"--{name}: {error}") from None


def _address(text: str) -> str:
    return str(settings_of(SensorSettings)["address"].read(text))


def _company(text: str) -> int:
    plain = re.fullmatch(r"0[xX][0-9a-fA-F]{1,4}|0|[1-9][0-9]{0,4}", text)  # int() takes 1_0 too
    number = int(text, 0) if plain else -1
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"expected a company identifier such as 0x0499, got {seen(text)}")
    return number


def _uuid(text: str) -> str:
    try:
        return full_uuid(text)
    except ValueError:
        expected = "a UUID such as fcd2, or in full"
        raise ValueError(f"expected {expected}, got {seen(text)}") from None
