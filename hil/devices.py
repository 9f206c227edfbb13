"""The simulated serial sensors: a new one is a class of ten to twenty lines and a row in `DEVICES`.

Frames are drawn in the drivers that read them; here stands what a driver could get wrong.
"""

import functools
import operator
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

from gateway.frame import Frame
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
from hil.device import Device, Walk


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
    wind: Literal["R", "T"] = "R"
    """Whether it tells the wind relative to itself (in MWV) or, by compass, true (MWV and MDA)."""
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
        values = self._take(LATITUDE, LONGITUDE, ALTITUDE, SATELLITES)
        clock = f"GPGGA,{self._time():%H%M%S}.00"
        if values[LATITUDE] is None:
            self.sent[-1] = {LATITUDE: None, LONGITUDE: None, ALTITUDE: None, SATELLITES: 0}
            return f"{clock},,,,,0,00,,,M,,M,,"
        seen, height = _number(values[SATELLITES], "{:02.0f}"), _number(values[ALTITUDE])
        return f"{clock},{_position(values)},1,{seen},0.9,{height},M,39.5,M,,"

    def _rmc(self) -> str:
        values = self._take(LATITUDE, LONGITUDE, SPEED)
        if values[LATITUDE] is None:
            self.sent[-1] = dict.fromkeys(values)
            return f"GPRMC,{self._time():%H%M%S}.00,V,,,,,,,{self._time():%d%m%y},,,N"
        knots = _number(values[SPEED], "{:.3f}", 3600 / 1852)
        clock, day = f"{self._time():%H%M%S}.00", f"{self._time():%d%m%y}"
        return f"GPRMC,{clock},A,{_position(values)},{knots},,{day},,,A"

    def _mwv(self) -> str:
        values = self._take(WIND_DIRECTION, WIND_SPEED)
        if values[WIND_SPEED] is None:
            self.sent[-1] = dict.fromkeys(values)
            return f"WIMWV,,{self.wind},,M,V"
        direction, speed = (_number(value) for value in values.values())
        return f"WIMWV,{direction},{self.wind},{speed},M,A"

    def _mda(self) -> str:
        true_wind = (WIND_DIRECTION, WIND_SPEED) if self.wind == "T" else ()
        values = self._take(PRESSURE, TEMPERATURE, HUMIDITY, DEW_POINT, *true_wind)
        pressure, air, humidity, dew = list(values.values())[:4]
        direction, wind = values.get(WIND_DIRECTION), values.get(WIND_SPEED)
        fields = (
            _with_unit(pressure, "I", "{:.4f}", 0.02953),
            _with_unit(pressure, "B", "{:.4f}", 0.001),
            _with_unit(air, "C"),
            ",",  # water temperature
            _number(humidity),
            "",  # absolute humidity
            _with_unit(dew, "C"),
            _with_unit(direction, "T"),
            ",",  # magnetic direction
            _with_unit(wind, "N", factor=3600 / 1852),
            _with_unit(wind, "M"),
        )
        return f"WIMDA,{','.join(fields)}"

    def _take(self, *quantities: Quantity) -> dict[Quantity, Value]:
        # A field without a value is empty in the sentence: missing, unless its status says invalid.
        values = self.measure(*quantities)
        self.sent[-1] = {key: value for key, value in values.items() if value is not None}
        return values

    def _time(self) -> datetime:
        return self.start + timedelta(seconds=self.measured)


def _whole(value: Value, factor: int) -> int:
    return round(float(value or 0) * factor)


def _little(value: Value, factor: int) -> bytes:
    return _whole(value, factor).to_bytes(2, "little")


def _number(value: Value, form: str = "{:.1f}", factor: float = 1) -> str:
    return "" if value is None else form.format(float(value) * factor)


def _with_unit(value: Value, unit: str, form: str = "{:.1f}", factor: float = 1) -> str:
    return "," if value is None else f"{_number(value, form, factor)},{unit}"


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
