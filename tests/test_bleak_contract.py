"""What adapter.py, ble.py, reports.py and gatt.py lean on in bleak without its promising it."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.bluezdbus import manager as bleaks
from bleak.backends.bluezdbus.version import BlueZFeatures
from dbus_fast.aio.message_bus import MessageBus

from hil.bluez import FakeBlueZ
from hil.dbusdaemon import PrivateBus
from tests.radio_scene import METER, NEEDS_DBUS, on_air, settled, until

pytestmark = NEEDS_DBUS


@asynccontextmanager
async def scanning(monkeypatch):
    """Give bleak's manager while a scan of bleak's runs, and the device that it has heard."""
    async with PrivateBus() as bus, FakeBlueZ(bus) as bluez:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        bluez.peripheral(METER, {"181a": {"2a6e": b"\xd0\x07"}}, every=0.02)
        found = asyncio.Queue()
        await BleakScanner(lambda device, _: found.put_nowait(device)).start()
        yield await bleaks.get_global_bluez_manager(), await found.get()
        await settled()


@on_air
async def test_the_manager_is_found_by_the_loop_that_it_was_made_for(monkeypatch):
    loop = asyncio.get_running_loop()
    assert bleaks._global_instances.get(loop) is None
    async with scanning(monkeypatch) as (manager, _):
        assert bleaks._global_instances.get(loop) is manager
        assert await bleaks.get_global_bluez_manager() is manager


@on_air
async def test_what_a_scan_hears_comes_on_the_bus_of_the_manager(monkeypatch):
    async with scanning(monkeypatch) as (manager, device):
        assert type(manager._bus) is MessageBus
        paths = []
        manager._bus.add_message_handler(lambda message: paths.append(message.path))
        await until(lambda: device.details["path"] in paths)


@on_air
async def test_a_manager_whose_bus_is_ended_forgets_its_devices_and_takes_another(monkeypatch):
    async with scanning(monkeypatch) as (manager, device):
        assert device.details["path"] in manager._properties
        ended = manager._bus
        ended.disconnect()
        await until(lambda: not manager._properties)
        assert await bleaks.get_global_bluez_manager() is manager
        assert manager._bus not in (None, ended)


def test_a_manager_has_no_bus_before_its_first_use():
    assert bleaks.BlueZManager()._bus is None


@pytest.mark.parametrize("known", [True, False])
@on_air
async def test_bluetoothctl_is_asked_only_while_bluez_is_not_known_to_be_checked(
    known, monkeypatch, tmp_path
):
    asked = tmp_path / "asked"
    (tmp_path / "bluetoothctl").write_text(f"#!/bin/sh\n: > {asked}\necho 5.66\n")
    (tmp_path / "bluetoothctl").chmod(0o755)
    async with scanning(monkeypatch) as (_, device):
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(BlueZFeatures, "checked_bluez_version", known)
        monkeypatch.setattr(BlueZFeatures, "_check_bluez_event", None)
        async with BleakClient(device):
            assert asked.exists() is not known
