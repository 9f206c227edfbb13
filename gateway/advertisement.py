"""What one BLE advertisement says. Source: Bluetooth Core Specification Supplement, part A."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

BASE_UUID = "-0000-1000-8000-00805f9b34fb"
"""End of the UUIDs that have a short form (Bluetooth Core Specification, vol. 3, part B, 2.5.1)."""


@lru_cache(256)
def full_uuid(uuid: str) -> str:
    """Return a UUID of 4, 8 or 32 digits in full and in lower case, as BlueZ spells it.

    Raises ValueError for what is none.

    >>> full_uuid("FCD2")
    '0000fcd2-0000-1000-8000-00805f9b34fb'
    """
    digits = uuid.lower().removeprefix("0x").replace("-", "")
    if re.fullmatch("[0-9a-f]{4}|[0-9a-f]{8}", digits):
        return digits.rjust(8, "0") + BASE_UUID
    if not re.fullmatch("[0-9a-f]{32}", digits):
        raise ValueError(f"{uuid!r} is no UUID of 4, 8 or 32 hexadecimal digits")
    ends = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "-".join(digits[begin:end] for begin, end in ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """One advertisement, or what is new in it.

    `address` is as in "CC:B8:33:4C:88:4F", or empty where it is not known. `manufacturer_data` is
    keyed by company identifier, its bytes begin after that; `service_data` is keyed by UUIDs in
    full, and so are `service_uuids`. `rssi` is in dBm.
    """

    address: str
    manufacturer_data: Mapping[int, bytes] = field(default_factory=dict)
    service_data: Mapping[str, bytes] = field(default_factory=dict)
    service_uuids: tuple[str, ...] = ()
    rssi: int | None = None

    @property
    def address_bytes(self) -> bytes:
        """The address as it is written, without the colons."""
        return bytes.fromhex(self.address.replace(":", ""))

    def manufacturer(self, company: int) -> bytes | None:
        """Return the manufacturer data of a company, None where there is none."""
        return self.manufacturer_data.get(company)

    def service(self, uuid: str) -> bytes | None:
        """Return the service data of a UUID, as "fcd2" or in full, None where there is none."""
        return self.service_data.get(full_uuid(uuid))

    def offers(self, uuid: str) -> bool:
        """Whether it has data of a service, or names it among those that the device has."""
        return full_uuid(uuid) in {*self.service_data, *self.service_uuids}
