"""The simulated BLE sensors: a new one is a class and a row in `BLE_DEVICES`.

What they send is drawn in the drivers that read it; here stands what a driver could get wrong.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

from gateway.reading import (
    BATTERY,
    CO2,
    HUMIDITY,
    ILLUMINANCE,
    NOX_INDEX,
    PM2_5,
    PRESSURE,
    SOIL_MOISTURE,
    TEMPERATURE,
    VOC_INDEX,
    Quantity,
    Value,
)
from hil.bluez import FakeBlueZ
from hil.device import Device, Walk
from hil.radio import Advertiser

CALIBRATING = Quantity("ruuvi_calibrating")


class BleDevice(Device):
    """A BLE sensor, before it is put on the air. Some advertise what they measure."""

    address: ClassVar[str]
    period = 0.5
    """Seconds from one advertisement to the next."""

    def put(self, bluez: FakeBlueZ) -> Advertiser:
        """Put it on the air."""
        raise NotImplementedError

    def _advertised(self, _: int) -> bytes:
        return self.unasked()


class RuuviAir(BleDevice):
    """Ruuvi Air, air quality: advertises format 6."""

    address = "D5:1A:07:3C:5E:01"
    walks: ClassVar = {
        **{TEMPERATURE: Walk(-12, 24, 2), HUMIDITY: Walk(30, 95, 2), PRESSURE: Walk(980, 1030, 2)},
        **{PM2_5: Walk(1, 35, 1), CO2: Walk(420, 1400), VOC_INDEX: Walk(60, 180)},
        **{NOX_INDEX: Walk(1, 20), ILLUMINANCE: Walk(0, 4000)},
    }

    def put(self, bluez: FakeBlueZ) -> Advertiser:
        """Put it on the air."""
        data = {0x0499: self._advertised}
        return bluez.advertise(self.address, manufacturer=data, random=True, every=self.period)

    def unasked(self) -> bytes:
        """Return a payload; of light it tells the logarithm, of the indices 8 bits and a ninth."""
        values = self.measure()
        voc, nox, light = (int(float(values[q] or 0)) for q in (VOC_INDEX, NOX_INDEX, ILLUMINANCE))
        code = round(math.log(light + 1) * 254 / math.log(65536))
        lux = round(math.exp(code * math.log(65536) / 254) - 1, ILLUMINANCE.decimals)
        self.sent[-1] = {**values, ILLUMINANCE: lux, CALIBRATING: False}
        return b"".join(
            (
                b"\x06",
                _packed(values[TEMPERATURE], 200, 2, "big"),
                _packed(values[HUMIDITY], 400, 2, "big"),
                _packed(values[PRESSURE], 100, 2, "big", less=50_000),
                _packed(values[PM2_5], 10, 2, "big"),
                _packed(values[CO2], 1, 2, "big"),
                bytes((voc >> 1, nox >> 1, code, 0xFF, self.measured & 0xFF)),
                bytes(((voc & 1) << 6 | (nox & 1) << 7,)),
                bytes.fromhex(self.address.replace(":", ""))[3:],
            )
        )


class BthomeSoil(BleDevice):
    """A soil probe that speaks BTHome version 2: advertises moisture, temperature and battery."""

    address = "A4:C1:38:5B:0E:02"
    walks: ClassVar = {
        **{BATTERY: Walk(60, 100), TEMPERATURE: Walk(-5, 20, 2), SOIL_MOISTURE: Walk(10, 45, 2)}
    }

    def put(self, bluez: FakeBlueZ) -> Advertiser:
        """Put it on the air."""
        data = {"fcd2": self._advertised}
        return bluez.advertise(self.address, service_data=data, every=self.period)

    def unasked(self) -> bytes:
        """Return a payload: the number of the packet, then the objects, by their ids."""
        values = self.measure()
        return b"".join(
            (
                bytes((0x40, 0x00, self.measured & 0xFF)),
                b"\x01" + _packed(values[BATTERY], 1, 1),
                b"\x02" + _packed(values[TEMPERATURE], 100, 2),
                b"\x14" + _packed(values[SOIL_MOISTURE], 100, 2),
            )
        )


class EnvironmentalSensing(BleDevice):
    """A weather sensor with the Environmental Sensing Service: is connected to, and read."""

    address = "D5:1A:07:3C:5E:03"
    period = 0.2
    walks: ClassVar = {
        **{TEMPERATURE: Walk(-12, 24, 2), HUMIDITY: Walk(30, 95, 2), PRESSURE: Walk(980, 1030, 1)},
    }
    fields: ClassVar = {
        "2a6e": (TEMPERATURE, 100, 2),
        "2a6f": (HUMIDITY, 100, 2),
        "2a6d": (PRESSURE, 1000, 4),
    }

    def put(self, bluez: FakeBlueZ) -> Advertiser:
        """Put it on the air."""
        values = {uuid: partial(self._read, uuid) for uuid in self.fields}
        said = {"uuids": ["181a"], "name": "weather", "random": True, "every": self.period}
        return bluez.peripheral(self.address, {"181a": values}, **said)

    def _read(self, uuid: str) -> bytes:
        quantity, factor, size = self.fields[uuid]
        return _packed(self.measure(quantity)[quantity], factor, size)


def _packed(
    value: Value, factor: int, size: int, order: Literal["big", "little"] = "little", less: int = 0
) -> bytes:
    """Return a value as a whole number of its steps, `less` an offset; two's complement."""
    steps = round(float(value or 0) * factor) - less
    return (steps % (1 << 8 * size)).to_bytes(size, order)


BLE_DEVICES: Mapping[str, type[BleDevice]] = {
    "bthome": BthomeSoil,
    "environmental_sensing": EnvironmentalSensing,
    "ruuvi": RuuviAir,
}
"""Every BLE device that can be simulated; the first line of its docstring describes it."""
