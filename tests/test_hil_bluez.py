"""The simulated BlueZ as unmodified bleak meets it."""

import asyncio
import functools
import json
import os
import shutil
import signal
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from bleak import BleakClient, BleakScanner
from bleak.args.bluez import OrPattern
from bleak.backends.bluezdbus.version import BlueZFeatures
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakDBusError,
    BleakError,
    BleakGATTProtocolError,
)
from dbus_fast import BusType, Message, Variant
from dbus_fast.aio import MessageBus

from hil import __main__ as command
from hil import bluezcommand
from hil.bluez import FakeBlueZ
from hil.bluezfaults import FAULTS
from hil.bluezprocess import BlueZProcess
from hil.dbusdaemon import PrivateBus
from hil.radio import Characteristic
from tests.radio_scene import lost

pytestmark = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="no dbus-daemon")

TAG = "CC:B8:33:4C:88:4F"
METER = "C0:00:00:00:00:01"
TEMPERATURE = "00002a6e-0000-1000-8000-00805f9b34fb"
ALL = {"bluez": {"filters": {"DuplicateData": True}}}


def counter(number):
    return number.to_bytes(4, "big")


def on_bus(test):
    """Run a test in a loop of its own, no longer than 10 s."""

    @functools.wraps(test)
    def run(*arguments, **named):
        async def limited():
            asyncio.get_running_loop().set_exception_handler(lost)
            async with asyncio.timeout(10):
                await test(*arguments, **named)

        asyncio.run(limited())

    return run


@pytest.fixture(autouse=True)
def no_bluetoothctl(monkeypatch):
    monkeypatch.setattr(BlueZFeatures, "checked_bluez_version", True)
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)


@asynccontextmanager
async def running(**options):
    """Give a simulated BlueZ on a private bus, which is the system's for this process."""
    async with PrivateBus() as bus, FakeBlueZ(bus, **options) as bluez:
        os.environ |= bus.environment
        yield bluez
        await settled()


async def settled():
    """Close bleak's own connection, which it would keep as long as the loop."""
    from bleak.backends.bluezdbus.manager import _global_instances

    manager = _global_instances.pop(asyncio.get_running_loop(), None)
    if manager and manager._bus:
        manager._bus.disconnect()
        await asyncio.wait({manager._bus_watcher_task})


class Ears:
    """What a scanner hears, in order."""

    def __init__(self, **scan):
        self.heard = asyncio.Queue()
        self.scanner = BleakScanner(self.take, **scan)

    def take(self, device, advert):
        self.heard.put_nowait((device, advert))

    async def __aenter__(self):
        await self.scanner.start()
        return self

    async def __aexit__(self, *error):
        with suppress(BleakError, OSError, EOFError):
            await self.scanner.stop()

    async def next(self, address=TAG):
        while True:
            device, advert = await self.heard.get()
            if device.address == address:
                return device, advert

    async def hears(self, within=0.3):
        """Say whether anything is heard from now on; bleak reports a scan's end as RSSI -127."""
        while not self.heard.empty():
            self.heard.get_nowait()
        try:
            async with asyncio.timeout(within):
                while (await self.heard.get())[1].rssi == -127:
                    pass
        except TimeoutError:
            return False
        return True

    def numbers(self):
        """Return the counters of what was heard and not asked for yet."""
        adverts = [self.heard.get_nowait()[1] for _ in range(self.heard.qsize())]
        return [int.from_bytes(advert.manufacturer_data[0x0499]) for advert in adverts]


def tag(bluez, **more):
    return bluez.advertise(TAG, manufacturer={0x0499: counter}, **{"every": 0.02} | more)


def meter(bluez, value=b"\xd0\x07", **more):
    return bluez.peripheral(METER, {"181a": {"2a6e": value}}, **{"every": 0.02} | more)


async def found(**scan):
    async with Ears(**scan) as ears:
        return (await ears.next(METER))[0]


@asynccontextmanager
async def connected(bluez, value=b"\xd0\x07"):
    """Give a client that is connected to a meter, and the meter."""
    held = meter(bluez, value)
    async with Ears() as ears:
        device, _ = await ears.next(METER)
        async with BleakClient(device) as client:
            yield client, held


