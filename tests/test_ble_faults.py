"""What is wrong with Bluetooth, by name, through the daemon: what it says, and how soon it is well.

A sensor that advertises, one that is connected to, and one that needs no Bluetooth. Of a fault of
the adapter the adapter is said, and none of its sensors; of a device's fault that sensor alone.
"""

import asyncio
from itertools import pairwise

import pytest
from ble_box import TURN, box, flow, log_of, now_ms, taken
from gateway_process import sensor

from gateway.gatt import HEARING
from hil.bluezfaults import DEAF, FAULTS
from tests.radio_scene import METER, NEEDS_DBUS, TAG, on_air, until

pytestmark = NEEDS_DBUS

CURED = 2.0
"""Seconds after the cure in which readings are taken again."""
OFF = "hci0 is off: sudo rfkill unblock bluetooth; bluetoothctl power on"
NO_BLUEZ = "BlueZ does not run: sudo systemctl start bluetooth; where it is missing, install bluez"
NO_BUS = "there is no system bus: sudo systemctl start dbus"
NO_ADAPTER = "there is no Bluetooth adapter hci0: plug it in, or set [bluetooth]"
OF_THE_ADAPTER = {
    "no adapter": NO_ADAPTER,
    "powered off": OFF,
    "blocked": OFF,
    "BlueZ gone": NO_BLUEZ,
    "BlueZ crashed": NO_BLUEZ,
    "D-Bus gone": NO_BUS,
}
AT_THE_START = {
    "no adapter": NO_ADAPTER,
    "BlueZ gone": NO_BLUEZ,
    "D-Bus gone": NO_BUS,
    "scan refused": "hci0 cannot scan: BlueZ says [org.bluez.Error.InProgress]",
}
OF_A_DEVICE = {
    "adverts stop": "not heard within 5 s",
    "connect refused": "heard, but not connected: BlueZ says [org.bluez.Error.Failed]",
    "connect aborted": "heard, but not connected within 1 s",
    "in progress": "InProgress",
    "services never resolve": "heard, but not connected within 1 s",
    "vanishes mid-read": "heard, but not read: BlueZ has forgotten it meanwhile",
    "silent": "heard, but not read within 1 s",
    "ATT error": "it answers GATT Protocol Error: Unlikely Error: is `driver` right",
    "not paired": "bluetoothctl pair",
}


def say(name, cured, after):
    """Tell how long it took; shown by pytest -rP."""
    at_the_broker = (now_ms() - cured) / 1000
    print(f"{name}: taken after {after:.2f} s, at the broker {at_the_broker:.2f} s")  # noqa: T201


def undisturbed(broker):
    """Whether the sensor that needs no Bluetooth was read in its rhythm of 0.2 s."""
    return max(later - at for at, later in pairwise(taken(broker, "box"))) < 1000


def test_every_fault_that_has_a_name_is_met():
    elsewhere = {*DEAF, "scan begins late"}  # takes long, or is quite short: tests/test_ble.py
    named = {*OF_THE_ADAPTER, *AT_THE_START, *OF_A_DEVICE, "steady adverts suppressed"}
    assert named | elsewhere == set(FAULTS)


