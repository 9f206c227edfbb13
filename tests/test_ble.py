"""The radio against a simulated BlueZ: unmodified bleak, a real bus, every fault by name."""

import asyncio
import json
import logging
import time
from types import SimpleNamespace

import pytest
from dbus_fast import Message, MessageType, Variant

from gateway.bluez import BEGINS, CALL, DENIED, DEVICE, RETRY, path_of
from gateway.buffer import Buffer
from gateway.clock import Clock
from gateway.disk import Disk
from gateway.driver import NoAdapter, NoReply, find
from gateway.health import Health
from gateway.listener import AdvertisementListener
from gateway.ration import BURST
from gateway.reports import Reports
from gateway.settings import BufferSettings
from gateway.uplinkstate import UplinkState
from tests.radio_scene import NEEDS_DBUS, TAG, Ears, apart, on_air, resources, scene, until

pytestmark = NEEDS_DBUS

RUUVI = 0x0499
AIR = bytes.fromhex("0512fc5394c37c0004fffc040cac364200cdcbb8334c884f")
CURED = 2.0
"""Seconds after the cure in which values flow again."""


@pytest.fixture(autouse=True)
def private(monkeypatch):
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)


@pytest.fixture
def unlogged():
    """Log nothing: pytest would keep each line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def counter(number):
    return number.to_bytes(4, "big")


def tag(bluez, **more):
    return bluez.advertise(TAG, manufacturer={RUUVI: counter}, every=0.02, **more)


def warnings(caplog):
    return _said(caplog, logging.WARNING)


def infos(caplog):
    return _said(caplog, logging.INFO)


def _said(caplog, level):
    ours = [each for each in caplog.records if each.name.startswith("gateway")]
    return [each.getMessage() for each in ours if each.levelno == level]


FAULTS = {
    "powered off": "hci0 is off: sudo rfkill unblock bluetooth; bluetoothctl power on",
    "blocked": "hci0 is off: sudo rfkill unblock bluetooth; bluetoothctl power on",
    "no adapter": "there is no Bluetooth adapter hci0",
    "BlueZ gone": "BlueZ does not run: sudo systemctl start bluetooth",
    "BlueZ crashed": "BlueZ does not run: sudo systemctl start bluetooth",
    "D-Bus gone": "",
}


@pytest.mark.parametrize("name", FAULTS)
@on_air
async def test_a_fault_is_said_once_and_its_end_once_and_adverts_come_again(name, caplog):
    caplog.set_level(logging.INFO, "gateway")
    async with scene() as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        async with bluez.fault(name):
            await until(lambda: radio.why)
            await asyncio.sleep(1.2 * RETRY)  # it is tried again, and not said again
            assert radio.why.startswith(FAULTS[name])
            assert radio.states() == {"hci0": {"state": "silent", "why": radio.why}}
        _, after = await ears.next()
        await radio.opened()  # the first advert may come before the scan is known to run
    assert after < CURED
    assert len(warnings(caplog)) == 1
    assert infos(caplog) == ["hci0: scans again"]


@pytest.mark.parametrize("name", [*FAULTS, "scan refused"])
@on_air
async def test_a_fault_at_the_start_is_said_once_and_waited_out(name, caplog):
    caplog.set_level(logging.INFO, "gateway")
    async with scene() as (bluez, radio):
        await bluez.begin(name)
        ears = Ears(radio)
        tag(bluez)
        await until(lambda: radio.why)
        await asyncio.sleep(1.2 * RETRY)  # it is tried again, and not said again
        assert not ears.heard
        await bluez.cure(name)
        _, after = await ears.next()
    assert after < CURED
    assert len(warnings(caplog)) == 1


@on_air
async def test_a_scan_that_begins_after_it_was_given_up_keeps_no_other_from_beginning():
    async with scene() as (bluez, radio):
        began = time.monotonic()
        await bluez.begin("scan begins late", times=1)
        await radio.opened()
        assert CALL < time.monotonic() - began < CALL + 5


@on_air
async def test_an_adapter_that_does_not_answer_keeps_no_other_from_scanning():
    async with scene(("hci0", "hci1")) as (bluez, radio):
        began = time.monotonic()
        await bluez.begin("scan begins late", at="hci0")
        await radio.opened()
        assert radio.states()["hci1"]["state"] == "ok"
        assert time.monotonic() - began < CALL + 2


@on_air
async def test_a_user_whom_the_bus_keeps_from_bluez_is_told_the_group_not_to_plug_it_in(caplog):
    async with scene(denied="org.bluez") as (_, radio):
        await until(lambda: radio.why == DENIED)
        await asyncio.sleep(1.5 * RETRY)  # it is tried again, and nothing else is said
        assert radio.why == DENIED
    assert warnings(caplog) == [DENIED]
    assert "sudo usermod -aG bluetooth bygate" in DENIED


@on_air
async def test_what_is_not_configured_is_never_seen_by_anyone(caplog):
    caplog.set_level(logging.DEBUG)
    async with scene() as (bluez, radio):
        bluez.crowd(50, every=0.02)
        ears = Ears(radio)
        tag(bluez)
        for _ in range(20):
            await ears.next()
        assert list(radio._addresses) == [TAG]
    gateways = [r.getMessage() for r in caplog.records if r.name.startswith(("gateway", "bleak"))]
    assert not gateways


def hall(radio):
    """Return the listener of a sensor at TAG."""
    return AdvertisementListener(
        **{"name": "hall", "driver": find("ruuvi")(), "interval": 0.5, "clock": Clock()},
        **{"sink": lambda reading: None, "air": radio.reception(TAG)},
    )


@on_air
async def test_a_sensor_is_not_blamed_for_what_was_said_before_the_adapter_listened():
    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        bluez.crowd(10, every=0.5)
        listener = hall(radio)
        listening = tasks.create_task(listener.run())
        await until(lambda: NoReply.outcome in listener.state.outcomes)
        assert listener.state.outcomes[NoAdapter.outcome] == 1
        listening.cancel()


@on_air
async def test_only_what_changed_is_passed_on_though_bluez_keeps_the_old():
    async with scene() as (bluez, radio):
        ears = Ears(radio)
        old = bluez.advertise(TAG, manufacturer={0x0001: b"old"}, every=0.05)
        assert (await ears.next())[0].manufacturer_data == {1: b"old"}
        old.stop()
        bluez.advertise(TAG, manufacturer={RUUVI: b"new"}, every=0.05)
        assert (await ears.next())[0].manufacturer_data == {RUUVI: b"new"}


@on_air
async def test_a_steady_advert_is_heard_each_time_though_bluez_would_suppress_it():
    async with scene() as (bluez, radio):
        await bluez.begin("steady adverts suppressed")
        ears = Ears(radio)
        bluez.advertise(TAG, manufacturer={RUUVI: b"steady"}, every=0.02)
        for _ in range(10):
            assert (await ears.next())[0].manufacturer_data == {RUUVI: b"steady"}


@on_air
async def test_what_stands_while_something_else_changes_is_not_told_as_if_sent_again():
    """bleak tells a device's data whole at each change of its name, its signal, its other data."""
    async with scene() as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: b"once"}, every=0)
        await until(device.send)
        assert (await ears.next())[0].manufacturer_data == {RUUVI: b"once"}
        device.manufacturer, device.name, device.rssi = {}, "renamed", -40
        device.send()
        device.service_data = {"0000feaa-0000-1000-8000-00805f9b34fb": b"else"}
        device.send()
        heard, _ = await ears.next()
        assert (heard.manufacturer_data, heard.service_data) == ({}, device.service_data)
        assert len(ears.heard) == 2


