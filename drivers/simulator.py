"""Smooth daily curves of a city's air, for demonstrations: no device at all.

    0 h      6 h      12 h     18 h     24 h
    ·  ·  ·  .  ·  ·  ˙  ˙  ˙  ˙  ·  ·  ·     temperature, humidity the other way round
    .  .  .  ˙  .  .  .  .  .  ˙  .  .  .     particles: the two rush hours

A pure function of time, so that a gap in what was delivered shows as a gap in the curve.
"""

import time
from math import cos, exp, pi
from random import Random

from gateway.driver import Duration, LocalDriver, duration, setting
from gateway.reading import HUMIDITY, PM2_5, PM10, PRESSURE, TEMPERATURE, WIND_SPEED, Values


class Driver(LocalDriver):
    model = "simulated city air"
    quantities = (TEMPERATURE, HUMIDITY, PRESSURE, PM2_5, PM10, WIND_SPEED)

    period: Duration = setting(duration("1d"), "How long a day takes.", low=1)
    seed: int = setting(0, "Another number is another place.")

    def poll(self) -> Values:
        return self.at(time.time())

    def at(self, seconds: float) -> Values:
        """Return the values at that time, in seconds of the Unix clock."""
        days = seconds / self.period
        place = Random(self.seed)
        mean, traffic, shift = place.uniform(2, 14), place.uniform(4, 20), place.uniform(0, 7)
        warmth = -cos(2 * pi * (days - 0.1))  # coldest at 02:24
        weather = cos(2 * pi * (days + shift) / 7)  # a front a week
        rush = _bump(days, 8 / 24) + _bump(days, 17 / 24)
        return {
            TEMPERATURE: mean + 5 * warmth + 3 * weather,
            HUMIDITY: 70 - 15 * warmth - 10 * weather,
            PRESSURE: 1010 + 12 * weather,
            PM2_5: traffic * (0.3 + rush),
            PM10: traffic * (0.5 + 1.8 * rush),
            WIND_SPEED: 3 + warmth - 1.5 * weather,
        }


def _bump(days: float, hour: float) -> float:
    """Return a bell of about two hours around that part of the day, the day being a ring."""
    return exp(15 * (cos(2 * pi * (days - hour)) - 1))
