"""What a driver is: its base classes, the frames it declares, the faults it can name.

A driver holds nothing that another driver could need: no port, lock, timeout, rhythm, retry, clock
or log. It declares what passes on the line and turns one frame into values, as a pure function.
The same SDS011 driver, written as a generator that owned its port, gave 2 of 6 readings under three
faults and was dead after one of them; as a declared frame with a pure `decode` 6 of 6.
"""

import importlib
import math
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import ClassVar, Literal, Protocol, cast, dataclass_transform

import drivers
from gateway.advertisement import Advertisement
from gateway.frame import Frame, Framer, Length
from gateway.key import Key
from gateway.measure import Duration, Size, duration, size
from gateway.reading import Quantity, Values
from gateway.schema import required, setting

__all__ = [
    "DRIVER_FAULTS",
    "ENTRY_POINTS",
    "Advertisement",
    "AdvertisementDriver",
    "BadChecksum",
    "BadFrame",
    "BleDriver",
    "DeviceRefused",
    "Driver",
    "DriverBroken",
    "Duration",
    "Frame",
    "Framer",
    "GattClient",
    "GattDriver",
    "Key",
    "Length",
    "LocalDriver",
    "NoAdapter",
    "NoReply",
    "Outcome",
    "Port",
    "PortError",
    "Replayed",
    "SensorError",
    "SerialDriver",
    "Size",
    "check_address",
    "decrypted",
    "duration",
    "find",
    "heard",
    "names",
    "outcome",
    "outcome_of",
    "outcomes",
    "required",
    "said",
    "setting",
    "size",
]

ENTRY_POINTS = "bygate.drivers"
"""Entry-point group under which packages of others register a driver class."""


class SensorError(Exception):
    """A sensor gave no values; `outcome` is the name under which that is counted."""

    outcome = "sensor error"


class NoReply(SensorError):
    """Nothing came, or nothing that begins like a frame, before the deadline."""

    outcome = "no reply"


class BadFrame(SensorError):
    """A frame came, but its parts do not fit together."""

    outcome = "bad frame"


class BadChecksum(SensorError):
    """A frame came, but its check does not fit its bytes."""

    outcome = "bad checksum"


class DeviceRefused(SensorError):
    """The device answered that it will not or cannot."""

    outcome = "refused"


class Replayed(SensorError):
    """What came bears a counter that has been heard before, or a smaller one."""

    outcome = "replayed"


class PortError(Exception):
    """A port cannot be opened, or was lost; the text says what was seen, why, and what mends it."""

    outcome = "no port"


class NoAdapter(PortError):
    """No Bluetooth adapter can be used now; the text says why, and what mends it."""

    outcome = "no adapter"