@on_air
async def test_what_is_sent_again_is_told_though_something_beside_it_changes():
    async with scene() as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: counter}, every=0)
        device.service_data = {"0000feaa-0000-1000-8000-00805f9b34fb": b"steady"}
        await until(device.send)
        device.send()
        device.send()
        await until(lambda: len(ears.heard) == 5)  # 1 for both, then 1 for each
        again = [each for each in ears.heard[1:] if each.service_data]
        assert [each.service_data for each in again] == [device.service_data] * 2
        assert [each.manufacturer_data for each in again] == [{}, {}]


@on_air
async def test_what_is_steady_is_told_beside_what_changes_in_the_same_data_until_it_is_gone():
    async with scene() as (bluez, radio):
        ears, both = Ears(radio), {RUUVI: b"steady", 0x0001: counter}
        device = bluez.advertise(TAG, manufacturer=both, every=0)
        await until(device.send)
        device.send()
        device.manufacturer = {0x0001: counter}
        device.send()
        await until(lambda: len(ears.heard) == 4)
        assert [sorted(each.manufacturer_data) for each in ears.heard] == [
            [0x0001, RUUVI],
            *([0x0001], [RUUVI]),
            [0x0001],
        ]


@on_air
async def test_a_device_that_bluez_forgot_does_not_come_back_with_what_it_said():
    async with scene(bluez={"forget_after": 0.3}) as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: b"said"}, every=0)
        await until(device.send)
        await until(lambda: ears.heard and not bluez.adapters["hci0"].devices)
        device.manufacturer, device.name = {}, "back"
        device.send()
        device.manufacturer = {RUUVI: b"said"}
        device.send()
        await until(lambda: len(ears.heard) == 2)
        assert ears.heard[1].manufacturer_data == device.manufacturer


