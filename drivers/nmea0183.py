r"""NMEA 0183 position and weather, unasked text (NMEA 0183).

    $ttGGA,time,lat,N,lon,E,fix,satellites,hdop,altitude,M,…*XX\r\n            fix 0: no position
    $ttRMC,time,status,lat,N,lon,E,knots,course,date,…*XX\r\n                  status V: invalid
    $ttVTG,course,T,course,M,knots,N,km/h,K,mode*XX\r\n                        mode N: invalid
    $ttMWV,angle,reference,speed,unit,status*XX\r\n             R or T; K, M or N; V: invalid
    $ttMDA,inHg,I,bar,B,air,C,water,C,humidity,abs,dew,C,angle,T,angle,M,knots,N,m/s,M*XX\r\n
    $ttXDR,type,value,unit,name,type,value,…*XX\r\n            the first of each type is read

XX: exclusive or of all between $ and *. Invalid by its status: None. An empty field: missing.
"""

import re
from functools import reduce
from operator import xor
from typing import Literal

from gateway import reading as r
from gateway.driver import BadChecksum, BadFrame, Frame, SerialDriver, setting

NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
UNIT = {"K": 1 / 3.6, "M": 1.0, "N": 1852 / 3600}
SIDE = {"N": 1.0, "E": 1.0, "S": -1.0, "W": -1.0}
XDR = {"C": r.TEMPERATURE, "H": r.HUMIDITY, "P": r.PRESSURE, "U": r.VOLTAGE, "I": r.CURRENT}
SCALE = {"C,C": 1, "H,P": 1, "P,B": 1000, "P,P": 0.01, "U,V": 1, "I,A": 1}  # by type and unit
POSITION = (r.LATITUDE, r.LONGITUDE, r.ALTITUDE, r.SATELLITES)
# A quantity, its field, its factor or what the letter behind makes that; of two fields the last.
Places = list[tuple[r.Quantity, int, float | dict[str, float]]]
PRESSURE: Places = [(r.PRESSURE, 0, 33.863886), (r.PRESSURE, 2, 1000)]
AIR: Places = [*PRESSURE, (r.TEMPERATURE, 4, 1), (r.HUMIDITY, 8, 1), (r.DEW_POINT, 10, 1)]
WIND: Places = [(r.WIND_DIRECTION, 12, 1), (r.WIND_SPEED, 16, UNIT), (r.WIND_SPEED, 18, UNIT)]

# The field that tells whether a sentence is valid, what it says when not, and the places.
SENTENCES: dict[str, tuple[int, tuple[str, ...], Places]] = {
    "GGA": (5, ("", "0"), [(r.LATITUDE, 1, SIDE), (r.LONGITUDE, 3, SIDE), (r.ALTITUDE, 8, 1)]),
    "RMC": (1, ("", "V"), [(r.LATITUDE, 2, SIDE), (r.LONGITUDE, 4, SIDE), (r.SPEED, 6, UNIT["N"])]),
    "VTG": (8, ("N",), [(r.SPEED, 4, UNIT), (r.SPEED, 6, UNIT)]),
    "MWV": (4, ("", "V"), [(r.WIND_DIRECTION, 0, 1), (r.WIND_SPEED, 2, UNIT)]),
    "MDA": (0, (), AIR + WIND),
}


class Driver(SerialDriver):
    model = "NMEA 0183 GNSS receivers and weather stations"
    quantities = (*POSITION, r.SPEED, r.WIND_DIRECTION, r.WIND_SPEED, *XDR.values(), r.DEW_POINT)
    baudrate = 4800
    frame = Frame(start=b"$", end=b"\r\n", longest=255)
    wind: Literal["R", "T"] | None = setting(None, "Only relative wind (R) or true wind (T).")

    def decode(self, frame: bytes) -> r.Values | None:
        body, star, check = frame[1:-2].rpartition(b"*")
        if not star:
            raise BadFrame(f"no checksum: {frame!r}")
        if b"%02X" % reduce(xor, body, 0) != check.upper():
            raise BadChecksum(f"exclusive or {reduce(xor, body, 0):02X}: {frame!r}")
        address, *fields = [*body.decode("latin-1").split(","), *[""] * 20]
        status, invalid, places = SENTENCES.get(name := address[2:], (0, (), []))
        places = AIR if (name, self.wind) == ("MDA", "R") else places
        if name == "XDR":  # from the end, so that the first of a type counts
            fours = [(at, fields[at] + "," + fields[at + 2]) for at in range(0, len(fields) - 2, 4)]
            places = [(XDR[k[0]], at + 1, SCALE[k]) for at, k in reversed(fours) if k in SCALE]
        if not places or (name == "MWV" and fields[1] not in list(self.wind or "RT")):
            return None
        bad = fields[status] in invalid
        found: dict[r.Quantity, r.Value] = {
            quantity: None if bad else _value(fields, at, factor)
            for quantity, at, factor in places
            if bad or fields[at]
        }
        if name == "GGA" and fields[6]:
            found[r.SATELLITES] = int(_value(fields, 6, 1))
        return found


def _value(fields: list[str], at: int, factor: float | dict[str, float]) -> float:
    scale = factor.get(fields[at + 1]) if isinstance(factor, dict) else factor
    if scale is None or not NUMBER.fullmatch(fields[at]):
        raise BadFrame(f"no number with its unit or side: {fields[at : at + 2]}")
    number = float(fields[at])  # before a side: degrees and minutes in one, ddmm.mmm
    return scale * (number // 100 + number % 100 / 60 if factor is SIDE else number)
