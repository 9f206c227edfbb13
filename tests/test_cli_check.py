import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from outside_drivers import install

from gateway.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
GOOD = """
[gateway]
id = "trd-0042"
[uplink]
url = ["mqtts://mqtt.example.no", "mqtts://10.0.0.1"]
[buffer]
max_size = "100 MiB"
[ports.mast]
path = "/dev/ttyUSB0"
baudrate = 19200
[sensors.river]
driver = "buoy"
port = "mast"
interval = "10min"
durable = true
[sensors.box]
driver = "attic"
"""
BAD = GOOD.replace("interval =", "intervall =").replace('"100 MiB"', "100")
PROGRAM = "from gateway.cli import main; raise SystemExit(main())"
IMPORTS = "import sys; from gateway.cli import main; main(); print(*sys.modules, file=sys.stderr)"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    install(tmp_path)
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    return tmp_path


def bygate(
    site: Path, *args: str | Path, program: str = PROGRAM, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{site}"} | env,
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
    )


def test_of_a_sensor_with_very_many_quantities_the_first_are_shown(site: Path):
    tag = '[sensors.shed]\ndriver = "bthome"\naddress = "54:48:E6:8F:80:A5"\n'
    (site / "many.toml").write_text(GOOD + tag)
    done = bygate(site, "check", "-c", "many.toml")
    line = done.stdout.splitlines()[3]
    assert "temperature (to _4), humidity (to _4), " in line
    assert re.search(r", … and \d+ more$", line)
    assert len(line) < 300


def test_a_good_file_shows_what_will_run(site: Path):
    done = bygate(site, "check", "-c", "good.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        *("SENSOR", "river", "box", "", "broker", "buffer"),
    ]
    river, box = done.stdout.splitlines()[1:3]
    parts = "river buoy serial 19200 8E1 /dev/ttyUSB0 10min, durable distance, temperature"
    assert river.split() == parts.split()
    assert " ".join(box.split()) == "box attic local - 60s temperature"
    assert "mqtts://mqtt.example.no:8883, then mqtts://10.0.0.1:8883" in done.stdout
    assert "flushed every 10s, sealed every 60s; at most 100 MiB, " in done.stdout
    assert "the smaller of 64 MiB and a tenth kept free" in done.stdout


def test_a_profile_shows_its_effect(site: Path):
    (site / "metered.toml").write_text(GOOD.replace("[uplink]", '[uplink]\nprofile = "metered"'))
    done = bygate(site, "check", "-c", "metered.toml")
    assert "no login; pinged every 5min" in done.stdout
    assert "sealed every 10min" in done.stdout


def test_a_good_file_as_json_says_the_same(site: Path):
    done = bygate(site, "check", "-c", "good.toml", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], told["mistakes"]) == (0, True, [])
    assert told["uplink"]["url"] == ["mqtts://mqtt.example.no:8883", "mqtts://10.0.0.1:8883"]
    river, box = told["sensors"]
    assert (river["interval"], river["durable"], river["port"]["baudrate"]) == (
        "10min",
        True,
        19200,
    )
    assert (river["settings"]["settle"], river["settings"]["chunk"]) == ("30s", "64 KiB")
    assert (box["port"], box["quantities"]) == (None, ["temperature"])


def test_mistakes_go_to_standard_error_one_a_line(site: Path):
    done = bygate(site, "check", "-c", "bad.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "bad.toml:7: buffer.max_size: expected a size such as '512 MiB', got 100; "
        "did you mean '100 MiB'?",
        "bad.toml:14: sensors.river.intervall: there is no such setting; did you mean 'interval'?",
    ]


def test_mistakes_as_json_go_to_standard_output(site: Path):
    done = bygate(site, "check", "-c", "bad.toml", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr, told["ok"]) == (2, "", False)
    assert [(each["line"], each["path"]) for each in told["mistakes"]] == [
        (7, "buffer.max_size"),
        (14, "sensors.river.intervall"),
    ]


def test_a_missing_file_is_named_with_the_way_to_begin(site: Path):
    done = bygate(site, "check", "-c", "none.toml")
    assert done.returncode == 2
    assert done.stderr.startswith("none.toml: there is no such file; `bygate check --example`")


def test_a_gateway_without_sensors_is_told_so(site: Path):
    (site / "few.toml").write_text(GOOD.partition("[ports")[0])
    done = bygate(site, "check", "-c", "few.toml")
    assert done.returncode == 0
    assert done.stdout.startswith("no sensors: what the buffer holds is delivered")


