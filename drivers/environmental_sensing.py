"""Environmental Sensing Service 0x181A, and the battery's level, read over GATT.

Little-endian, one characteristic each (GATT Specification Supplement):

    2A6E TTTT 0.01 °C      2A6F HHHH 0.01 %       2A6D PPPPPPPP 0.1 Pa   2A7B DD °C dew point
    2A70 SSSS 0.01 m/s     2A71 AAAA 0.01°        2A72 SSSS, 2A73 AAAA: the apparent wind
    2A77 IIII 0.1 W/m²     2A76 UU index          2A78 RRRR mm           2A6C EEEEEE 0.01 m
    2AFB LLLLLL 0.01 lx    2B8C CCCC ppm of CO₂   2BE7 VVVV ppb of VOC   2A19 BB % of battery

T, D, E are signed. Not known: T 8000; H, C, V FFFF; L FFFFFF; the others have no such code. C and V
of FFFE mean that or more. Not read: particulates (2BD5 to 2BD7), whose float of 16 bits in kg/m³
begins at 10 µg/m³, so that makers differ; the second of two characteristics of one name.
"""

from collections.abc import Mapping

from gateway import reading as r
from gateway.driver import BadFrame, GattDriver
from gateway.reading import Quantity, Value, Values

# Quantity, bytes, divisor, what means "not known"; in signed ones the smallest number, or none.
FIELDS: dict[str, tuple[Quantity, int, int, int | None]] = {
    "2a6e": (r.TEMPERATURE, 2, 100, -0x8000),
    "2a6f": (r.HUMIDITY, 2, 100, 0xFFFF),
    "2a6d": (r.PRESSURE, 4, 1000, None),
    "2a7b": (r.DEW_POINT, 1, 1, None),
    "2a72": (r.WIND_SPEED, 2, 100, None),
    "2a73": (r.WIND_DIRECTION, 2, 100, None),
    "2a70": (r.WIND_SPEED, 2, 100, None),
    "2a71": (r.WIND_DIRECTION, 2, 100, None),
    "2a77": (r.SOLAR_RADIATION, 2, 10, None),
    "2a76": (r.UV_INDEX, 1, 1, None),
    "2a78": (r.RAIN, 2, 1, None),
    "2a6c": (r.ALTITUDE, 3, 100, None),
    "2afb": (r.ILLUMINANCE, 3, 100, 0xFFFFFF),
    "2b8c": (r.CO2, 2, 1, 0xFFFF),
    "2be7": (r.TVOC_PPB, 2, 1, 0xFFFF),
    "2a19": (r.BATTERY, 1, 1, None),
}
SIGNED = (r.TEMPERATURE, r.DEW_POINT, r.ALTITUDE)
WHOLE = (r.CO2, r.TVOC_PPB, r.BATTERY)


class Driver(GattDriver):
    model = "Bluetooth Environmental Sensing Service"
    quantities = tuple(dict.fromkeys(field[0] for field in FIELDS.values()))
    services = ("181a",)
    characteristics = tuple(FIELDS)

    def decode(self, values: Mapping[str, bytes]) -> Values | None:
        return {
            FIELDS[uuid][0]: _value(values[uuid], uuid)  # the true wind after the apparent one
            for uuid in FIELDS
            if uuid in values
        }


def _value(data: bytes, uuid: str) -> Value:
    quantity, size, divisor, unknown = FIELDS[uuid]
    if len(data) != size:
        raise BadFrame(f"{uuid} has {len(data)} bytes, not {size}: {data.hex(' ')}")
    raw = int.from_bytes(data, "little", signed=quantity in SIGNED)
    if raw == unknown:
        return None
    return raw if quantity in WHOLE else raw / divisor