class Port(Protocol):
    """What a driver with a dialogue may do with its serial port; the caller sets the deadline."""

    async def request(self, data: bytes) -> bytes:
        """Discard what came before, send `data`, return the next frame."""

    async def frame(self) -> bytes:
        """Return the next frame that the driver's `Frame` cuts out of the stream."""

    async def write(self, data: bytes) -> None:
        """Send `data`."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Driver:
    """What all drivers have. Class variables describe the device; fields are its settings.

    Subclasses become frozen dataclasses by themselves: an annotated field with a default is a
    setting of the sensor's table in config.toml, and is checked by its type.
    """

    api: ClassVar[int] = 1
    """Version of this contract that the driver was written for."""
    link: ClassVar[str]
    """serial, modbus, ble, gatt or local."""
    model: ClassVar[str]
    """Maker and type, as the technician reads it on the device."""
    quantities: ClassVar[tuple[Quantity, ...]]
    """All that `decode` may return; anything else is a driver error."""
    checked: ClassVar[bool] = True
    """Whether its frames carry a checksum; without one a flipped bit is a wrong value."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class SerialDriver(Driver):
    """A sensor alone on a serial port: polled when it has a `request`, else heard unasked."""

    link: ClassVar[str] = "serial"
    baudrate: ClassVar[int] = 9600
    bytesize: ClassVar[Literal[5, 6, 7, 8]] = 8
    parity: ClassVar[Literal["N", "E", "O"]] = "N"
    stopbits: ClassVar[Literal[1, 2]] = 1
    frame: ClassVar[Frame]
    request: ClassVar[bytes] = b""
    """What makes the device send one frame; empty: it sends unasked."""
    timeout: ClassVar[float] = 1.0
    """Seconds in which a polled device answers, dialogue included."""

    def decode(self, frame: bytes) -> Values | None:
        """Return the values in one frame, None when it is not about what this driver reads.

        Where the gateway has asked, it waits for the next frame then, as long as `timeout`.
        Raises BadFrame, BadChecksum or DeviceRefused, and nothing else, whatever the bytes.
        """
        raise DeviceRefused(f"{type(self).__module__} neither decodes frames nor polls")

    async def poll(self, port: Port) -> Values | None:
        """Read the sensor once; overridden where that takes more than a request and a frame.

        None, where nothing came that this driver reads, counts as no reply.
        """
        return self.decode(await port.request(self.request))

    @property
    def polled(self) -> bool:
        """Whether the gateway speaks first."""
        return bool(self.request) or self.dialogue

    @property
    def dialogue(self) -> bool:
        """Whether the driver speaks with its device itself."""
        return type(self).poll is not SerialDriver.poll


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame: `ok` with values, `not mine`, or a sensor error's name and why."""

    name: str
    frame: bytes
    values: Values | None = None
    why: str = ""


def outcomes(
    driver: SerialDriver, data: bytes, decode: Callable[[bytes], Values | None] | None = None
) -> Iterator[Outcome]:
    """Yield what becomes of each frame in `data`, in order; nothing when there is no frame.

    A bad frame is told of once: while the search goes on inside it, one byte later each time, only
    what is good is told. So half a frame and a good one read bad, ok. An exception that is not a
    sensor's error is a mistake in the driver and passes. `decode` may stand in for the driver's.
    """
    framer = Framer(driver.frame)
    framer.feed(data)
    while (frame := framer.next()) is not None:
        found = outcome(frame, partial(decode or driver.decode, frame))
        if found.name not in (BadFrame.outcome, BadChecksum.outcome) or framer.reject():
            yield found


def outcome(frame: bytes, read: Callable[[], Values | None]) -> Outcome:
    """Return what becomes of one frame that `read` makes values of."""
    try:
        values = read()
    except SensorError as error:
        return Outcome(outcome_of(error), frame, why=said(error))
    return Outcome("not mine" if values is None else "ok", frame, values)


def outcome_of(error: "SensorError | PortError") -> str:
    """Return the name under which an error is counted."""
    name = error.outcome
    fits = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME
    return name if fits else SensorError.outcome


class BleDriver(Driver):
    """What both kinds of BLE sensor have: how their advertisements are known among all others.

    The sensor's address stands beside `driver` in config.toml; no driver needs to declare it.
    """

    companies: ClassVar[tuple[int, ...]] = ()
    """Company identifiers of its manufacturer data (Bluetooth Assigned Numbers, 7)."""
    services: ClassVar[tuple[str, ...]] = ()
    """UUIDs, as "fcd2" or in full, of the service data or the services that it advertises."""

    @classmethod
    def hears(cls, advertisement: Advertisement) -> bool:
        """Whether the advertisement may come from such a device, by companies and services."""
        return any(advertisement.manufacturer(each) is not None for each in cls.companies) or any(
            advertisement.offers(each) for each in cls.services
        )


class AdvertisementDriver(BleDriver):
    """A BLE sensor that tells its values in its advertisements."""

    link: ClassVar[str] = "ble"

    def decode(self, advertisement: Advertisement) -> Values | None:
        """Return the values in one advertisement, None when it is not about what this one reads.

        Raises BadFrame, BadChecksum or DeviceRefused, and nothing else, whatever the bytes.
        """
        raise DeviceRefused(f"{type(self).__module__} decodes no advertisements")

    def counter(self, advertisement: Advertisement) -> int | None:
        """Return the counter that must grow from one advertisement to the next, if it has one.

        Asked only of what `decode` made values of. The gateway keeps the last and raises Replayed.
        """
        return None


