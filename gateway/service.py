"""The daemon: wires sensors, buffer and uplink into one task group, and ends it in good order."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from gateway.about import about
from gateway.buffer import Buffer
from gateway.clock import Clock
from gateway.config import Config, SensorSettings
from gateway.disk import VOLATILE, Disk, volatile
from gateway.driver import (
    AdvertisementDriver,
    BleDriver,
    GattDriver,
    LocalDriver,
    SerialDriver,
    place_of,
)
from gateway.encoding import BOUNDS
from gateway.health import Health
from gateway.holdover import HoldOver
from gateway.listener import AdvertisementListener, Listener, SerialListener
from gateway.measure import counted
from gateway.poller import GattPoller, LocalPoller, Poller, SerialPoller
from gateway.reading import Reading
from gateway.serialport import SerialPort
from gateway.tally import Tally
from gateway.uplink import Uplink

if TYPE_CHECKING:
    from gateway.ble import Radio

RESOLVERS = 4
"""Threads that look names up and connect; one that hangs must not hold up the next broker's."""
SPREAD = 10.0
"""Seconds over which the first polls are spread, so that they do not all fall together for ever."""
TICK = 1.0
FAREWELL = 2.0
"""Seconds that the last batches have, at the end; the buffer keeps what they do not suffice for."""

RESTART_BLUETOOTH = "restart-bluetooth"
"""File in $RUNTIME_DIRECTORY that asks for a restart of BlueZ: systemd/bygate-bluetooth.path."""

log = logging.getLogger(__name__)


class StateDirInUse(Exception):
    """Another gateway works on the same directory; two would name different batches alike."""


class _Common(TypedDict):
    name: str
    interval: float
    clock: Clock
    sink: Callable[[Reading], None]


