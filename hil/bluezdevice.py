"""A device that the simulated BlueZ has heard: what it shows of it, and the way to its services."""

import asyncio
from collections.abc import Callable
from typing import Any

from hil.bluezgatt import Gatt
from hil.bluezstack import DEVICE, IN_PROGRESS, NOT_READY, Stack, refused
from hil.dbusobjects import Call
from hil.radio import Advert

GIVES_UP = 20.0
"""Seconds after which the kernel no longer tries to connect."""

RSSI_STEP = 8
"""Without any filter BlueZ tells the RSSI only when it has changed by so much."""

STEADY = 20
"""Of adverts that say nothing new every so manieth is told by BlueZ after 5.87."""


class Device:
    """One Device1; it exists from its first advertisement until it is removed."""

    def __init__(self, stack: Stack, adapter: str, advert: Advert) -> None:
        self.address = advert.address
        self.path = f"{adapter}/dev_{advert.address.replace(':', '_')}"
        self.seen = asyncio.get_running_loop().time()
        self.powered: Callable[[], bool] = lambda: True
        self.vanish: Callable[[], None] = lambda: None
        self._stack = stack
        self._places = [advert.address, adapter.rpartition("/")[2]]
        self._steady = 0
        self._connecting: Call | None = None
        self._pairing = False
        self._resolving: asyncio.TimerHandle | None = None
        self._gatt: Gatt | None = None
        dashed = advert.address.replace(":", "-")
        shown: dict[str, Any] = {
            "Address": advert.address,
            "AddressType": "random" if advert.random else "public",
            "Alias": dashed,
            "Adapter": adapter,
            "UUIDs": [],
            **({} if advert.rssi is None else {"RSSI": advert.rssi}),
            **dict.fromkeys(("Paired", "Bonded", "Trusted", "Blocked"), False),
            **dict.fromkeys(("Connected", "ServicesResolved"), False),
        }
        shown |= self._news(shown, advert)
        methods = {
            f"{DEVICE}.Connect": self._connect,
            f"{DEVICE}.Disconnect": self._disconnect,
            f"{DEVICE}.Pair": self._pair,
        }
        sets = {"Trusted": self._trust}
        stack.objects.add(self.path, {DEVICE: shown}, methods, sets)

    @property
    def shown(self) -> dict[str, Any]:
        """Its properties."""
        return self._stack.objects.get(self.path, DEVICE)

    @property
    def temporary(self) -> bool:
        """Whether it is forgotten when it has not been heard for a while."""
        return not (self.shown["Connected"] or self.shown["Paired"] or self._connecting)

    def hear(self, advert: Advert, *, filtered: bool, duplicates: bool) -> None:
        """Show what an advertisement says; entries that it does not name stay as they were."""
        self.seen = asyncio.get_running_loop().time()
        changed = self._news(self.shown, advert, again=duplicates)
        met = self._stack.faults.met
        if not changed and met("steady adverts suppressed", *self._places):
            self._steady += 1
            if self._steady % STEADY:
                return
        if advert.rssi is not None:
            step = abs(advert.rssi - self.shown.get("RSSI", -127))
            if filtered or step >= RSSI_STEP:
                changed["RSSI"] = advert.rssi
        self._change(changed)

    def _news(
        self, shown: dict[str, Any], advert: Advert, *, again: bool = False
    ) -> dict[str, Any]:
        """Return the properties to which an advertisement adds; with `again` all that it has.

        With that BlueZ begins with the entries anew, without it keeps them for ever.
        """
        news: dict[str, Any] = {}
        for name, said in (
            ("ManufacturerData", advert.manufacturer),
            ("ServiceData", advert.service_data),
        ):
            held: Any = {} if again else shown.get(name, {})
            if said and (again or held | said != held):
                news[name] = held | said
        if not set(advert.uuids) <= set(shown["UUIDs"]):
            news["UUIDs"] = sorted({*shown["UUIDs"], *advert.uuids})
        if advert.name and advert.name != shown.get("Name"):
            news |= {"Name": advert.name, "Alias": advert.name}
        return news

    def scan_ended(self) -> None:
        """Forget the RSSI: nobody listens."""
        self._change({}, "RSSI")

    def link_lost(self) -> None:
        """End the connection, whoever wanted that."""
        self._give_up("Software caused connection abort")
        if self._resolving:
            self._resolving.cancel()
        if self._gatt:
            self._gatt.disconnected()
        if self.shown["Connected"]:
            self.seen = asyncio.get_running_loop().time()
            self._change({"Connected": False, "ServicesResolved": False})

    def left(self, client: str) -> None:
        """Forget a client that has left the bus; BlueZ keeps its connection."""
        if self._gatt:
            self._gatt.left(client)

    def _connect(self, call: Call) -> None:
        met = self._stack.faults.met
        if not self.powered():
            raise refused(*NOT_READY)
        if self.shown["Connected"]:
            return call.answer()
        if self._connecting or met("in progress", *self._places):
            raise refused(*IN_PROGRESS)
        if met("connect refused", *self._places):
            raise refused("Failed", "le-connection-refused")
        if met("connect aborted", *self._places):
            self._change({"Connected": True})
            call.refuse("org.bluez.Error.Failed", "le-connection-abort-by-local")
            return self._change({"Connected": False})
        self._connecting = call
        peripheral = self._stack.air.peripherals.get(self.address)
        if not peripheral or peripheral.away or met("adverts stop", *self._places):
            give_up = "le-connection-abort-by-local"
            self._stack.later(GIVES_UP, lambda: self._give_up(give_up, call))
        else:
            self._stack.later(peripheral.connect_after, lambda: self._connected(call))
        return None

    def _give_up(self, text: str, only: Call | None = None) -> None:
        call = self._connecting
        if call and (only is None or call is only):
            self._connecting, self._pairing = None, False
            call.refuse("org.bluez.Error.Failed", text)

    def _connected(self, call: Call) -> None:
        if self._connecting is not call:
            return  # it was called off
        self._connecting = None
        peripheral = self._stack.air.peripherals[self.address]
        peripheral.connects += 1
        peripheral.hang_up = self.link_lost
        paired = {"Paired": True, "Bonded": True} if self._pairing else {}
        self._pairing = False
        self._change({"Connected": True, **paired})
        call.answer()
        if not self._stack.faults.met("services never resolve", *self._places):
            self._resolving = self._stack.later(peripheral.resolve_after, self._resolved)

    def _resolved(self) -> None:
        peripheral = self._stack.air.peripherals[self.address]
        if self._gatt is None:
            self._gatt = Gatt(self._stack, self.path, peripheral, self._places, self.vanish)
        self._gatt.connected = True
        uuids = sorted({*self.shown["UUIDs"], *peripheral.services})
        self._change({"UUIDs": uuids, "ServicesResolved": True})

    def _disconnect(self, call: Call) -> None:
        self._give_up("Cancelled")
        self.link_lost()
        call.answer()  # without an error even if there was nothing to end

    def _pair(self, call: Call) -> None:
        if self.shown["Paired"]:
            raise refused("AlreadyExists", "Already Exists")
        self._connect(call)
        self._pairing = self._connecting is call

    def _trust(self, trusted: bool) -> None:
        self._change({"Trusted": trusted})

    def _change(self, changed: dict[str, Any], *without: str) -> None:
        self._stack.objects.change(self.path, DEVICE, changed, without)