def test_the_example_file_is_what_the_settings_say(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--example"]) == 0
    assert capsys.readouterr().out == (ROOT / "config.example.toml").read_text()


@pytest.mark.parametrize("args", [["check", "-c", "good.toml"], ["drivers"], ["drivers", "buoy"]])
def test_a_command_imports_nothing_that_it_does_not_need(site: Path, args: list[str]):
    modules = bygate(site, *args, program=IMPORTS).stderr.split()
    assert f"gateway.cli.{args[0]}" in modules
    foreign = {"aiomqtt", "bleak", "rich", "serial", "msgpack", "tenacity", "asyncio"}
    others = {f"gateway.cli.{name}" for name in [*COMMANDS, "example"]} - {f"gateway.cli.{args[0]}"}
    assert not (foreign | others) & set(modules)


@pytest.mark.parametrize("args", [[], ["chek"], ["check", "--jsn"], ["check", "-c"], ["--nothing"]])
def test_wrong_usage_ends_with_2_and_no_traceback(site: Path, args: list[str]):
    done = bygate(site, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: bygate")


def test_help_lists_every_command_with_its_line(site: Path):
    done = bygate(site, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert all(name in done.stdout and line in done.stdout for name, line in COMMANDS.items())
    assert bygate(site, "--version").stdout.startswith("bygate ")


def test_every_module_of_a_command_is_in_the_table():
    modules = {file.stem for file in (ROOT / "gateway/cli").glob("*.py")}
    assert {
        name for name in modules if "\ndef run(" in (ROOT / f"gateway/cli/{name}.py").read_text()
    } <= set(COMMANDS)


def test_a_reader_that_goes_away_ends_the_command_quietly(site: Path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "check", "--example"],
        env={"PYTHONPATH": str(ROOT)},  # buffered, whatever PYTHONUNBUFFERED says here
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_control_c_ends_the_command_quietly(site: Path):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
    (site / "outside.py").write_text(interrupt)
    done = bygate(site, "drivers", "buoy")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_terminal_without_the_letters_gets_no_traceback(site: Path):
    source = (site / "outside.py").read_text()
    (site / "outside.py").write_text(source.replace("A buoy", "Å µ-buoy"))
    done = bygate(site, "drivers", "buoy", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "? ?-buoy of nobody" in done.stdout


def test_the_listing_goes_on_behind_a_broken_driver(site: Path):
    done = bygate(site, "drivers")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert (done.returncode, done.stderr) == (1, "")
    assert " ".join(rows["buoy"].split()) == "serial Buoy 1 distance, temperature"
    assert rows["broken"].startswith("broken ")
    assert "No module named 'outside_nowhere'" in rows["broken"]
    assert "'things' has a type that no setting can have" in rows["odd"]


def test_one_driver_shows_its_settings_quantities_and_frame(site: Path):
    done = bygate(site, "drivers", "buoy")
    assert done.returncode == 0
    assert "buoy: Buoy 1\nserial, 4800 8E1, frames carry a checksum" in done.stdout
    assert "4E 42  XX  one byte of nothing" in done.stdout
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert " ".join(rows["unit"]) == "unit a whole number from 1 to 247 1 Modbus unit id."
    assert " ".join(rows["settle"]).endswith('366d "30s" How long to wait.')
    assert rows["distance"] == ["distance", "mm"]


def test_one_driver_as_json_has_types_defaults_and_units(site: Path):
    told = json.loads(bygate(site, "drivers", "strict", "--json").stdout)
    assert told["settings"] == [
        {
            "name": "height",
            "type": "a number",
            "required": True,
            "default": None,
            "doc": "Height above the water.",
        }
    ]
    told = json.loads(bygate(site, "drivers", "attic", "--json").stdout)
    assert told["quantities"] == [{"name": "temperature", "unit": "Cel"}]


def test_a_bluetooth_driver_shows_how_it_is_known_and_what_is_read(site: Path):
    ruuvi = bygate(site, "drivers", "ruuvi").stdout
    assert ruuvi.startswith("ruuvi: RuuviTag, Ruuvi Air\nble\n\ncompanies: 0x0499\n\n")
    sensing = bygate(site, "drivers", "environmental_sensing").stdout
    assert "\ngatt\n\nservices: 181a\ncharacteristics: 2a6e, 2a6f, 2a6d, " in sensing
    told = json.loads(bygate(site, "drivers", "airthings", "--json").stdout)
    assert told["companies"] == ["0x0334"]
    assert len(told["characteristics"]) == 3


def test_numbered_quantities_stand_in_one_line(site: Path):
    told = bygate(site, "drivers", "bthome").stdout
    rows = [line.split() for line in told.partition("QUANTITY")[2].splitlines()[1:]]
    assert rows[0] == ["temperature", "(to", "_4)", "Cel"]
    assert ["bthome_unknown", "-"] in rows
    assert not [row for row in rows if row[0].endswith("_2")]


def test_an_unknown_driver_gets_its_near_match(site: Path):
    done = bygate(site, "drivers", "buyo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "there is no driver 'buyo'; did you mean 'buoy'?\n"


def test_a_broken_driver_says_why(site: Path):
    done = bygate(site, "drivers", "broken", "--json")
    assert done.returncode == 1
    assert "outside_nowhere" in json.loads(done.stdout)["broken"]