@on_air
async def test_all_that_a_device_says_which_bluez_forgot_is_new():
    async with scene(bluez={"forget_after": 0.3}) as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: b"said"}, every=0)
        await until(device.send)
        await until(lambda: ears.heard and not bluez.adapters["hci0"].devices)
        device.manufacturer = {RUUVI: b"said", 0x0001: b"more"}
        device.send()
        heard, _ = await ears.next()
        assert heard.manufacturer_data == device.manufacturer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ManufacturerData", Variant("s", "x")),
        ("ManufacturerData", Variant("a{qv}", {1: Variant("s", "x")})),
        ("ServiceData", Variant("as", ["x"])),
        ("UUIDs", Variant("u", 1)),
    ],
)
def test_properties_of_types_that_bluez_does_not_have_tell_nothing(name, value):
    reports, told = reported()
    change(reports, {name: value})
    assert not told


def test_what_is_sent_again_is_not_new_though_something_else_changed_meanwhile():
    reports, told = reported()
    service = {"ServiceData": Variant("a{sv}", {"feaa": Variant("ay", b"steady")})}
    change(reports, service)
    change(reports, {"RSSI": Variant("n", -40)})
    change(reports, service | {"ManufacturerData": Variant("a{qv}", {1: Variant("ay", b"new")})})
    assert [each.service_data for each in told] == [{"feaa": b"steady"}, {}, {"feaa": b"steady"}]
    told.clear()
    change(reports, {"RSSI": Variant("n", -41)})
    other = {"ServiceData": Variant("a{sv}", {"feaa": Variant("ay", b"other")})}
    change(reports, other | {"ManufacturerData": Variant("a{qv}", {1: Variant("ay", b"new")})})
    assert [each.manufacturer_data for each in told] == [{}, {1: b"new"}]


def test_an_adapter_that_is_added_is_no_device():
    reports, told = reported()
    hear(reports, "InterfacesAdded", "oa{sa{sv}}", ["/org/bluez/hci0", {"org.bluez.Adapter1": {}}])
    assert not told


@pytest.mark.parametrize(
    ("interface", "kind"),
    [("org.bluez.Battery1", MessageType.SIGNAL), (DEVICE, MessageType.METHOD_CALL)],
)
def test_what_is_no_report_of_bluez_on_a_device_tells_nothing(interface, kind):
    reports, told = reported()
    said = {"ManufacturerData": Variant("a{qv}", {1: Variant("ay", b"x")})}
    hear(reports, "PropertiesChanged", "sa{sv}as", [interface, said, []], kind)
    assert not told


