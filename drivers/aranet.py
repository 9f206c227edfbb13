"""Aranet sensors' advertisements, manufacturer data of 0x0702 (github.com/Anrijs/Aranet4-Python).

Little-endian; only the first four bytes of F and V come while F's bit 5 is 0: no "Smart Home".

       FF VVVVVV --x4 CCCC TTTT PPPP HH   BB SS IIII AAAA NN     Aranet4
    01 FF VVVVVV --x5      TTTT ---- HHHH -- BB SS IIII AAAA NN  Aranet2
    02 FF VVVVVV --   DDDDDDDD UUUUUUUU EEEE -- BB SS IIII AAAA NN  Aranet Radiation
    03 FF VVVVVV --x3 RRRR TTTT PPPP HHHH -- BB SS IIII AAAA NN  Aranet Radon Plus

C ppm, T 0.05 °C, P 0.1 hPa, H %, as a word 0.1 %, R Bq/m³, D nSv in U s, E nSv/h, B % of battery;
V firmware, S status, I interval and A age of the measurement in s, N its number. Invalid: the
highest bit; of a temperature the next one, where it is not the sign's.
"""

from gateway.driver import Advertisement, AdvertisementDriver, BadFrame, DeviceRefused
from gateway.reading import (
    BATTERY,
    CO2,
    HUMIDITY,
    PRESSURE,
    RADON,
    TEMPERATURE,
    Quantity,
    Value,
    Values,
)

DOSE = Quantity("aranet_dose", "nSv")
DOSE_RATE = Quantity("aranet_dose_rate", "nSv/h")

# By the first byte, which the Aranet4 lacks: where a quantity stands, its bytes and its divisor.
FORMS: dict[int, tuple[tuple[Quantity, int, int, int], ...]] = {
    0: ((CO2, 9, 2, 1), (TEMPERATURE, 11, 2, 20), (PRESSURE, 13, 2, 10), (HUMIDITY, 15, 1, 1)),
    1: ((TEMPERATURE, 10, 2, 20), (HUMIDITY, 14, 2, 10)),
    2: ((DOSE, 6, 4, 1), (DOSE_RATE, 14, 2, 1)),
    3: ((RADON, 8, 2, 1), (TEMPERATURE, 10, 2, 20), (PRESSURE, 12, 2, 10), (HUMIDITY, 14, 2, 10)),
}


class Driver(AdvertisementDriver):
    model = "Aranet4, Aranet2, Aranet Radiation, Aranet Radon Plus"
    quantities = (CO2, TEMPERATURE, HUMIDITY, PRESSURE, RADON, DOSE, DOSE_RATE, BATTERY)
    companies = (0x0702,)

    def decode(self, advertisement: Advertisement) -> Values | None:
        said = advertisement.manufacturer(0x0702)
        if said is None:
            return None
        data = b"\0" + said if len(said) in (7, 22) else said
        if len(data) < 8 or data[0] not in FORMS:
            raise BadFrame(f"{len(said)} bytes that no Aranet sends: {said.hex(' ')}")
        if not data[1] & 0x20:
            raise DeviceRefused('tells no values: switch on "Smart Home integrations" in its app')
        if len(data) == 8:
            version = ".".join(map(str, data[4:1:-1]))
            raise DeviceRefused(f"firmware {version} tells no values: renew it with its app")
        if len(data) != (24 if data[0] else 23):
            raise BadFrame(f"{len(said)} bytes, no length of its type: {said.hex(' ')}")
        found = {field[0]: _value(data, *field) for field in FORMS[data[0]]}
        return found | {BATTERY: data[17 if data[0] else 16]}


def _value(data: bytes, quantity: Quantity, at: int, size: int, divisor: int) -> Value:
    signed = quantity is TEMPERATURE and data[0] > 0  # an Aranet4 measures nothing below 0 °C
    raw = int.from_bytes(data[at : at + size], "little", signed=signed)
    bits = 8 * size - (2 if quantity is TEMPERATURE else 1)
    if not -(1 << bits) <= raw < 1 << bits:
        return None
    return raw / divisor if quantity.decimals else raw
