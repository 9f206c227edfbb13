"""What a sensor says: quantities with their names and units, and readings of them.

Names, units, decimals and plausible ranges of the whole gateway stand here and nowhere else.
Units are SenML names (RFC 8428, RFC 8798) where there is one, else UCUM.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that can be measured.

    `decimals` is what the finest usual sensor resolves; the poller rounds to it. A value outside
    `low` … `high` (None: no bound) is kept, but marked as suspect.
    """

    name: str
    unit: str = ""
    decimals: int = 0
    low: float | None = None
    high: float | None = None

    def part(self, part: int | str) -> "Quantity":
        """Return the same quantity of one part of a device: probe `2`, phase `"l1"`."""
        return replace(self, name=f"{self.name}_{part}")


Value = float | int | bool | str | None
"""None: the sensor itself says that the value is invalid. 0 and False are values."""

Values = Mapping[Quantity, Value]


def numbered(pairs: Iterable[tuple[Quantity, Value]]) -> dict[Quantity, Value]:
    """Return values as one reading; what comes again becomes a part: `temperature_2`."""
    found: dict[Quantity, Value] = {}
    for quantity, value in pairs:
        name, number = quantity, 1
        while name in found:
            number += 1
            name = quantity.part(number)
        found[name] = value
    return found


class ClockState(IntEnum):
    """How far the wall clock can be trusted (`c` of a batch)."""

    NEVER_SET = 0
    HELD = 1
    SYNCED = 2
    GNSS = 3


class Quality(IntFlag):
    """What is known against a value; 0 is good."""

    GOOD = 0
    SUSPECT = 1
    MAINTENANCE = 2
    STALE = 4
    CLIPPED = 8
    FAULT = 16
    TIME_UNCERTAIN = 32


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time on both clocks: Unix ms as the box believes, and ms since it booted."""

    wall_ms: int
    boot_ms: int
    clock: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one quantity of one sensor, at one instant."""

    sensor: str
    quantity: Quantity
    instant: Instant
    value: Value
    quality: int = 0