def test_a_device_that_is_not_watched_is_known_to_be_there_and_tells_nothing():
    told, there = [], []
    reports = Reports(lambda _, said: told.append(said), there.append)
    change(reports, {"RSSI": Variant("n", -40)})
    assert (told, len(there)) == ([], 1)


def reported():
    """Return reports of a device, and a list of what they tell of it."""
    told = []
    reports = Reports(lambda _, said: told.append(said), lambda path: None)
    reports.watch(SimpleNamespace(name="hci0", repeats=False), TAG)
    return reports, told


def change(reports, properties):
    hear(reports, "PropertiesChanged", "sa{sv}as", [DEVICE, properties, []])


def hear(reports, member, signature, body, kind=MessageType.SIGNAL):
    path = f"{path_of('hci0')}/dev_{TAG.replace(':', '_')}"
    how = {"path": path, "interface": "a.b", "message_type": kind}
    reports._hear(Message(member=member, signature=signature, body=body, **how))


@on_air
async def test_one_adapter_does_not_retell_what_the_other_has_heard_newer_of():
    async with scene(("hci0", "hci1")) as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: b"old"}, every=0)
        await until(lambda: all(each.sessions for each in bluez.adapters.values()))
        device.send()
        await until(lambda: len(ears.heard) == 2)
        device.adapters, device.manufacturer = ("hci0",), {RUUVI: b"new"}
        device.send()
        device.adapters, device.manufacturer, device.name = ("hci1",), {}, "named"
        device.send()
        device.manufacturer = {0x0001: b"last"}
        device.send()
        await until(lambda: len(ears.heard) == 4)
        assert [each.manufacturer_data for each in ears.heard[2:]] == [
            {RUUVI: b"new"},
            {0x0001: b"last"},
        ]


@on_air
async def test_what_bleak_tells_when_a_scan_ends_is_not_heard_as_an_advert():
    async with scene() as (bluez, radio):
        ears = Ears(radio)
        await until(bluez.advertise(TAG, manufacturer={RUUVI: b"old"}, every=0).send)
        await ears.next()
        await bluez.begin("powered off")
        await asyncio.sleep(0.3)  # by now it would have been told
        assert len(ears.heard) == 1


@on_air
async def test_adverts_whose_signal_the_controller_does_not_know_are_heard(caplog):
    async with scene(silence=0.3) as (bluez, radio):
        device = bluez.advertise(TAG, manufacturer={RUUVI: counter}, every=0.02, rssi=None)
        await radio.opened()
        await asyncio.sleep(0.7)  # twice as long as may be silent
        found = await asyncio.gather(*(radio.next(TAG) for _ in range(3)))
        assert {each.address for _, each in found} == {device.address}
    assert not warnings(caplog)


@on_air
async def test_what_bleak_tells_when_a_scan_ends_is_nobody_to_connect_to():
    async with scene() as (bluez, radio):
        await until(bluez.advertise(TAG, manufacturer={RUUVI: b"old"}, every=0).send)
        await radio.next(TAG)
        waiting = asyncio.create_task(radio.next(TAG))
        await bluez.begin("powered off")
        await asyncio.sleep(0.3)  # by now it would have been told
        assert not waiting.done()
        waiting.cancel()


@on_air
async def test_all_who_wait_for_a_device_are_given_it_though_one_of_them_gives_up():
    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(radio.next(TAG)) for _ in range(3)]
        await radio.opened()
        waiting.pop().cancel()
        tag(bluez)
        for adapter, device in [await each for each in waiting]:
            assert (adapter.name, device.address) == ("hci0", TAG)


@on_air
async def test_two_adapters_are_listened_with_and_one_does_for_the_other():
    async with scene(("hci0", "hci1")) as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        async with bluez.fault("no adapter", at="hci0"):
            await until(lambda: radio.states()["hci0"]["why"])
            await ears.next()
            assert radio.why == ""
            assert radio.states()["hci1"] == {"state": "ok", "why": None}
            assert "no Bluetooth adapter hci0" in radio.states()["hci0"]["why"]


