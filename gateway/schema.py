"""Settings as dataclass fields: declared, read by what the field says, shown as the user writes.

Checking, the listing of `bygate drivers` and config.example.toml all come from the field alone.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gateway.key import HIDDEN, Key
from gateway.measure import (
    BYTES,
    SECONDS,
    Duration,
    Size,
    duration,
    shown_duration,
    shown_size,
    size,
)

NOT_WRITTEN = {"written": False}
"""Metadata of a field that the program fills in."""

_T = TypeVar("_T")
_LONGEST = 366 * 86400.0
_SHOWN = 60


def setting(
    default: _T,
    doc: str,
    *,
    example: object = None,
    low: float | None = None,
    high: float | None = None,
    read: Callable[[object], object] | None = None,
) -> _T:
    """Declare a setting: its default and one sentence about it.

    `example`, as the user would write it, stands in config.example.toml where the default says
    nothing. `low` and `high` bound a number. `read` turns the TOML value into the setting's in
    place of its type, and raises ValueError with what was expected and what was found.

    >>> settle: Duration = setting(duration("30s"), "How long the fan runs before a reading.")
    """
    about = {"doc": doc, "example": example, "low": low, "high": high, "read": read}
    return field(default=default, metadata=about)


def required(  # Any: it stands for a value of whatever type its field has
    doc: str, *, example: object, read: Callable[[object], object] | None = None
) -> Any:  # noqa: ANN401
    """Declare a setting that the user must write."""
    return field(metadata={"doc": doc, "example": example, "read": read})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `kind` is its type without `| None`; `default` is MISSING when it has none."""

    name: str
    kind: object
    default: object
    doc: str = ""
    example: object = None
    low: float | None = None
    high: float | None = None
    custom: Callable[[object], object] | None = None

    @property
    def required(self) -> bool:
        """Whether the user must write it."""
        return self.default is MISSING

    @property
    def shown(self) -> str:
        """The example, else the default, as it stands in config.toml."""
        value = self.default if self.example is None else self.example
        return json.dumps(plain(self.kind, value), ensure_ascii=False)

    @property
    def instance(self) -> str:
        """`; for example id = "trd-0042"`, or nothing."""
        return "" if self.example is None else f"; for example {self.name} = {self.shown}"

    @property
    def expected(self) -> str:
        """What a value is, in words: `a whole number`."""
        if get_origin(self.kind) is Literal:
            return "one of " + ", ".join(seen(choice) for choice in get_args(self.kind))
        return _KINDS[self.kind][0] if self.kind in _KINDS else "a value"

    @property
    def allowed(self) -> str:
        """What a value is and its bounds, in words: `a whole number from 1 to 247`."""
        ends = zip(("from", "to"), self._bounds, strict=True)
        words = [f"{word} {plain(self.kind, end)}" for word, end in ends if end is not None]
        return " ".join([self.expected, *words])

    def read(self, value: object) -> object:
        """Return a TOML value as the setting's type has it.

        Raises ValueError with what was expected, what was seen and a hint.
        """
        if self.custom or self.kind is Key:  # their messages are their own: a key is never shown
            return (self.custom or Key)(value)
        try:
            found = self._convert(value)
        except (TypeError, ValueError, OverflowError):
            wrong = f"expected {self.expected}, got {seen(value)}{self._hint(value)}"
            raise ValueError(wrong) from None
        if isinstance(found, int | float) and not isinstance(found, bool):
            self._in_range(found, value)
        return found

    def from_text(self, text: str) -> object:
        """Return what `read` makes of a value given without TOML's quotes."""
        choices = {str(choice): choice for choice in get_args(self.kind)}
        if self.custom or self.kind in (str, Path, Duration, Size, Key):
            return self.read(text)
        if get_origin(self.kind) is Literal:
            return self.read(choices.get(text, text))
        return self.read(_toml_value(text))

    def _convert(self, value: object) -> object:
        if get_origin(self.kind) is not Literal:
            return _KINDS[self.kind][1](value)
        for choice in get_args(self.kind):
            if type(choice) is type(value) and choice == value:
                return choice
        raise ValueError(value)

    def _in_range(self, found: float, value: object) -> None:
        low, high = self._bounds
        if (low is not None and found < low) or (high is not None and found > high):
            raise ValueError(f"expected {self.allowed}, got {seen(value)}")

    @property
    def _bounds(self) -> tuple[float | None, float | None]:
        return self.low, _LONGEST if self.high is None and self.kind == Duration else self.high

    def _hint(self, value: object) -> str:
        if self.kind == Duration:
            return did_you_mean(_with_unit(value, "s", SECONDS))
        if self.kind == Size:
            unit = "B" if isinstance(value, int) and value >= BYTES["MB"] else "MiB"
            return did_you_mean(_with_unit(value, unit, BYTES))
        if get_origin(self.kind) is Literal:
            choices = {str(choice): seen(choice) for choice in get_args(self.kind)}
            near = _near(seen(value).strip("'"), choices)
            return f"; did you mean {choices[near]}?" if near else ""
        unquoted = _toml_value(value) if isinstance(value, str) else value
        fits = isinstance(value, str) and self.kind is type(unquoted)
        return "; did you mean it without quotes?" if fits else ""


