"""`bygate scan` against a simulated BlueZ in a process of its own."""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from hil.bluezprocess import BlueZProcess
from tests.radio_scene import METER, NEEDS_DBUS, TAG, on_air

pytestmark = NEEDS_DBUS

RUUVI = "0512fc5394c37c0004fffc040cac364200cdcbb8334c884f"
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
CROWD: dict[str, Any] = {"crowd": {"size": 30, "every": 0.1, "rotate": 0.5}}


async def scan(scene, *arguments, faults=()):
    """Return what `bygate scan` printed beside a scene: exit code, output, errors."""
    async with BlueZProcess(scene) as bluez:
        for fault in faults:
            await bluez.tell(f"fault {fault}")
        command = [sys.executable, "-m", "gateway", "scan", "--seconds", "1", *arguments]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            env=os.environ | dict(bluez.environment),
            capture_output=True,
            text=True,
            check=False,
        )
    return done.returncode, done.stdout, done.stderr


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
async def test_as_json_all_values_are_there():
    _, out, _ = await scan(SCENE | CROWD, "--json")
    found = {each["driver"]: each for each in json.loads(out)}
    assert found["ruuvi"]["values"]["humidity"] == {"value": 53.49, "unit": "%RH"}
    assert found["ruuvi"]["rssi"] == -61
    assert found["environmental_sensing"]["link"] == "gatt"


@on_air
async def test_phones_are_counted_together_and_never_listed():
    code, out, err = await scan(CROWD)
    assert code == 0
    assert out.startswith("no sensor of a known family among ")
    assert ":" not in out.replace(": nearer", "")
    assert "Phone" not in out + err


@pytest.mark.parametrize(
    ("fault", "why"), [("no adapter", "no Bluetooth adapter hci0"), ("powered off", "rfkill")]
)
@on_air
async def test_without_a_radio_it_says_why_and_what_helps(fault, why):
    code, out, err = await scan(SCENE, faults=[fault])
    assert (code, out) == (1, "")
    assert why in err
    assert "Traceback" not in err


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--adapter", "usb0"]])
def test_wrong_usage_is_told(wrong):
    command = [sys.executable, "-m", "gateway", "scan", *wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert wrong[1] in done.stderr
