"""`bygate scan` against a simulated BlueZ in a process of its own."""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from typing import Any

import pytest

from gateway.bluez import NO_ANSWER, STUCK_BUS, WRONG_BUS
from hil.bluezprocess import BlueZProcess
from tests.radio_scene import METER, NEEDS_DBUS, TAG, on_air
from tests.test_ble_frozen import frozen

pytestmark = NEEDS_DBUS

RUUVI = "0512fc5394c37c0004fffc040cac364200cdcbb8334c884f"
PVVX = "ccbbaa38c1a46c07fa13d60a52090f"
SEALED = "41a47266c95f730011223378237214"
BLU = "54:48:E6:8F:80:A5"
SCENE = {
    "advertiser": [
        {"address": TAG, "every": 0.1, "manufacturer": {"0499": RUUVI}, "rssi": -61},
        {"address": BLU, "every": 0.1, "service_data": {"fcd2": SEALED}, "rssi": -81},
        {"address": "AA:00:00:00:00:02", "every": 0.1, "manufacturer": {"004c": "1005"}},
    ],
    "peripheral": [
        {
            "address": METER,
            "services": {"181a": {"2a6e": "d007"}},
            "uuids": ["181a"],
            "every": 0.1,
            "rssi": -90,
        }
    ],
}
FROZEN = {"BlueZ": NO_ANSWER, "D-Bus": STUCK_BUS}
CROWD: dict[str, Any] = {"crowd": {"size": 30, "every": 0.1, "rotate": 0.5}}


async def scan(scene, *arguments, faults=(), meanwhile=None, stopped=None):
    """Return what `bygate scan` printed beside a scene: exit code, output, errors.

    `meanwhile` is done to the simulated BlueZ once it scans; what is `stopped` is so all the time.
    """
    async with BlueZProcess(scene) as bluez:
        for fault in faults:
            await bluez.tell(f"fault {fault}")
        with frozen(stopped, bluez) if stopped else nullcontext():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "scan", "--seconds", "1", *arguments),
                env=os.environ | dict(bluez.environment),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            reading = asyncio.ensure_future(process.communicate())
            if meanwhile:
                while json.loads(await bluez.tell("heard"))[TAG] < 3:  # noqa: ASYNC110 - those reached the scan
                    await asyncio.sleep(0.05)
                await meanwhile(bluez, reading)
            out, err = await reading
    return process.returncode, out.decode(), err.decode()


@on_air
async def test_sensors_are_listed_by_signal_with_what_they_say():
    code, out, _ = await scan(SCENE | CROWD)
    heads, *rows = out.partition("\n\n")[0].splitlines()
    assert code == 0
    assert heads.split() == ["ADDRESS", "SIGNAL", "DRIVER", "MODEL", "SAYS"]
    assert [row.split()[0] for row in rows] == [TAG, BLU, METER]
    assert "temperature 24.3 Cel" in rows[0]
    assert "set its `key`" in rows[1]


@on_air
async def test_the_lines_to_paste_are_a_configuration():
    _, out, _ = await scan(SCENE)
    pasted = tomllib.loads(out.partition("For config.toml:")[2])["sensors"]
    assert pasted["ruuvi-884f"] == {"driver": "ruuvi", "address": TAG}
    assert {each["driver"] for each in pasted.values()} == {
        "ruuvi",
        "bthome",
        "environmental_sensing",
    }


@on_air
async def test_names_differ_though_the_ends_of_the_addresses_do_not():
    twins = [
        {"address": f"C{n}:00:00:00:88:4F", "manufacturer": {"0499": RUUVI}, "every": 0.1}
        for n in range(2)
    ]
    _, out, _ = await scan({"advertiser": twins})
    pasted = tomllib.loads(out.partition("For config.toml:")[2])["sensors"]
    assert set(pasted) == {"ruuvi-c0000000884f", "ruuvi-c1000000884f"}


@pytest.mark.parametrize("data", [PVVX, "00" * 11], ids=["plain", "encrypted"])
@on_air
async def test_nobody_is_told_to_connect_to_what_tells_its_values_unasked(data):
    tag = {"address": "A4:C1:38:AA:BB:CC", "service_data": {"181a": data}, "every": 0.1}
    _, out, _ = await scan({"advertiser": [tag]}, "--json")
    assert [each["driver"] for each in json.loads(out)] == ["pvvx"]


@on_air
async def test_as_json_all_values_are_there():
    _, out, _ = await scan(SCENE | CROWD, "--json")
    found = {each["driver"]: each for each in json.loads(out)}
    assert found["ruuvi"]["values"]["humidity"] == {"value": 53.49, "unit": "%RH"}
    assert found["ruuvi"]["values"]["acceleration_x"]["value"] == 0.039  # as it would be kept
    assert found["ruuvi"]["rssi"] == -61
    assert found["environmental_sensing"]["link"] == "gatt"


