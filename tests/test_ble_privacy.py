"""Strangers who pass leave no trace, and who lies about being a sensor gives no reading."""

import asyncio
import json

import pytest
from ble_box import box, flow, now_ms
from dbus_fast import Variant
from gateway_process import batches, sensor, values

from hil.radio import full_uuid
from tests.bthome_sealed import ADDRESS, KEY, sealed
from tests.radio_scene import LONG, NEEDS_DBUS, on_air, until

pytestmark = NEEDS_DBUS

PASSING = {"size": 100, "every": 5, "rotate": 60} if LONG else {"size": 100, "rotate": 0.5}
"""A hundred new addresses a minute, or two hundred a second."""
SECONDS = 60 if LONG else 1
CONFUSED = ["4E:AD:BE:EF:00:01", "4E:AD:BE:EF:00:02", "4E:AD:BE:EF:00:03"]
"""Strangers of whom BlueZ tells nonsense."""
DEBUG = (
    "-c",
    "import logging, sys; logging.basicConfig(level=logging.DEBUG); import gateway.cli;"
    " sys.exit(gateway.cli.main())",
)


def forms(address):
    """Yield how an address may be written, in lower case, and as it is in memory."""
    octets = address.lower().split(":")
    for order in (octets, octets[::-1]):
        for between in (":", "_", "-", " ", ""):
            yield between.join(order).encode()
        yield bytes.fromhex("".join(order))


def traces(trail, addresses, names):
    """Return what of strangers there is in a trail of bytes."""
    lower = trail.lower()
    found = {name for name in names if name.lower().encode() in lower}
    for address in addresses:
        if any(form in lower or form in trail for form in forms(address)):
            found.add(address)
    return found


def trail(directory, broker, said):
    """Return all that it has left: files, topics, payloads, what they unpack to, its log."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    messages = [f"{each.topic} ".encode() + each.payload for each in broker.received]
    unpacked = [repr(batch).encode() for batch in batches(broker.received)]
    names = [str(path).encode() for path in files]
    return b"\n".join([*(path.read_bytes() for path in files), *names, *messages, *unpacked, said])


@pytest.mark.parametrize("form", [*forms("4E:AD:BE:EF:00:0A")])
def test_a_trace_is_found_however_it_is_written(form):
    strangers = ["4E:AD:BE:EF:00:0A", "4E:AD:BE:EF:00:0B"]
    for written in (form, form.upper()) if form.isascii() else (form,):
        assert traces(b"so " + written + b" it is", strangers, ["Anna"]) == {strangers[0]}
    assert traces(b"hci0: ANNA", strangers, ["Anna"]) == {"Anna"}


def nonsense(bluez):
    """Have BlueZ tell of strangers what it never should, so that bleak fails at it."""
    objects, device, bus = bluez._objects, "org.bluez.Device1", "org.freedesktop.DBus"
    paths = ["/org/bluez/hci0/dev_" + address.replace(":", "_") for address in CONFUSED]
    half = {device: {"Address": Variant("s", CONFUSED[0])}}
    objects._signal("/", f"{bus}.ObjectManager.InterfacesAdded", "oa{sa{sv}}", paths[0], half)
    wrong = {"ManufacturerData": Variant("s", CONFUSED[0]), "RSSI": Variant("s", "loud")}
    changed = f"{bus}.Properties.PropertiesChanged"
    for path in paths:
        objects._signal(path, changed, "sa{sv}as", device, wrong, ["Name"])
    objects._signal("/", f"{bus}.ObjectManager.InterfacesRemoved", "oas", paths[1], [device])
    objects._signal("/", f"{bus}.ObjectManager.InterfacesAdded", "os", paths[2], CONFUSED[2])


@pytest.mark.parametrize("program", [("-m", "gateway"), DEBUG], ids=["as it is", "at debug"])
@on_air
async def test_strangers_leave_no_trace(program, tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch, program=program) as (bluez, broker, daemon):
        crowd = bluez.crowd(**{"every": 0.25, **PASSING})
        await flow(broker, 0, "hall", "attic")
        await asyncio.sleep(SECONDS)
        for fault in ("BlueZ crashed", "powered off", "D-Bus gone", "no adapter"):
            async with bluez.fault(fault):
                await asyncio.sleep(0.3)
            nonsense(bluez)
            await flow(broker, now_ms(), "hall", "attic")
            nonsense(bluez)
        assert await daemon.stop() == 0
        said = "".join(daemon.log).encode() + await daemon.process.stderr.read()
        left = trail(tmp_path, broker, said)
    assert len(crowd.addresses) >= 100
    assert traces(left, [*crowd.addresses, *CONFUSED], crowd.names) == set()
    assert b"Traceback" not in said
    assert b"hci0" in left


# Who lies


OPEN = sensor("shed", "bthome", address=ADDRESS, interval="500ms")
SEALED = sensor("shed", "bthome", address=ADDRESS, key=KEY, interval="500ms")


@on_air
async def test_what_is_repeated_or_forged_is_counted_and_gives_no_reading(tmp_path, monkeypatch):
    def temperature(celsius, counter, key=KEY):
        plain = b"\x02" + round(celsius * 100).to_bytes(2, "little")
        return sealed(plain, counter, key=key)

    lies = {
        "replayed": temperature(20, 10),
        "bad checksum": temperature(66, 12, key="00" * 16),
        "refused": b"\x40\x02" + (7700).to_bytes(2, "little"),
    }
    async with box(tmp_path, monkeypatch, more=SEALED) as (bluez, broker, daemon):
        shed = bluez.advertise(ADDRESS, service_data={"fcd2": lies["replayed"]}, every=0.05)
        await broker.wait_for(lambda seen: values(seen, "shed", "temperature"))
        shed.service_data = {full_uuid("fcd2"): temperature(21, 11)}
        await broker.wait_for(lambda seen: 21 in values(seen, "shed", "temperature"))
        for lie in lies.values():
            shed.service_data = {full_uuid("fcd2"): lie}
            heard = len(shed.heard)
            await until(lambda: len(shed.heard) > heard + 5)  # noqa: B023 - it is awaited here
        assert await daemon.stop() == 0
    status = [json.loads(m.payload) for m in broker.received if m.topic.endswith("/status")]
    outcomes = status[-1]["sensors"]["shed"]["outcomes"]
    assert {name: outcomes.get(name) for name in lies} == dict.fromkeys(lies, 1)
    assert set(values(broker.received, "shed", "temperature")) == {20, 21}


@on_air
async def test_an_address_that_data_name_is_told_nowhere(tmp_path, monkeypatch):
    async with box(tmp_path, monkeypatch, more=OPEN) as (bluez, broker, daemon):
        theirs = bytes.fromhex(CONFUSED[0].replace(":", ""))[::-1]
        bluez.advertise(ADDRESS, service_data={"fcd2": b"\x42" + theirs + b"\x01\x61"}, every=0.1)
        said = (await daemon.says("shed: ")).encode()
        assert await daemon.stop() == 0
        left = trail(tmp_path, broker, said + await daemon.process.stderr.read())
    assert b"names another address" in left
    assert traces(left, CONFUSED, []) == set()