def check_address(advertisement: Advertisement, own: bytes) -> None:
    """Raise BadFrame if an advertisement's data name another address than what it was sent from.

    Which one is not told: it may be a passer-by's, and what is told stands in log and status.
    """
    if own != (advertisement.address_bytes or own):
        raise BadFrame("names another address than it was sent from: is it another's, repeated?")


def decrypted(key: Key | None, nonce: bytes | None, sealed: bytes) -> bytes:
    """Return what AES-CCM sealed; raises what it means that there is no key, or that it is wrong.

    The nonce is None where the address that is a part of it is not known.
    """
    if key is None:
        raise DeviceRefused("is encrypted: set its `key`")
    if nonce is None:
        raise DeviceRefused("is encrypted with its address, which is not known: --address")
    plain = key.decrypted(nonce, sealed)
    if plain is None:
        raise BadChecksum("its check does not fit: is `key` that of this device?")
    return plain


def heard(
    driver: AdvertisementDriver,
    advertisements: Iterable[Advertisement],
    decode: Callable[[Advertisement], Values | None] | None = None,
) -> Iterator[Outcome]:
    """Yield what becomes of each advertisement of one device, its counter checked.

    As `outcomes` for what comes from a port.
    """
    last: int | None = None

    def read(advertisement: Advertisement) -> Values | None:
        nonlocal last
        values = (decode or driver.decode)(advertisement)
        counter = None if values is None else driver.counter(advertisement)
        if counter is not None:
            if last is not None and counter <= last:
                raise Replayed(f"counter {counter} after {last}")
            last = counter
        return values

    for advertisement in advertisements:
        yield outcome(b"", partial(read, advertisement))


class GattClient(Protocol):
    """What a driver may do with a connected BLE device; the caller sets the deadline.

    Characteristics are named by UUID, as "2a6e" or in full. Where the device has none of the name,
    where it refuses, each raises DeviceRefused.
    """

    def has(self, characteristic: str) -> bool:
        """Whether the device has the characteristic."""

    async def read(self, characteristic: str) -> bytes:
        """Return the value of the characteristic."""

    async def write(self, characteristic: str, data: bytes) -> None:
        """Write the value of the characteristic, and wait till the device has taken it."""

    async def request(self, characteristic: str, data: bytes, answer: str) -> bytes:
        """Write `data`, return the next value that `answer` notifies."""


class GattDriver(BleDriver):
    """A BLE sensor that is connected to and read, once in each interval."""

    link: ClassVar[str] = "gatt"
    characteristics: ClassVar[tuple[str, ...]] = ()
    """UUIDs of what is read, as "2a6e" or in full; a device need not have all of them."""
    timeout: ClassVar[float] = 20.0
    """Seconds in which a connected device is read, dialogue included."""

    def decode(self, values: Mapping[str, bytes]) -> Values | None:
        """Return the values in what was read; `values` has `characteristics` for its keys.

        None when it is not about what this driver reads: that counts as no reply.
        Raises BadFrame, BadChecksum or DeviceRefused, and nothing else, whatever the bytes.
        """
        raise DeviceRefused(f"{type(self).__module__} neither decodes values nor polls")

    async def poll(self, client: GattClient) -> Values | None:
        """Read the sensor once; overridden where that takes more than reading characteristics.

        None, where nothing was read that this driver reads, counts as no reply.
        """
        found = [each for each in self.characteristics if client.has(each)]
        if not found:
            raise DeviceRefused(f"the device has none of {', '.join(self.characteristics)}")
        return self.decode({each: await client.read(each) for each in found})


