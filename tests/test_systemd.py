"""The unit files, as systemd itself reads them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.service import RESTART_BLUETOOTH

UNITS = Path(__file__).parent.parent / "systemd"
UNIT = UNITS / "bygate.service"
BLUEZ = UNITS / "bluetooth.service.d/bygate.conf"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def analyze(*arguments):
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def values(unit, key):
    return re.findall(rf"^{key}=(.*)", unit.read_text(), flags=re.M)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path):
    for unit in UNITS.glob("bygate*.*"):
        text = re.sub("^ExecStart=/opt.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "bluetooth.service").write_text("[Service]\nExecStart=/bin/true\n")
    shutil.copytree(BLUEZ.parent, tmp_path / BLUEZ.parent.name)
    told = analyze(
        "verify", "--man=no", *(str(each) for each in tmp_path.glob("*.*") if each.is_file())
    )
    assert told.stderr == ""


@needs_systemd
def test_a_password_that_systemd_hands_over_is_as_the_unit_says(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("\n#LoadCredential=", "\nLoadCredential="))
    [credential] = values(unit, "LoadCredential")
    path = f"/run/credentials/{UNIT.name}/{credential.partition(':')[0]}"
    assert f"# {path}\n" in unit.read_text()
    assert f'password_file = "{path}"' in (UNITS / "README.md").read_text()
    assert f"LoadCredential={credential}" in (UNITS / "README.md").read_text()
    unit.write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M))
    assert analyze("verify", "--man=no", str(unit)).stderr == ""


@needs_systemd
def test_the_sandbox_leaves_little_open():
    told = analyze("security", "--offline=true", "--threshold=18", str(UNIT))
    assert told.returncode == 0, told.stdout.splitlines()[-1:]


def test_the_file_that_asks_for_a_restart_of_bluez_is_the_one_that_is_waited_for():
    [directory] = values(UNIT, "RuntimeDirectory")
    asks = f"/run/{directory}/{RESTART_BLUETOOTH}"
    assert values(UNITS / "bygate-bluetooth.path", "PathExists") == [asks]
    removes, restarts = values(UNITS / "bygate-bluetooth.service", "ExecStart")
    assert (removes.split()[-1], restarts.split()[-1]) == (asks, "bluetooth.service")


def test_the_names_that_bluez_hears_stay_in_memory(tmp_path):
    [line] = values(BLUEZ, "ExecStartPre")
    [memory] = values(BLUEZ, "RuntimeDirectory")
    command = re.fullmatch("/bin/sh -c '(.*)'", line)[1].replace("$$", "$")
    assert f"/run/{memory}" in command
    for original, here in (("/var/lib/bluetooth", "disk"), (f"/run/{memory}", "memory")):
        command = command.replace(original, str(tmp_path / here))
    adapter = tmp_path / "disk/00:1A:7D:DA:71:13"
    for start in range(3):
        memory = tmp_path / "memory"
        memory.mkdir()
        assert (
            subprocess.run(["sh", "-euc", command], check=True, capture_output=True).stderr == b""
        )
        (adapter / "cache").mkdir(parents=True, exist_ok=True)
        (adapter / "cache/C0:FF:EE:00:00:01").write_text("[General]\nName=Kari's watch\n")
        (adapter / "settings").write_text("[General]\n")
        on_disk = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
        if start:  # the first time that bluetoothd saw the adapter it made the directory itself
            assert on_disk == [adapter / "settings"]
            assert len(list(memory.iterdir())) == 1
        shutil.rmtree(memory)
