"""A driver from outside that counts.

It notes each number, and when that was, in a file before the daemon has it.
"""

from pathlib import Path

SOURCE = """
import os
import time

from gateway.driver import LocalDriver, required
from gateway.reading import COUNT, Quantity, Values

LABEL = Quantity("label")


class Driver(LocalDriver):
    model = "counting"
    quantities = (COUNT, *(LABEL.part(n) for n in range(50)))

    file: str = required("Where it notes its numbers.", example="/tmp/counted")
    bulk: int = 0

    def poll(self) -> Values:
        fd = os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_APPEND)
        try:
            number = os.fstat(fd).st_size // 30
            os.write(fd, b"%9d %19.6f\\n" % (number, time.monotonic()))
        finally:
            os.close(fd)
        return {COUNT: number} | {LABEL.part(n): os.urandom(120).hex() for n in range(self.bulk)}
"""


def install(site: Path) -> None:
    """Install it as a package of others: `counting` is its name once `site` is on PYTHONPATH."""
    (site / "counting.py").write_text(SOURCE)
    points = site / "counting-1.dist-info"
    points.mkdir()
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1\n")
    (points / "entry_points.txt").write_text("[bygate.drivers]\ncounting = counting:Driver\n")


def counted(file: Path) -> int:
    """Return how many numbers were given out, the first being 0."""
    return file.stat().st_size // 30 if file.exists() else 0


def noted(file: Path) -> list[float]:
    """Return when each number was given out, on the system's monotonic clock."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [float(line.split()[1]) for line in lines]
