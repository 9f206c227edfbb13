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
from socket import gaierror
from typing import Any

from dbus_fast import (
    AuthError,
    BusType,
    DBusError,
    InvalidAddressError,
    Message,
    MessageType,
    Variant,
)
from dbus_fast.aio.message_bus import MessageBus

CALL = 5.0
"""Seconds after which a call to BlueZ is given up; it answers in milliseconds or not at all."""
STOP = 1.0
"""Seconds that a call has where we end: systemd, or a technician, waits for it."""
PING = 2.0
"""Seconds after which BlueZ is taken for stuck."""
BEGINS = 2.0
"""Seconds after its name is owned in which BlueZ may not have found its adapters yet."""
RETRY = 1.0
LONGEST_WORDS = 300
"""Characters of an error's text that are told: what mends it comes after it."""

BLUEZ = "org.bluez"
ADAPTER = "org.bluez.Adapter1"
DEVICE = "org.bluez.Device1"
BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
OBJECTS = "org.freedesktop.DBus.ObjectManager"
PEER = "org.freedesktop.DBus.Peer"
PROPERTIES = "org.freedesktop.DBus.Properties"

NO_BUS = "there is no system bus: sudo systemctl start dbus"
STUCK_BUS = "the system bus does not answer: sudo reboot"
WRONG_BUS = "DBUS_SYSTEM_BUS_ADDRESS is no address of a bus"
NO_ANSWER = "BlueZ does not answer: sudo systemctl restart bluetooth"
DENIED = (
    "BlueZ may not be asked by this user: sudo usermod -aG bluetooth bygate, then restart bygate"
)
NO_BLUEZ = "BlueZ does not run: sudo systemctl start bluetooth; where it is missing, install bluez"

