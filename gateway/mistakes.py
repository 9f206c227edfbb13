"""What is wrong with a configuration: all of it at once, each with its line."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong. `line` is None for what stands on no line, `path` "" for the whole file."""

    line: int | None
    path: str
    text: str


class ConfigError(Exception):
    """All that is wrong with one file, one line each."""

    def __init__(self, file: str, mistakes: Sequence[Mistake]) -> None:
        self.file = file
        self.mistakes = sorted(mistakes, key=lambda mistake: mistake.line or 0)
        super().__init__(file, self.mistakes)

    def __str__(self) -> str:
        return "\n".join(self._one(mistake) for mistake in self.mistakes)

    def _one(self, mistake: Mistake) -> str:
        where = f"{self.file}:{mistake.line}" if mistake.line else self.file
        return ": ".join(part for part in (where, mistake.path, mistake.text) if part)
