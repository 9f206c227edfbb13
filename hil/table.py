"""What the demonstration shows: a table that stays, or plain lines where there is no terminal."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.reading import Reading
from hil.receiver import Heard, Receiver

OUTCOMES = 13
AGE = 6
GAP = 2
FRAME = 7
"""Lines of the terminal that are not rows: head, foot, the prompt."""

_wall_ms = attrgetter("instant.wall_ms")


class View:
    """Shows nothing: what comes is only counted."""

    def batch(self, length: int) -> None:
        """Show that a batch of so many bytes has come."""

    def refresh(self, note: str = "") -> None:
        """Show how things are now, and what is being done."""


class _Lines(View):
    """A line for each batch."""

    def __init__(self, receiver: Receiver, broker: str) -> None:
        self._receiver = receiver
        print(f"simulated sensors, broker {broker}; SIGINT or SIGTERM ends it", flush=True)

    def batch(self, length: int) -> None:
        sensors = self._receiver.sensors.values()
        newest = [max(heard.last.values(), key=_wall_ms) for heard in sensors]
        values = ", ".join(f"{reading.sensor} {_shown(reading)}" for reading in newest)
        print(f"batch {self._receiver.batches}, {length} bytes: {values}", flush=True)

    def refresh(self, note: str = "") -> None:
        if note:
            print(note, flush=True)


class _Picture(View):
    """A table that stays in its place."""

    def __init__(self, receiver: Receiver, broker: str, live: Live) -> None:
        self._receiver, self._broker, self._live = receiver, broker, live

    def refresh(self, note: str = "") -> None:
        status, console = self._receiver.status, self._live.console
        sensors = status.get("sensors", {})
        lines = max((console.height - FRAME) // max(len(sensors), 1), 1)
        waiting = status.get("buffer", {}).get("waiting_readings", 0)
        foot = (
            f"\n{_counted(self._receiver)}, {waiting} readings in the buffer\n"
            f"broker {self._broker}, topics bygate/v1/demo/#\n"
            f"{note or ('Ctrl-C ends it' if sensors else 'starting the daemon')}"
        )
        rows = table(self._receiver, sensors, console.width, lines)
        self._live.update(Group(rows, Text(foot)), refresh=True)


@contextmanager
def watching(receiver: Receiver, broker: str, *, quiet: bool) -> Iterator[View]:
    """Give a view of what comes, as fits where it is shown."""
    console = Console()
    if quiet:
        yield View()
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Picture(receiver, broker, live)
    else:
        yield _Lines(receiver, broker)


def print_summary(receiver: Receiver, sensors: Mapping[str, Any], taken: int, lost: int) -> None:
    """Print everything once."""
    console = Console(highlight=False)
    console.print(table(receiver, sensors, console.width))
    console.print(
        f"\n{taken} readings taken, {receiver.delivered} delivered, {lost} lost;"
        f" {receiver.duplicates} batches came twice\n{_counted(receiver)}"
    )


def _counted(receiver: Receiver) -> str:
    return f"{receiver.batches} batches, {receiver.bytes_per_reading or '?'} bytes a reading"


def table(
    receiver: Receiver, sensors: Mapping[str, Any], width: int, lines: int | None = None
) -> Table:
    """Return a row for each sensor: the values that came, and what the daemon says of it."""
    drawn = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    name = max(map(len, ["SENSOR", *sensors]))
    link = max(len("LINK"), *(len(said["link"]) for said in sensors.values()), 0)
    room = max(width - name - link - AGE - OUTCOMES - 4 * GAP, 10)
    for head, wide in zip(
        ("SENSOR", "LINK", "VALUES", "AGE", "OUTCOMES"),
        (name, link, room, AGE, OUTCOMES),
        strict=True,
    ):
        drawn.add_column(head, width=wide, justify="right" if head == "AGE" else "left")
    for sensor, said in sensors.items():
        heard = receiver.sensors.get(sensor, Heard())
        values = [_shown(reading) for reading in heard.last.values()]
        outcomes = "\n".join(f"{outcome} {n}" for outcome, n in said["outcomes"].items())
        shown = packed(values, room, lines) if values else said["why"] or ""
        drawn.add_row(*map(Text, (sensor, said["link"], shown, _age(heard), outcomes)))
    return drawn


def packed(values: Sequence[str], width: int, lines: int | None = None) -> str:
    """Return the values in so many lines, if need be with how many more there are."""
    rows: list[str] = []
    for index, value in enumerate(values):
        more = len(values) - index
        joined = f"{rows[-1]}  {value}" if rows else value
        last = lines is not None and len(rows) == lines
        if rows and len(joined) + (5 if last and more > 1 else 0) <= width:
            rows[-1] = joined
        elif not last:
            rows.append(value)
        else:
            rows[-1] = f"{rows[-1]} +{more}"
            break
    return "\n".join(rows)


def _shown(reading: Reading) -> str:
    value = "–" if reading.value is None else reading.value
    return f"{reading.quantity.name} {value} {reading.quantity.unit}".rstrip()


def _age(heard: Heard) -> str:
    if not heard.last:
        return ""
    newest = max(map(_wall_ms, heard.last.values()))
    return f"{time.time() - newest / 1000:.1f} s"
