"""The objects of a simulated service on a D-Bus: their properties, methods, and what is told."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dbus_fast import Message, MessageFlag, MessageType, Variant

OBJECTS = "org.freedesktop.DBus.ObjectManager"
PEER = "org.freedesktop.DBus.Peer"
PROPERTIES = "org.freedesktop.DBus.Properties"

Interfaces = dict[str, dict[str, Any]]
"""Interface to property to value, as Python has it; a table of signatures makes variants of it."""


class Refused(Exception):
    """A call is answered with this error name and this text."""


class Call:
    """A method call by a client, to be answered now, later, or never."""

    def __init__(self, message: Message, send: Callable[[Message], None]) -> None:
        self.body: list[Any] = message.body
        self.client = message.sender or ""
        self._message = message
        self._send = send
        self._silent = bool(message.flags & MessageFlag.NO_REPLY_EXPECTED)

    def answer(self, signature: str = "", *body: object) -> None:
        """Answer as the method promises."""
        if not self._silent:
            self._send(Message.new_method_return(self._message, signature, list(body)))

    def refuse(self, name: str, text: str) -> None:
        """Answer with an error."""
        if not self._silent:
            self._send(Message.new_error(self._message, name, text))


Method = Callable[[Call], object]


@dataclass(slots=True)
class _Node:
    interfaces: Interfaces
    methods: Mapping[str, Method] = field(default_factory=dict)
    sets: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)


class Objects:
    """An ObjectManager at "/" with all that it manages."""

    def __init__(self, send: Callable[[Message], None], signatures: Mapping[str, str]) -> None:
        self._send = send
        self._signatures = signatures
        self._nodes: dict[str, _Node] = {}
        self._beneath: dict[str, list[str]] = {}

    def add(
        self,
        path: str,
        interfaces: Interfaces,
        methods: Mapping[str, Method],
        sets: Mapping[str, Callable[[Any], None]] | None = None,
    ) -> None:
        """Make an object: `methods` by interface and member, `sets` by the property's name."""
        self._nodes[path] = _Node(interfaces, methods, sets or {})
        self._beneath.setdefault(path.rpartition("/")[0], []).append(path)
        self._signal("/", f"{OBJECTS}.InterfacesAdded", "oa{sa{sv}}", path, self._shown(path))

    def remove(self, path: str) -> None:
        """Remove an object and all beneath it, the deepest first."""
        for child in tuple(self._beneath.get(path, ())):
            self.remove(child)
        parent = path.rpartition("/")[0]
        self._beneath[parent].remove(path)
        if not self._beneath[parent]:
            del self._beneath[parent]
        names = list(self._nodes.pop(path).interfaces)
        self._signal("/", f"{OBJECTS}.InterfacesRemoved", "oas", path, names)

    def forget_all(self) -> None:
        """Be without objects, and tell nobody: the service has ended."""
        self._nodes.clear()
        self._beneath.clear()

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def get(self, path: str, interface: str) -> dict[str, Any]:
        """Return the properties of one interface as they are."""
        return self._nodes[path].interfaces[interface]

    def change(
        self, path: str, interface: str, changed: Mapping[str, Any], without: Iterable[str] = ()
    ) -> None:
        """Set properties and forget others, and tell: of each, whether it differs or not."""
        held = self.get(path, interface)
        held.update(changed)
        forgotten = [name for name in without if held.pop(name, None) is not None]
        if changed or forgotten:
            body = (interface, self._variants(changed), forgotten)
            self._signal(path, f"{PROPERTIES}.PropertiesChanged", "sa{sv}as", *body)

    def take(self, message: Message) -> None:
        """Serve a method call."""
        call = Call(message, self._send)
        method = f"{message.interface}.{message.member}"
        try:
            self._serve(call, message.path or "", message.interface or "", method)
        except Refused as error:
            call.refuse(*error.args)

    def _serve(self, call: Call, path: str, interface: str, method: str) -> None:
        if method == f"{OBJECTS}.GetManagedObjects" and path == "/":
            everything = {known: self._shown(known) for known in self._nodes}
            return call.answer("a{oa{sa{sv}}}", everything)
        if method == f"{PEER}.Ping":  # libdbus answers it at every path
            return call.answer()
        node = self._nodes.get(path)
        if node is None:
            raise Refused("org.freedesktop.DBus.Error.UnknownObject", f"there is no object {path}")
        if interface == PROPERTIES:
            return self._serve_properties(call, node, method)
        if interface not in node.interfaces or method not in node.methods:
            raise Refused(
                "org.freedesktop.DBus.Error.UnknownMethod", f"there is no {method} at {path}"
            )
        node.methods[method](call)
        return None

    def _serve_properties(self, call: Call, node: _Node, method: str) -> None:
        held = node.interfaces.get(call.body[0], {})
        if method == f"{PROPERTIES}.GetAll":
            return call.answer("a{sv}", self._variants(held))
        name = call.body[1]
        if method == f"{PROPERTIES}.Set" and name in node.sets:
            node.sets[name](call.body[2].value)
            return call.answer()
        if method == f"{PROPERTIES}.Get" and name in held:
            return call.answer("v", self._variants(held)[name])
        raise Refused("org.freedesktop.DBus.Error.InvalidArgs", f"not so with property {name}")

    def _shown(self, path: str) -> dict[str, dict[str, Variant]]:
        interfaces = self._nodes[path].interfaces
        return {name: self._variants(held) for name, held in interfaces.items()}

    def _variants(self, held: Mapping[str, Any]) -> dict[str, Variant]:
        return {name: self._variant(name, value) for name, value in held.items()}

    def _variant(self, name: str, value: Any) -> Variant:  # noqa: ANN401 (what a property holds)
        signature = self._signatures[name]
        if signature.startswith("a{"):  # all of BlueZ's hold bytes
            value = {key: Variant("ay", data) for key, data in value.items()}
        return Variant(signature, value)

    def _signal(self, path: str, name: str, signature: str, *body: object) -> None:
        interface, _, member = name.rpartition(".")
        kind = MessageType.SIGNAL
        self._send(
            Message(None, path, interface, member, kind, signature=signature, body=list(body))
        )
