"""The services and characteristics of a connected device, as BlueZ shows them."""

from collections.abc import Callable
from functools import partial

from hil.bluezstack import CHARACTERISTIC, IN_PROGRESS, SERVICE, Stack, refused
from hil.dbusobjects import Call
from hil.radio import Characteristic, Peripheral


class Gatt:
    """The GATT objects beneath one device; `places` are where its faults may be."""

    def __init__(
        self,
        stack: Stack,
        device: str,
        peripheral: Peripheral,
        places: list[str],
        vanish: Callable[[], None],
    ) -> None:
        self.connected = True
        self._vanish = vanish
        self._stack = stack
        self._device = device
        self._places = places
        self._clients: dict[str, set[str]] = {}  # of each path that notifies
        self._characteristics: dict[str, Characteristic] = {}
        handle = 1
        for service, characteristics in peripheral.services.items():
            path = f"{device}/service{handle:04x}"
            shown = {"UUID": service, "Primary": True, "Device": device}
            stack.objects.add(path, {SERVICE: shown}, {})
            handle += 1
            for uuid, characteristic in characteristics.items():
                self._add(path, handle, uuid, characteristic)
                handle += 3  # its declaration, its value, and what a client may configure

    def _add(self, service: str, handle: int, uuid: str, characteristic: Characteristic) -> None:
        path = f"{service}/char{handle:04x}"
        self._characteristics[path] = characteristic
        shown = {"UUID": uuid, "Service": service, "Flags": characteristic.flags, "MTU": 23}
        methods = {
            f"{CHARACTERISTIC}.ReadValue": self._read,
            f"{CHARACTERISTIC}.WriteValue": self._write,
            f"{CHARACTERISTIC}.StartNotify": self._start_notify,
            f"{CHARACTERISTIC}.StopNotify": self._stop_notify,
        }
        bound = {name: partial(method, path) for name, method in methods.items()}
        self._stack.objects.add(path, {CHARACTERISTIC: shown | {"Notifying": False}}, bound)

    def disconnected(self) -> None:
        """Refuse what needs a connection, and forget who was to be notified."""
        self.connected = False
        for path in tuple(self._clients):
            self._quiet(path)

    def left(self, client: str) -> None:
        """Forget a client that has left the bus."""
        for path, clients in tuple(self._clients.items()):
            clients.discard(client)
            if not clients:
                self._quiet(path)

    def _read(self, path: str, call: Call) -> None:
        if self._stack.faults.met("vanishes mid-read", *self._places):
            return self._vanish()
        if not self._answers(path, "read", "Read not permitted"):
            return None
        value = self._characteristics[path].read()
        call.answer("ay", value)
        return self._stack.objects.change(path, CHARACTERISTIC, {"Value": value})

    def _write(self, path: str, call: Call) -> None:
        if self._answers(path, "write", "Write not permitted"):
            self._characteristics[path].write(bytes(call.body[0]))
            call.answer()

    def _answers(self, path: str, need: str, otherwise: str) -> bool:
        """Say whether an answer comes; raise one that is an error."""
        met = self._stack.faults.met
        if not self.connected:
            raise refused("Failed", "Not connected")
        if met("in progress", *self._places):
            raise refused(*IN_PROGRESS)
        if met("ATT error", *self._places):
            raise refused("Failed", "Operation failed with ATT error: 0x0e")
        if met("not paired", *self._places):
            raise refused("NotPermitted", "Not paired")
        if not any(flag.startswith(need) for flag in self._characteristics[path].flags):
            raise refused("NotPermitted", otherwise)
        return not met("silent", *self._places)

    def _start_notify(self, path: str, call: Call) -> None:
        characteristic = self._characteristics[path]
        if not {"notify", "indicate"} & set(characteristic.flags):
            raise refused("NotSupported", "Operation is not supported")
        if not self.connected:
            raise refused("Failed", "Not connected")
        if call.client in self._clients.get(path, ()):
            raise refused("Failed", "Already notifying")
        self._clients.setdefault(path, set()).add(call.client)
        characteristic.notified[path] = partial(self._tell, path)
        self._stack.objects.change(path, CHARACTERISTIC, {"Notifying": True})
        call.answer()

    def _stop_notify(self, path: str, call: Call) -> None:
        clients = self._clients.get(path, set())
        if call.client not in clients:
            raise refused("Failed", "No notify session started")
        self.left(call.client) if len(clients) == 1 else clients.discard(call.client)
        call.answer()

    def _tell(self, path: str, value: bytes) -> None:
        self._stack.objects.change(path, CHARACTERISTIC, {"Value": value})

    def _quiet(self, path: str) -> None:
        del self._clients[path]
        self._characteristics[path].notified.pop(path, None)
        if path in self._stack.objects:
            self._stack.objects.change(path, CHARACTERISTIC, {"Notifying": False})
