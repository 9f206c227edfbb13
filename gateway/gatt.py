"""Connects to BLE devices: right after they were heard, a few at a time, never for longer.

Every call has a deadline of its own: bleak hangs for ever when a device is removed during a read,
and retries for ever what BlueZ answers with InProgress (both seen with bleak 3.1). None outlasts
the sensor's interval, but for its first second. What took time in vain is not tried again in the
same turn; while others wait for the adapter, nor in the next ones, for a minute at most: a cured
device is missed no longer than that, and where nobody waits it is tried in each turn.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TypeVar

from bleak import BleakClient
from bleak.backends.bluezdbus.version import BlueZFeatures
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.device import BLEDevice
from bleak.exc import BleakDBusError, BleakGATTProtocolError
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random,
)

from gateway.adapter import BLEAK_FAULTS, Adapter, bounded
from gateway.advertisement import full_uuid
from gateway.ble import Radio
from gateway.bluez import NO_BLUEZ, words
from gateway.driver import DeviceRefused, NoAdapter, NoReply, SensorError
from gateway.places import Places, Turn, pause

HEARING = (5.0, 30.0)
"""Seconds in which a device must be heard that is to be connected to, at least and at most."""
CONNECT = 20.0
"""Seconds in which a device is connected to; it takes 0.6 to 2.1 s."""
CALL = 5.0
"""Seconds in which a device reads or writes one value; it takes 10 to 100 ms."""
SHORTEST = 1.0
"""Seconds that each of these calls has however short the sensor's interval."""
TRIES = 4
"""How often a device is connected to that refuses at once, as BlueZ does when it is busy."""
IN_VAIN = 2.0
"""Seconds that a failure may take of the others' time; what refuses or errs takes less."""
MOST_DOUBT = 6
NEWS = 0.2
"""Seconds after a failure in which the bus tells that it was the adapter's."""
LET_GO = 0.2
"""Seconds in which bleak lets go of a device that BlueZ has forgotten; it would wait for ever."""
PAIR = "where it asks for pairing: bluetoothctl pair, trust"
PAIRING = (0x05, 0x08, 0x0C, 0x0F)
"""ATT errors of a device that wants to be paired with (Core Specification, vol. 3, F, 3.4.1.1)."""
UNFIT = "is `driver` right for its firmware? If it is, take its battery out for a moment"
HUNG_UP = "it has hung up: is it near its limit of range, or its battery low?"
GONE = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")
"""What the bus answers for BlueZ when it has ended."""
FORGOTTEN = "BlueZ has forgotten it meanwhile: is it in range, or does another program remove it?"

# bleak would ask bluetoothctl, and wait for ever for an answer once the first wait was cut short.
BlueZFeatures.checked_bluez_version = True  # guarded by tests/test_bleak_contract.py

_T = TypeVar("_T")


