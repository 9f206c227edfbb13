"""Hears what BlueZ reports of some devices' advertisements: what is new, and what is sent again.

bleak tells all that BlueZ holds of a device whenever a bit of it changes: its name, its signal,
what it says to another company. A value in there need not have been sent again. So the reports are
read as they come, on bleak's own connection: a second one takes 20 to 40 ms of CPU per 1000.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bleak.backends.bluezdbus.manager import get_global_bluez_manager
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus

from gateway.adapter import Adapter
from gateway.bluez import DEVICE, path_of
from gateway.driver import Advertisement

Tell = Callable[[Adapter, Advertisement], None]

SENT = {"RSSI", "ManufacturerData", "ServiceData"}
"""What BlueZ tells of a device only when it has heard it."""

_K = TypeVar("_K")


@dataclass(slots=True)
class _Device:
    """A device as one adapter hears it, and what BlueZ reported of it last."""

    adapter: Adapter
    address: str
    manufacturer: Mapping[int, bytes] = field(default_factory=dict)
    service: Mapping[str, bytes] = field(default_factory=dict)
    uuids: tuple[str, ...] = ()
    rssi: int | None = None


class Reports:
    """What BlueZ reports of the devices that are watched; `tell` must not raise.

    `advertised` is called with the path of any device that has sent data, after bleak has told it.
    """

    def __init__(self, tell: Tell, advertised: Callable[[str], None]) -> None:
        self._tell, self._advertised = tell, advertised
        self._devices: dict[str, _Device] = {}
        self._bus: MessageBus | None = None

    def watch(self, adapter: Adapter, address: str) -> None:
        """Tell from now on what an adapter hears of an address."""
        path = f"{path_of(adapter.name)}/dev_{address.replace(':', '_')}"
        self._devices.setdefault(path, _Device(adapter, address))

    async def open(self) -> None:
        """Hear what comes on bleak's connection. Raises what bleak does if it cannot connect.

        The names are bleak's own; tests/test_bleak_contract.py fails first when they change.
        """
        manager = await get_global_bluez_manager()
        if manager._bus is not None and manager._bus is not self._bus:
            self._bus = manager._bus
            self._bus.add_message_handler(self._hear)

    def _hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        match message.member, message.body:
            case "PropertiesChanged", [interface, changed, _] if interface == DEVICE:
                self._take(message.path or "", changed)
            case "InterfacesAdded", [path, interfaces] if DEVICE in interfaces:
                if device := self._devices.get(path):  # BlueZ knew nothing of it
                    device.manufacturer, device.service = {}, {}
                self._take(path, interfaces[DEVICE])

    def _take(self, path: str, changed: Mapping[str, Variant]) -> None:
        if not SENT.isdisjoint(changed):
            self._advertised(path)
        if device := self._devices.get(path):
            self._report(device, changed)

    def _report(self, device: _Device, changed: Mapping[str, Variant]) -> None:
        device.rssi = _value(changed, "RSSI", "n", device.rssi)
        device.uuids = tuple(_value(changed, "UUIDs", "as", device.uuids))
        manufacturer = _entries(changed, "ManufacturerData", "a{qv}")
        service = _entries(changed, "ServiceData", "a{sv}")
        new = _changed(device.manufacturer, manufacturer), _changed(device.service, service)
        again = _rest(device, manufacturer, new[0]), _rest(device, service, new[1])
        device.manufacturer = manufacturer or device.manufacturer
        device.service = service or device.service
        for each in (new, again):
            if any(each):
                self._tell(device.adapter, _said(device, *each))


def _said(
    device: _Device, manufacturer: Mapping[int, bytes], service: Mapping[str, bytes]
) -> Advertisement:
    return Advertisement(
        address=device.address,
        manufacturer_data=manufacturer,
        service_data=service,
        service_uuids=device.uuids,
        rssi=device.rssi,
    )


def _changed(before: Mapping[_K, bytes], now: Mapping[_K, bytes]) -> dict[_K, bytes]:
    return {key: data for key, data in now.items() if before.get(key) != data}


def _rest(device: _Device, now: Mapping[_K, bytes], new: Mapping[_K, bytes]) -> dict[_K, bytes]:
    """Return what was sent again; beside what is new it may be left from earlier."""
    left = bool(new) and not device.adapter.repeats
    return {} if left else {key: data for key, data in now.items() if key not in new}


def _entries(changed: Mapping[str, Variant], name: str, signature: str) -> dict[Any, bytes]:
    said = _value(changed, name, signature, {})
    return {key: data.value for key, data in said.items() if data.signature == "ay"}


def _value(changed: Mapping[str, Variant], name: str, signature: str, otherwise: Any) -> Any:  # noqa: ANN401 - whatever type the property has
    said = changed.get(name)
    return said.value if said is not None and said.signature == signature else otherwise
