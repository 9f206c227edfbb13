"""Watches BlueZ and its adapters over the system bus, and says why one cannot be used.

bleak does not tell: when bluetoothd restarts, or an adapter goes off and on during a scan, its
scanner is silent for ever, without an error (seen with bleak 3.1). Its cause is here within
milliseconds. Source: org.bluez.Adapter(5), the D-Bus specification (NameOwnerChanged).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from dbus_fast import AuthError, BusType, DBusError, Message, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus

CALL = 5.0
"""Seconds after which a call to BlueZ is given up; it answers in milliseconds or not at all."""
RETRY = 1.0

BLUEZ = "org.bluez"
ADAPTER = "org.bluez.Adapter1"
DEVICE = "org.bluez.Device1"
BUS = "org.freedesktop.DBus"
OBJECTS = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"

NO_BUS = "there is no system bus: sudo systemctl start dbus"
NO_ANSWER = "BlueZ does not answer: sudo systemctl restart bluetooth"
NO_BLUEZ = "BlueZ does not run: sudo systemctl start bluetooth; where it is missing, install bluez"

for chatty in ("bleak", "dbus_fast"):  # what is wrong is said here, once; and strangers never
    logging.getLogger(chatty).setLevel(logging.CRITICAL)


def path_of(adapter: str) -> str:
    """Return the D-Bus path of an adapter.

    >>> path_of("hci0")
    '/org/bluez/hci0'
    """
    return f"/org/bluez/{adapter}"


class Bluez:
    """What is known of BlueZ: whether it runs, and which of `adapters` are there and powered.

    `gone` is called when it has ended.
    """

    def __init__(self, adapters: Sequence[str], gone: Callable[[], None]) -> None:
        self._gone = gone
        self._adapters = {path_of(name): name for name in adapters}
        self._bus: MessageBus | None = None
        self._lost_bus = NO_BUS
        self._runs = False
        self._powered: dict[str, bool] = {}
        self._idle: set[str] = set()
        self._breaks: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self.looked = asyncio.Event()
        """Set when it is known for the first time, or known why not."""
        self._removals: dict[str, Callable[[], None]] = {}

    async def run(self) -> None:
        """Watch for ever; where there is no bus, look for it once a second."""
        while True:
            bus = MessageBus(bus_type=BusType.SYSTEM)
            try:
                async with asyncio.timeout(CALL):
                    await bus.connect()
                    await self._begin(bus)
                self.looked.set()
                self.tell()
                await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # dbus-fast types it not
                self._lost_bus = NO_BUS
            except (FileNotFoundError, ConnectionError, EOFError):
                self._lost_bus = NO_BUS
            except (OSError, AuthError, DBusError, TimeoutError) as error:
                self._lost_bus = f"the system bus refuses ({words(error)}): see systemd/README.md"
            finally:
                bus.disconnect()
                self._bus = None
                self.looked.set()
                self._break(*self._adapters.values())
            await asyncio.sleep(RETRY)

    def why(self, adapter: str) -> str:
        """Return why the adapter cannot be used, with the remedy; empty where nothing is known."""
        if self._bus is None:
            return self._lost_bus
        if not self._runs:
            return NO_BLUEZ
        if adapter not in self._powered:
            return f"there is no Bluetooth adapter {adapter}: plug it in, or set [bluetooth]"
        if not self._powered[adapter]:
            return f"{adapter} is off: sudo rfkill unblock bluetooth; bluetoothctl power on"
        return ""

    def breaks(self, adapter: str) -> int:
        """Return how often something has happened that ends a scan on the adapter."""
        return self._breaks[adapter]

    def idle(self, adapter: str) -> bool:
        """Whether BlueZ has said that the adapter does not scan."""
        return adapter in self._idle

    async def change(self) -> None:
        """Return at the next change of any of it."""
        await self._changed.wait()

    def tell(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def power(self, adapter: str, on: bool) -> None:
        """Switch the adapter on or off. Raises DBusError, OSError, EOFError or TimeoutError."""
        to = Variant("b", on)
        await self._ask(BLUEZ, path_of(adapter), f"{PROPERTIES}.Set", "ssv", ADAPTER, "Powered", to)

    async def look(self) -> None:
        """Ask anew which adapters there are. Raises OSError, EOFError or TimeoutError."""
        if self._bus is None:
            return
        self._runs = await self._ask(
            BUS, "/org/freedesktop/DBus", f"{BUS}.NameHasOwner", "s", BLUEZ
        )
        for path, name in self._adapters.items() if self._runs else ():
            try:
                powered = await self._ask(
                    BLUEZ, path, f"{PROPERTIES}.Get", "ss", ADAPTER, "Powered"
                )
            except DBusError:
                self._powered.pop(name, None)
            else:
                self._powered[name] = powered.value

    @asynccontextmanager
    async def removal(self, path: str, tell: Callable[[], None]) -> AsyncIterator[None]:
        """Within it, call `tell` when BlueZ forgets the device at `path`: then bleak hangs."""
        # Of this device's removal alone: those of strangers come by the hundred
        rule = f"type='signal',interface='{OBJECTS}',member='InterfacesRemoved',arg0path='{path}'"
        self._removals[path] = tell
        try:
            with suppress(DBusError, OSError, EOFError, TimeoutError):  # deadlines help without it
                await self._match(rule)
            yield
        finally:
            del self._removals[path]
            with suppress(DBusError, OSError, EOFError, TimeoutError):
                await self._match(rule, "RemoveMatch")

    # The bus

    async def _begin(self, bus: MessageBus) -> None:
        self._bus = bus
        bus.add_message_handler(self._hear)
        owner = f"interface='{BUS}',member='NameOwnerChanged',arg0='{BLUEZ}'"
        await self._match(f"type='signal',sender='{BUS}',{owner}")
        for path in self._adapters:
            changed = f"interface='{PROPERTIES}',path='{path}',arg0='{ADAPTER}'"
            await self._match(f"type='signal',{changed}")
            for member in ("InterfacesAdded", "InterfacesRemoved"):
                of = f"interface='{OBJECTS}',member='{member}',arg0path='{path}'"
                await self._match(f"type='signal',{of}")
        self._idle.clear()
        await self.look()

    async def _match(self, rule: str, member: str = "AddMatch") -> None:
        await self._ask(BUS, "/org/freedesktop/DBus", f"{BUS}.{member}", "s", rule)

    async def _ask(self, to: str, path: str, member: str, signature: str, *body: object) -> Any:  # noqa: ANN401 - whatever type the member answers with
        if self._bus is None:
            raise OSError(self._lost_bus)
        interface, _, member = member.rpartition(".")
        message = Message(
            destination=to,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        async with asyncio.timeout(CALL):
            reply = await self._bus.call(message)
        if reply is None or reply.message_type is MessageType.ERROR:
            raise DBusError(str(reply and reply.error_name), str(reply and reply.body))
        return reply.body[0] if reply.body else None

    # What it tells

    def _hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        match message.member, message.body:
            case "NameOwnerChanged", [name, _, owner] if name == BLUEZ:
                self._runs, self._powered = bool(owner), {}
                if not owner:
                    self._gone()
                self._break(*self._adapters.values())
            case "InterfacesAdded", [path, interfaces] if path in self._adapters:
                if ADAPTER in interfaces:
                    self._update(self._adapters[path], interfaces[ADAPTER])
            case "InterfacesRemoved", [path, interfaces] if path in self._adapters:
                if ADAPTER in interfaces:
                    self._powered.pop(self._adapters[path], None)
                    self._break(self._adapters[path])
            case "InterfacesRemoved", [path, _] if path in self._removals:
                self._removals[path]()
            case "PropertiesChanged", [interface, changed, _] if interface == ADAPTER:
                if message.path in self._adapters:
                    self._update(self._adapters[message.path], changed)

    def _update(self, adapter: str, changed: dict[str, Variant]) -> None:
        if "Powered" in changed:
            self._powered[adapter] = changed["Powered"].value
            if not self._powered[adapter]:
                self._break(adapter)
        if "Discovering" in changed:
            change = self._idle.discard if changed["Discovering"].value else self._idle.add
            change(adapter)
        self.tell()

    def _break(self, *adapters: str) -> None:
        self._breaks.update(adapters)
        self.tell()


def words(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
