"""The advertisement monitors of an adapter: passive scanning, if BlueZ is run experimentally."""

from collections.abc import Iterator
from uuid import UUID

from dbus_fast import Message

from hil.bluezstack import MONITOR, MONITORS, Stack, refused
from hil.dbusobjects import OBJECTS, Call
from hil.radio import Advert

Pattern = tuple[int, int, bytes]
"""Where in an AD structure, of which type, which bytes."""


class Monitors:
    """Who may listen without scanning: clients that export patterns which adverts have to match.

    A monitor counts when its client has exported it, which is after it was registered.
    """

    def __init__(self, stack: Stack) -> None:
        self.shown = {"SupportedMonitorTypes": ["or_patterns"], "SupportedFeatures": list[str]()}
        self.methods = {
            f"{MONITORS}.RegisterMonitor": self._register,
            f"{MONITORS}.UnregisterMonitor": self._unregister,
        }
        self._stack = stack
        self._roots: set[tuple[str, str]] = set()
        self._patterns: dict[tuple[str, str], list[Pattern]] = {}

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def want(self, advert: Advert) -> bool:
        """Say whether any pattern matches."""
        return bool(self._patterns) and any(
            _matches(pattern, advert) for held in self._patterns.values() for pattern in held
        )

    def exported(self, message: Message) -> None:
        """Look whether this is an object that a client said it would export."""
        path, interfaces = message.body
        client = message.sender or ""
        roots = [root for who, root in self._roots if who == client and path.startswith(root)]
        if not roots or MONITOR not in interfaces:
            return
        shown = interfaces[MONITOR]
        patterns = [(at, kind, bytes(data)) for at, kind, data in shown["Patterns"].value]
        good = shown["Type"].value == "or_patterns" and patterns
        if good:
            self._patterns[client, roots[0]] = patterns
        self._stack.tell(client, path, f"{MONITOR}.{'Activate' if good else 'Release'}")

    def left(self, client: str) -> None:
        """Forget a client that has left the bus."""
        for root in [root for who, root in self._roots if who == client]:
            self._forget(client, root)

    def _register(self, call: Call) -> None:
        root = call.body[0]
        if (call.client, root) in self._roots:
            raise refused("AlreadyExists", "Already Exists")
        self._roots.add((call.client, root))
        self._stack.match(f"sender='{call.client}',interface='{OBJECTS}',member='InterfacesAdded'")
        call.answer()

    def _unregister(self, call: Call) -> None:
        if (call.client, call.body[0]) not in self._roots:
            raise refused("DoesNotExist", "Does Not Exist")
        self._forget(call.client, call.body[0])
        call.answer()

    def _forget(self, client: str, root: str) -> None:
        self._roots.discard((client, root))
        self._patterns.pop((client, root), None)


def _matches(pattern: Pattern, advert: Advert) -> bool:
    at, wanted, data = pattern
    return any(
        kind == wanted and said[at : at + len(data)] == data for kind, said in _structures(advert)
    )


def _structures(advert: Advert) -> Iterator[tuple[int, bytes]]:
    """Yield the AD structures of an advertisement as they are sent (Core Supplement, part A)."""
    yield 0x01, b"\x06"
    if advert.name:
        yield 0x09, advert.name.encode()
    for company, data in advert.manufacturer.items():
        yield 0xFF, company.to_bytes(2, "little") + data
    for uuid, data in advert.service_data.items():
        yield 0x16, _short(uuid) + data
    for uuid in advert.uuids:
        yield 0x03, _short(uuid)


def _short(uuid: str) -> bytes:
    return UUID(uuid).bytes[2:4][::-1]
