"""The demonstration: simulated sensors and broker, and the real daemon between them.

    SerialLine ──pty──▶ bygate run ──MQTT 5──▶ Broker ──▶ Receiver ──▶ table, or counts as JSON
    FakeBlueZ ──D-Bus─▶ a process of its own, with a real configuration and buffer

What is shown was decoded from what the broker received. How many readings there should be is the
daemon's own word, in its last status.
"""

import asyncio
import json
import math
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hil.bledevices import BLE_DEVICES, BleDevice
from hil.bluez import FakeBlueZ
from hil.broker import Broker, Received
from hil.daemon import Daemon, DaemonError
from hil.dbusdaemon import PrivateBus
from hil.devices import DEVICES
from hil.receiver import Heard, Receiver
from hil.serialline import SerialLine
from hil.table import print_summary, watching

SERIAL = {
    "air-street": "sds011",
    "air-yard": "pms5003",
    "river-level": "maxbotix",
    "mast": "nmea0183",
}
"""The simulated devices on ptys: sensor and driver."""

BLE = {"school-air": "ruuvi", "park-soil": "bthome", "bus-stop": "environmental_sensing"}
"""Those of Bluetooth: two advertise, one is connected to."""

LOCAL = {"city-air": "simulator", "box": "host"}
"""The sensors that need no device."""

DRAINS_WITHIN = 10.0
"""Seconds that each further start of the daemon has for what the one before left in the buffer."""
FURTHER_STARTS = 3
TICK = 0.25

