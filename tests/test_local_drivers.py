from pathlib import Path

import pytest

from drivers import host, simulator
from gateway.reading import (
    CATALOGUE,
    CPU_TEMPERATURE,
    DISK_FREE,
    MEMORY_FREE,
    PM2_5,
    TEMPERATURE,
    Quantity,
)

FILES = {
    "proc/loadavg": "0.00 0.10 0.05 1/100 4711\n",
    "proc/meminfo": "MemTotal:  927820 kB\nMemAvailable:  512000 kB\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/thermal/thermal_zone0/temp": "-3125\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def polled(root: Path, **settings: str) -> dict[Quantity, object]:
    return dict(host.Driver(root=str(root), **settings).poll())


def test_a_host_tells_what_its_files_say_and_zero_is_a_value(root: Path):
    found = polled(root)
    free = found.pop(DISK_FREE)
    assert type(free) is int
    assert found == {
        CPU_TEMPERATURE: -3.125,
        MEMORY_FREE: 512000 * 1024,
        host.LOAD: 0.0,
        host.UNDER_VOLTAGE: False,
    }


def test_under_voltage_is_told_as_true(root: Path):
    (root / "sys/class/hwmon/hwmon1/in0_lcrit_alarm").write_text("1\n")
    assert polled(root)[host.UNDER_VOLTAGE] is True


@pytest.mark.parametrize(
    ("lost", "quantity"),
    [
        ("proc/loadavg", host.LOAD),
        ("proc/meminfo", MEMORY_FREE),
        ("sys/class/hwmon/hwmon1/name", host.UNDER_VOLTAGE),
        ("sys/class/thermal/thermal_zone0/temp", CPU_TEMPERATURE),
    ],
)
def test_what_a_machine_does_not_have_is_missing(root: Path, lost: str, quantity: Quantity):
    everything = polled(root).keys()
    (root / lost).unlink()
    assert polled(root).keys() == everything - {quantity}


def test_a_disk_that_is_not_there_is_missing(root: Path):
    assert DISK_FREE not in polled(root, disk="/media/none")


def test_a_thermal_zone_that_is_no_processors_is_passed_over(root: Path):
    (root / "sys/class/thermal/thermal_zone0/type").write_text("battery\n")
    assert CPU_TEMPERATURE not in polled(root)


def test_this_machine_can_be_asked():
    assert set(host.Driver().poll()) <= set(host.Driver.quantities)


def test_a_simulated_day_is_a_pure_function_of_time():
    assert simulator.Driver(seed=3).at(1e9) == simulator.Driver(seed=3).at(1e9)
    assert simulator.Driver(seed=3).at(1e9) != simulator.Driver(seed=4).at(1e9)


@pytest.mark.parametrize("seed", range(5))
def test_simulated_values_are_plausible_floats_and_smooth(seed: int):
    driver = simulator.Driver(period=86400, seed=seed)
    before = driver.at(0)
    for seconds in range(600, 8 * 86400, 600):
        now = driver.at(seconds)
        assert now.keys() == set(driver.quantities)
        for quantity, value in now.items():
            low, high = CATALOGUE[quantity.name].low, CATALOGUE[quantity.name].high
            assert type(value) is float
            assert low <= value <= high
            assert abs(value - before[quantity]) < 4
        before = now


def test_simulated_air_is_dirtiest_when_people_drive_to_work_and_warmest_after_noon():
    driver = simulator.Driver()
    hours = [driver.at(hour * 3600) for hour in range(24)]
    dirty = sorted(range(24), key=lambda hour: hours[hour][PM2_5])[-2:]
    assert sorted(dirty) == [8, 17]
    assert max(range(24), key=lambda hour: hours[hour][TEMPERATURE]) in (13, 14, 15)


def test_a_day_may_pass_in_minutes():
    slow, fast = simulator.Driver(), simulator.Driver(period=600)
    assert slow.at(43200)[PM2_5] == pytest.approx(fast.at(300)[PM2_5])


def test_polling_the_simulator_gives_what_it_declares():
    assert set(simulator.Driver().poll()) == set(simulator.Driver.quantities)
