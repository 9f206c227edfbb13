"""Connects to BLE devices: right after they were heard, a few at a time, never for longer.

Every call has a deadline of its own: bleak hangs for ever when a device is removed during a read,
and retries for ever what BlueZ answers with InProgress (both seen with bleak 3.1).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from bleak import BleakClient
from bleak.backends.device import BLEDevice
from bleak.exc import (
    BleakCharacteristicNotFoundError,
    BleakDBusError,
    BleakGATTProtocolError,
)
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random

from gateway.advertisement import full_uuid
from gateway.ble import BLEAK_FAULTS, Adapter, Radio
from gateway.driver import DeviceRefused, NoAdapter, NoReply, SensorError

HEARING = 30.0
"""Seconds in which a device must be heard that is to be connected to."""
CONNECT = 20.0
TRIES = 4
CALL = 5.0
"""Seconds in which a device reads or writes one value; it takes 10 to 100 ms."""

_T = TypeVar("_T")


class GattDevice:
    """One BLE device that is read by connecting to it."""

    def __init__(self, address: str, radio: Radio) -> None:
        self.address = address
        self._radio = radio

    @property
    def why(self) -> str:
        """Why it cannot be connected to; empty while an adapter scans."""
        return self._radio.why

    async def opened(self) -> None:
        """Return when an adapter scans."""
        await self._radio.opened()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["Connection"]:
        """Connect; disconnect at the end. Raises NoReply, DeviceRefused or NoAdapter."""
        adapter, device = await self._heard()
        async with adapter.connections:
            connection = await self._connect(adapter, device)
            path = connection.path
            with self._radio.bluez.removal(path, connection.lost):
                await self._radio.bluez.watch_removal(path, begin=True)
                try:
                    yield connection
                finally:
                    await self._radio.bluez.watch_removal(path, begin=False)
                    await connection.close()

    async def _heard(self) -> tuple[Adapter, BLEDevice]:
        try:
            async with asyncio.timeout(HEARING):
                return await self._radio.next(self.address)
        except TimeoutError:
            if self._radio.why:
                raise NoAdapter(self._radio.why) from None
            heard = f"not heard within {HEARING:g} s: check address, battery and distance"
            raise NoReply(f"{heard}; is it connected to a phone?") from None

    async def _connect(self, adapter: Adapter, device: BLEDevice) -> "Connection":
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_random(0.25, 1),
            retry=retry_if_exception_type(SensorError),
            reraise=True,
        ):
            with attempt:
                async with adapter.connecting:
                    return await Connection.to(device)
        raise AssertionError("tenacity returns or raises")


class Connection:
    """A connected device, as drivers see it. Characteristics are named by UUID, short or in full.

    Raises DeviceRefused where the device has none of the name or refuses, NoReply where it is gone.
    """

    def __init__(self, client: BleakClient, path: str) -> None:
        self.path = path
        self._client = client
        self._deadline: asyncio.Timeout | None = None

    @classmethod
    async def to(cls, device: BLEDevice) -> "Connection":
        """Return a new connection to the device."""
        client = BleakClient(device, timeout=CONNECT)
        with _named("connected"):
            # The outer deadline is for what bleak does to clean up when the inner one has passed
            async with asyncio.timeout(CONNECT + CALL), asyncio.timeout(CONNECT):
                await client.connect()
        return cls(client, device.details["path"])

    def has(self, characteristic: str) -> bool:
        """Whether the device has the characteristic."""
        return self._client.services.get_characteristic(full_uuid(characteristic)) is not None

    async def read(self, characteristic: str) -> bytes:
        """Return the value of the characteristic."""
        return bytes(await self._call(self._client.read_gatt_char(full_uuid(characteristic))))

    async def write(self, characteristic: str, data: bytes) -> None:
        """Write the value of the characteristic, and wait till the device has taken it."""
        await self._call(
            self._client.write_gatt_char(full_uuid(characteristic), data, response=True)
        )

    async def request(self, characteristic: str, data: bytes, answer: str) -> bytes:
        """Write `data`, return the next value that `answer` notifies."""
        uuid, said = full_uuid(answer), asyncio.Queue[bytes]()
        await self._call(
            self._client.start_notify(uuid, lambda _, value: said.put_nowait(bytes(value)))
        )
        await self.write(characteristic, data)
        value = await self._call(said.get())
        await self._call(self._client.stop_notify(uuid))
        return value

    def lost(self) -> None:
        """End the call that waits: BlueZ has forgotten the device, no answer will come."""
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Disconnect, as far as that can be done; nothing of it is kept."""
        with suppress(*BLEAK_FAULTS):
            async with asyncio.timeout(2 * CALL), asyncio.timeout(CALL):
                await self._client.disconnect()

    async def _call(self, call: Awaitable[_T]) -> _T:
        with _named("read"):
            try:
                async with asyncio.timeout(CALL) as self._deadline:
                    return await call
            finally:
                self._deadline = None


@contextmanager
def _named(done: str) -> Iterator[None]:
    """Turn what bleak raises into what the poller knows."""
    try:
        yield
    except TimeoutError:
        raise NoReply(f"heard, but not {done} in time: is it near its limit of range?") from None
    except BleakCharacteristicNotFoundError as error:
        raise DeviceRefused(f"the device has no such characteristic: {error}") from error
    except BleakGATTProtocolError as error:
        raise DeviceRefused(f"{error}: where it asks for it, bluetoothctl pair it") from error
    except BleakDBusError as error:
        raise DeviceRefused(f"not {done}: {error}") from error
    except BLEAK_FAULTS as error:
        raise NoReply(f"heard, but not {done}: {_words(error)}") from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