class GattDevice:
    """One BLE device that is read by connecting to it."""

    def __init__(self, address: str, radio: Radio) -> None:
        self.address = address
        self._radio = radio
        self._doubt = 1
        """0 is none; more each time it took time in vain, half of it each time it is read."""
        self._turn: Turn
        self._places: Places
        """Those of the last turn."""
        self._failed = self._again = float("-inf")
        """The loop's time when it failed last, and from which on it is tried again."""
        self._failure: SensorError | None = None

    @property
    def why(self) -> str:
        """Why it cannot be connected to; empty while an adapter scans."""
        return self._radio.why

    async def opened(self) -> None:
        """Return when an adapter scans."""
        await self._radio.opened()

    @asynccontextmanager
    async def connected(self, within: float) -> AsyncIterator["Connection"]:
        """Connect, disconnect at the end; no call takes longer than `within` seconds.

        Raises NoReply, DeviceRefused or NoAdapter.
        """
        async with self._radio.alone(self.address), AsyncExitStack() as held:
            self._step_back()
            adapter, device = await self._heard(within)
            breaks = adapter.breaks
            try:
                yield await self._connected(adapter, device, within, held)
            except SensorError as error:
                in_vain = self._in_vain(within)
                await asyncio.sleep(NEWS)
                if adapter.breaks != breaks or adapter.why:
                    raise NoAdapter(adapter.why or f"{adapter.name} was lost") from None
                if in_vain:
                    self._suspect(error)
                raise
            self._trust()

    def _step_back(self) -> None:
        """Raise the last failure again while its turns are left to the others."""
        reception = self._radio.reception(self.address)
        now = asyncio.get_running_loop().time()
        if self._failure is None or now >= self._again or reception.why:
            return
        if max(reception.since, self._places.recovered) < self._failed:
            left = f"others wait: it is tried again after {pause(self._doubt)} s"
            raise type(self._failure)(f"{self._failure}; {left}")

    def _again_at_once(self, within: float, error: BaseException) -> bool:
        """Whether it is tried again in the same turn."""
        return isinstance(error, SensorError) and not self._in_vain(within)

    def _in_vain(self, within: float) -> bool:
        """Whether it has taken time in vain."""
        return asyncio.get_running_loop().time() - self._turn.began > min(within, IN_VAIN)

    def _suspect(self, failure: SensorError) -> None:
        self._failure = type(failure)(str(failure))
        self._failed = asyncio.get_running_loop().time()
        self._doubt = min(self._doubt + 2, MOST_DOUBT)
        if self._turn.wanted:
            self._again = self._failed + pause(self._doubt)

    def _trust(self) -> None:
        if self._doubt > MOST_DOUBT // 2:  # what was wrong with the others may be over too
            self._places.recovered = asyncio.get_running_loop().time()
        self._doubt //= 2

    async def _heard(self, within: float) -> tuple[Adapter, BLEDevice]:
        within = min(max(within, HEARING[0]), HEARING[1])
        reception = self._radio.reception(self.address)
        try:
            async with asyncio.timeout(within):
                return await self._radio.next(self.address)
        except TimeoutError:
            if reception.why or asyncio.get_running_loop().time() - reception.since < within:
                raise NoAdapter(reception.why or "the adapter has only begun to listen") from None
            heard = f"not heard within {within:g} s: check address, battery and distance"
            raise NoReply(f"{heard}; is it connected to a phone?") from None

    async def _connected(
        self, adapter: Adapter, device: BLEDevice, within: float, held: AsyncExitStack
    ) -> "Connection":
        """Return a connection that lasts as long as what is `held`."""
        self._places = adapter.places
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(TRIES) | stop_before_delay(within),
            wait=wait_random(0.25, 1),
            retry=retry_if_exception(partial(self._again_at_once, within)),
            reraise=True,
        ):
            with attempt:
                async with AsyncExitStack() as place:
                    self._turn = await place.enter_async_context(
                        self._places.place(self._doubt, within)
                    )
                    connection = Connection(device, max(within, SHORTEST))
                    with _named("connected"):
                        patience = min(max(within, SHORTEST), CONNECT)
                        async with self._places.connecting(self._turn, patience):
                            await connection.open()
                    place.push_async_callback(connection.close)
                    held.push_async_exit(place.pop_all())
        await held.enter_async_context(self._radio.bluez.removal(connection.path, connection.lost))
        return connection


