"""What a driver is: its base classes, the frames it declares, the faults it can name.

A driver holds nothing that another driver could need: no port, lock, timeout, rhythm, retry, clock
or log. It declares what passes on the line and turns one frame into values, as a pure function.
The same SDS011 driver, written as a generator that owned its port, gave 2 of 6 readings under three
faults and was dead after one of them; as a declared frame with a pure `decode` 6 of 6.
"""

import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, dataclass_transform

import drivers
from gateway.reading import Quantity, Values

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


class PortError(Exception):
    """A port cannot be opened, or was lost; the text says what was seen, why, and what mends it."""

    outcome = "no port"


@dataclass(frozen=True, slots=True)
class Length:
    """A field of a frame that says how long the frame is.

    The whole frame has `extra` bytes more than the number in the `size` bytes at offset `at`.
    """

    at: int
    size: int = 1
    extra: int = 0
    order: Literal["big", "little"] = "big"


@dataclass(frozen=True, slots=True)
class Frame:
    r"""How frames stand in a stream of bytes.

    By start and length (a number, or a `Length` field), or by start and end. `start` may be empty
    for lines that only have an end. No frame is longer than `longest`.

    >>> Frame(start=b"\xaa\xc0", length=10)
    >>> Frame(start=b"BM", length=Length(at=2, size=2, extra=4))
    >>> Frame(start=b"$", end=b"\r\n")
    """

    start: bytes = b""
    end: bytes = b""
    length: int | Length | None = None
    longest: int = 1024

    def __post_init__(self) -> None:
        """Refuse a declaration that cannot cut anything."""
        if (self.length is None) == (not self.end):
            raise ValueError("a Frame has either a length or an end")
        if self.length is not None and not self.start:
            raise ValueError("a Frame with a length needs a start to be found by")

    def size(self, stream: bytearray) -> int | None:
        """Return the length of the frame at the head of `stream`; None: unknown yet, 0: none."""
        if self.length is None:
            return self._to_end(stream)
        if isinstance(self.length, int):
            return self.length
        field = self.length
        if len(stream) < field.at + field.size:
            return None
        said = int.from_bytes(stream[field.at : field.at + field.size], field.order)
        size = said + field.extra
        return size if max(field.at + field.size, len(self.start)) <= size <= self.longest else 0

    def _to_end(self, stream: bytearray) -> int | None:
        at = stream.find(self.end, len(self.start), self.longest)
        if at >= 0:
            return at + len(self.end)
        return 0 if len(stream) >= self.longest else None