async def hears_again(within=5):
    """Scan as soon as bleak knows that it can, and say whether anything is heard."""
    while True:
        with suppress(BleakError, OSError, EOFError):
            async with Ears() as ears:
                return await ears.hears(within)
        await asyncio.sleep(0.01)


async def soon(done):
    while not done():  # noqa: ASYNC110 (what is waited for has no event; the test has a deadline)
        await asyncio.sleep(0.005)


# Scanning


@on_bus
async def test_an_advert_is_heard_as_it_was_sent():
    async with running() as bluez:
        bluez.advertise(
            TAG,
            manufacturer={0x0499: b"\x05\x12"},
            service_data={"fcd2": b"\x40"},
            name="tag",
            every=0.02,
        )
        async with Ears() as ears:
            device, advert = await ears.next()
    assert device.name == "tag"
    assert advert.manufacturer_data == {0x0499: b"\x05\x12"}
    assert advert.service_data == {"0000fcd2-0000-1000-8000-00805f9b34fb": b"\x40"}
    assert advert.rssi == -60


@on_bus
async def test_every_advert_is_heard_once_and_in_order():
    async with running() as bluez, Ears() as ears:
        sent = tag(bluez, every=0)
        for _ in range(300):
            assert sent.send()
        heard = [(await ears.next())[1].manufacturer_data[0x0499] for _ in range(300)]
    assert heard == [advert.manufacturer[0x0499] for advert in sent.heard]


@on_bus
async def test_nobody_hears_what_is_sent_while_nobody_scans():
    async with running() as bluez:
        sent = tag(bluez, every=0)
        assert not sent.send()
        async with Ears():
            assert sent.send()
        assert not sent.send()


@on_bus
async def test_entries_of_manufacturer_data_stay():
    async with running() as bluez, Ears() as ears:
        sent = tag(bluez, every=0)
        sent.send()
        sent.manufacturer = {0x004C: b"\x10"}
        sent.send()
        await ears.next()
        _, advert = await ears.next()
        assert advert.manufacturer_data == {0x0499: counter(0), 0x004C: b"\x10"}


@on_bus
async def test_a_flood_does_not_end_the_connection():
    async with running() as bluez, Ears() as ears:
        sent = bluez.advertise(
            TAG, manufacturer={0x0499: lambda n: bytes(20) + counter(n)}, every=0
        )
        for _ in range(5000):
            sent.send()
        for _ in range(5000):
            await ears.next()


@on_bus
async def test_who_is_not_heard_is_forgotten_by_bluez_and_bleak():
    async with running(forget_after=0.1) as bluez, Ears() as ears:
        crowd = bluez.crowd(20, every=0.02, rotate=0.05)
        await soon(lambda: len(crowd.addresses) > 100)
        crowd.stop()
        await soon(lambda: not bluez.adapters["hci0"].devices)
        await soon(lambda: not ears.scanner.discovered_devices)


@on_bus
async def test_a_second_scanner_of_the_same_process_is_refused():
    async with running(), Ears():
        with pytest.raises(BleakDBusError, match="already in progress"):
            await BleakScanner().start()


@on_bus
async def test_a_client_that_leaves_the_bus_loses_its_scan():
    async with running() as bluez, Ears():
        assert bluez.adapters["hci0"].sessions
        await settled()
        await soon(lambda: not bluez.adapters["hci0"].shown["Discovering"])


@on_bus
async def test_a_scan_hears_the_adapter_it_was_given():
    async with running(adapters=["hci0", "hci1"]) as bluez:
        near, far = tag(bluez, adapters=["hci1"]), meter(bluez, adapters=["hci0"])
        async with Ears(bluez={"adapter": "hci1"}) as ears:
            device, _ = await ears.next()
            assert device.details["path"].startswith("/org/bluez/hci1/")
            assert near.heard
            assert not far.heard


@on_bus
async def test_a_passive_scan_hears_what_matches_its_patterns():
    async with running(experimental=True) as bluez:
        patterns = [OrPattern(0, 0xFF, b"\x99\x04")]
        async with Ears(scanning_mode="passive", bluez={"or_patterns": patterns}) as ears:
            sent, other = tag(bluez), meter(bluez)
            await ears.next()
            assert sent.heard
            assert not other.heard
        assert not bluez.adapters["hci0"].scanning


