"""Ruuvi sensors' advertisements, manufacturer data of 0x0499 (docs.ruuvi.com, data formats).

Big-endian; the largest number, of signed ones the smallest, says that a value is not available:

    03 HH TTTT PPPP XXXX YYYY ZZZZ VVVV           H 0.5 %; T a sign bit, °C and 0.01 °C; V mV
    05 TTTT HHHH PPPP XXXX YYYY ZZZZ WWWW MM SSSS AA×6
    06 TTTT HHHH PPPP PM25 CCCC OO NN LL -- SS GG AA×3
    E1 TTTT HHHH PPPP PM×4 CCCC OO NN LLLLLL --×3 SS×3 GG --×5 AA×6

T 0.005 °C, H 0.0025 %, P Pa above 50000, X Y Z mG, W 11 bits mV above 1600 (5 bits transmit power),
M movements counted, PM 0.1 µg/m³ (1, 2.5, 4, 10), C ppm, O and N indices of VOC and NOx, their
lowest bits being bits 6 and 7 of G, whose bit 0 means that it still calibrates; L in E1 0.01 lx, in
06 logarithmic (254: 65535 lx); S sequence, A address. A Ruuvi Air sends both 06 and E1.
"""

from math import exp, log

from gateway import reading as r
from gateway.driver import Advertisement, AdvertisementDriver, BadFrame, DeviceRefused
from gateway.reading import Quantity, Value, Values

MOVEMENTS = Quantity("ruuvi_movements", "count")
CALIBRATING = Quantity("ruuvi_calibrating")
MILLI_G = 1000 / 9.80665

# Where a quantity stands, its bytes (negative: signed), what is added, and its divisor.
Fields = dict[Quantity, tuple[int, int, int, float]]
AIR: Fields = {r.TEMPERATURE: (1, -2, 0, 200), r.HUMIDITY: (3, 2, 0, 400)}
AIR |= {r.PRESSURE: (5, 2, 50_000, 100)}
AXES = (r.ACCELERATION_X, r.ACCELERATION_Y, r.ACCELERATION_Z)
PM = (r.PM1, r.PM2_5, r.PM4, r.PM10)
FORMATS: dict[int, tuple[int, Fields]] = {
    0x03: (
        14,
        {r.HUMIDITY: (1, 1, 0, 2), r.PRESSURE: (4, 2, 50_000, 100)}
        | {axis: (6 + 2 * at, -2, 0, MILLI_G) for at, axis in enumerate(AXES)}
        | {r.BATTERY_VOLTAGE: (12, 2, 0, 1000)},
    ),
    0x05: (24, AIR | {axis: (7 + 2 * at, -2, 0, MILLI_G) for at, axis in enumerate(AXES)}),
    0x06: (20, AIR | {r.PM2_5: (7, 2, 0, 10), r.CO2: (9, 2, 0, 1)}),
    0xE1: (
        40,
        AIR
        | {each: (7 + 2 * at, 2, 0, 10) for at, each in enumerate(PM)}
        | {r.CO2: (15, 2, 0, 1), r.ILLUMINANCE: (19, 3, 0, 100)},
    ),
}


class Driver(AdvertisementDriver):
    model = "RuuviTag, Ruuvi Air"
    quantities = (
        *(r.TEMPERATURE, r.HUMIDITY, r.PRESSURE, *AXES, r.BATTERY_VOLTAGE, MOVEMENTS),
        *(*PM, r.CO2, r.VOC_INDEX, r.NOX_INDEX, r.ILLUMINANCE, CALIBRATING),
    )
    companies = (0x0499,)

    def decode(self, advertisement: Advertisement) -> Values | None:
        data = advertisement.manufacturer(0x0499)
        if data is None:
            return None
        if data and data[0] not in FORMATS:
            raise DeviceRefused(f"data format {data[0]:02X}, not one of 03, 05, 06, E1")
        if not data or len(data) != FORMATS[data[0]][0]:
            raise BadFrame(f"{len(data)} bytes, no length of a data format: {data.hex(' ')}")
        plain = {each: _value(data, each, field) for each, field in FORMATS[data[0]][1].items()}
        return plain | _special(data)


def _value(data: bytes, quantity: Quantity, field: tuple[int, int, int, float]) -> Value:
    at, size, more, divisor = field
    bits, signed = 8 * abs(size), size < 0
    raw = int.from_bytes(data[at : at + abs(size)], "big", signed=signed)
    if raw == (-1 << bits - 1 if signed else (1 << bits) - 1):
        return None
    return (raw + more) / divisor if quantity.decimals else raw


def _special(data: bytes) -> dict[Quantity, Value]:
    """Return what is put together in a way of its own."""
    if data[0] == 0x03:
        if data[3] > 99:
            raise BadFrame(f"{data[3]} hundredths of a degree")
        size = ((data[2] & 0x7F) * 100 + data[3]) / 100
        return {r.TEMPERATURE: -size if data[2] & 0x80 else size}
    if data[0] == 0x05:
        volts = int.from_bytes(data[13:15], "big") >> 5
        moved = None if data[15] == 255 else data[15]
        return {
            r.BATTERY_VOLTAGE: None if volts == 2047 else (volts + 1600) / 1000,
            MOVEMENTS: moved,
        }
    at, flags = (11, data[16]) if data[0] == 0x06 else (17, data[28])
    voc, nox = data[at] << 1 | flags >> 6 & 1, data[at + 1] << 1 | flags >> 7
    found: dict[Quantity, Value] = {
        r.VOC_INDEX: None if voc == 511 else float(voc),
        r.NOX_INDEX: None if nox == 511 else float(nox),
        CALIBRATING: bool(flags & 1),
    }
    if data[0] == 0x06:
        light = None if data[13] == 255 else exp(data[13] * log(65536) / 254) - 1
        found[r.ILLUMINANCE] = light
    return found
