"""Drivers as a package of others brings them: found by entry point, in any process."""

from pathlib import Path

SOURCE = '''
"""A buoy of nobody.

    4E 42  XX  one byte of nothing
"""

from typing import Literal

from gateway.driver import (
    Driver, Duration, Frame, LocalDriver, SerialDriver, Size, duration, required, setting, size,
)
from gateway.reading import DISTANCE, TEMPERATURE


class Buoy(SerialDriver):
    model = "Buoy 1"
    quantities = (DISTANCE, TEMPERATURE)
    baudrate = 4800
    parity = "E"
    frame = Frame(start=b"NB", length=3)

    unit: int = setting(1, "Modbus unit id.", low=1, high=247)
    settle: Duration = setting(duration("30s"), "How long to wait.")
    chunk: Size = size("64 KiB")
    mode: Literal["deep", "shallow"] = "deep"
    bits: Literal[7, 8] = 8
    factor: float = 1.0
    swap: bool = False
    label: str | None = None

    def __post_init__(self):
        if self.mode == "deep" and self.factor > 10:
            raise ValueError("a deep buoy has a\\nfactor of at most 10")


class Attic(LocalDriver):
    model = "Attic"
    quantities = (TEMPERATURE,)


class Strict(SerialDriver):
    model = "Strict"
    quantities = ()
    frame = Frame(start=b"S", length=2)
    height: float = required("Height above the water.", example=2.5)


class Radio(Driver):
    link = "smoke"
    model = "Radio"
    quantities = ()


class Clash(LocalDriver):
    model = "Clash"
    quantities = ()
    interval: int = 1


class Odd(LocalDriver):
    model = "Odd"
    quantities = ()
    things: list[int] = ()


class Fragile(LocalDriver):
    model = "Fragile"
    quantities = ()

    def __post_init__(self):
        {}["nothing"]


class Nameless(LocalDriver):
    quantities = ()
'''
NAMES = ("buoy", "attic", "strict", "radio", "clash", "odd", "fragile", "nameless")


def install(site: Path, *stand_ins: str) -> None:
    """Install the drivers above, a broken one, and local ones for drivers that are not there."""
    info = site / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "outside.py").write_text(SOURCE)
    points = [f"{name} = outside:{name.title()}" for name in NAMES]
    points += ["broken = outside_nowhere:Driver"]
    points += [f"{name} = outside:{'Attic' if name == 'host' else 'Buoy'}" for name in stand_ins]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[bygate.drivers]", *points, ""]))
