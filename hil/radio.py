"""What is on the air: sensors that advertise, sensors that can be read, and crowds of strangers.

Nothing here knows D-Bus. An `Air` hands each advertisement to whoever listens.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from random import Random
from typing import Any

from hil.device import HISTORY

Payload = bytes | Callable[[int], bytes]
"""Bytes, or what makes them of the number of the advertisement, from 0."""


@dataclass(frozen=True, slots=True)
class Advert:
    """One advertisement: what a scanner could hear."""

    address: str
    manufacturer: Mapping[int, bytes] = field(default_factory=dict)
    service_data: Mapping[str, bytes] = field(default_factory=dict)
    uuids: tuple[str, ...] = ()
    name: str = ""
    rssi: int | None = -60
    """None: the controller does not know it."""
    random: bool = False


Ear = Callable[[Advert, Collection[str]], bool]
"""Hears an advertisement, if one of the adapters named (none: any) does, and says so."""


class Air:
    """All that sends. Whoever has begun to send goes on until it is stopped, or the air is."""

    def __init__(self) -> None:
        self.hear: Ear = lambda advert, adapters: False
        self.peripherals: dict[str, Peripheral] = {}
        self.senders: list[Advertiser] = []

    def stop(self) -> None:
        """End all sending."""
        for sender in self.senders:
            sender.stop()


class Advertiser:
    """A device that advertises `every` so many seconds; 0: only when told to `send`.

    All that it says can be changed at any time by the attributes of the same names. `adapters`
    are those in whose range it is; none named: all.
    """

    def __init__(
        self,
        air: Air,
        address: str,
        *,
        manufacturer: Mapping[int, Payload] | None = None,
        service_data: Mapping[str, Payload] | None = None,
        uuids: Collection[str] = (),
        name: str = "",
        rssi: int | None = -60,
        random: bool = False,
        every: float = 1.0,
        adapters: Collection[str] = (),
    ) -> None:
        self.address = address.upper()
        self.manufacturer = manufacturer or {}
        self.service_data = service_data or {}
        self.uuids = uuids
        self.name = name
        self.rssi = rssi
        self.random = random
        self.every = every
        self.adapters = adapters
        self.heard: deque[Advert] = deque(maxlen=HISTORY)
        """Every advertisement that reached an adapter which listened."""
        self.sent = 0
        """How many were sent, heard or not."""
        self._air = air
        self.away = False
        """Whether it was stopped: then it cannot be connected to either."""
        self._timer: asyncio.TimerHandle | None = None
        air.senders.append(self)

    def start(self, after: float = 0.0) -> None:
        """Begin to send, or go on."""
        self.stop()
        self.away = False
        if self.every:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(after, self._beat, loop.time() + after)

    def stop(self) -> None:
        """Send no more: an empty battery, or out of range."""
        self.away = True
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def send(self) -> bool:
        """Send one advertisement now; return whether it was heard."""
        advert = self._advert()
        self.sent += 1
        heard = self._air.hear(advert, self.adapters)
        if heard:
            self.heard.append(advert)
        return heard

    def _beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        due = max(due + self.every, loop.time())
        self._timer = loop.call_at(due, self._beat, due)
        self.send()

    def _advert(self) -> Advert:
        return Advert(
            self.address,
            {company: self._bytes(data) for company, data in self.manufacturer.items()},
            {full_uuid(uuid): self._bytes(data) for uuid, data in self.service_data.items()},
            tuple(full_uuid(uuid) for uuid in self.uuids),
            self.name,
            self.rssi,
            self.random,
        )

    def _bytes(self, data: Payload) -> bytes:
        return data if isinstance(data, bytes) else data(self.sent)


class Characteristic:
    """One value of a peripheral: bytes, or what makes them each time it is read."""

    def __init__(
        self,
        value: bytes | Callable[[], bytes] = b"",
        flags: Collection[str] = ("read",),
        on_write: Callable[[bytes], object] = lambda data: None,
    ) -> None:
        self.value = value
        self.flags = list(flags)
        self.on_write = on_write
        self.reads = 0
        self.writes: list[bytes] = []
        self.notified: dict[object, Callable[[bytes], None]] = {}
        """Who is told of new values."""

    def read(self) -> bytes:
        """Return the value of now."""
        self.reads += 1
        return self.value if isinstance(self.value, bytes) else self.value()

    def write(self, data: bytes) -> None:
        """Take what a client wrote."""
        self.writes.append(data)
        self.on_write(data)

    def notify(self, data: bytes) -> None:
        """Tell a value to all that asked to be told."""
        for tell in tuple(self.notified.values()):
            tell(data)


Services = Mapping[str, Mapping[str, Characteristic | bytes | Callable[[], bytes]]]


class Peripheral(Advertiser):
    """A device that advertises and can be connected to, then read, written, and listened to.

    `services` are characteristics by their UUIDs in services by theirs; four hexadecimal digits
    do for the UUIDs of the Bluetooth SIG.
    """

    def __init__(self, air: Air, address: str, services: Services, **advert: Any) -> None:  # noqa: ANN401 (as Advertiser)
        super().__init__(air, address, **advert)
        self.connect_after = 0.01
        """Seconds from a call of Connect to the connection."""
        self.resolve_after = 0.01
        """Seconds from the connection until its services are known."""
        self.connects = 0
        self.hang_up: Callable[[], object] = lambda: None
        """Ends the connection from this side, if there is one."""
        self.services = {
            full_uuid(service): {
                full_uuid(uuid): value
                if isinstance(value, Characteristic)
                else Characteristic(value)
                for uuid, value in characteristics.items()
            }
            for service, characteristics in services.items()
        }
        air.peripherals[self.address] = self

    def __getitem__(self, uuid: str) -> Characteristic:
        """Return a characteristic by its UUID."""
        wanted = full_uuid(uuid)
        return next(held[wanted] for held in self.services.values() if wanted in held)


class Crowd(Advertiser):
    """Strangers: phones with names, whose random addresses change, each sending `every` second.

    All addresses and names that they ever had are remembered, so that traces can be looked for.
    """

    def __init__(
        self, air: Air, size: int, *, every: float = 1.0, rotate: float = 900.0, seed: int = 0
    ) -> None:
        super().__init__(air, "", random=True, every=every / size)
        self.heard = deque(maxlen=0)  # too many to keep, of no use
        self._draw = Random(seed)
        self._rotate = rotate
        self._phones = [_Phone(f"{_GIVEN[n % len(_GIVEN)]}'s phone {n}") for n in range(size)]
        self._turn = cycle(self._phones)
        self.names = {phone.name for phone in self._phones}
        self.addresses: set[str] = set()

    def _advert(self) -> Advert:
        phone, now = next(self._turn), asyncio.get_running_loop().time()
        if now >= phone.until:
            first = not phone.until  # spread, so that not all change at once
            phone.until = now + self._rotate * (self._draw.random() if first else 1)
            phone.address = _random_address(self._draw)
            phone.data = {0x004C: b"\x10\x07" + self._draw.randbytes(7)}
            self.addresses.add(phone.address)
        rssi = self._draw.randint(-95, -50)
        return Advert(phone.address, phone.data, name=phone.name, rssi=rssi, random=True)


@dataclass(slots=True)
class _Phone:
    name: str
    address: str = ""
    until: float = 0.0
    data: Mapping[int, bytes] = field(default_factory=dict)


_GIVEN = ("Anna", "Bjarne", "Chandra", "Daouda", "Ewa", "Fatima", "Gunnar", "Hanae")


def _random_address(draw: Random) -> str:
    """Return a resolvable private address: its two highest bits are 01."""
    octets = [0x40 | draw.getrandbits(6), *draw.randbytes(5)]
    return ":".join(f"{octet:02X}" for octet in octets)


def full_uuid(uuid: str) -> str:
    """Return a UUID in full, of four or eight digits that of the Bluetooth SIG."""
    digits = uuid.lower().removeprefix("0x")
    return f"{digits:0>8}-0000-1000-8000-00805f9b34fb" if len(digits) <= 8 else digits
