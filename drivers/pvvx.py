"""Xiaomi and Tuya thermometers with the firmware of atc1441 or pvvx, service data of 0x181A.

Sources: the READMEs of github.com/atc1441 and github.com/pvvx, ATC_MiThermometer.

    AA×6  TTTT  HH   BB    VVVV  CC         atc1441, big-endian: 0.1 °C, %, %, mV
    AA×6  TTTT  HHHH VVVV  BB    CC  FF     pvvx ("custom"), little-endian: 0.01 °C, 0.01 %, mV, %

A: the device's own address; V, B: voltage and level of its battery; C counts measurements, F pins.
"""

from gateway.driver import (
    Advertisement,
    AdvertisementDriver,
    BadFrame,
    DeviceRefused,
    check_address,
)
from gateway.reading import BATTERY, BATTERY_VOLTAGE, HUMIDITY, TEMPERATURE, Values


class Driver(AdvertisementDriver):
    model = "thermometers with ATC_MiThermometer"
    quantities = (TEMPERATURE, HUMIDITY, BATTERY, BATTERY_VOLTAGE)
    services = ("181a",)

    def decode(self, advertisement: Advertisement) -> Values | None:
        data = advertisement.service("181a")
        if data is None:
            return None
        if len(data) in (8, 11):
            raise DeviceRefused(
                'is encrypted: choose the advertising type "BTHome" with it, and driver bthome'
            )
        if len(data) not in (13, 15):
            raise BadFrame(f"{len(data)} bytes, not the 13 of atc1441 or the 15 of pvvx")
        return _atc1441(data, advertisement) if len(data) == 13 else _pvvx(data, advertisement)


def _atc1441(data: bytes, advertisement: Advertisement) -> Values:
    check_address(advertisement, data[:6])
    return {
        TEMPERATURE: int.from_bytes(data[6:8], "big", signed=True) / 10,
        HUMIDITY: float(data[8]),
        BATTERY: data[9],
        BATTERY_VOLTAGE: int.from_bytes(data[10:12], "big") / 1000,
    }


def _pvvx(data: bytes, advertisement: Advertisement) -> Values:
    check_address(advertisement, data[5::-1])
    return {
        TEMPERATURE: int.from_bytes(data[6:8], "little", signed=True) / 100,
        HUMIDITY: int.from_bytes(data[8:10], "little") / 100,
        BATTERY: data[12],
        BATTERY_VOLTAGE: int.from_bytes(data[10:12], "little") / 1000,
    }
