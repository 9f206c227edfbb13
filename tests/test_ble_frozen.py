"""BlueZ or its bus that is there and answers nothing, as a process that is stopped."""

import asyncio
import json
import os
import signal
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from ble_box import SENSORS, flow, log_of, now_ms
from gateway_process import gateway

from gateway.adapter import QUIET
from gateway.bluez import NO_ANSWER, PING, STUCK_BUS
from hil.bluezprocess import BlueZProcess
from hil.broker import Broker
from tests.radio_scene import METER, NEEDS_DBUS, TAG, apart, on_air

pytestmark = NEEDS_DBUS

RUUVI = "0512fc5394c37c0004fffc040cac364200cdcbb8334c884f"
SCENE = {
    "advertiser": [{"address": TAG, "every": 0.1, "manufacturer": {"0499": RUUVI}}],
    "peripheral": [{"address": METER, "every": 0.1, "services": {"181a": {"2a6e": "d007"}}}],
}
STOPS_WITHIN = 2.5
"""Seconds from SIGTERM to the end, whatever Bluetooth does."""
SAYS_WITHIN = 6.0
"""Seconds until the cause is said."""
FROZEN = {"BlueZ": NO_ANSWER, "D-Bus": STUCK_BUS}


def process_of(which, bluez):
    """Return the number of the process to stop: the bus is a child of the simulated BlueZ."""
    children = Path(f"/proc/{bluez.pid}/task/{bluez.pid}/children").read_text()
    return bluez.pid if which == "BlueZ" else int(children)


@contextmanager
def frozen(which, bluez):
    number = process_of(which, bluez)
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(number, signal.SIGCONT)


@asynccontextmanager
async def running(directory, monkeypatch, scene=SCENE):
    """Give a simulated BlueZ in a process of its own, a broker, and the daemon."""
    async with BlueZProcess(scene) as bluez, Broker() as broker:
        for name, address in bluez.environment.items():
            monkeypatch.setenv(name, address)
        fast = {"flush_interval": "100ms", "seal_interval": "100ms"}
        async with gateway(directory, broker.url, SENSORS, **fast) as daemon:
            yield bluez, broker, daemon


def why(broker, name):
    """Return what the status says of a sensor."""
    said = [json.loads(m.payload) for m in broker.received if m.topic.endswith("/status")]
    return said[-1]["sensors"][name]["why"] if said else None


@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_who_does_not_answer_is_named_and_the_scan_goes_on(which, tmp_path, monkeypatch):
    async with running(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        with frozen(which, bluez):
            await daemon.says(FROZEN[which], within=SAYS_WITHIN)
            assert not [line for line in daemon.log if "hall" in line]  # its turn is each second
            await broker.wait_for(lambda _: why(broker, "hall") == FROZEN[which])
            cured = now_ms()
        assert await flow(broker, cured, "hall", "attic") < 2
        log = await log_of(daemon)
    assert log == [f"WARNING {FROZEN[which]}", "INFO hci0: scans again"]


@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_nothing_is_done_against_a_silence_whose_cause_is_who_does_not_answer(which, caplog):
    async with apart(SCENE, silence=QUIET + PING + 1) as (bluez, radio):
        await radio.opened()
        with frozen(which, bluez):
            await asyncio.sleep(2 * (QUIET + PING + 1))
            assert radio.why == FROZEN[which]
        await radio.opened()
    assert [record.getMessage() for record in caplog.records] == [FROZEN[which]]


@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_who_does_not_answer_at_the_start_is_named(which, tmp_path, monkeypatch):
    async with BlueZProcess(SCENE) as bluez, Broker() as broker:
        for name, address in bluez.environment.items():
            monkeypatch.setenv(name, address)
        with frozen(which, bluez):
            async with gateway(tmp_path, broker.url, SENSORS) as daemon:
                assert "WARNING" in await daemon.says(FROZEN[which])
                await asyncio.sleep(7)  # it is tried again meanwhile
                log = await log_of(daemon)
    assert log == [f"WARNING {FROZEN[which]}"]


@pytest.mark.parametrize("wait", [0.3, 4])
@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_who_does_not_answer_does_not_hold_up_a_stop(which, wait, tmp_path, monkeypatch):
    async with running(tmp_path, monkeypatch) as (bluez, broker, daemon):
        await flow(broker, 0, "hall", "attic", "box")
        await bluez.tell(f"fault silent at {METER}")  # a read is on its way at any time
        with frozen(which, bluez):
            await asyncio.sleep(wait)
            began = time.monotonic()
            assert await daemon.stop() == 0
    assert time.monotonic() - began < STOPS_WITHIN
