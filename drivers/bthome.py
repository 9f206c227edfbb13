"""BTHome version 2: sensors of many makers, service data of 0xFCD2 (bthome.io/format, /encryption).

    II  [AA×6]  OO VV…  OO VV…  …                        objects, little-endian: an id, a value
    II  [AA×6]  the same encrypted  CCCCCCCC  MMMMMMMM   C counter, M check of AES-CCM

I: bit 0 encrypted, bit 1 the address A is sent, backwards, bits 5 to 7 the version. Nonce: address,
D2 FC, I, C. What a device has several of is numbered: temperature_2. An object that is not known
ends the reading, for its length is not known either; bthome_unknown then tells its id. Events,
commands, texts and times are passed over: one reading per interval would lose presses.
"""

import re
from collections.abc import Iterator

from gateway import driver as d
from gateway.reading import CATALOGUE, Quantity, Value, Values, numbered

UNKNOWN = Quantity("bthome_unknown")
OWN = (
    *(Quantity("bthome_generic"), Quantity("bthome_light_level")),
    *(Quantity("bthome_rotation", "deg", 1), Quantity("bthome_direction", "deg", 2)),
    *(Quantity("bthome_revolutions", "1/min"), Quantity("bthome_gyroscope", "deg/s", 3)),
    *(Quantity("bthome_acceleration", "m/s2", 6), Quantity("bthome_throughput", "l/s", 5)),
    Quantity("bthome_stored", "m3", 6),
)
PARTS = 4  # of a kind on one device

# A quantity, then its objects: id, bits, and what makes them its unit; i: signed, b: true or false.
# Those after - are passed over; of a text the first byte tells the length, of a command its low
# five bits that of what follows the opcode.
TABLE = """
temperature 02 i16/100 45 i16/10 57 i8 58 i8*35/100 ; humidity 03 u16/100 2e u8 ; battery 01 u8
pressure 04 u24/100 ; dew_point 08 i16/100 ; illuminance 05 u24/100 ; uv_index 46 u8/10 ; co2 12 u16
tvoc 13 u16 ; pm2_5 0d u16 ; pm10 0e u16 ; soil_moisture 14 u16/100 2f u8 ; rain 5f u16/10
voltage 0c u16/1000 4a u16/10 ; current 43 u16/1000 5d i16/1000 ; power 0b u24/100 5c i32/100
energy 0a u24/1000 4d u32/1000 ; conductivity 56 u16/10000 ; duration 42 u24/1000
count 09 u8 3d u16 3e u32 59 i8 5a i16 5b i32 ; mass 06 u16/100 07 u16*0.45359237/100
distance 40 u16 41 u16*100 ; speed 44 u16/100 62 i32/1000000 ; water_volume 4f u32/1000000
volume 47 u16/10000 48 u16/1000000 4e u32/1000000 ; gas_volume 4b u24/1000 4c u32/1000
bthome_acceleration 51 u16/1000 63 i32/1000000 ; bthome_gyroscope 52 u16/1000
bthome_rotation 3f i16/10 ; bthome_direction 5e u16/100 ; bthome_revolutions 61 u16
bthome_stored 55 u32/1000000 ; bthome_throughput 49 u16/3600 ; bthome_light_level 64 u8
open 11 b8 1a b8 1b b8 2d b8 ; motion 21 b8 ; moving 22 b8 ; occupancy 23 b8 ; presence 25 b8
battery_low 15 b8 ; battery_charging 16 b8 ; powered 10 b8 ; plugged_in 24 b8 ; connected 19 b8
gas_detected 1c b8 ; co_detected 17 b8 ; smoke 29 b8 ; light_detected 1e b8 ; sound_detected 2a b8
wet 20 b8 ; cold 18 b8 ; hot 1d b8 ; vibration 2c b8 ; running 27 b8 ; safe 28 b8 ; problem 26 b8
tampered 2b b8 ; unlocked 1f b8 ; bthome_generic 0f b8
- 00 u8 3a u8 3b command 3c u16 50 u32 53 text 54 text 60 u8 65 u8 f0 u16 f1 u32 f2 u24
"""

