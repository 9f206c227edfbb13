"""A BlueZ that is simulated: `org.bluez` on a D-Bus, for real clients such as bleak.

    async with PrivateBus() as bus, FakeBlueZ(bus) as bluez:
        os.environ |= bus.environment  # before the client's first use
        tag = bluez.advertise("CC:B8:33:4C:88:4F", manufacturer={0x0499: data}, every=0.1)
        async with bluez.fault("powered off"):
            ...
        assert received == tag.heard

It keeps to BlueZ's own ways where a client could notice: a scan belongs to a client and ends with
it, adverts reach nobody while nobody scans, entries of ManufacturerData stay unless a scan has
DuplicateData, RSSI is told with each advert if the scan has a filter, who is not heard for 30 s is
removed. What it does not know: pairing with keys, descriptors, AcquireNotify and AcquireWrite,
bonds on disk, classic Bluetooth.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from operator import methodcaller
from types import TracebackType
from typing import Any, Self

from dbus_fast import Message, MessageType

from hil.bluezadapter import Adapter
from hil.bluezfaults import DEAF, Faults, known
from hil.bluezstack import SIGNATURES, Stack
from hil.dbusdaemon import PrivateBus
from hil.dbusobjects import Objects
from hil.dbuswire import Wire
from hil.radio import Advert, Advertiser, Air, Crowd, Payload, Peripheral, Services

NAME = "org.bluez"

FORGET_AFTER = 30.0
"""Seconds after which BlueZ removes a device that it does not hear (its TemporaryTimeout)."""


class FakeBlueZ:
    """BlueZ with its adapters while the context lasts, and everything that is on the air.

    `forget_after` are the seconds after which a device that is not heard is removed.
    `experimental` adds the monitors that passive scanning needs.
    """

    def __init__(
        self,
        bus: PrivateBus,
        *,
        adapters: Collection[str] = ("hci0",),
        forget_after: float = FORGET_AFTER,
        experimental: bool = False,
    ) -> None:
        self.air = Air()
        self.adapters: dict[str, Adapter] = {}
        """The adapters that are plugged in, by name; none while BlueZ is gone."""
        self.experimental = experimental
        self._bus = bus
        self._names = list(adapters)
        self._powered = dict.fromkeys(adapters, True)
        self._pulled: set[str] = set()
        self._faults = Faults()
        self._objects = Objects(self._send, SIGNATURES)
        self._stack = Stack(
            self._objects, self.air, self._faults, forget_after, self._tell, self._match
        )
        self._wire: Wire | None = None

    async def __aenter__(self) -> Self:
        self.air.hear = self._hear
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End all sending, then BlueZ."""
        self.air.stop()
        await self._stop()

    # What is on the air

    def advertise(
        self,
        address: str,
        *,
        manufacturer: Mapping[int, Payload] | None = None,
        service_data: Mapping[str, Payload] | None = None,
        **more: Any,  # noqa: ANN401 (as Advertiser)
    ) -> Advertiser:
        """Put a device on the air that advertises; more arguments are those of Advertiser."""
        made = Advertiser(
            self.air, address, manufacturer=manufacturer, service_data=service_data, **more
        )
        made.start()
        return made

    def peripheral(self, address: str, services: Services, **advert: Any) -> Peripheral:  # noqa: ANN401 (as Advertiser)
        """Put a device on the air that can be connected to."""
        made = Peripheral(self.air, address, services, **advert)
        made.start()
        return made

    def crowd(self, size: int, **more: Any) -> Crowd:  # noqa: ANN401 (as Crowd)
        """Put strangers on the air; more arguments are those of Crowd."""
        made = Crowd(self.air, size, **more)
        made.start()
        return made

    # What is wrong with it

    @asynccontextmanager
    async def fault(self, name: str, at: str = "", times: int | None = None) -> AsyncIterator[None]:
        """Let a fault last as long as the context."""
        await self.begin(name, at, times)
        try:
            yield
        finally:
            await self.cure(name, at)

    async def begin(self, name: str, at: str = "", times: int | None = None) -> None:
        """Let a fault begin: everywhere, or `at` an adapter or address; for so many `times`."""
        at_each = self._chosen(at) if known(name) in (*DEAF, "blocked") else [at]
        for place in at_each:  # each adapter has its own remedy
            self._faults.begin(name, place, times)
        if name == "D-Bus gone":
            await self._stop(gently=False)
            await self._bus.kill()  # where BlueZ was gone before
        elif name in ("BlueZ gone", "BlueZ crashed"):
            await self._stop(orderly=name == "BlueZ gone")
        elif name == "no adapter":
            self._pull(at)
        elif name in ("powered off", "blocked"):
            self._power(at, False)

    async def cure(self, name: str, at: str = "") -> None:
        """End a fault; nothing happens if there is none."""
        self._faults.cure(known(name), at)
        if name == "D-Bus gone":
            await self._bus.start()
        if name in ("D-Bus gone", "BlueZ gone", "BlueZ crashed"):
            await self._start()
        elif name == "no adapter":
            self._plug(at)
        elif name in ("powered off", "blocked"):
            self._power(at, True)

    async def restart(self) -> None:
        """End BlueZ and start it again: the bus name is lost and owned, all objects are new."""
        async with self.fault("BlueZ gone"):
            pass

    async def power_cut(self, at: str = "") -> None:
        """Pull the adapter and plug it in: all that was wrong with its hearing is gone."""
        async with self.fault("no adapter", at):
            pass

    def _pull(self, at: str) -> None:
        for name in self._chosen(at):
            self._pulled.add(name)
            if adapter := self.adapters.pop(name, None):
                adapter.remove()

    def _plug(self, at: str) -> None:
        for name in self._chosen(at):
            self._pulled.discard(name)
            self._powered[name] = not self._faults.met("blocked", name)
            for deaf in DEAF:
                self._faults.cure(deaf, name)
            self._add(name)

    def _power(self, at: str, on: bool) -> None:
        for name in self._chosen(at):
            self._powered[name] = on
            if name in self.adapters:
                self.adapters[name].power(on)

    def _chosen(self, at: str) -> list[str]:
        return [name for name in self._names if at in ("", name)]

    # The service

    async def _start(self) -> None:
        """Own the name with objects that are new; a start of BlueZ turns adapters off and on."""
        if self._wire:
            return
        self._wire = Wire(self._bus.address, self._heard)
        await self._wire.open(NAME)
        for name in self._names:
            for deaf in DEAF[:2]:
                self._faults.cure(deaf, name)
            self._add(name)

    async def _stop(self, *, orderly: bool = False, gently: bool = True) -> None:
        """End BlueZ: `orderly` with its objects removed; not `gently` with its bus killed."""
        self._powered |= {name: held.shown["Powered"] for name, held in self.adapters.items()}
        self._stack.cancel()
        for adapter in self.adapters.values() if orderly else ():
            adapter.remove()
        self.adapters.clear()
        self._objects.forget_all()
        wire, self._wire = self._wire, None
        if wire:
            await wire.finish(gently=gently)
            if not gently:  # before we leave it: nobody is told that BlueZ's name is free
                await self._bus.kill()
            await wire.close()

    def _add(self, name: str) -> None:
        if self._wire and name not in self._pulled and name not in self.adapters:
            self.adapters[name] = Adapter(
                *(self._stack, name),
                experimental=self.experimental,
                powered=self._powered[name],
            )

    def _hear(self, advert: Advert, adapters: Collection[str]) -> bool:
        hearing = [self.adapters[name] for name in adapters or self._names if name in self.adapters]
        return any(list(map(methodcaller("hear", advert), hearing)))  # each is to hear it

    def _heard(self, message: Message) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            self._objects.take(message)
        elif message.member == "NameOwnerChanged":
            for adapter in self.adapters.values():
                adapter.left(message.body[0])
        elif message.member == "InterfacesAdded":
            for adapter in self.adapters.values():
                adapter.monitors.exported(message)

    def _send(self, message: Message) -> None:
        if self._wire:
            self._wire.send(message)

    def _tell(self, to: str, path: str, method: str) -> None:
        if self._wire:
            self._wire.tell(to, path, method)

    def _match(self, rule: str) -> None:
        if self._wire:
            self._wire.match(rule)
