"""Simulated serial sensors: what they answer, what they say unasked, and the values in it.

A device knows no port, loop or clock: `hil.serialline` puts it on a pty, `hil.scripted` into
memory. A new one is a class of ten to twenty lines and a line in `DEVICES`.
"""

import functools
import operator
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import ClassVar

from gateway.driver import Frame
from gateway.reading import (
    ALTITUDE,
    DEW_POINT,
    DISTANCE,
    HUMIDITY,
    LATITUDE,
    LONGITUDE,
    PARTICLES_0_3,
    PARTICLES_0_5,
    PARTICLES_1,
    PARTICLES_2_5,
    PARTICLES_5,
    PARTICLES_10,
    PM1,
    PM2_5,
    PM10,
    PRESSURE,
    SATELLITES,
    SPEED,
    TEMPERATURE,
    WIND_DIRECTION,
    WIND_SPEED,
    Quantity,
    Value,
    Values,
)

HISTORY = 100_000
"""Frames whose values are remembered; a stream of one a second fills it in 28 hours."""

NOTHING: Values = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Walk:
    """A slow random walk between two bounds, in steps of the device's own resolution."""

    low: float
    high: float
    decimals: int = 0

    def step(self, value: float | None, random: Random) -> float:
        """Return the value that follows `value`; the first one stands anywhere in the bounds."""
        if value is None:
            return random.uniform(self.low, self.high)
        moved = value + random.gauss(0, (self.high - self.low) / 100)
        return min(max(moved, self.low), self.high)


class Device:
    """A sensor without its line. The same seed gives the same values.

    What is in `fixed` is measured as it stands there, None for invalid; the rest walks.
    """

    request: ClassVar[Frame | None] = None
    """How the requests stand in what comes in; None: `answer` gets the bytes as they come."""
    walks: ClassVar[Mapping[Quantity, Walk]]
    """Everything it measures, and between which bounds."""
    period: float = 0.0
    """Seconds from one unasked frame to the next; 0: it speaks when it is asked."""

    def __init__(
        self, *, seed: int = 0, period: float | None = None, fixed: Values = NOTHING
    ) -> None:
        self.fixed: dict[Quantity, Value] = dict(fixed)
        self.period = self.period if period is None else period
        self.measured = 0
        """How many measurements were taken since the device was made."""
        self.sent: deque[Values] = deque(maxlen=HISTORY)
        """The values of each frame made, as a decoder must give them once they are rounded."""
        self._random = Random(seed)
        self._now: dict[Quantity, float] = {}

    def answer(self, request: bytes) -> bytes:
        """Return what the device answers to a request; nothing when it is none of its own."""
        return b""

    def unasked(self) -> bytes:
        """Return the next frame of a device that streams."""
        return b""

    def measure(self, *quantities: Quantity) -> dict[Quantity, Value]:
        """Take and remember the values of one frame, all quantities when none are named."""
        values = {quantity: self._value(quantity) for quantity in quantities or self.walks}
        self.sent.append(values)
        self.measured += 1
        return values

    def _value(self, quantity: Quantity) -> Value:
        walk = self.walks[quantity]
        if quantity in self.fixed:
            value = self.fixed[quantity]
        else:
            value = self._now[quantity] = walk.step(self._now.get(quantity), self._random)
        return round(value, walk.decimals) if isinstance(value, float) else value


class Sds011(Device):
    """Nova SDS011, particulates: answers the query, sleeps and wakes; streams if told so."""

    request = Frame(start=b"\xaa\xb4", length=19)
    walks: ClassVar = {PM2_5: Walk(2, 30, 1), PM10: Walk(31, 90, 1)}
    number = b"\x58\xd9"
    asleep = False

    def answer(self, request: bytes) -> bytes:
        """Answer the query (04); take and confirm modes (02: streaming, 06: sleep)."""
        command, sets, mode = request[2:5]
        if sum(request[2:17]) & 0xFF != request[17]:
            return b""
        if command == 6 and sets:
            self.asleep = not mode
        if self.asleep and command != 6:
            return b""
        if command == 4:
            return self.unasked()
        if command == 2 and sets:
            self.period = 0.0 if mode else 1.0
        return self._reply(0xC5, bytes((command, sets, mode, 0)))

    def unasked(self) -> bytes:
        """Return a measurement, both values in tenths of µg/m³; nothing while it sleeps."""
        if self.asleep:
            return b""
        return self._reply(0xC0, b"".join(_little(value, 10) for value in self.measure().values()))

    def _reply(self, kind: int, data: bytes) -> bytes:
        body = data + self.number
        return bytes((0xAA, kind, *body, sum(body) & 0xFF, 0xAB))