FORM = re.compile(r"([a-z]+)(\d*)\*?([\d.]*)/?(\d*)")


def _forms() -> Iterator[tuple[int, tuple[Quantity | None, str, int, float, float]]]:
    named = {**CATALOGUE, **{each.name: each for each in OWN}}
    for name, *objects in map(str.split, re.split("[;\n]", TABLE.strip())):
        for number, form in zip(objects[::2], objects[1::2], strict=True):
            kind, bits, *scale = FORM.findall(form)[0]
            factor, divisor = (float(each or 1) for each in scale)
            yield int(number, 16), (named.get(name), kind, int(bits or 0) // 8, factor, divisor)


FORMS = dict(_forms())
KINDS = dict.fromkeys(form[0] for form in FORMS.values() if form[0])
NUMBERED = [each.part(number) for number in range(2, PARTS + 1) for each in KINDS]
DECLARED = frozenset([*KINDS, *NUMBERED, UNKNOWN])


class Driver(d.AdvertisementDriver):
    model = "BTHome version 2, such as Shelly BLU"
    quantities = (*KINDS, UNKNOWN, *NUMBERED)
    services = ("fcd2",)

    key: d.Key | None = d.setting(None, "Its encryption key; what comes without is then refused.")

    def decode(self, advertisement: d.Advertisement) -> Values | None:
        data = advertisement.service("fcd2")
        if data is None:
            if advertisement.service("181c") or advertisement.service("181e"):
                raise d.DeviceRefused("speaks BTHome version 1: set it to version 2, or renew it")
            return None
        if not (7 if data[:1] and data[0] & 2 else 1) <= len(data) <= 252:  # of an AD structure
            raise d.BadFrame(f"{len(data)} bytes, too few or too many")
        if data[0] >> 5 != 2:
            raise d.DeviceRefused(f"speaks BTHome version {data[0] >> 5}, not 2")
        address, body = advertisement.address_bytes, data[1:]
        if data[0] & 2:
            address, body = data[6:0:-1], data[7:]
            d.check_address(advertisement, address)
        found = numbered(_objects(self._plain(data[:1], address, body)))
        if not DECLARED.issuperset(found):
            raise d.BadFrame(f"has more than {PARTS} of a kind: {body.hex(' ')}")
        if found.keys() == {UNKNOWN}:
            raise d.BadFrame(f"begins with object {found[UNKNOWN]:02x}, which this driver lacks")
        return found or None

    def counter(self, advertisement: d.Advertisement) -> int | None:
        data = advertisement.service("fcd2")
        return int.from_bytes(data[-8:-4], "little") if data and data[0] & 1 else None

    def _plain(self, info: bytes, address: bytes, body: bytes) -> bytes:
        if not info[0] & 1:
            if self.key:
                raise d.DeviceRefused("is not encrypted, though there is a `key`")
            return body
        if len(body) < 8:
            raise d.BadFrame(f"{len(body)} bytes, fewer than counter and check have")
        nonce = address + b"\xd2\xfc" + info + body[-8:-4]
        return d.decrypted(self.key, nonce if address else None, body[:-8] + body[-4:])


def _objects(data: bytes) -> Iterator[tuple[Quantity, Value]]:
    while data:
        if data[0] not in FORMS:
            yield UNKNOWN, data[0]
            return
        quantity, kind, size, factor, divisor = FORMS[data[0]]
        told = int.from_bytes(data[1:2], "little")
        begin, size = (1, size) if size else (2, 1 + (told & 31) if kind == "command" else told)
        if len(data) < begin + size:
            raise d.BadFrame(f"ends within object {data[0]:02x}: {data.hex(' ')}")
        raw = int.from_bytes(data[begin : begin + size], "little", signed=kind == "i")
        if quantity and kind == "b":
            yield quantity, bool(raw)
        elif quantity:
            yield quantity, raw * factor / divisor if quantity.decimals else raw * int(factor)
        data = data[begin + size :]
