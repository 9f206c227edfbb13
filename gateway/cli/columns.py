"""Rows of text as columns that stand under each other."""

from collections.abc import Sequence


def columns(*rows: Sequence[str]) -> str:
    """Return the rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
