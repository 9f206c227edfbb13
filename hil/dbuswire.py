"""A service's connection to a D-Bus: what it sends keeps its order and waits for room.

dbus-fast ends a connection whose socket is full. A socket that is writable has room for three
quarters of its buffer, and of a larger message dbus-fast keeps the rest until it fits; so each
message waits for that, and for the one before it.
"""

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus

DBUS = "org.freedesktop.DBus"


class Wire:
    """A connection that is opened once and closed once."""

    def __init__(self, address: str, heard: Callable[[Message], None]) -> None:
        self._address = address
        self._heard = heard
        self._queue: deque[Message | None] = deque()
        self._fresh = asyncio.Event()
        self._room = asyncio.Event()

    async def open(self, name: str) -> None:
        """Connect, be told which clients leave, and own `name`."""
        self._bus = await MessageBus(self._address).connect()
        # another descriptor of the same socket: dbus-fast watches its own in its own way
        self._socket = os.dup(self._bus._fd or -1)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLOUT)
        self._bus.add_message_handler(self._take)
        self._pump = asyncio.create_task(self._send_all(), name="hil D-Bus")
        self.match(f"sender='{DBUS}',member='NameOwnerChanged',arg2=''")
        await self._bus.request_name(name)

    async def finish(self, *, gently: bool = True) -> None:
        """Send nothing more, after all is sent unless the bus goes."""
        if gently:
            self._queue.append(None)
            self._fresh.set()
        else:
            self._pump.cancel()
        await asyncio.wait({self._pump})

    async def close(self) -> None:
        """Disconnect, once it has finished; the name is free then."""
        asyncio.get_running_loop().remove_writer(self._socket)
        self._bus.disconnect()
        os.close(self._socket)
        with suppress(OSError, EOFError):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    def send(self, message: Message) -> None:
        """Send in turn."""
        self._queue.append(message)
        self._fresh.set()

    def match(self, rule: str) -> None:
        """Ask for the signals that meet this rule."""
        self.tell(DBUS, "/org/freedesktop/DBus", f"{DBUS}.AddMatch", "s", rule)

    def tell(self, to: str, path: str, method: str, signature: str = "", *body: object) -> None:
        """Call a method of another; what it answers is not waited for."""
        interface, _, member = method.rpartition(".")
        flags = MessageFlag.NO_REPLY_EXPECTED
        self.send(
            Message(to, path, interface, member, flags=flags, signature=signature, body=list(body))
        )

    def _take(self, message: Message) -> bool:
        if message.message_type in (MessageType.METHOD_CALL, MessageType.SIGNAL):
            self._heard(message)
            return True  # dbus-fast is not to answer by itself: it would not wait for room
        return False

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        while await self._fresh.wait():
            while self._queue:
                message = self._queue.popleft()
                if message is None:
                    return
                if not self._poll.poll(0):
                    self._room.clear()
                    loop.add_writer(self._socket, self._room.set)
                    await self._room.wait()
                    loop.remove_writer(self._socket)
                await self._bus.send(message)
            self._fresh.clear()