class Connection:
    """A connected device, as drivers see it. Characteristics are named by UUID, short or in full.

    Raises DeviceRefused where the device has none of the name or refuses, NoReply where it is gone.
    """

    def __init__(self, device: BLEDevice, within: float) -> None:
        self.path: str = device.details["path"]
        self._client = BleakClient(
            device, timeout=CONNECT, disconnected_callback=lambda _: self._end(HUNG_UP)
        )
        self._within = min(within, CALL)
        self._deadline: asyncio.Timeout | None = None
        self._lost = ""
        """Why no call is answered any more; empty while the device is connected."""

    async def open(self) -> None:
        """Connect."""
        await bounded(self._client.connect(), CONNECT)
        self._lost = ""  # of a connection that was aborted bleak makes another

    def has(self, characteristic: str) -> bool:
        """Whether the device has the characteristic."""
        return self._found(characteristic) is not None

    async def read(self, characteristic: str) -> bytes:
        """Return the value of the characteristic."""
        return bytes(await self._call(self._client.read_gatt_char(self._needed(characteristic))))

    async def write(self, characteristic: str, data: bytes) -> None:
        """Write the value of the characteristic, and wait till the device has taken it."""
        needed = self._needed(characteristic)
        await self._call(self._client.write_gatt_char(needed, bytes(data), response=True))

    async def request(self, characteristic: str, data: bytes, answer: str) -> bytes:
        """Write `data`, return the next value that `answer` notifies."""
        needed, said = self._needed(answer), asyncio.Queue[bytes]()
        await self._call(
            self._client.start_notify(needed, lambda _, value: said.put_nowait(bytes(value)))
        )
        await self.write(characteristic, data)
        value = await self._call(said.get())
        await self._call(self._client.stop_notify(needed))
        return value

    def _needed(self, characteristic: str) -> BleakGATTCharacteristic:
        found = self._found(characteristic)
        if found is None:
            raise DeviceRefused(f"the device has no characteristic {characteristic}")
        return found

    def _found(self, characteristic: str) -> BleakGATTCharacteristic | None:
        """Return the characteristic, the first of those that have the UUID."""
        uuid = full_uuid(characteristic)
        if self._lost:  # bleak has forgotten the services too
            raise NoReply(f"heard, but not read: {self._lost}")
        with _named("read"):
            every = self._client.services.characteristics.values()
            return min(
                (each for each in every if each.uuid == uuid),
                key=lambda each: each.handle,
                default=None,
            )

    def lost(self) -> None:
        """End the call that waits: BlueZ has forgotten the device, no answer will come."""
        self._end(FORGOTTEN)

    async def close(self) -> None:
        """Disconnect, as far as that can be done; nothing of it is kept."""
        with suppress(SensorError, NoAdapter), _named("let go of"):
            await bounded(self._client.disconnect(), LET_GO if self._lost else self._within)

    async def _call(self, call: Awaitable[_T]) -> _T:
        with _named("read"):
            try:
                async with asyncio.timeout(0 if self._lost else self._within) as self._deadline:
                    return await call
            except TimeoutError:
                if not self._lost:
                    raise
                raise NoReply(f"heard, but not read: {self._lost}") from None
            finally:
                self._deadline = None

    def _end(self, why: str) -> None:
        self._lost = why
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())


@contextmanager
def _named(done: str) -> Iterator[None]:
    """Turn what is raised into what the poller knows; only calls of bleak are within."""
    failed, began = f"heard, but not {done}", asyncio.get_running_loop().time()
    try:
        yield
    except TimeoutError:
        cause = "is it near its limit of range, or its interval too short?"
        took = round(asyncio.get_running_loop().time() - began, 1)
        raise NoReply(f"{failed} within {took:g} s: {cause}") from None
    except BleakGATTProtocolError as error:
        remedy = PAIR if error.code in PAIRING else UNFIT
        raise DeviceRefused(f"{failed}: it answers {error.args[-1]}: {remedy}") from error
    except BleakDBusError as error:
        if error.dbus_error in GONE:
            raise NoAdapter(NO_BLUEZ) from error
        remedy = PAIR if "NotPermitted" in error.dbus_error else "is it connected to a phone?"
        raise DeviceRefused(f"{failed}: BlueZ says {words(error)}: {remedy}") from error
    except BLEAK_FAULTS as error:
        raise NoReply(f"{failed}: {words(error)}: is it in range and on?") from error
    except (SensorError, NoAdapter):
        raise
    except Exception as error:  # whatever it is: bleak takes what BlueZ says as it comes
        wrong = f"BlueZ or bleak went wrong ({type(error).__name__})"
        raise NoReply(f"{failed}: {wrong}: sudo systemctl restart bluetooth") from error