TEMPERATURE = Quantity("temperature", "Cel", 3, -90, 150)
SURFACE_TEMPERATURE = Quantity("surface_temperature", "Cel", 3, -90, 150)
DEW_POINT = Quantity("dew_point", "Cel", 3, -90, 150)
CPU_TEMPERATURE = Quantity("cpu_temperature", "Cel", 3, -90, 150)
HUMIDITY = Quantity("humidity", "%RH", 2, 0, 100)
PRESSURE = Quantity("pressure", "hPa", 3, 300, 1200)
PM1 = Quantity("pm1", "ug/m3", 1, 0, 5000)
PM2_5 = Quantity("pm2_5", "ug/m3", 1, 0, 5000)
PM4 = Quantity("pm4", "ug/m3", 1, 0, 5000)
PM10 = Quantity("pm10", "ug/m3", 1, 0, 5000)
NO2 = Quantity("no2", "ug/m3", 1, 0, 100_000)
O3 = Quantity("o3", "ug/m3", 1, 0, 100_000)
SO2 = Quantity("so2", "ug/m3", 1, 0, 100_000)
CO = Quantity("co", "ug/m3", 1, 0, 100_000)
TVOC = Quantity("tvoc", "ug/m3", 1, 0, 100_000)
PARTICLES_0_3 = Quantity("particles_0_3", "/cm3", 2, 0, 1_000_000)
PARTICLES_0_5 = Quantity("particles_0_5", "/cm3", 2, 0, 1_000_000)
PARTICLES_1 = Quantity("particles_1", "/cm3", 2, 0, 1_000_000)
PARTICLES_2_5 = Quantity("particles_2_5", "/cm3", 2, 0, 1_000_000)
PARTICLES_5 = Quantity("particles_5", "/cm3", 2, 0, 1_000_000)
PARTICLES_10 = Quantity("particles_10", "/cm3", 2, 0, 1_000_000)
CO2 = Quantity("co2", "ppm", 0, 0, 40_000)
TVOC_PPB = Quantity("tvoc_ppb", "ppb", 0, 0, 65_000)
VOC_INDEX = Quantity("voc_index", "", 1, 0, 500)
NOX_INDEX = Quantity("nox_index", "", 1, 0, 500)
UV_INDEX = Quantity("uv_index", "", 1, 0, 500)
RADON = Quantity("radon", "Bq/m3", 0, 0, 20_000)
RADON_LONG_TERM = Quantity("radon_long_term", "Bq/m3", 0, 0, 20_000)
ILLUMINANCE = Quantity("illuminance", "lx", 2, 0, 200_000)
SOLAR_RADIATION = Quantity("solar_radiation", "W/m2", 0, 0, 1500)
LAEQ = Quantity("laeq", "dB", 1, 10, 140)
LAMAX = Quantity("lamax", "dB", 1, 10, 140)
DISTANCE = Quantity("distance", "mm", 0, -5000, 50_000)
WATER_LEVEL = Quantity("water_level", "mm", 0, -5000, 50_000)
SNOW_DEPTH = Quantity("snow_depth", "mm", 0, -5000, 50_000)
FLOW = Quantity("flow", "m3/s", 4)
TURBIDITY = Quantity("turbidity", "NTU", 1)
PH = Quantity("ph", "pH", 2, 0, 14)
DISSOLVED_OXYGEN = Quantity("dissolved_oxygen", "mg/l", 2)
CONDUCTIVITY = Quantity("conductivity", "S/m", 4)
SOIL_MOISTURE = Quantity("soil_moisture", "/100", 2, 0, 100)
WIND_SPEED = Quantity("wind_speed", "m/s", 2, 0, 100)
WIND_GUST = Quantity("wind_gust", "m/s", 2, 0, 100)
WIND_SPEED_MIN = Quantity("wind_speed_min", "m/s", 2, 0, 100)
WIND_DIRECTION = Quantity("wind_direction", "deg", 0, 0, 360)
RAIN = Quantity("rain", "mm", 2)
RAIN_RATE = Quantity("rain_rate", "mm/h", 1, 0, 500)
VOLTAGE = Quantity("voltage", "V", 3, 0, 1000)
BATTERY_VOLTAGE = Quantity("battery_voltage", "V", 3, 0, 1000)
CURRENT = Quantity("current", "A", 3)
POWER = Quantity("power", "W", 1)
REACTIVE_POWER = Quantity("reactive_power", "var", 1)
APPARENT_POWER = Quantity("apparent_power", "VA", 1)
ENERGY = Quantity("energy", "kWh", 3)
ENERGY_EXPORT = Quantity("energy_export", "kWh", 3)
REACTIVE_ENERGY = Quantity("reactive_energy", "kvarh", 3)
POWER_FACTOR = Quantity("power_factor", "/", 3, -1, 1)
FREQUENCY = Quantity("frequency", "Hz", 2, 40, 70)
BATTERY = Quantity("battery", "%EL", 0, 0, 100)
RSSI = Quantity("rssi", "dBm", 0, -128, 20)
LATITUDE = Quantity("latitude", "lat", 6)
LONGITUDE = Quantity("longitude", "lon", 6)
ALTITUDE = Quantity("altitude", "m", 1)
SPEED = Quantity("speed", "m/s", 2)
SATELLITES = Quantity("satellites", "count")
COUNT = Quantity("count", "count")
VEHICLES = Quantity("vehicles", "count")
PEOPLE = Quantity("people", "count")
OUTCOME = Quantity("outcome", "count")
ACCELERATION_X = Quantity("acceleration_x", "m/s2", 3)
ACCELERATION_Y = Quantity("acceleration_y", "m/s2", 3)
ACCELERATION_Z = Quantity("acceleration_z", "m/s2", 3)
MASS = Quantity("mass", "kg", 2)
VOLUME = Quantity("volume", "m3", 3)
GAS_VOLUME = Quantity("gas_volume", "m3", 3)
WATER_VOLUME = Quantity("water_volume", "m3", 3)
DURATION = Quantity("duration", "s", 3)
CLOCK_OFFSET = Quantity("clock_offset", "ms", 3)
DISK_FREE = Quantity("disk_free", "B")
MEMORY_FREE = Quantity("memory_free", "B")
OPEN = Quantity("open")
MOTION = Quantity("motion")
OCCUPANCY = Quantity("occupancy")
PRESENCE = Quantity("presence")
MOVING = Quantity("moving")
VIBRATION = Quantity("vibration")
SMOKE = Quantity("smoke")
GAS_DETECTED = Quantity("gas_detected")
CO_DETECTED = Quantity("co_detected")
SOUND_DETECTED = Quantity("sound_detected")
LIGHT_DETECTED = Quantity("light_detected")
WET = Quantity("wet")
COLD = Quantity("cold")
HOT = Quantity("hot")
BATTERY_LOW = Quantity("battery_low")
BATTERY_CHARGING = Quantity("battery_charging")
CONNECTED = Quantity("connected")
PLUGGED_IN = Quantity("plugged_in")
POWERED = Quantity("powered")
RUNNING = Quantity("running")
UNLOCKED = Quantity("unlocked")
TAMPERED = Quantity("tampered")
SAFE = Quantity("safe")
PROBLEM = Quantity("problem")

CATALOGUE: Mapping[str, Quantity] = {
    quantity.name: quantity for quantity in list(globals().values()) if type(quantity) is Quantity
}
"""Every quantity above by its name."""