class Framer:
    """Cuts a stream of bytes into frames, and finds its feet again after noise and half frames.

    A frame that turns out to be bad is given back with `reject`: the search goes on one byte after
    its start, so that a good frame swallowed by half of another is still found.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._stream = bytearray()
        self._last = b""
        self._cut_off = 0  # bytes in the frames returned so far
        self._bad_until = 0  # where in all that has come the last bad frame ends
        self.skipped = 0
        """Bytes that belonged to no frame."""

    def feed(self, data: bytes) -> None:
        """Take bytes as they came; what is too old to belong to a frame any more goes."""
        self._stream += data
        self._skip(len(self._stream) - max(len(data), 4 * self._frame.longest))

    def clear(self) -> None:
        """Forget what has come so far."""
        self._skip(len(self._stream))
        self._last = b""

    def reject(self) -> bool:
        """Take back the frame that `next` returned last, all but its first byte.

        True when it is a bad frame of its own, to be told of; False when it began inside the one
        before: the search passes many false starts in one bad frame.
        """
        self._cut_off -= len(self._last)
        start, end = self.skipped + self._cut_off, self.skipped + self._cut_off + len(self._last)
        self._stream[:0] = self._last[1:]
        self._last = b""
        self.skipped += 1
        if start < self._bad_until:
            return False
        self._bad_until = end
        return True

    def next(self) -> bytes | None:
        """Return the next whole frame, or None until more bytes have come."""
        while self._at_start():
            size = self._frame.size(self._stream)
            if size is None or size > len(self._stream):
                return None
            if size:
                return self._cut(size)
            self._skip(1)
        return None

    def _at_start(self) -> bool:
        start = self._frame.start
        at = self._stream.find(start)
        if at < 0:  # the head of a start may be all that has come of it
            at = next(
                (len(self._stream) - n for n in range(len(start) - 1, 0, -1) if self._ends(n)),
                len(self._stream),
            )
        self._skip(at)
        return len(self._stream) >= max(len(start), 1)

    def _ends(self, n: int) -> bool:
        return self._stream.endswith(self._frame.start[:n])

    def _cut(self, size: int) -> bytes:
        # Text protocols: a later start before the end means that the first was half a frame.
        if self._frame.end and self._frame.start and self._frame.start != self._frame.end:
            self._skip(max(self._stream.rfind(self._frame.start, 0, size), 0))
            size = self._stream.find(self._frame.end, len(self._frame.start)) + len(self._frame.end)
        self._last = bytes(self._stream[:size])
        del self._stream[:size]
        self._cut_off += size
        return self._last

    def _skip(self, count: int) -> None:
        if count > 0:
            self.skipped += count
            del self._stream[:count]


T = TypeVar("T")

Duration = Annotated[float, "duration"]
"""Type of a setting in seconds, written with its unit: "250ms", "60s", "10min", "1h", "1d"."""
Size = Annotated[int, "size"]
"""Type of a setting in bytes, written with its unit: "64 KiB", "512 MiB", "10 MB"."""

SECONDS: Mapping[str, float] = {"s": 1, "min": 60, "h": 3600, "d": 86400, "ms": 0.001}
"""The units of a Duration."""
BYTES: Mapping[str, float] = {
    **{"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4},
    **{"kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4},
}
"""The units of a Size."""


def duration(text: str) -> float:
    """Return the seconds in `"60s"`; raises ValueError."""
    return _measure(text, SECONDS)


def size(text: str) -> int:
    """Return the bytes in `"512 MiB"`; raises ValueError."""
    return int(_measure(text, BYTES))


def _measure(text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if not match or match[2] not in units:
        raise ValueError(text)
    measure = float(match[1]) * units[match[2]]
    if not math.isfinite(measure):
        raise ValueError(text)
    return measure


def setting(
    default: T,
    doc: str,
    *,
    example: object = None,
    low: float | None = None,
    high: float | None = None,
    read: Callable[[object], object] | None = None,
) -> T:
    """Declare a setting: its default and one sentence about it.

    `example`, as the user would write it, stands in config.example.toml where the default says
    nothing. `low` and `high` bound a number. `read` turns the TOML value into the setting's in
    place of its type, and raises ValueError with what was expected and what was found.

    >>> settle: Duration = setting(duration("30s"), "How long the fan runs before a reading.")
    """
    about = {"doc": doc, "example": example, "low": low, "high": high, "read": read}
    return field(default=default, metadata=about)


def required(  # Any: it stands for a value of whatever type its field has
    doc: str, *, example: object, read: Callable[[object], object] | None = None
) -> Any:  # noqa: ANN401
    """Declare a setting that the user must write."""
    return field(metadata={"doc": doc, "example": example, "read": read})


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

        Raises BadFrame, BadChecksum or DeviceRefused, and nothing else, whatever the bytes.
        """
        raise DeviceRefused(f"{type(self).__module__} neither decodes frames nor polls")

    async def poll(self, port: Port) -> Values | None:
        """Read the sensor once; overridden where that takes more than a request and a frame."""
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


def outcomes(driver: SerialDriver, data: bytes) -> Iterator[Outcome]:
    """Yield what becomes of each frame in `data`, in order; nothing when there is no frame.

    A bad frame is told of once: while the search goes on inside it, one byte later each time, only
    what is good is told. So half a frame and a good one read bad, ok. An exception that is not a
    sensor's error is a mistake in the driver and passes.
    """
    framer = Framer(driver.frame)
    framer.feed(data)
    while (frame := framer.next()) is not None:
        outcome = _outcome(driver, frame)
        if outcome.name not in (BadFrame.outcome, BadChecksum.outcome) or framer.reject():
            yield outcome


def _outcome(driver: SerialDriver, frame: bytes) -> Outcome:
    try:
        values = driver.decode(frame)
    except SensorError as error:
        return Outcome(error.outcome, frame, why=str(error))
    return Outcome("not mine" if values is None else "ok", frame, values)


class LocalDriver(Driver):
    """A source on the gateway itself; the only kind that may read files and clocks."""

    link: ClassVar[str] = "local"
    timeout: ClassVar[float] = 10.0

    def poll(self) -> Values:
        """Return the present values; runs in a thread, may block. Raises SensorError."""
        raise DeviceRefused(f"{type(self).__module__} does not poll")


class DriverBroken(Exception):
    """A driver's module cannot be imported; costs only the gateways that use it."""


DRIVER_FAULTS = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, SyntaxError, TypeError, ValueError),
)
"""What a driver's own code may raise while it is loaded, described or made."""


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
        raise DriverBroken(f"driver {name!r} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise DriverBroken(f"driver {name!r} cannot be loaded: its Driver is none of gateway's")
    for declared in ("link", "model", "quantities"):
        if not hasattr(found, declared):
            raise DriverBroken(f"driver {name!r} cannot be loaded: it declares no {declared}")
    return found


def _load(name: str) -> object:
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    return importlib.import_module(f"drivers.{name}").Driver
