"""Hears BLE advertisements: one scan for ever on each adapter, shared by all sensors.

What is not from a configured address is dropped before anything else sees it: no name, address or
payload of a stranger is kept, logged or counted.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bleak.backends.bluezdbus.manager import _global_instances
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData

from gateway.adapter import NO_SIGNAL, SILENCE, Adapter
from gateway.bluez import CALL, RETRY, Bluez
from gateway.driver import Advertisement, place_of
from gateway.reports import Reports

STARTED = 2.0
"""Seconds in which an adapter begins to scan that can."""
KNOWN = 2 * CALL
"""Seconds after which at the latest it is known why one does not."""

Hear = Callable[[str, Advertisement], None]
"""Is told the name of the adapter, and what it has heard."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Address:
    """A configured address: who listens, and as what device it was heard last."""

    hear: list[Hear] = field(default_factory=list)
    device: tuple[Adapter, BLEDevice] | None = None
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    next: asyncio.Future[tuple[Adapter, BLEDevice]] | None = None
    """Is done when it is heard; None while nobody waits for that."""


class Reception:
    """How one address can be heard: what its listener needs of the radio."""

    def __init__(self, radio: "Radio", address: str) -> None:
        self._radio, self._address = radio, address

    @property
    def why(self) -> str:
        """Why the sensor cannot be blamed for silence; empty while its adapter scans.

        Of one that was never heard any adapter may be the one in its reach.
        """
        return self._radio.why or "; ".join(each.why for each in self._adapters if each.why)

    @property
    def since(self) -> float:
        """The loop's time from which on it could be heard."""
        return max(adapter.since for adapter in self._adapters)

    def unsure(self, within: float) -> bool:
        """Whether nothing at all was heard for so long, and it is not known yet why."""
        return any(adapter.unsure(within) for adapter in self._adapters)

    @property
    def _adapters(self) -> Sequence[Adapter]:
        return self._radio.reached_by(self._address)


class Radio:
    """All adapters, and the addresses that are listened for."""

    def __init__(
        self,
        adapters: Sequence[str],
        *,
        passive: bool = False,
        silence: float = SILENCE,
        restart: Path | None = None,
    ) -> None:
        self.bluez = Bluez(adapters, _forget)
        self._addresses: dict[str, _Address] = {}
        self._reports = Reports(self._told, self._advertised)
        self._adapters = [
            Adapter(
                name,
                self.bluez,
                self._heard,
                before=self._reports.open,
                passive=passive,
                silence=silence,
                ask=restart,
            )
            for name in adapters
        ]

    async def run(self) -> None:
        """Listen for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_unending(self.bluez.run), name="bluez")
            for adapter in self._adapters:
                tasks.create_task(_unending(adapter.run), name=adapter.name)

    @property
    def why(self) -> str:
        """Why no adapter scans; empty while one does."""
        return _why(self._adapters)

    def reached_by(self, address: str) -> Sequence[Adapter]:
        """Return the adapter that heard the address last; all where none has."""
        known = self._addresses.get(address)
        return [known.device[0]] if known and known.device else self._adapters

    async def opened(self) -> None:
        """Return when an adapter scans."""
        while self.why:
            await self.bluez.change()

    def states(self) -> dict[str, dict[str, str | None]]:
        """Return how each adapter is, and why nothing can be heard with it, for the status."""
        return {
            adapter.name: {"state": adapter.state, "why": adapter.why or None}
            for adapter in self._adapters
        }

    def listen(self, address: str, hear: Hear) -> None:
        """Have `hear` called with each advertisement of an address; it must not raise."""
        self._addresses.setdefault(address, _Address()).hear.append(hear)
        for adapter in self._adapters:
            self._reports.watch(adapter, address)

    def reception(self, address: str) -> Reception:
        """Return how the address can be heard."""
        return Reception(self, address)

    def alone(self, address: str) -> asyncio.Lock:
        """Return what only one at a time holds: whoever disconnects ends all connections to it."""
        return self._addresses.setdefault(address, _Address()).alone

    async def next(self, address: str) -> tuple[Adapter, BLEDevice]:
        """Return the adapter that hears the address, and the device, when it is heard next.

        Any number may wait.
        """
        known = self._addresses.setdefault(address, _Address())
        heard = known.next = known.next or asyncio.get_running_loop().create_future()
        await asyncio.wait({heard})  # one that is cancelled does not cancel it for the others
        return heard.result()

    def _heard(self, adapter: Adapter, device: BLEDevice, _: AdvertisementData) -> None:
        known = self._addresses.get(device.address)
        if known is not None:  # no stranger
            known.device = adapter, device
            if known.next is not None:
                known.next.set_result(known.device)
                known.next = None

    def _advertised(self, path: str) -> None:
        for adapter in self._adapters:
            adapter.advertised(path)

    def _told(self, adapter: Adapter, advertisement: Advertisement) -> None:
        for hear in self._addresses[advertisement.address].hear:
            hear(adapter.name, advertisement)


async def survey(
    adapters: Sequence[str], seconds: float, hear: Callable[[Advertisement], None]
) -> dict[str, str]:
    """Tell `hear` of every advertisement for so long; return why which adapters did not scan.

    For a technician who looks for sensors. The gateway itself never listens like this.
    """
    bluez = Bluez(adapters, _forget)

    def heard(_: Adapter, device: BLEDevice, data: AdvertisementData) -> None:
        hear(
            Advertisement(
                address=device.address,
                manufacturer_data=data.manufacturer_data,
                service_data=data.service_data,
                service_uuids=tuple(data.service_uuids),
                rssi=None if data.rssi == NO_SIGNAL else data.rssi,
            )
        )

    def advertised(path: str) -> None:
        for adapter in scanning:
            adapter.advertised(path)

    before = Reports(lambda *_: None, advertised).open
    scanning = [
        Adapter(name, bluez, heard, before=before, passive=False, silence=SILENCE, ask=None)
        for name in adapters
    ]
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_unending(run))
            for run in (bluez.run, *(each.run for each in scanning))
        ]
        await _begun(scanning)
        if not _why(scanning):
            await asyncio.sleep(seconds)
        stuck = await bluez.stuck()
        why = {each.name: each.why or stuck for each in scanning if each.why or stuck}
        for each in running:
            each.cancel()
    return why


async def _begun(adapters: Sequence[Adapter]) -> None:
    """Return when one scans, or it is known why none does."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while _why(adapters) and loop.time() < began + KNOWN:
        if loop.time() > began + STARTED and all(each.known for each in adapters):
            return
        await asyncio.sleep(0.05)


def _why(adapters: Sequence[Adapter]) -> str:
    reasons = [adapter.why for adapter in adapters]
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""


async def _unending(run: Callable[[], Awaitable[None]]) -> None:
    """Run it for ever: what bleak does wrong costs Bluetooth a second, and no serial sensor."""
    said: set[str] = set()
    while True:
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - whatever it is
            place = place_of(error)
            if place not in said:
                said.add(place)
                log.error("Bluetooth is begun anew, from now on without a word: %s", place)  # noqa: TRY400
        await asyncio.sleep(RETRY)


def _forget() -> None:
    """Have bleak forget all devices: after a crash of bluetoothd none is told to be gone.

    200 strangers and 40 crashes left 1800 of them with bleak. When its bus is lost it forgets all.
    The names are bleak's own; tests/test_bleak_contract.py fails first when they change.
    """
    manager = _global_instances.get(asyncio.get_running_loop())
    if manager is not None and manager._bus is not None:
        manager._bus.disconnect()