@on_air
async def test_a_sensor_whose_signal_the_controller_does_not_know_is_listed():
    silent = SCENE["advertiser"][0] | {"rssi": None}
    _, out, _ = await scan({"advertiser": [silent]})
    assert out.splitlines()[1].split()[:3] == [TAG, "-", "ruuvi"]


@on_air
async def test_phones_are_counted_together_and_never_listed():
    code, out, err = await scan(CROWD)
    assert code == 0
    assert out.startswith("no sensor of a known family among ")
    assert ":" not in out.replace(": nearer", "")
    assert "Phone" not in out + err


PHONES = [
    {"manufacturer": {"004c": "1005"}, "uuids": ["181a"]},
    {"manufacturer": {"004c": "1005", "0499": b"hello".hex()}, "uuids": ["181a"]},
    {"manufacturer": {"0334": b"abc".hex()}},
]


@on_air
async def test_a_phone_is_not_listed_whatever_of_a_sensor_it_advertises():
    adverts = [
        {"address": f"7A:11:22:33:44:{n:02X}", "every": 0.1, "name": "Kari's phone", **phone}
        for n, phone in enumerate(PHONES)
    ]
    code, out, err = await scan({"advertiser": adverts})
    assert code == 0
    assert out.startswith("no sensor of a known family among ")
    assert "7A:11" not in out + err


@on_air
async def test_a_sensor_that_is_connected_to_is_known_by_its_makers_data():
    wave = {"address": METER, "every": 0.1, "manufacturer": {"0334": "58422c000c05"}}
    _, out, _ = await scan({"advertiser": [wave]})
    assert f'driver = "airthings"\naddress = "{METER}"' in out


@on_air
async def test_a_bus_that_is_lost_meanwhile_is_said_without_a_traceback():
    async def lose(bluez, _):
        for _ in range(5):
            await asyncio.sleep(0.4)
            await bluez.tell("fault D-Bus gone")
            await asyncio.sleep(0.3)
            await bluez.tell("cure D-Bus gone")

    _, out, err = await scan(SCENE, "--seconds", "5", meanwhile=lose)
    assert TAG in out
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "address",
    ["garbage", "unix:dir=/tmp", "tcp:host=127.0.0.1,port=x", "tcp:host=no.invalid,port=1"],
)
def test_an_address_of_the_bus_that_is_none_is_said(address):
    command = [sys.executable, "-m", "gateway", "scan", "--seconds", "1"]
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()[1:]
    assert [line.partition(" (")[0] for line in said] == [WRONG_BUS]
    assert said[0].endswith("): unset it, or see dbus-daemon(1)")


@on_air
async def test_an_adapter_that_is_not_there_is_named_beside_one_that_hears():
    code, out, err = await scan(SCENE, "--adapter", "hci9", "--adapter", "hci0")
    assert code == 0
    assert TAG in out
    assert "there is no Bluetooth adapter hci9" in err


@pytest.mark.parametrize(
    ("fault", "why"), [("no adapter", "no Bluetooth adapter hci0"), ("powered off", "rfkill")]
)
@on_air
async def test_without_a_radio_it_says_why_and_what_helps(fault, why):
    code, out, err = await scan(SCENE, faults=[fault])
    assert (code, out) == (1, "")
    assert why in err
    assert "Traceback" not in err


@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_who_does_not_answer_from_the_start_is_named(which):
    code, out, err = await scan(SCENE, stopped=which)
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == [FROZEN[which]]


@pytest.mark.parametrize("which", FROZEN)
@on_air
async def test_who_answers_no_longer_is_named_beside_what_was_heard_before(which):
    async def stop(bluez, end):
        with frozen(which, bluez):
            await asyncio.wait({end})

    code, out, err = await scan(SCENE, "--seconds", "3", meanwhile=stop)
    assert code == 1
    assert TAG in out
    assert err.splitlines()[1:] == [FROZEN[which]]


@on_air
async def test_it_listens_for_as_long_as_told_from_when_it_hears():
    code, _, err = await scan(SCENE, "--seconds", "0.001")
    assert (code, err.splitlines()[1:]) == (0, [])


@pytest.mark.parametrize("package", ["bleak", "dbus_fast"])
def test_a_package_that_is_missing_is_told_with_what_mends_it(package):
    program = f"import sys; sys.modules['{package}'] = None; from gateway.cli import main; "
    command = [sys.executable, "-c", f"{program} sys.exit(main(['scan', '--seconds', '1']))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert package in line
    assert line.endswith(": pip install 'bleak>=3.1,<4'")


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--adapter", "usb0"]])
def test_wrong_usage_is_told(wrong):
    command = [sys.executable, "-m", "gateway", "scan", *wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert wrong[1] in done.stderr
