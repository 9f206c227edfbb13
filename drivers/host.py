"""The gateway itself; what it does not have is missing (Linux sysfs and procfs).

/sys/class/thermal/thermal_zone*/   type: cpu-thermal or the like; temp: thousandths of a degree
/sys/class/hwmon/hwmon*/            name: rpi_volt; in0_lcrit_alarm: 1 under-voltage, 0 none
/proc/loadavg                       1.25 0.80 0.60 …, means over 1, 5 and 15 minutes
/proc/meminfo                       MemAvailable: 123456 kB, in units of 1024 bytes
"""

import shutil
from pathlib import Path

from gateway.driver import LocalDriver, setting
from gateway.reading import CPU_TEMPERATURE, DISK_FREE, MEMORY_FREE, Quantity, Value, Values

LOAD = Quantity("host_load", "", 2, 0)
UNDER_VOLTAGE = Quantity("host_under_voltage")


class Driver(LocalDriver):
    model = "Linux, Raspberry Pi"
    quantities = (CPU_TEMPERATURE, MEMORY_FREE, DISK_FREE, LOAD, UNDER_VOLTAGE)

    disk: str = setting("/", "A path on the file system whose free space is told.")
    root: str = setting("/", "Where / is: elsewhere in a container, and in tests.")

    def poll(self) -> Values:
        root = Path(self.root)
        found: dict[Quantity, Value] = {
            CPU_TEMPERATURE: _cpu_temperature(root),
            MEMORY_FREE: _memory_free(root),
            DISK_FREE: _disk_free(root / self.disk.lstrip("/")),
            LOAD: _load(root),
            UNDER_VOLTAGE: _under_voltage(root),
        }
        return {quantity: value for quantity, value in found.items() if value is not None}


def _cpu_temperature(root: Path) -> float | None:
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        kind, text = _text(zone / "type"), _text(zone / "temp")
        if text and any(word in kind for word in ("cpu", "pkg", "soc")):
            return int(text) / 1000
    return None


def _memory_free(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _disk_free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _load(root: Path) -> float | None:
    text = _text(root / "proc/loadavg")
    return float(text.split()[0]) if text else None


def _under_voltage(root: Path) -> bool | None:
    for monitor in root.glob("sys/class/hwmon/hwmon*"):
        alarm = _text(monitor / "in0_lcrit_alarm")
        if _text(monitor / "name") == "rpi_volt" and alarm:
            return alarm == "1"
    return None


def _text(path: Path) -> str:
    """Return what the file says; nothing when it is not there, or not to be read just now."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
