"""An adapter of the simulated BlueZ: its power, who scans with it, and whom it has heard."""

import asyncio
from collections.abc import Iterable
from typing import Any

from dbus_fast import Variant

from hil.bluezdevice import Device
from hil.bluezfaults import DEAF
from hil.bluezmonitors import Monitors
from hil.bluezstack import ADAPTER, MONITORS, NOT_READY, Stack, refused
from hil.dbusobjects import Call
from hil.radio import Advert

_USUAL = "00:1A:7D:DA:71:"
LATE = 5.5
"""Seconds until a scan begins late; a client may not have waited so long."""


class Adapter:
    """One Adapter1 with its devices, from its being plugged in to its being pulled."""

    def __init__(self, stack: Stack, name: str, *, experimental: bool, powered: bool) -> None:
        self.path = f"/org/bluez/{name}"
        self.devices: dict[str, Device] = {}
        """All devices that BlueZ shows, by address."""
        self.sessions: dict[str, dict[str, Any]] = {}
        """The discovery filter of each client that scans."""
        self.monitors = Monitors(stack)
        self._stack = stack
        self._name = name
        self._filters: dict[str, dict[str, Any]] = {}
        shown = {
            "Address": f"{_USUAL}{int(name.removeprefix('hci')) + 16:02X}",
            "AddressType": "public",
            **{"Name": "simulated", "Alias": "simulated", "Class": 0, "UUIDs": []},
            "Powered": powered,
            "Discovering": False,
            "Roles": ["central", "peripheral"],
        }
        methods = {
            f"{ADAPTER}.SetDiscoveryFilter": self._set_filter,
            f"{ADAPTER}.StartDiscovery": self._start,
            f"{ADAPTER}.StopDiscovery": self._stop,
            f"{ADAPTER}.RemoveDevice": self._remove_device,
        }
        interfaces: dict[str, dict[str, Any]] = {ADAPTER: shown}
        if experimental:
            interfaces[MONITORS] = self.monitors.shown
            methods |= self.monitors.methods
        stack.objects.add(self.path, interfaces, methods, {"Powered": self._set_powered})
        self._sweeping = self._sweep_later()

    @property
    def shown(self) -> dict[str, Any]:
        """Its properties."""
        return self._stack.objects.get(self.path, ADAPTER)

    @property
    def scanning(self) -> bool:
        """Whether a client listens, by a scan or by a monitor, and the adapter is on."""
        return bool(self.shown["Powered"] and (self.sessions or self.monitors))

    def hear(self, advert: Advert) -> bool:
        """Show an advertisement to the clients; say whether any wanted it."""
        places = (self._name, advert.address)
        if not self.scanning or any(self._stack.faults.met(name, *places) for name in DEAF):
            return False
        if self._stack.faults.met("adverts stop", *places) or not self._wanted(advert):
            return False
        device = self.devices.get(advert.address)
        if device is None:
            device = self.devices[advert.address] = Device(self._stack, self.path, advert)
            device.powered = lambda: bool(self.shown["Powered"])
            device.vanish = lambda: self.forget(advert.address)
        else:
            scans = self.sessions.values()
            again = any(scan.get("DuplicateData") for scan in scans)
            device.hear(advert, filtered=any(scans), duplicates=again)
        return True

    def forget(self, address: str) -> None:
        """Remove a device with all beneath it."""
        device = self.devices.pop(address)
        self._stack.objects.remove(device.path)

    def remove(self) -> None:
        """Turn it off and remove its objects; another may then take its name."""
        self.power(False)
        self._sweeping.cancel()
        self._stack.objects.remove(self.path)

    def power(self, on: bool) -> None:
        """Turn it on or off; off, all scans and connections end, monitors wait."""
        if on == self.shown["Powered"]:
            return
        if not on:
            for device in self.devices.values():
                device.link_lost()
            self.sessions.clear()
            self._filters.clear()
            self._show_scanning()
            self._stack.faults.cure(DEAF[0], self._name)
        self._stack.objects.change(self.path, ADAPTER, {"Powered": on})

    def left(self, client: str) -> None:
        """Forget a client that has left the bus."""
        self.monitors.left(client)
        self._filters.pop(client, None)
        if self.sessions.pop(client, None) is not None:
            self._show_scanning()
        for device in self.devices.values():
            device.left(client)

    def _set_powered(self, on: bool) -> None:
        if on and self._stack.faults.met("blocked", self._name):
            raise refused("Failed", "Blocked through rfkill")
        self.power(on)

    def _set_filter(self, call: Call) -> None:
        if not self.shown["Powered"]:
            raise refused(*NOT_READY)
        self._filters[call.client] = _plain(call.body[0])
        if call.client in self.sessions:
            self.sessions[call.client] = self._filters[call.client]
        call.answer()

    def _start(self, call: Call) -> None:
        if not self.shown["Powered"]:
            raise refused(*NOT_READY)
        if call.client in self.sessions or self._stack.faults.met("scan refused", self._name):
            raise refused("InProgress", "Operation already in progress")
        if self._stack.faults.met("scan begins late", self._name):
            self._stack.later(LATE, lambda: self._begin(call))
        else:
            self._begin(call)

    def _begin(self, call: Call) -> None:
        self.sessions[call.client] = self._filters.get(call.client, {})
        self._show_scanning()
        call.answer()

    def _stop(self, call: Call) -> None:
        if not self.shown["Powered"]:
            raise refused(*NOT_READY)
        if self.sessions.pop(call.client, None) is None:
            raise refused("Failed", "No discovery started")
        self._show_scanning()
        call.answer()

    def _remove_device(self, call: Call) -> None:
        found = [device for device in self.devices.values() if device.path == call.body[0]]
        if not found:
            raise refused("DoesNotExist", "Does Not Exist")
        found[0].link_lost()
        self.forget(found[0].address)
        call.answer()

    def _show_scanning(self) -> None:
        scanning = bool(self.sessions)
        if scanning != self.shown["Discovering"]:
            self._stack.objects.change(self.path, ADAPTER, {"Discovering": scanning})
            for device in () if scanning else self.devices.values():
                device.scan_ended()

    def _wanted(self, advert: Advert) -> bool:
        scans = self.sessions.values()
        return any(_passes(scan, advert) for scan in scans) or self.monitors.want(advert)

    def _sweep_later(self) -> asyncio.TimerHandle:
        return self._stack.later(min(1.0, self._stack.forget_after / 4), self._sweep)

    def _sweep(self) -> None:
        """Forget, as BlueZ does, whom nobody has heard for a while and who is not wanted."""
        before = asyncio.get_running_loop().time() - self._stack.forget_after
        for device in tuple(self.devices.values()):
            if device.seen < before and device.temporary:
                self.forget(device.address)
        self._sweeping = self._sweep_later()


def _plain(values: dict[str, Variant]) -> dict[str, Any]:
    return {name: variant.value for name, variant in values.items()}


def _passes(scan: dict[str, Any], advert: Advert) -> bool:
    uuids: Iterable[str] = scan.get("UUIDs", ())
    pattern = scan.get("Pattern", "")
    return (
        (advert.rssi is None or advert.rssi >= scan.get("RSSI", -127))
        and (not uuids or not {uuid.lower() for uuid in uuids}.isdisjoint(advert.uuids))
        and (advert.address.startswith(pattern) or advert.name.startswith(pattern))
    )