@on_bus
async def test_a_passive_scan_needs_an_experimental_bluez():
    async with running():
        with pytest.raises(BleakError, match="experimental"):
            await Ears(
                scanning_mode="passive", bluez={"or_patterns": [(0, 255, b"a")]}
            ).__aenter__()


# Reading


@on_bus
async def test_a_characteristic_is_read():
    async with running() as bluez, connected(bluez) as (client, held):
        assert await client.read_gatt_char(TEMPERATURE) == b"\xd0\x07"
        assert held["2a6e"].reads == 1
        assert held.connects == 1


@on_bus
async def test_a_characteristic_is_written():
    value = Characteristic(flags=["write"])
    async with running() as bluez, connected(bluez, value) as (client, held):
        await client.write_gatt_char(TEMPERATURE, b"\x01", response=True)
        assert held["2a6e"].writes == [b"\x01"]


@on_bus
async def test_a_characteristic_notifies_until_told_to_stop():
    told, value = asyncio.Queue(), Characteristic(flags=["notify"])
    async with running() as bluez, connected(bluez, value) as (client, held):
        await client.start_notify(TEMPERATURE, lambda _, data: told.put_nowait(bytes(data)))
        held["2a6e"].notify(b"\x01")
        assert await told.get() == b"\x01"
        await client.stop_notify(TEMPERATURE)
        assert not held["2a6e"].notified


@on_bus
async def test_a_lost_link_is_seen_and_mended():
    async with running() as bluez, connected(bluez) as (client, held):
        held.hang_up()
        await soon(lambda: not client.is_connected)
        await client.connect()
        assert await client.read_gatt_char(TEMPERATURE) == b"\xd0\x07"


# Faults


@on_bus
async def test_no_adapter():
    async with running() as bluez:
        async with bluez.fault("no adapter"):
            with pytest.raises(BleakBluetoothNotAvailableError, match="No Bluetooth adapters"):
                await BleakScanner().start()
        tag(bluez)
        assert await hears_again()


@on_bus
async def test_powered_off():
    async with running() as bluez:
        async with bluez.fault("powered off"):
            with pytest.raises(BleakBluetoothNotAvailableError, match="powered"):
                await BleakScanner().start()
        tag(bluez)
        assert await hears_again()


@on_bus
async def test_an_adapter_that_was_plugged_in_anew_keeps_whom_it_hears():
    async with running(forget_after=0.2) as bluez:
        tag(bluez)
        async with Ears() as ears:
            await ears.next()
            async with bluez.fault("no adapter"):
                pass
        assert await hears_again()
        async with Ears() as ears:
            await ears.next()
            device = bluez.adapters["hci0"].devices[TAG]
            await asyncio.sleep(0.4)  # whom the pulled one heard would be forgotten by now
            assert device.shown["Address"] == TAG
            assert bluez.adapters["hci0"].devices[TAG] is device


@pytest.mark.parametrize("fault", ["powered off", "BlueZ gone", "BlueZ crashed", "no adapter"])
@on_bus
async def test_a_scan_that_is_cut_stays_silent_without_an_error(fault):
    async with running() as bluez, Ears() as ears:
        held = tag(bluez)
        await ears.next()
        for _ in range(5):  # these are on their way when the scan is cut
            held.send()
        async with bluez.fault(fault):
            pass
        cut = held.sent
        await soon(lambda: held.sent >= cut + 15)
        assert not [number for number in ears.numbers() if number >= cut]


@pytest.mark.parametrize(
    "fault", ["powered off", "BlueZ gone", "BlueZ crashed", "no adapter", "D-Bus gone"]
)
@on_bus
async def test_a_new_scan_after_the_cure_hears_again(fault):
    async with running() as bluez:
        tag(bluez)
        async with Ears() as ears:
            await ears.next()
            async with bluez.fault(fault):
                pass
        assert await hears_again()


@on_bus
async def test_while_d_bus_is_gone_there_is_no_connection():
    async with running() as bluez, bluez.fault("D-Bus gone"):
        with pytest.raises(OSError, match="No such file"):
            await BleakScanner().start()


