"""On which line of a TOML text each key stands; tomllib parses, but tells no positions."""

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

KeyPath = tuple[str, ...]
"""A key with the tables around it: `("sensors", "hall", "interval")`."""

_TOKEN = re.compile(
    r'''
    """(?:\\.|[^\\])*?"{3,5}  |  \'\'\'.*?\'{3,5}  # two quotes may stand before the closing three
    | "(?:\\.|[^"\\])*"  |  '[^']*'
    | \#[^\n]*  |  \n  |  [\[\]{}=,.]
    | [^\s"'\#\[\]{}=,.]+
    ''',
    re.DOTALL | re.VERBOSE,
)


class _Token(NamedTuple):
    text: str
    line: int


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of each key and table of a text that tomllib has accepted.

    Keys in arrays of tables and inline tables are not told apart: `line_of` gives their parent's.
    """
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    for statement in _statements(text):
        header = statement[0].text == "["
        key = _key(statement)
        table = key if header else table
        path = key if header else table + key
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], statement[0].line)
    return lines


def line_of(path: KeyPath, lines: dict[KeyPath, int]) -> int:
    """Return the line of `path`, or of the nearest table around it."""
    return next(lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        yield _Token(match[0], line)
        line += match[0].count("\n")


def _statements(text: str) -> Iterator[list[_Token]]:
    """Yield the tokens of each header and each `key = value`, without comments."""
    statement: list[_Token] = []
    depth = 0
    for token in [*_tokens(text), _Token("\n", 0)]:
        depth += (token.text in ("[", "{")) - (token.text in ("]", "}"))
        if token.text == "\n" and depth <= 0:
            if statement:
                yield statement
            statement = []
        elif token.text != "\n" and not token.text.startswith("#"):
            statement.append(token)


def _key(statement: list[_Token]) -> KeyPath:
    words = [token.text for token in statement]
    if words[0] != "[":
        words = words[: words.index("=")]
    return tuple(_unquoted(word) for word in words if word not in ("[", "]", "."))


def _unquoted(word: str) -> str:
    return next(iter(tomllib.loads(f"{word} = 0"))) if word[0] in "\"'" else word
