"""Plantower PMS particulate sensors, unasked over UART (their data manuals, as PyPMS reads them).

Big-endian; the length counts what follows it. The first three words (for factory air) are not used:

    42 4D  LL LL  -- x3  pm1 pm2.5 pm10  words as the model has them  SS SS
           length        µg/m³           see LAYOUTS                  sum of all bytes before

Counts are particles beyond that size in 0.1 l; temperature (signed), humidity are in tenths.
Values settle 30 s after the fan has started; a frame of zeros says that it has not.
"""

from typing import Literal

from gateway.driver import (
    BadChecksum,
    BadFrame,
    DeviceRefused,
    Frame,
    Length,
    SerialDriver,
    setting,
)
from gateway.reading import (
    HUMIDITY,
    PARTICLES_0_3,
    PARTICLES_0_5,
    PARTICLES_1,
    PARTICLES_2_5,
    PARTICLES_5,
    PARTICLES_10,
    PM1,
    PM2_5,
    PM10,
    TEMPERATURE,
    Quantity,
    Values,
)

FORMALDEHYDE = Quantity("pms5003_formaldehyde", "ug/m3", 1, 0, 5000)

PM = (PM1, PM2_5, PM10)
FINE = (PARTICLES_0_3, PARTICLES_0_5, PARTICLES_1, PARTICLES_2_5)
COUNTS = (*FINE, PARTICLES_5, PARTICLES_10)
AIR = (TEMPERATURE, HUMIDITY)

LAYOUTS: dict[str, tuple[int, tuple[Quantity, ...]]] = {
    "PMS3003": (24, PM),
    "PMS5003": (32, PM + COUNTS),
    "PMS7003": (32, PM + COUNTS),
    "PMSA003": (32, PM + COUNTS),
    "PMS5003T": (32, PM + FINE + AIR),
    "PMS5003ST": (40, (*PM, *COUNTS, FORMALDEHYDE, *AIR)),
}
"""Length of the frame, and the words from the tenth byte on."""

DIVISORS = dict.fromkeys(COUNTS, 100) | dict.fromkeys(AIR, 10)


class Driver(SerialDriver):
    model: Literal["PMS3003", "PMS5003", "PMS7003", "PMSA003", "PMS5003T", "PMS5003ST"] = setting(  # type: ignore[misc]  # a setting here
        "PMS5003", "The type printed on the sensor: frames of PMS5003T and PMS5003 look alike."
    )
    quantities = (*PM, *COUNTS, *AIR, FORMALDEHYDE)
    frame = Frame(start=b"BM", length=Length(at=2, size=2, extra=4), longest=40)

    def decode(self, frame: bytes) -> Values:
        size, layout = LAYOUTS[self.model]
        if len(frame) != size:
            raise BadFrame(f"{len(frame)} bytes, a {self.model} sends {size}")
        if sum(frame[:-2]) != int.from_bytes(frame[-2:], "big"):
            raise BadChecksum(f"sum {sum(frame[:-2]):04x}, the frame says {frame[-2:].hex()}")
        if not any(frame[4:-2]):
            raise DeviceRefused("nothing but zeros: the fan is starting")
        return {
            quantity: int.from_bytes(frame[at : at + 2], "big", signed=quantity is TEMPERATURE)
            / DIVISORS.get(quantity, 1)
            for at, quantity in zip(range(10, size, 2), layout, strict=False)
        }
