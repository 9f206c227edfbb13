r"""MaxBotix ultrasonic rangefinders, unasked text at 9600 (HRXL-MaxSonar-WR data sheet PD11500).

    R d d d d \r    millimetres, HRXL and HRLV models; HRUSB puts a space before \r
    R d d d \r      centimetres, XL models

No checksum: only the form is checked. Rogue FF bytes between the characters are passed over. The
greatest distance that a model can report means that nothing echoed: 5000 for those of 5 m, 9999 for
those of 10 m, to which 5000 is a distance like any other.
"""

import re
from typing import Literal

from gateway.driver import BadFrame, Frame, SerialDriver, setting
from gateway.reading import CATALOGUE, DISTANCE, SNOW_DEPTH, WATER_LEVEL, Values

READING = re.compile(rb"R(\d{3,4}) ?\r")


class Driver(SerialDriver):
    model = "MaxBotix HRXL-, HRLV-, XL-MaxSonar"
    quantities = (DISTANCE, WATER_LEVEL, SNOW_DEPTH)
    checked = False
    frame = Frame(start=b"R", end=b"\r", longest=32)

    publish: Literal["distance", "water_level", "snow_depth"] = setting(
        "distance", "The distance to what is below, or how high that stands."
    )
    no_echo: int = setting(
        5000, "The mm reported when nothing echoed: 5000, 9999 or (XL) 7650.", low=1, high=9999
    )
    mounted_at: int = setting(
        0, "Height of the sensor in mm above the zero of water_level or snow_depth."
    )

    def decode(self, frame: bytes) -> Values:
        found = READING.fullmatch(frame.replace(b"\xff", b""))
        if not found:
            raise BadFrame(f"neither R1234 nor R123: {frame!r}")
        distance = int(found[1]) * (10 if len(found[1]) == 3 else 1)
        quantity = CATALOGUE[self.publish]
        if distance in (self.no_echo, 9999):
            return {quantity: None}
        return {quantity: distance if quantity is DISTANCE else self.mounted_at - distance}