_CONFIG = """\
# What `bygate demo` runs the daemon with.
[gateway]
id = "demo"
state_dir = {state}

[uplink]
url = "{url}"
status_interval = "1s"    # so that the table is up to date; 1h by default

[buffer]
flush_interval = "500ms"
seal_interval = "1s"      # a batch a second, for whoever is watching; 60s by default
keep_free = "0 MiB"       # the temporary directory may be small
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was counted from the first start of the daemon to the end of the last."""

    taken: int
    """Readings that the daemon says it took."""
    receiver: Receiver
    sensors: dict[str, dict[str, Any]]
    """What the daemon says of each."""

    @property
    def lost(self) -> int:
        """Readings that were taken and did not come."""
        return self.taken - self.receiver.delivered

    @property
    def mute(self) -> list[str]:
        """The sensors that delivered nothing."""
        return [name for name in self.sensors if name not in self.receiver.sensors]

    @property
    def faults(self) -> list[str]:
        """What is not as it should be."""
        return [
            *(f"{name}: delivered nothing, {self.sensors[name]['why']}" for name in self.mute),
            *([f"{self.lost} of {self.taken} readings lost"] if self.lost else []),
            *(f"not a batch: {why}" for why in self.receiver.undecodable),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it as the object that `--json` prints."""
        receiver = self.receiver
        return {
            "readings_taken": self.taken,
            "readings_delivered": receiver.delivered,
            "readings_lost": self.lost,
            "duplicates": receiver.duplicates,
            "batches": receiver.batches,
            "payload_bytes": receiver.payload_bytes,
            "bytes_per_reading": receiver.bytes_per_reading,
            "sensors": {
                name: _sensor(said, receiver.sensors.get(name, Heard()))
                for name, said in self.sensors.items()
            },
        }


def _sensor(said: dict[str, Any], heard: Heard) -> dict[str, Any]:
    return {
        "driver": said["driver"],
        "link": said["link"],
        "delivered": heard.delivered,
        "outcomes": said["outcomes"],
        "last": {
            name: {"value": reading.value, "unit": reading.quantity.unit}
            for name, reading in heard.last.items()
        },
    }


class Show:
    """Everything from the sensors to the receiver, while the context lasts."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.receiver = Receiver()
        self.ble: dict[str, BleDevice] = {}
        """The BLE sensors; none where there can be no D-Bus of our own."""
        self.without = ""
        """Why there are none."""
        self.on_batch: Callable[[int], object] = lambda length: None
        """Called with the length of each distinct payload, once it is counted."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bygate-demo-"))
            self.directory = Path(folder)
            await stack.enter_async_context(self.broker)
            self.broker.on_publish.append(self._take)
            for number, (name, driver) in enumerate(SERIAL.items()):
                device = DEVICES[driver](seed=number)
                await stack.enter_async_context(SerialLine(device, self._port(name), seed=number))
            environment = await self._on_air(stack)
            config = self._configured("config.toml")
            self.daemon = await stack.enter_async_context(Daemon(config, environment))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End every process, and leave nothing behind."""
        await self._stack.__aexit__(kind, error, at)

    async def _on_air(self, stack: AsyncExitStack) -> dict[str, str]:
        """Put the BLE sensors on the air; return what the environment of its clients has to hold.

        The D-Bus and the BlueZ are our own: a real adapter of this machine is left alone.
        """
        try:
            bus = await stack.enter_async_context(PrivateBus())
            bluez = await stack.enter_async_context(FakeBlueZ(bus))
        except OSError as error:
            self.without = f"{error}"
            return {}
        for number, (name, driver) in enumerate(BLE.items()):
            self.ble[name] = BLE_DEVICES[driver](seed=number)
            self.ble[name].put(bluez)
        return bus.environment

    def _take(self, message: Received) -> None:
        before = self.receiver.batches
        self.receiver.take(message)
        self.broker.received.clear()  # it may run for days
        if self.receiver.batches > before:
            self.on_batch(len(message.payload))

    def _port(self, name: str) -> Path:
        return self.directory / f"tty-{name}"

    def _configured(self, file: str, *, sensors: bool = True) -> Path:
        """Write a configuration; one without sensors only delivers what the buffer holds."""
        state = json.dumps(str(self.directory / "state"))
        text = _CONFIG.format(state=state, url=self.broker.url)
        for name, driver in SERIAL.items() if sensors else ():
            port = json.dumps(str(self._port(name)))
            text += f'\n[sensors.{name}]\ndriver = "{driver}"\nport = {port}\ninterval = "1s"\n'
        for name, device in self.ble.items() if sensors else ():
            text += f'\n[sensors.{name}]\ndriver = "{BLE[name]}"\naddress = "{device.address}"\n'
            text += 'interval = "1s"\n'
        for name, driver in LOCAL.items() if sensors else ():
            text += f'\n[sensors.{name}]\ndriver = "{driver}"\ninterval = "1s"\n'
        path = self.directory / file
        path.write_text(text)
        return path

    async def end(self) -> Summary:
        """Stop the daemon, have it deliver what waits, and count."""
        if not self.receiver.status:
            raise DaemonError("ended before the daemon had found the broker")
        first = status = await self._stopped(self.daemon)
        taken = first["buffer"]["taken_readings"]
        for number in range(FURTHER_STARTS):
            if not _waits(status):
                break
            config = self._configured(f"drain-{number}.toml", sensors=False)
            self.receiver.status = {}
            async with Daemon(config) as daemon:
                await self._drained(taken, daemon)
                status = await self._stopped(daemon)
        return Summary(taken, self.receiver, first["sensors"])

    async def _stopped(self, daemon: Daemon) -> dict[str, Any]:
        """Stop a daemon, and return the last that it said of itself."""
        await daemon.stop()
        status = self.receiver.status
        if status.get("state") != "offline":
            raise DaemonError(f"the daemon ended without a last status; it said:\n{daemon.said()}")
        return status

    async def _drained(self, readings: int, daemon: Daemon) -> None:
        """Return when the daemon is there and so many have come, or it is taking too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DRAINS_WITHIN
        while loop.time() < until:
            daemon.check()
            if self.receiver.status and self.receiver.delivered >= readings:
                break
            await asyncio.sleep(0.1)


def _waits(status: dict[str, Any]) -> bool:
    return bool(status["buffer"]["waiting_batches"] or status["buffer"]["waiting_readings"])


def run(seconds: float | None, *, as_json: bool) -> int:
    """Run the demonstration; return 0 if every sensor delivered and nothing was lost."""
    try:
        summary = asyncio.run(_run(seconds, quiet=as_json or seconds is not None))
    except DaemonError as error:
        print(f"bygate demo: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:  # told to end a second time
        return 130
    if as_json:
        print(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        print_summary(summary.receiver, summary.sensors, summary.taken, summary.lost)
    for fault in summary.faults:
        print(f"bygate demo: {fault}", file=sys.stderr)
    return 1 if summary.faults else 0


async def _run(seconds: float | None, *, quiet: bool) -> Summary:
    told = asyncio.Event()
    _listen_to_signals(told)
    async with Show() as show:
        if show.without:
            print(f"bygate demo: without Bluetooth sensors: {show.without}", file=sys.stderr)
        with watching(show.receiver, show.broker.url, quiet=quiet) as view:
            show.on_batch = view.batch
            await _go_on(show, seconds, told, view.refresh)
            view.refresh("stopping the daemon, which delivers what it holds")
            return await show.end()


def _listen_to_signals(told: asyncio.Event) -> None:
    """Set the event when somebody wants an end, and give up at once when they say it again."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()

    def end() -> None:
        if told.is_set() and main:
            main.cancel()
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, end)


async def _go_on(
    show: Show, seconds: float | None, told: asyncio.Event, refresh: Callable[[], object]
) -> None:
    """Return after so many seconds, or when told; raises DaemonError if the daemon ends."""
    loop = asyncio.get_running_loop()
    until = math.inf if seconds is None else loop.time() + seconds
    while loop.time() < until and not told.is_set():
        show.daemon.check()
        refresh()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(TICK, until - loop.time())):
                await told.wait()
