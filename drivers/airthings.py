"""Airthings Wave sensors, read over GATT (github.com/Airthings: waveplus-reader, airthings-ble).

Little-endian, 20 bytes, one characteristic for each model; b42e…-ade7-11e4-89d3-123b93f75cba:

    b42e2a68  01 HH LL --  RRRR QQQQ TTTT PPPP CCCC VVVV ----     Wave Plus: H 0.5 %
    b42e4dcc  01 HH LL --  RRRR QQQQ TTTT ---- ---- ---- ----     Wave Radon
    b42e3b98  LL -- TTTT PPPP HHHH VVVV ----×5                    Wave Mini: T 0.01 K, H 0.01 %

R radon of a day, Q of long, Bq/m³, above 16383 invalid; T 0.01 °C, P 0.02 hPa, C ppm, V ppb.
It advertises SSSSSSSS ----, its serial number, as manufacturer data of 0334.
All bits set: invalid; without humidity the temperature too. L light, 01 the layout's version.
"""

from collections.abc import Mapping

from gateway import reading as r
from gateway.driver import Advertisement, BadFrame, GattDriver
from gateway.reading import Quantity, Value, Values

WAVE_PLUS, WAVE_RADON, WAVE_MINI = (
    f"{each}-ade7-11e4-89d3-123b93f75cba" for each in ("b42e2a68", "b42e4dcc", "b42e3b98")
)
RADON = (r.RADON, r.RADON_LONG_TERM)


class Driver(GattDriver):
    model = "Airthings Wave Plus, Wave Radon, Wave Mini"
    quantities = (r.TEMPERATURE, r.HUMIDITY, r.PRESSURE, *RADON, r.CO2, r.TVOC_PPB)
    companies = (0x0334,)
    characteristics = (WAVE_PLUS, WAVE_RADON, WAVE_MINI)

    @classmethod
    def hears(cls, advertisement: Advertisement) -> bool:
        return len(advertisement.manufacturer(0x0334) or b"") == 6

    def decode(self, values: Mapping[str, bytes]) -> Values | None:
        found: dict[Quantity, Value] = {}
        for uuid, data in values.items():
            if len(data) != 20:
                raise BadFrame(f"{len(data)} bytes, not 20: {data.hex(' ')}")
            found |= _mini(data) if uuid == WAVE_MINI else _radon(data, plus=uuid == WAVE_PLUS)
        return found


def _radon(data: bytes, *, plus: bool) -> dict[Quantity, Value]:
    if data[0] != 1:
        raise BadFrame(f"version {data[0]} of the layout, not 1")
    dry = data[1] == 255
    found: dict[Quantity, Value] = {
        r.TEMPERATURE: None if dry else int.from_bytes(data[8:10], "little", signed=True) / 100,
        r.HUMIDITY: None if dry else data[1] / 2,
    }
    for at, quantity in enumerate(RADON):
        raw = _word(data, 4 + 2 * at)
        found[quantity] = None if raw is None or raw > 16383 else raw
    if plus:
        found[r.PRESSURE] = _scaled(_word(data, 10), 50)
        found |= {r.CO2: _word(data, 12), r.TVOC_PPB: _word(data, 14)}
    return found


def _mini(data: bytes) -> dict[Quantity, Value]:
    return {
        r.TEMPERATURE: _scaled(_word(data, 2), 100, -27_315),
        r.PRESSURE: _scaled(_word(data, 4), 50),
        r.HUMIDITY: _scaled(_word(data, 6), 100),
        r.TVOC_PPB: _word(data, 8),
    }


def _word(data: bytes, at: int) -> int | None:
    raw = int.from_bytes(data[at : at + 2], "little")
    return None if raw == 0xFFFF else raw


def _scaled(raw: int | None, divisor: int, more: int = 0) -> float | None:
    return None if raw is None else (raw + more) / divisor