@pytest.mark.parametrize("once", [True, False], ids=["heard once", "never heard"])
@on_air
async def test_of_a_sensor_that_one_adapter_reaches_the_state_of_that_one_is_said(once):
    async with scene(("hci0", "hci1")) as (bluez, radio), asyncio.TaskGroup() as tasks:
        listener, ears = hall(radio), Ears(radio)
        await until(lambda: all(each["state"] == "ok" for each in radio.states().values()))
        sent = tag(bluez, adapters=("hci1",))
        if once:
            await ears.next()
        else:
            sent.stop()
        async with bluez.fault("powered off", at="hci1"):
            await until(lambda: radio.states()["hci1"]["why"])
            assert radio.why == ""
            listening = tasks.create_task(listener.run())
            await until(lambda: listener.state.why)
            assert (listener.state.why or "").startswith("hci1 is off: sudo rfkill unblock")
            assert list(listener.state.outcomes) == [NoAdapter.outcome]
        sent.stop()
        await until(lambda: NoReply.outcome in listener.state.outcomes)
        listening.cancel()


@on_air
async def test_bluez_that_has_begun_without_its_adapters_yet_is_given_time_to_find_them():
    async with scene() as (bluez, radio):
        await radio.opened()
        async with bluez.fault("no adapter"):
            await bluez.restart()
            began = asyncio.get_running_loop().time()
            await until(lambda: "BlueZ has only just begun" in radio.why)
            await until(lambda: "there is no Bluetooth adapter hci0" in radio.why)
            assert asyncio.get_running_loop().time() - began > BEGINS - 0.1
        await radio.opened()


@on_air
async def test_an_adapter_that_comes_and_goes_is_told_of_now_and_then(caplog):
    caplog.set_level(logging.INFO, "gateway")
    async with scene() as (bluez, radio):
        for _ in range(2 * BURST):
            await radio.opened()
            async with bluez.fault("powered off"):
                await until(lambda: radio.why)
        await radio.opened()
    assert len(warnings(caplog)) == len(infos(caplog)) == BURST
    assert ["comes and goes" in line for line in warnings(caplog)] == [False] * (BURST - 1) + [True]


@on_air
async def test_passive_scanning_hears_where_bluez_can(caplog):
    async with scene(passive=True, bluez={"experimental": True}) as (bluez, radio):
        ears = Ears(radio)
        bluez.advertise(TAG, manufacturer={RUUVI: counter}, every=0.02)
        await ears.next()
    assert not warnings(caplog)


@on_air
async def test_passive_scanning_does_not_retell_what_a_device_no_longer_sends():
    async with scene(passive=True, bluez={"experimental": True}) as (bluez, radio):
        ears = Ears(radio)
        device = bluez.advertise(TAG, manufacturer={RUUVI: b"old"}, every=0)
        await until(device.send)
        await ears.next()
        device.manufacturer = {}
        for device.rssi in (-40, -80, -40):
            device.send()
        device.manufacturer = {0x0001: b"new"}
        device.send()
        device.manufacturer = {0x0001: b"last"}
        device.send()
        await until(lambda: len(ears.heard) > 2)
        assert [each.manufacturer_data for each in ears.heard[1:]] == [
            {0x0001: b"new"},
            {0x0001: b"last"},
        ]


@on_air
async def test_passive_scanning_falls_back_and_says_so_once(caplog):
    async with scene(passive=True) as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        await bluez.restart()
        await ears.next()
    assert len([w for w in warnings(caplog) if "scans actively" in w]) == 1


# The ladder: silence for 90 s in the field, for 0.3 s here


LADDER = "scans anew", "is switched off and on", "bluetooth.service is to be restarted"


def status_of(radio, listener, directory):
    """Return what tells the status of a gateway with this radio and this sensor."""
    buffer = Buffer(Disk(directory), BufferSettings(), "it", 1)
    uplink = UplinkState()
    health = Health("it", Clock(), buffer, [listener], uplink, adapters=radio.states)
    return lambda: json.loads(health.payload("online"))