@on_bus
async def test_while_bluez_is_gone_its_name_is_free():
    async with running() as bluez, bluez.fault("BlueZ gone"):
        with pytest.raises(BleakDBusError, match="ServiceUnknown"):
            await BleakScanner().start()


@pytest.mark.parametrize(("fault", "believed"), [("BlueZ gone", False), ("BlueZ crashed", True)])
@on_bus
async def test_after_a_crash_bleak_still_believes_that_it_is_connected(fault, believed):
    async with running() as bluez:
        meter(bluez)
        client = BleakClient(await found())
        await client.connect()
        async with bluez.fault(fault):
            pass
        assert await hears_again()
        assert client.is_connected == believed
        with suppress(TimeoutError):  # bleak waits 10 s for what was already so
            await asyncio.wait_for(client.disconnect(), 0.1)
        assert not client.is_connected


@on_bus
async def test_bluez_restarts_twenty_times():
    async with running() as bluez:
        tag(bluez)
        for _ in range(20):
            assert await hears_again()
            await bluez.restart()


async def power(on):
    """Set Powered as a gateway would."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    body = ["org.bluez.Adapter1", "Powered", Variant("b", on)]
    path, interface = "/org/bluez/hci0", "org.freedesktop.DBus.Properties"
    reply = await bus.call(Message("org.bluez", path, interface, "Set", signature="ssv", body=body))
    bus.disconnect()
    return reply.error_name


@on_bus
async def test_an_adapter_that_is_off_is_turned_on_by_a_client():
    async with running() as bluez:
        await bluez.begin("powered off")
        assert await power(True) is None
        assert bluez.adapters["hci0"].shown["Powered"]


@on_bus
async def test_an_adapter_that_is_blocked_is_not():
    async with running() as bluez, bluez.fault("blocked"):
        assert await power(True) == "org.bluez.Error.Failed"
        assert not bluez.adapters["hci0"].shown["Powered"]


async def cycle(bluez):
    await power(False)
    await power(True)


REMEDIES = {
    "deaf until power cycle": cycle,
    "deaf until BlueZ restarts": FakeBlueZ.restart,
    "deaf until power cut": FakeBlueZ.power_cut,
}


@pytest.mark.parametrize("fault", REMEDIES)
@on_bus
async def test_a_deaf_scanner_is_cured_by_its_own_remedy_and_none_before(fault):
    async with running() as bluez:
        tag(bluez)
        await bluez.begin(fault)
        assert not await hears_again(within=0.15)
        for name, remedy in REMEDIES.items():
            await remedy(bluez)
            if name == fault:
                break
            assert not await hears_again(within=0.15)
        assert await hears_again()


@on_bus
async def test_scan_refused():
    async with running() as bluez, bluez.fault("scan refused", times=1):
        with pytest.raises(BleakDBusError, match="InProgress"):
            await BleakScanner().start()
        await Ears().__aenter__()


@on_bus
async def test_a_scan_that_begins_late_hears_from_then_on():
    async with running() as bluez, bluez.fault("scan begins late", times=1):
        began = time.monotonic()
        bluez.advertise(TAG, manufacturer={1: b"x"}, every=0.05)
        async with Ears() as ears:
            assert time.monotonic() - began > 5
            await ears.next()


@on_bus
async def test_adverts_stop_at_one_address():
    async with running() as bluez:
        tag(bluez), meter(bluez)
        async with Ears() as ears, bluez.fault("adverts stop", at=METER):
            await ears.next(TAG)
            assert not bluez.adapters["hci0"].devices.get(METER)


@pytest.mark.parametrize(("scan", "told"), [({}, 5), (ALL, 100)])
@on_bus
async def test_steady_adverts_are_suppressed_unless_duplicates_are_asked_for(scan, told):
    async with running() as bluez, Ears(**scan) as ears:
        steady = bluez.advertise(TAG, manufacturer={0x0499: b"\x05"}, every=0)
        steady.send()
        await ears.next()
        async with bluez.fault("steady adverts suppressed"):
            for _ in range(100):
                assert steady.send()
            steady.manufacturer = {0x0499: b"\x06"}
            steady.send()
            while (await ears.next())[1].manufacturer_data == {0x0499: b"\x05"}:
                told -= 1
    assert told == 0


@pytest.mark.parametrize(
    ("fault", "text"), [("connect refused", "le-connection-refused"), ("in progress", "InProgress")]
)
@on_bus
async def test_connect_is_answered_with_an_error(fault, text):
    async with running() as bluez:
        held = meter(bluez)
        async with bluez.fault(fault):
            with pytest.raises(BleakDBusError, match=text):
                await BleakClient(await found()).connect()
        async with BleakClient(await found()) as client:
            assert await client.read_gatt_char(TEMPERATURE)
        assert held.connects == 1


@on_bus
async def test_bleak_itself_tries_again_when_a_connection_is_aborted():
    async with running() as bluez:
        held = meter(bluez)
        async with bluez.fault("connect aborted", times=3), BleakClient(await found()):
            assert held.connects == 1


@on_bus
async def test_a_device_that_has_left_is_not_connected_to():
    async with running() as bluez:
        held = meter(bluez)
        device = await found()
        held.stop()
        with pytest.raises(TimeoutError):
            await BleakClient(device, timeout=0.2).connect()


@on_bus
async def test_a_device_that_was_forgotten_is_not_found():
    async with running(forget_after=0.1) as bluez:
        device = (await found()) if meter(bluez) else None
        bluez.air.stop()
        await soon(lambda: not bluez.adapters["hci0"].devices)
        with pytest.raises(BleakError, match="not found"):
            await BleakClient(device).connect()


@on_bus
async def test_services_never_resolve():
    async with running() as bluez, bluez.fault("services never resolve"):
        meter(bluez)
        with pytest.raises(TimeoutError):
            await BleakClient(await found(), timeout=0.2).connect()


@pytest.mark.parametrize("fault", ["silent", "in progress"])
@on_bus
async def test_a_read_hangs_for_ever(fault):
    async with running() as bluez, connected(bluez) as (client, _):
        async with bluez.fault(fault):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.read_gatt_char(TEMPERATURE)
        assert client.is_connected


@on_bus
async def test_a_device_that_vanishes_mid_read_is_not_missed_by_bleak():
    async with running() as bluez, bluez.fault("vanishes mid-read"):
        held = meter(bluez)
        client = BleakClient(await found())
        await client.connect()
        held.stop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.read_gatt_char(TEMPERATURE), 0.2)
        assert client.is_connected
        with pytest.raises(BleakDBusError, match="UnknownObject"):
            await client.disconnect()


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("ATT error", BleakGATTProtocolError, "Unlikely Error"),
        ("not paired", BleakDBusError, "Not paired"),  # not a BleakGATTProtocolError
    ],
)
@on_bus
async def test_a_read_is_answered_with_an_error(fault, error, text):
    async with running() as bluez, connected(bluez) as (client, _):
        async with bluez.fault(fault):
            with pytest.raises(error, match=text):
                await client.read_gatt_char(TEMPERATURE)
        assert await client.read_gatt_char(TEMPERATURE) == b"\xd0\x07"


@on_bus
async def test_a_device_that_vanished_comes_back_with_its_next_advert():
    async with running() as bluez:
        meter(bluez)
        async with BleakClient(await found()) as client, bluez.fault("vanishes mid-read", times=1):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.read_gatt_char(TEMPERATURE), 0.1)
            async with BleakClient(await found()) as another:
                assert await another.read_gatt_char(TEMPERATURE) == b"\xd0\x07"


@on_bus
async def test_a_fault_ends_after_so_many_times():
    async with running() as bluez:
        meter(bluez)
        await bluez.begin("connect refused", at=METER, times=2)
        device = await found()
        for _ in range(2):
            with pytest.raises(BleakDBusError, match="refused"):
                await BleakClient(device).connect()
        async with BleakClient(device):
            pass


@on_bus
async def test_a_fault_that_does_not_exist_is_answered_with_the_nearest():
    async with running() as bluez:
        with pytest.raises(ValueError, match="did you mean 'powered off'"):
            await bluez.begin("powred off")


def test_every_fault_is_tested():
    text = Path(__file__).read_text()
    assert [name for name in FAULTS if f'"{name}"' not in text] == []


# As a process

SCENE = {
    "advertiser": [{"address": TAG, "manufacturer": {"0499": ["05", "06"]}, "every": 0.02}],
    "peripheral": [{"address": METER, "services": {"181a": {"2a6e": ["01", "02"]}}, "every": 0.02}],
    "crowd": {"size": 3, "every": 0.1},
}


@on_bus
async def test_it_runs_as_a_process_and_does_as_it_is_told():
    async with BlueZProcess(SCENE) as bluez:
        os.environ |= bluez.environment
        async with Ears() as ears:
            said = {(await ears.next())[1].manufacturer_data[0x0499] for _ in range(3)}
            assert said == {b"\x05", b"\x06"}
            await bluez.tell(f"fault adverts stop at {TAG}")
        async with BleakClient(await found()) as client:
            read = [await client.read_gatt_char(TEMPERATURE) for _ in range(3)]
            assert read == [b"\x01", b"\x02", b"\x01"]
        assert json.loads(await bluez.tell("heard"))[METER] > 0
        await settled()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("fault powred off", "did you mean 'powered off'"),
        (f"stop {TAG[:8]}", "nothing at"),
        ("dance", "what is 'dance'"),
        ('put {"phones": 3}', "advertiser, peripheral, or crowd"),
        ("put {", "Expecting"),
        (
            'put {"advertiser": [{"addres": "CC:B8"}]}',
            "did you mean address or",
        ),
    ],
)
@on_bus
async def test_a_line_that_it_does_not_understand_is_answered_with_what_there_is(line, answer):
    async with running() as bluez:
        with pytest.raises(ValueError, match=answer):
            await bluezcommand.obey(bluez, line)


@on_bus
async def test_lines_begin_and_end_what_happens():
    async with running() as bluez:
        await bluezcommand.obey(bluez, f"put {json.dumps(SCENE)}")
        await bluezcommand.obey(bluez, f"stop {TAG}")
        assert bluez.air.senders[0].away
        await bluezcommand.obey(bluez, f"start {TAG}")
        assert not bluez.air.senders[0].away
        await bluezcommand.obey(bluez, "fault no adapter at hci0")
        assert not bluez.adapters
        for line in ("cure no adapter at hci0", "restart", "power cut"):
            assert await bluezcommand.obey(bluez, line) == "ok"
        assert bluez.adapters["hci0"].shown["Powered"]


def test_an_advertiser_is_told_in_words():
    said = bluezcommand.spec([TAG, "manufacturer:0499=05", "service:fcd2=40", "every=0.1"])
    assert said == {
        "address": TAG,
        "manufacturer": {"0499": "05"},
        "service_data": {"fcd2": "40"},
        "every": 0.1,
    }


def test_a_scene_is_read_from_toml(tmp_path):
    file = tmp_path / "scene.toml"
    file.write_text(f'[[advertiser]]\naddress = "{TAG}"\nmanufacturer = {{ 0x0499 = "05" }}\n')
    assert bluezcommand.load(file) == {
        "advertiser": [{"address": TAG, "manufacturer": {"0x0499": "05"}}]
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--advertise", TAG, "0499=05"], "'0499=05' is none of"),
        (["--advertise", TAG, "manufacturer:0499=zz"], "non-hexadecimal"),
        (["--file", "nowhere.toml"], "No such file"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_a_line(arguments, said, capsys):
    assert command.main(["bluez", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err


@on_bus
async def test_the_bus_dies_with_whoever_started_it():
    bluez = await BlueZProcess().__aenter__()
    socket = Path(bluez.environment["DBUS_SYSTEM_BUS_ADDRESS"].removeprefix("unix:path="))
    os.kill(bluez.pid, signal.SIGKILL)
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(socket)
        except ConnectionRefusedError:
            break
        writer.close()
        await asyncio.sleep(0.01)
    await bluez.__aexit__(None, None, None)
    shutil.rmtree(socket.parent)


@on_bus
async def test_nothing_is_left_in_the_temporary_directory():
    async with PrivateBus() as bus:
        folder = bus.path.parent
        await bus.kill()
        await bus.start()
    assert not folder.exists()
