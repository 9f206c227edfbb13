r"""NMEA 0183 position and weather, unasked text (NMEA 0183).

    $ttGGA,time,lat,N,lon,E,fix,satellites,hdop,altitude,M,…*XX\r\n            fix 0: no position
    $ttRMC,time,status,lat,N,lon,E,knots,course,date,…*XX\r\n                  status V: invalid
    $ttVTG,course,T,course,M,knots,N,km/h,K,mode*XX\r\n                        mode N: invalid
    $ttMWV,angle,reference,speed,unit,status*XX\r\n             R or T; K, M or N; V: invalid
    $ttMDA,inHg,I,bar,B,air,C,water,C,humidity,abs,dew,C,angle,T,angle,M,knots,N,m/s,M*XX\r\n

XX: exclusive or of all between $ and *. Invalid by its status: None. An empty field: missing.
"""

import re
from functools import reduce
from operator import xor
from typing import Literal

from gateway import reading as r
from gateway.driver import BadChecksum, BadFrame, Frame, SerialDriver, setting
from gateway.reading import Quantity, Value, Values

NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
UNIT = {"K": 1 / 3.6, "M": 1.0, "N": 1852 / 3600}
SIDE = {"N": 1.0, "E": 1.0, "S": -1.0, "W": -1.0}

# Where a quantity stands, and its factor, or what the letter behind it makes the factor.
Places = dict[Quantity, tuple[int, float | dict[str, float]]]
POSITION = (r.LATITUDE, r.LONGITUDE, r.ALTITUDE, r.SATELLITES)
AIR: Places = {r.TEMPERATURE: (4, 1), r.HUMIDITY: (8, 1), r.DEW_POINT: (10, 1)}
TRUE_WIND: Places = {r.WIND_DIRECTION: (12, 1), r.WIND_SPEED: (18, UNIT)}

# The field that tells whether a sentence is valid, what it says when not, and the quantities.
SENTENCES: dict[str, tuple[int, tuple[str, ...], Places]] = {
    "GGA": (5, ("", "0"), {r.LATITUDE: (1, SIDE), r.LONGITUDE: (3, SIDE), r.ALTITUDE: (8, 1)}),
    "RMC": (1, ("", "V"), {r.LATITUDE: (2, SIDE), r.LONGITUDE: (4, SIDE), r.SPEED: (6, UNIT["N"])}),
    "VTG": (8, ("N",), {r.SPEED: (6, UNIT)}),
    "MWV": (4, ("", "V"), {r.WIND_DIRECTION: (0, 1), r.WIND_SPEED: (2, UNIT)}),
    "MDA": (0, (), {r.PRESSURE: (2, 1000)} | AIR),
}


class Driver(SerialDriver):
    model = "NMEA 0183 GNSS receivers and weather stations"
    quantities = (*POSITION, r.SPEED, *TRUE_WIND, r.PRESSURE, *AIR)
    baudrate = 4800
    frame = Frame(start=b"$", end=b"\r\n", longest=255)
    wind: Literal["R", "T"] = setting(
        "R", "R takes the wind relative to the instrument (MWV), T the true one (MWV, MDA)."
    )

    def decode(self, frame: bytes) -> Values | None:
        body, star, check = frame[1:-2].rpartition(b"*")
        if not star:
            raise BadFrame(f"no checksum: {frame!r}")
        if b"%02X" % reduce(xor, body, 0) != check.upper():
            raise BadChecksum(f"exclusive or {reduce(xor, body, 0):02X}: {frame!r}")
        address, *fields = [*body.decode("latin-1").split(","), *[""] * 20]
        name = address[2:]
        if name not in SENTENCES or (name == "MWV" and fields[1] != self.wind):
            return None
        status, invalid, places = SENTENCES[name]
        places = places | (TRUE_WIND if name == "MDA" and self.wind == "T" else {})
        bad = fields[status] in invalid
        found: dict[Quantity, Value] = {
            quantity: None if bad else _value(fields, *place)
            for quantity, place in places.items()
            if bad or fields[place[0]]
        }
        if name == "GGA" and fields[6]:
            found[r.SATELLITES] = int(_value(fields, 6, 1))
        return found


def _value(fields: list[str], at: int, factor: float | dict[str, float]) -> float:
    scale = factor.get(fields[at + 1]) if isinstance(factor, dict) else factor
    if scale is None or not NUMBER.fullmatch(fields[at]):
        raise BadFrame(f"no number with its unit or side: {fields[at : at + 2]}")
    number = float(fields[at])
    if factor is SIDE:  # degrees and minutes in one: ddmm.mmm
        number = number // 100 + number % 100 / 60
    return number * scale