@on_air
async def test_an_adapter_deaf_until_it_is_switched_off_and_on_is_switched_so(caplog):
    async with scene(silence=0.3) as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        await bluez.begin("deaf until power cycle")
        await ears.next()
        assert radio.why == ""
    assert [line.rpartition(": ")[2] for line in warnings(caplog)] == [*LADDER[:2]]


@on_air
async def test_an_adapter_deaf_until_bluez_restarts_has_that_asked_for(caplog, tmp_path):
    ask = tmp_path / "restart-bluetooth"
    async with scene(silence=0.3, restart=ask) as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        await bluez.begin("deaf until BlueZ restarts")
        while not ask.exists():
            await radio.bluez.change()
        await bluez.restart()
        await ears.next()
        assert radio.why == ""


@on_air
async def test_an_adapter_that_nothing_helps_is_said_to_need_a_power_cut(caplog, tmp_path):
    async with scene(silence=0.2, restart=tmp_path / "ask") as (bluez, radio):
        ears = Ears(radio)
        tag(bluez)
        await ears.next()
        await bluez.begin("deaf until power cut")
        while "power cut" not in radio.why:
            await radio.bluez.change()
        assert "and a restart of BlueZ did not help" in radio.why
        told = len(warnings(caplog))
        await asyncio.sleep(1)  # it is silent on
        assert len(warnings(caplog)) == told == 4
        await bluez.power_cut()
        _, after = await ears.next()
        assert after < CURED
        assert radio.why == ""


@on_air
async def test_of_a_deaf_adapter_the_status_says_so_and_does_not_blame_its_sensor(tmp_path):
    async with scene(silence=0.4) as (bluez, radio), asyncio.TaskGroup() as tasks:
        listener = hall(radio)
        radio.listen(TAG, listener.hear)
        status = status_of(radio, listener, tmp_path)
        bluez.advertise(TAG, manufacturer={RUUVI: AIR}, every=0.02)
        listening = tasks.create_task(listener.run())
        await until(lambda: status()["sensors"]["hall"]["state"] == "ok")
        await bluez.begin("deaf until power cut")
        seen = set()
        while (adapter := status()["bluetooth"]["hci0"])["state"] != "power cut needed":
            seen |= {(adapter["state"], adapter["why"]), ("silent", listener.state.why)}
            await asyncio.sleep(0.01)
        assert "the adapter needs a power cut" in adapter["why"]
        assert "a restart of BlueZ did" not in adapter["why"]  # there was nobody to ask for one
        said = {(state, why.rpartition(": ")[2]) for state, why in seen if why}
        assert said == {("silent", step) for step in LADDER}
        assert NoReply.outcome not in listener.state.outcomes
        await bluez.power_cut()
        await until(lambda: status()["bluetooth"]["hci0"] == {"state": "ok", "why": None})
        await until(lambda: status()["sensors"]["hall"]["state"] == "ok")
        listening.cancel()


# A hundred times


SAID = [f"{number:02x}" for number in range(256)]
SCENE = {
    "advertiser": [{"address": TAG, "every": 0.02, "manufacturer": {"0499": SAID}}],
    "crowd": {"size": 20, "rotate": 0.1, "every": 0.05},
}


AGAIN = [
    ["restart"],
    ["fault BlueZ crashed", "cure BlueZ crashed"],
    ["fault powered off", "cure powered off"],
]


@pytest.mark.parametrize("what", AGAIN, ids=" then ".join)
@on_air
async def test_a_hundred_times_leave_nothing_behind(what, unlogged):
    async with apart(SCENE) as (bluez, radio):
        ears, waits = Ears(radio), []
        for turn in range(120):
            if turn == 20:
                before = resources()
            for line in what:
                await bluez.tell(line)
            ears.heard.clear()
            waits.append((await ears.next())[1])
        after = resources()
    assert sum(wait >= RETRY for wait in waits) <= 3  # by chance; never because news were missed
    assert after[0] <= before[0] + 3  # a scan that ends as the next begins
    assert after[1] <= before[1] + 3
    assert after[2] < before[2] + 300
