"""What is wrong with a configuration, said so that it can be mended without reading the source.

A problem names the key path (`sa[1].encryption_key`), the entry's own name, what was got and what is
wanted. Key bytes never appear: strings that look like keys are shown by their length only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

# A run of hex digits this long may be key material that strayed into another field.
_SECRET = re.compile(r"(?:[0-9a-fA-F][\s:]?){24,}")
_SHOWN = 60  # characters of a value that are shown


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong (or, as a warning, unwise) at one key of the configuration."""

    path: str  # "sa[1].encryption_key"; "" for the file as a whole
    message: str
    label: str = ""  # the entry's name, when it has one

    def __str__(self) -> str:
        where = f'{self.path} ("{self.label}")' if self.path and self.label else self.path or self.label
        return f"{where}: {self.message}" if where else self.message


class ConfigError(Exception):
    """A configuration that cannot be used; holds every problem found, not the first one only."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line per problem: file, key, what was got and what is wanted."""
        return [f"{self.source}: {problem}" for problem in self.problems]


def show(value: object) -> str:
    """A value as an error may show it: short, on one line, and never a key."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int):
        text = str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
    elif isinstance(value, str):
        if _SECRET.search(value):
            return f"a string of {len(value)} characters"
        text = repr(value)
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def kind(value: object) -> str:
    """The TOML name of a value's type, with its article."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        dict: "a table",
        list: "an array",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the known word nearest to `word`, or nothing."""
    match = difflib.get_close_matches(word[:64].lower(), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{match[0]}"?' if match else ""