NONE_THERE = ("UnknownObject", "UnknownMethod", "UnknownInterface", "InvalidArgs")
"""Errors of D-Bus with which an object is answered for that there is not."""

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
        self._lost = NO_BUS
        """Why the bus, or what it says of BlueZ, is not known; empty once it is."""
        self._runs = False
        self._begun = float("-inf")
        self._powered: dict[str, bool] = {}
        self._refused: dict[str, str] = {}
        """Why it could not be asked whether an adapter is there; empty where it could."""
        self._idle: set[str] = set()
        self._breaks: Counter[str] = Counter()
        self._broke: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.looked = asyncio.Event()
        """Set when it is known for the first time, or known why not."""
        self.starting = asyncio.Lock()
        """Held by the adapter that starts its scan: bleak has one at a time, others would wait."""
        self._removals: dict[str, Callable[[], None]] = {}

    async def run(self) -> None:
        """Watch for ever; where there is no bus, look for it once a second."""
        while True:
            try:
                await self._watch(MessageBus(bus_type=BusType.SYSTEM))
                self._lost = NO_BUS
            except (FileNotFoundError, ConnectionError, EOFError):
                self._lost = NO_BUS
            except TimeoutError as error:
                self._lost = str(error) or STUCK_BUS
            except (InvalidAddressError, gaierror, OverflowError) as error:
                self._lost = f"{WRONG_BUS} ({words(error)}): unset it, or see dbus-daemon(1)"
            except (OSError, AuthError, DBusError) as error:
                self._lost = f"the system bus refuses ({words(error)}): see systemd/README.md"
            finally:
                self._bus = None
                self.looked.set()
                self._break(*self._adapters.values())
            await asyncio.sleep(RETRY)

    async def _watch(self, bus: MessageBus) -> None:
        """Return when the connection to the bus has ended."""
        try:
            async with asyncio.timeout(CALL):
                await bus.connect()
            await self._begin(bus)
            self._lost = ""
            self.looked.set()
            self.tell()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # dbus-fast types it not
        finally:
            bus.disconnect()

    def why(self, adapter: str) -> str:
        """Return why the adapter cannot be used, with the remedy; empty where nothing is known."""
        if self._lost:
            return self._lost
        if not self._runs:
            return NO_BLUEZ
        if adapter not in self._powered:
            return self._refused.get(adapter) or self._missing(adapter)
        if not self._powered[adapter]:
            return f"{adapter} is off: sudo rfkill unblock bluetooth; bluetoothctl power on"
        return ""

    def _missing(self, adapter: str) -> str:
        if asyncio.get_running_loop().time() < self._begun + BEGINS:
            return f"BlueZ has only just begun: it has not found {adapter} yet"
        return f"there is no Bluetooth adapter {adapter}: plug it in, or set [bluetooth]"

    async def stuck(self) -> str:
        """Return which does not answer, BlueZ or the bus, with the remedy; empty if both do."""
        for to, path in (BUS, BUS_PATH), (BLUEZ, "/"):
            try:
                await self._ask(to, path, f"{PEER}.Ping", within=PING)
            except TimeoutError as error:
                return str(error)
            except (DBusError, OSError, EOFError):  # it has gone, of which the bus tells
                return ""
        return ""

    def breaks(self, adapter: str) -> int:
        """Return how often something has happened that ends a scan on the adapter."""
        return self._breaks[adapter]

    def broke(self, adapter: str) -> str:
        """Return why the last break came about since it was asked, however short it was."""
        return self._broke.pop(adapter, "")

    def idle(self, adapter: str) -> bool:
        """Whether BlueZ has said that the adapter does not scan."""
        return adapter in self._idle

    async def change(self) -> None:
        """Return at the next change of any of it.

        None is missed by who awaits this in the same breath as looking: there is one event loop.
        """
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
        begun = self._begun
        runs = await self._ask(BUS, BUS_PATH, f"{BUS}.NameHasOwner", "s", BLUEZ)
        if self._begun == begun:  # else what was told since is newer than the answer
            self._runs = runs
        for path, name in self._adapters.items() if self._runs else ():
            before = self._powered.get(name)
            powered = await self._is_powered(path)
            if self._powered.get(name) != before:  # told since
                continue
            if powered is None:
                self._powered.pop(name, None)
            else:
                self._powered[name] = powered

    async def _is_powered(self, path: str) -> bool | None:
        """Return whether an adapter is powered, None where there is none or that is not told."""
        refused, powered = "", None
        try:
            said = await self._ask(BLUEZ, path, f"{PROPERTIES}.Get", "ss", ADAPTER, "Powered")
            powered = bool(said.value)
        except DBusError as error:
            refused = "" if error.type.endswith(NONE_THERE) else refusal(error)
        self._refused[self._adapters[path]] = refused
        return powered

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
        await self._ask(BUS, BUS_PATH, f"{BUS}.{member}", "s", rule)

    async def _ask(
        self,
        to: str,
        path: str,
        member: str,
        signature: str = "",
        *body: object,
        within: float = CALL,
    ) -> Any:  # noqa: ANN401 - whatever type the member answers with
        if self._bus is None:
            raise OSError(self._lost)
        interface, _, member = member.rpartition(".")
        message = Message(
            destination=to,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        try:
            async with asyncio.timeout(time_left(within)):
                reply = await self._bus.call(message)
        except TimeoutError:
            raise TimeoutError(STUCK_BUS if to == BUS else NO_ANSWER) from None
        if reply is None or reply.message_type is MessageType.ERROR:
            raise DBusError(str(reply and reply.error_name), str(reply and reply.body))
        return reply.body[0] if reply.body else None

    # What it tells

    def _hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        match message.member, message.body:
            case "NameOwnerChanged", [name, _, owner] if name == BLUEZ:
                self._runs, self._powered, self._refused = bool(owner), {}, {}
                self._begun = asyncio.get_running_loop().time()
                if not owner:
                    self._gone()
                self._break(*self._adapters.values(), why=not owner)
            case "InterfacesAdded", [path, interfaces] if path in self._adapters:
                if ADAPTER in interfaces:
                    self._update(self._adapters[path], interfaces[ADAPTER])
            case "InterfacesRemoved", [path, interfaces] if path in self._adapters:
                if ADAPTER in interfaces:
                    self._powered.pop(self._adapters[path], None)
                    self._break(self._adapters[path])
            case "InterfacesRemoved", [path, interfaces] if path in self._removals:
                if DEVICE in interfaces:
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

    def _break(self, *adapters: str, why: bool = True) -> None:
        self._breaks.update(adapters)
        if why:  # that it has begun anew is no reason
            self._broke.update({adapter: self.why(adapter) for adapter in adapters})
        self.tell()


def time_left(seconds: float) -> float:
    """Return how many of its seconds a call has: at most STOP where its task is to end."""
    task = asyncio.current_task()
    return min(seconds, STOP) if task and task.cancelling() else seconds


def refusal(error: Exception) -> str:
    """Return what it means that BlueZ, or the bus, answers with an error."""
    if "AccessDenied" in f"{getattr(error, 'type', '')} {error}":
        return DENIED
    return f"BlueZ says {words(error)}: sudo systemctl restart bluetooth"


def words(error: Exception) -> str:
    r"""Return what an error says, in one line that can be printed.

    >>> words(ValueError("\x1b[31m a\nb" + "!" * 1000))[:10]
    '[31m a b!!'
    """
    printable = "".join(each if each.isprintable() else " " for each in str(error))
    return " ".join(printable.split())[:LONGEST_WORDS] or type(error).__name__