class Pms5003(Device):
    """Plantower PMS5003, particulates: streams once a second."""

    period = 1.0
    walks: ClassVar = {
        **{PM1: Walk(1, 15), PM2_5: Walk(16, 40), PM10: Walk(41, 90)},
        **{PARTICLES_0_3: Walk(20, 60, 2), PARTICLES_0_5: Walk(5, 19, 2)},
        **{PARTICLES_1: Walk(1, 5, 2), PARTICLES_2_5: Walk(0.3, 1, 2)},
        **{PARTICLES_5: Walk(0.1, 0.3, 2), PARTICLES_10: Walk(0, 0.1, 2)},
    }

    def unasked(self) -> bytes:
        """Return a frame: the factory's values, those for outdoor air, counts in 0.1 litre."""
        values = self.measure()
        air = [_whole(values[quantity], 1) for quantity in (PM1, PM2_5, PM10)]
        # A decoder that takes the factory's values instead gives itself away above 30 µg/m³.
        factory = [value if value <= 30 else value * 3 // 2 for value in air]
        counts = [_whole(value, 100) for value in list(values.values())[3:]]
        words = (28, *factory, *air, *counts, 0x9700)
        frame = b"BM" + b"".join(word.to_bytes(2, "big") for word in words)
        return frame + sum(frame).to_bytes(2, "big")


class Maxbotix(Device):
    """MaxBotix HRXL ultrasonic range finder: streams millimetres; invalid is 9999, no echo."""

    period = 0.15
    walks: ClassVar = {DISTANCE: Walk(500, 4500)}

    def unasked(self) -> bytes:
        """Return `R`, four digits and a carriage return."""
        value = self.measure()[DISTANCE]
        return b"R%04d\r" % (9999 if value is None else _whole(value, 1))


class Nmea0183(Device):
    """NMEA 0183 weather station and GNSS receiver: streams GGA, RMC, MWV and MDA in turn."""

    period = 0.25
    sentences: tuple[str, ...] = ("GGA", "RMC", "MWV", "MDA")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    walks: ClassVar = {
        **{LATITUDE: Walk(63.4332, 63.4334, 6), LONGITUDE: Walk(10.4031, 10.4033, 6)},
        **{ALTITUDE: Walk(3, 9, 1), SATELLITES: Walk(6, 12), SPEED: Walk(0, 0.4, 2)},
        **{WIND_DIRECTION: Walk(180, 300), WIND_SPEED: Walk(0, 14, 1)},
        **{TEMPERATURE: Walk(-12, 18, 1), HUMIDITY: Walk(40, 95, 1)},
        **{DEW_POINT: Walk(-20, -13, 1), PRESSURE: Walk(980, 1030, 1)},
    }

    def unasked(self) -> bytes:
        """Return the next sentence; without a latitude there is no fix, without wind none."""
        sentence = self.sentences[self.measured % len(self.sentences)]
        body = getattr(self, f"_{sentence.lower()}")()
        check = functools.reduce(operator.xor, body.encode())
        return f"${body}*{check:02X}\r\n".encode()

    def _gga(self) -> str:
        values = self.measure(LATITUDE, LONGITUDE, ALTITUDE, SATELLITES)
        clock = f"GPGGA,{self._time():%H%M%S}.00"
        if values[LATITUDE] is None:
            self.sent[-1] = {LATITUDE: None, LONGITUDE: None, ALTITUDE: None, SATELLITES: 0}
            return f"{clock},,,,,0,00,,,M,,M,,"
        seen, height = values[SATELLITES], values[ALTITUDE]
        return f"{clock},{_position(values)},1,{seen:02.0f},0.9,{height:.1f},M,39.5,M,,"

    def _rmc(self) -> str:
        values = self.measure(LATITUDE, LONGITUDE, SPEED)
        if values[LATITUDE] is None:
            self.sent[-1] = dict.fromkeys(values)
            return f"GPRMC,{self._time():%H%M%S}.00,V,,,,,,,{self._time():%d%m%y},,,N"
        knots = _number(values[SPEED], "{:.3f}", 3600 / 1852)
        clock, day = f"{self._time():%H%M%S}.00", f"{self._time():%d%m%y}"
        return f"GPRMC,{clock},A,{_position(values)},{knots},,{day},,,A"

    def _mwv(self) -> str:
        values = self.measure(WIND_DIRECTION, WIND_SPEED)
        valid = "V" if values[WIND_SPEED] is None else "A"
        direction = _number(values[WIND_DIRECTION], "{:.1f}")
        return f"WIMWV,{direction},T,{_number(values[WIND_SPEED], '{:.1f}')},M,{valid}"

    def _mda(self) -> str:
        values = self.measure(
            PRESSURE, TEMPERATURE, HUMIDITY, DEW_POINT, WIND_DIRECTION, WIND_SPEED
        )
        pressure, temperature, humidity, dew, direction, wind = values.values()
        return (
            f"WIMDA,{_number(pressure, '{:.4f}', 0.02953)},I,{_number(pressure, '{:.4f}', 0.001)},B"
            f",{_number(temperature, '{:.1f}')},C,,,{_number(humidity, '{:.1f}')},"
            f",{_number(dew, '{:.1f}')},C,{_number(direction, '{:.1f}')},T,,"
            f",{_number(wind, '{:.1f}', 3600 / 1852)},N,{_number(wind, '{:.1f}')},M"
        )

    def _time(self) -> datetime:
        return self.start + timedelta(seconds=self.measured)


def _whole(value: Value, factor: int) -> int:
    return round(float(value or 0) * factor)


def _little(value: Value, factor: int) -> bytes:
    return _whole(value, factor).to_bytes(2, "little")


def _number(value: Value, form: str, factor: float = 1) -> str:
    return "" if value is None else form.format(float(value) * factor)


def _position(values: Values) -> str:
    # Five decimals of a minute are a tenth of what the catalogue keeps: rounding gives it back.
    north, east = float(values[LATITUDE] or 0), float(values[LONGITUDE] or 0)
    return (
        f"{_degrees(north, 2)},{'S' if north < 0 else 'N'},"
        f"{_degrees(east, 3)},{'W' if east < 0 else 'E'}"
    )


def _degrees(value: float, digits: int) -> str:
    degrees, minutes = divmod(round(abs(value) * 60, 5), 60)
    return f"{degrees:0{digits}.0f}{minutes:08.5f}"


DEVICES: Mapping[str, type[Device]] = {
    "maxbotix": Maxbotix,
    "nmea0183": Nmea0183,
    "pms5003": Pms5003,
    "sds011": Sds011,
}
"""Every serial device that can be simulated; the first line of its docstring describes it."""
