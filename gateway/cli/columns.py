"""Rows of text as columns that stand under each other."""

from collections.abc import Sequence


def columns(*rows: Sequence[str]) -> str:
    """Return the rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def folded(names: Sequence[str]) -> list[str]:
    """Return names, those of parts as one: `temperature (to _4)`."""
    parts: dict[str, int] = {}
    for name in names:
        whole, _, number = name.rpartition("_")
        if number.isdecimal() and whole in names:
            parts[whole] = int(number)
    ends = {f"{whole}_{number}" for whole, most in parts.items() for number in range(2, most + 1)}
    kept = [name for name in names if name not in ends]
    return [f"{name} (to _{parts[name]})" if name in parts else name for name in kept]