def settings_of(cls: type) -> dict[str, Setting]:
    """Return the settings that the fields of a dataclass declare, in their order.

    A field whose metadata is `NOT_WRITTEN` is none. Raises what the evaluation of a driver's
    annotations raises, and TypeError when a type is none that a setting can have.
    """
    hints = get_type_hints(cls, include_extras=True)
    declared = {}
    for each in fields(cls):
        about = dict(each.metadata)
        if about == NOT_WRITTEN:
            continue
        custom = about.pop("read", None)
        kind = _without_none(hints[each.name])
        if not custom and kind not in _KINDS and get_origin(kind) is not Literal:
            raise TypeError(f"{each.name!r} has a type that no setting can have: {kind}")
        made = each.default_factory
        default = each.default if made is MISSING else made()
        declared[each.name] = Setting(each.name, kind, default, custom=custom, **about)
    return declared


def read_table(
    table: Mapping[str, object],
    declared: Mapping[str, Setting],
    read: Callable[[Setting, Any], object] = Setting.read,
    others: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings that stand in `table`, and what is wrong with which key.

    An unknown key may also have been meant for one of `others`.
    """
    values = {}
    wrong = {
        name: f"there is no such setting{nearest(name, [*declared, *others])}"
        for name in table
        if name not in declared
    }
    for name, setting in declared.items():
        try:
            if name in table:
                values[name] = read(setting, table[name])
            elif setting.required:
                wrong[name] = f"missing, but required{setting.instance}"
        except ValueError as error:
            wrong[name] = " ".join(str(error).split())
    return values, wrong


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean 'interval'?`, or nothing when no word is near."""
    return did_you_mean(_near(word, words))


def did_you_mean(guess: str | None) -> str:
    """Return a guess as the end of a message; nothing for None."""
    return "" if guess is None else f"; did you mean {guess!r}?"


def seen(value: object) -> str:
    """Return what the user wrote, short and on one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…")
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        flat = len(value) <= 4 and not any(isinstance(part, dict | list) for part in value)
        return f"[{', '.join(map(seen, value))}]" if flat else f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    return str(value)


def plain(kind: object, value: object) -> object:
    """Return a value as TOML and JSON hold it: durations, sizes and paths as text, keys hidden."""
    if isinstance(value, Key):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int | float) and kind == Duration:
        return shown_duration(value)
    if isinstance(value, int | float) and kind == Size:
        return shown_size(int(value))
    return value


def _near(word: str, words: Iterable[str]) -> str | None:
    folded = {candidate.casefold(): candidate for candidate in words}
    matches = get_close_matches(word[:_SHOWN].casefold(), folded, n=1)
    return folded[matches[0]] if matches else None


def _exactly(kind: type) -> Callable[[object], object]:
    def read(value: object) -> object:
        if type(value) is not kind:  # True is an int to isinstance, and no number to the user
            raise TypeError(value)
        return value

    return read


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    if not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _measure(parse: Callable[[str], float]) -> Callable[[object], object]:
    def read(value: object) -> float:
        if not isinstance(value, str):
            raise TypeError(value)
        return parse(value)

    return read


def _path(value: object) -> Path:
    if not (isinstance(value, str) and value.startswith("/") and value.isprintable()):
        raise ValueError(value)
    return Path(value)


_KINDS: Mapping[object, tuple[str, Callable[[object], object]]] = {
    bool: ("true or false", _exactly(bool)),
    int: ("a whole number", _exactly(int)),
    float: ("a number", _number),
    str: ("text in quotes", _exactly(str)),
    Path: ("a path beginning with '/'", _path),
    Duration: ("a duration such as '60s'", _measure(duration)),
    Size: ("a size such as '512 MiB'", _measure(size)),
    Key: ("32 hexadecimal digits", Key),
}


def _without_none(hint: object) -> object:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 else hint


def _with_unit(value: object, unit: str, units: Mapping[str, float]) -> str | None:
    """Return what a bare number, or one whose unit is spelt otherwise, was meant to be."""
    match = re.fullmatch(r"'?([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)'?", seen(value))
    if not match:
        return None
    known = (name for name in units if _alike(name.casefold(), match[2].casefold()))
    unit = next(known, "") if match[2] else unit
    return f"{match[1]}{' ' * (units is BYTES)}{unit}" if unit else None


def _alike(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _toml_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text