class Service:
    """One gateway. `run` returns after SIGTERM, SIGINT, or the SIGHUP of a terminal that goes."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = Clock() if clock is None else clock
        # One thread does all of the buffer's disk work, in order. Ports and files of local sensors
        # have threads of their own: one that hangs must not hold up a sync.
        self._writer = ThreadPoolExecutor(1, "writer")
        self._threads = ThreadPoolExecutor(max(len(config.sensors), 1), "sensor")
        self._disk = _own(config.gateway.state_dir)
        self._buffer = Buffer(
            *(self._disk, config.buffer, config.gateway.id, self._clock.boot),
            clock=self._clock,
            bound=BOUNDS[config.uplink.encoding],
        )
        self._hold_over = HoldOver(self._clock, self._disk)
        self._hold_over.recall()
        self._urgent = asyncio.Event()
        self._radio = _radio(config)
        self._pollers = [self._poller(sensor) for sensor in config.sensors.values()]
        self._tally = Tally(self._pollers, self._clock)
        self._uplink = Uplink(
            *(config.uplink, config.gateway.id, self._buffer, self._writer), about=about(config)
        )
        self._uplink.state.traffic.recall(self._disk)
        self._health = Health(
            config.gateway.id,
            self._clock,
            self._buffer,
            self._pollers,
            self._uplink.state,
            drivers={sensor.name: sensor.driver_name for sensor in config.sensors.values()},
            adapters=self._radio.states if self._radio else dict,
            volatile=volatile(config.gateway.state_dir),
        )

    def _poller(self, sensor: SensorSettings) -> Poller:
        common = _Common(
            name=sensor.name,
            interval=sensor.interval,
            clock=self._clock,
            sink=partial(self._sink, durable=sensor.durable),
        )
        match sensor.driver:
            case LocalDriver() as driver:
                return LocalPoller(driver=driver, threads=self._threads, **common)
            case SerialDriver() as driver if sensor.port:
                kind = SerialPoller if driver.polled else SerialListener
                port = SerialPort(sensor.port, driver, self._threads)
                return kind(driver=driver, port=port, **common)
            case BleDriver() as driver if sensor.address and self._radio:
                return self._ble_poller(driver, sensor.address, self._radio, common)
        raise TypeError(f"{sensor.name}: no link serves a {type(sensor.driver).__name__}")

    def _ble_poller(
        self, driver: BleDriver, address: str, radio: "Radio", common: _Common
    ) -> Poller:
        if isinstance(driver, GattDriver):
            from gateway.gatt import GattDevice  # noqa: PLC0415 - as _radio

            return GattPoller(driver=driver, port=GattDevice(address, radio), **common)
        if isinstance(driver, AdvertisementDriver):
            air = radio.reception(address)
            listener = AdvertisementListener(driver=driver, air=air, **common)
            radio.listen(address, listener.hear)
            return listener
        raise TypeError(f"{common['name']}: neither advertises nor is connected to")

    def _sink(self, reading: Reading, *, durable: bool) -> None:
        self._buffer.append(reading, durable=durable)
        if self._buffer.urgent:
            self._urgent.set()

    async def run(self) -> bool:
        """Run until the process is told to stop; then flush, seal, deliver and say goodbye.

        False: readings were lost, for the disk did not take them.
        """
        asyncio.get_running_loop().set_exception_handler(stray)
        connecting = ThreadPoolExecutor(RESOLVERS, "connect")  # aiomqtt asks for the default one
        asyncio.get_running_loop().set_default_executor(connecting)
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(self._take_readings(), name="readings")
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    asyncio.get_running_loop().add_signal_handler(number, taking.cancel)
            await self._tick()
            uplink = tasks.create_task(self._uplink.run(self._health), name="uplink")
            watch = tasks.create_task(self._uplink.watch(), name="certificate")
            notify("READY=1")
            await asyncio.wait({taking})
            notify("STOPPING=1")
            self._tally.tell()
            lost, why = await self._save()
            self._uplink.wake()
            await self._uplink.farewell(self._health, FAREWELL)
            uplink.cancel()
            watch.cancel()
        await self._on_writer(self._buffer.close)  # what was acknowledged last is written down
        await self._on_writer(partial(self._uplink.state.traffic.write, self._disk))
        if lost:
            log.error("stopped: %s lost: %s", counted(lost, "reading"), why)
            return False
        waiting = counted(self._buffer.stats().waiting_batches, "batch")
        log.info("stopped: %s left for the next start", waiting)
        return True

    async def _save(self) -> tuple[int, str | None]:
        """Have everything on the disk; return how many readings that cost, and why."""
        await self._on_writer(self._buffer.close)
        if self._buffer.unsaved:  # a sync fails once, where a disk has lost what it should write
            await self._on_writer(self._buffer.close)
        lost, why = self._buffer.unsaved, self._buffer.fault
        if lost:
            await self._on_writer(self._buffer.give_up)
        return lost, why

    async def _take_readings(self) -> None:
        """Poll every sensor and keep the buffer, for ever."""
        asked = [poller for poller in self._pollers if not isinstance(poller, Listener)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_buffer(), name="buffer")
            tasks.create_task(self._tally.run(), name="tally")
            if self._radio:
                tasks.create_task(self._radio.run(), name="radio")
            for poller in self._pollers:
                place = asked.index(poller) / len(asked) if poller in asked else 0.0
                delay = place * min(poller.interval, SPREAD)
                tasks.create_task(poller.run(delay), name=poller.name)

    async def _keep_buffer(self) -> None:
        period = min(TICK, self._config.buffer.flush_interval)
        while True:
            by = asyncio.get_running_loop().time() + period
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._buffer.next_tick(by)):
                    await self._urgent.wait()
            self._urgent.clear()
            await self._tick()
            notify("WATCHDOG=1")

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        await self._on_writer(partial(self._buffer.tick, now))
        await self._on_writer(partial(self._uplink.state.traffic.note, self._disk))
        await self._on_writer(self._hold_over.note)
        self._uplink.wake()

    async def _on_writer(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, work)


def _radio(config: Config) -> "Radio | None":
    """Return the radio, None when no sensor needs it: bleak is imported for those that do."""
    if not any(isinstance(sensor.driver, BleDriver) for sensor in config.sensors.values()):
        return None
    from gateway.ble import Radio  # noqa: PLC0415 - bleak costs 10 MB

    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Radio(
        config.bluetooth.adapter,
        passive=config.bluetooth.scanning == "passive",
        restart=Path(runtime, RESTART_BLUETOOTH) if runtime else None,
    )


def stray(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no task has met; connections that are lost leave many (dbus-fast, paho)."""
    error = context.get("exception")
    level = logging.DEBUG if isinstance(error, OSError | EOFError) else logging.ERROR
    message, _, _ = context["message"].partition("(")  # the arguments of a callback: strangers
    log.log(level, "%s: %s", message, place_of(error) if error else "")


def _own(directory: Path) -> Disk:
    disk = Disk(directory)
    with suppress(OSError):  # what cannot be written is said in the status, and tried again
        if not disk.lock():
            raise StateDirInUse(
                f"{directory}: another bygate uses it: stop that one (systemctl stop bygate), "
                "or set [gateway] state_dir"
            )
    if kind := volatile(directory):
        log.error("buffer: %s is on %s, which %s", directory, kind, VOLATILE)
    return disk


def notify(state: str) -> None:
    """Tell systemd how we are; does nothing where it does not ask. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to, suppress(OSError):
            to.sendto(state.encode(), address.replace("@", "\0", 1))
