"""What all parts of the simulated BlueZ share: names, errors, signatures, and each other."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hil.bluezfaults import Faults
from hil.dbusobjects import Objects, Refused
from hil.radio import Air

ADAPTER = "org.bluez.Adapter1"
DEVICE = "org.bluez.Device1"
SERVICE = "org.bluez.GattService1"
CHARACTERISTIC = "org.bluez.GattCharacteristic1"
MONITORS = "org.bluez.AdvertisementMonitorManager1"
MONITOR = "org.bluez.AdvertisementMonitor1"

SIGNATURES: Mapping[str, str] = {
    **dict.fromkeys(("Address", "AddressType", "Name", "Alias", "UUID"), "s"),
    **dict.fromkeys(("Powered", "Discovering", "Paired", "Bonded", "Trusted", "Blocked"), "b"),
    **dict.fromkeys(("Connected", "ServicesResolved", "Primary", "Notifying"), "b"),
    **dict.fromkeys(("UUIDs", "Roles", "Flags", "SupportedMonitorTypes"), "as"),
    **dict.fromkeys(("Adapter", "Device", "Service"), "o"),
    **{"SupportedFeatures": "as", "Class": "u", "RSSI": "n", "MTU": "q", "Value": "ay"},
    **{"ManufacturerData": "a{qv}", "ServiceData": "a{sv}"},
}
"""The D-Bus type of each property."""


class Tell(Protocol):
    """Calls a client's method, by its name on the bus, path and method, and does not wait."""

    def __call__(self, to: str, path: str, method: str) -> None:
        """Call it."""


@dataclass(slots=True)
class Stack:
    """The parts that adapters and devices work with."""

    objects: Objects
    air: Air
    faults: Faults
    forget_after: float
    tell: Tell
    match: Callable[[str], None]
    timers: set[asyncio.TimerHandle] = field(default_factory=set)

    def later(self, delay: float, act: Callable[[], object]) -> asyncio.TimerHandle:
        """Do something after `delay` seconds, unless BlueZ ends before."""
        loop = asyncio.get_running_loop()
        self.timers = {timer for timer in self.timers if timer.when() >= loop.time()}
        timer = loop.call_later(delay, act)
        self.timers.add(timer)
        return timer

    def cancel(self) -> None:
        """Do nothing of what was to be done later."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


def refused(name: str, text: str) -> Refused:
    """Return an error of BlueZ, to be raised."""
    return Refused(f"org.bluez.Error.{name}", text)


IN_PROGRESS = ("InProgress", "In Progress")
NOT_READY = ("NotReady", "Resource Not Ready")