@pytest.mark.parametrize("name", OF_THE_ADAPTER)
@on_air
async def test_of_a_fault_of_the_adapter_the_adapter_is_said(name, tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        async with bluez.fault(name):
            await daemon.says(OF_THE_ADAPTER[name])
            await asyncio.sleep(2.2 * TURN)  # each sensor has a turn in which it might say more
            cured = now_ms()
        after = await flow(broker, cured, "hall", "attic")
        say(name, cured, after)
        log = await log_of(daemon)
    assert log == [f"WARNING {OF_THE_ADAPTER[name]}", "INFO hci0: scans again"]
    assert after < CURED
    assert undisturbed(broker)


@on_air
async def test_of_a_long_fault_of_the_adapter_its_sensors_say_nothing_either(tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        async with bluez.fault("blocked"):
            await asyncio.sleep(HEARING[0] + 2 * TURN)
            cured = now_ms()
        assert await flow(broker, cured, "hall", "attic") < CURED
        assert await log_of(daemon) == [f"WARNING {OFF}", "INFO hci0: scans again"]


@pytest.mark.parametrize("name", ["powered off", "BlueZ crashed"])
@on_air
async def test_a_read_that_the_adapter_breaks_off_is_not_the_sensors_fault(
    name, tmp_path, monkeypatch
):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        device = bluez.adapters["hci0"].devices[METER]
        async with bluez.fault("silent", at=METER):
            await until(lambda: device.shown["ServicesResolved"])
            async with bluez.fault(name):
                await daemon.says(OF_THE_ADAPTER[name])
                await asyncio.sleep(1.5 * TURN)
                await bluez.cure("silent", at=METER)
                cured = now_ms()
        assert await flow(broker, cured, "hall", "attic") < CURED
        log = await log_of(daemon)
    assert log == [f"WARNING {OF_THE_ADAPTER[name]}", "INFO hci0: scans again"]


@pytest.mark.parametrize("name", AT_THE_START)
@on_air
async def test_a_fault_at_the_start_is_said_once_and_waited_out(name, tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch, fault=name) as (bluez, broker, daemon):
        await daemon.says(AT_THE_START[name])
        await flow(broker, now_ms() + 1500 * TURN, "box")
        assert not taken(broker, "hall") + taken(broker, "attic")
        cured = now_ms()
        await bluez.cure(name)
        after = await flow(broker, cured, "hall", "attic")
        say(f"{name} at the start", cured, after)
        log = await log_of(daemon)
    assert [line.partition(" ")[0] for line in log] == ["WARNING", "INFO"]
    assert log[1] == "INFO hci0: scans again"
    assert after < CURED
    assert undisturbed(broker)


@pytest.mark.parametrize("name", OF_A_DEVICE)
@on_air
async def test_of_a_fault_of_a_device_that_sensor_is_said(name, tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        async with bluez.fault(name, at=METER):
            line = await daemon.says("attic: ")
            await asyncio.sleep(1.5 * TURN)  # it has a turn more
            cured = now_ms()
        after = await flow(broker, cured, "hall", "attic")
        say(name, cured, after)
        log = await log_of(daemon)
    assert log == [line.strip(), "INFO attic: gives readings again"]
    assert OF_A_DEVICE[name] in line
    assert after < CURED
    assert undisturbed(broker)


@on_air
async def test_of_adverts_that_stop_the_sensor_is_said(tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        async with bluez.fault("adverts stop", at=TAG):
            line = await daemon.says("hall: ")
            await asyncio.sleep(1.5 * TURN)
            cured = now_ms()
        after = await flow(broker, cured, "hall", "attic")
        log = await log_of(daemon)
    assert "no advertisement within 1 s" in line
    assert log == [line.strip(), "INFO hall: gives readings again"]
    assert after < CURED


@on_air
async def test_steady_adverts_give_readings_though_bluez_would_suppress_them(tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        began = now_ms()
        async with bluez.fault("steady adverts suppressed"):
            await flow(broker, began + 3000 * TURN, "hall")
        log = await log_of(daemon)
    assert log == []
    steps = [b - a for a, b in pairwise(taken(broker, "hall"))]
    assert max(steps) < 2000 * TURN


@on_air
async def test_bluez_that_restarts_is_said_once(tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        began = now_ms()
        await bluez.restart()
        after = await flow(broker, began, "hall", "attic")
        log = await log_of(daemon)
    assert log == [f"WARNING {NO_BLUEZ}", "INFO hci0: scans again"]
    assert after < CURED


CELLAR = "C0:00:00:00:00:02"


@on_air
async def test_a_read_that_a_restart_broke_off_is_not_put_off_for_a_minute(tmp_path, monkeypatch):
    reading = asyncio.Event()

    def temperature():
        reading.set()
        return b"\xd0\x07"

    more = sensor("cellar", "environmental_sensing", address=CELLAR, interval="60s")
    async with box(tmp_path, monkeypatch, more=more) as (bluez, broker, daemon):
        services = {"181a": {"2a6e": temperature, "2a6f": b"\x88\x13"}}
        bluez.peripheral(CELLAR, services, every=0.1)
        await reading.wait()
        await bluez.restart()
        cured = now_ms()
        after = await flow(broker, cured, "cellar")
        say("BlueZ restarted in the midst of a read", cured, after)
        assert await log_of(daemon) == [f"WARNING {NO_BLUEZ}", "INFO hci0: scans again"]
    assert after < CURED