class LocalDriver(Driver):
    """A source on the gateway itself; the only kind that may read files and clocks."""

    link: ClassVar[str] = "local"
    timeout: ClassVar[float] = 10.0

    def poll(self) -> Values:
        """Return the present values; runs in a thread, may block. Raises SensorError."""
        raise DeviceRefused(f"{type(self).__module__} does not poll")


class DriverBroken(Exception):
    """A driver's module cannot be imported; costs only the gateways that use it."""


DRIVER_FAULTS = (Exception, SystemExit)
"""What a driver's own code may raise: whatever its author likes, but for being interrupted."""

LONGEST_WORDS = 1000
"""Characters of what an exception says that are kept."""
LONGEST_NAME = 64
"""Characters of a quantity's name or unit, or of an outcome."""
MOST_DECIMALS = 22
"""10^22 is the last power of ten that a float64 holds exactly."""


def names() -> list[str]:
    """Return the names of all drivers there are, those of other packages included."""
    own = [module.name for module in pkgutil.iter_modules(drivers.__path__)]
    return sorted({*own, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find(name: str) -> type[Driver]:
    """Return the driver class of that name, importing its module and no other.

    Raises LookupError when there is none of the name, DriverBroken when its module fails.
    """
    if name not in names():
        raise LookupError(name)
    try:
        found = _load(name)
    except DRIVER_FAULTS as error:
        raise DriverBroken(f"driver {name!r} cannot be loaded: {said(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise DriverBroken(f"driver {name!r} cannot be loaded: its Driver is none of gateway's")
    for declared in ("link", "model", "quantities"):
        if not hasattr(found, declared):
            raise DriverBroken(f"driver {name!r} cannot be loaded: it declares no {declared}")
    if flaw := next(_flaws(found), None):
        raise DriverBroken(f"driver {name!r} cannot be loaded: {flaw}")
    return found


def _flaws(driver: type[Driver]) -> Iterator[str]:
    """Yield what is wrong with the declarations, which the daemon takes for sound."""
    if not (isinstance(driver.model, str) and driver.model.isprintable()):
        yield f"its model is no text of one line: {ascii(driver.model)[:80]}"
    if not isinstance(driver.quantities, tuple):
        yield "its quantities are no tuple"
    for quantity in driver.quantities:
        if flaw := _flaw(quantity):
            yield f"its quantity {ascii(getattr(quantity, 'name', quantity))[:80]}: {flaw}"
    if issubclass(driver, SerialDriver):
        if not isinstance(getattr(driver, "frame", None), Frame):
            yield "it declares no frame, as Frame(start=…, length=…)"
        if not isinstance(driver.request, bytes):
            yield f"its request is no bytes: {driver.request!r}"
    timeout = getattr(driver, "timeout", 1.0)
    if not _is_number(timeout) or timeout <= 0:
        yield f"its timeout is no number of seconds: {timeout!r}"


def _flaw(quantity: object) -> str | None:
    if not isinstance(quantity, Quantity):
        return "no Quantity"
    for text in (quantity.name, quantity.unit):
        if not (isinstance(text, str) and text.isprintable() and len(text) <= LONGEST_NAME):
            return f"its name and unit are text, of at most {LONGEST_NAME} characters each"
    if not quantity.name:
        return "it has no name"
    if type(quantity.decimals) is not int or not 0 <= quantity.decimals <= MOST_DECIMALS:
        return f"its decimals are a whole number from 0 to {MOST_DECIMALS}"
    if not all(bound is None or _is_number(bound) for bound in (quantity.low, quantity.high)):
        return "its low and high are numbers, or None"
    return None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value))


def said(error: BaseException) -> str:
    """Return what an exception says, in text that can be printed, whatever its author did."""
    try:
        text = str(error)
    except DRIVER_FAULTS as worse:
        text = f"its text cannot be told: {type(worse).__name__}"
    return text.encode(errors="backslashreplace").decode()[:LONGEST_WORDS]


def place_of(error: BaseException) -> str:
    """Return an exception's kind and where it arose, not its text: that may name a stranger."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"


def _load(name: str) -> object:
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    return importlib.import_module(f"drivers.{name}").Driver
