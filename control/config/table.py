"""Typed reading of one TOML table: every getter notes what is wrong and lets the reading go on.

A getter that finds nothing usable returns None (or the default), so that one pass reports all
problems. `finish` reports the keys that nobody asked for, with the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from control.config.problems import Problem, kind, nearest, show
from control.config.unsupported import Unsupported
from control.text import one_line

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})
_BARE = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,63}")


def is_name(text: str) -> bool:
    """Whether a text may name an entry: short, and fit for a metric label and a log line."""
    return _NAME.fullmatch(text) is not None


class Report:
    """Problems and warnings gathered while one configuration is read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, path: str, message: str, label: str = "") -> None:
        """Note a problem that makes the configuration unusable."""
        self.problems.append(Problem(path=one_line(path), message=one_line(message), label=one_line(label)))

    def warn(self, path: str, message: str, label: str = "") -> None:
        """Note something unwise that does not stop the gateway."""
        self.warnings.append(Problem(path=one_line(path), message=one_line(message), label=one_line(label)))


class Table:
    """One table of the file, at `path`; `label` is its name, used in messages."""

    def __init__(self, report: Report, path: str, values: Mapping[str, object]) -> None:
        self.report = report
        self.path = path
        self.values = values
        name = values.get("name")
        self.label = name if isinstance(name, str) and len(name) <= 64 else ""
        self._known: list[str] = []

    def key(self, key: str) -> str:
        """The full path of a key of this table."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, message: str) -> None:
        """Note a problem at `key`."""
        self.report.error(self.key(key), message, self.label)

    def warn(self, key: str, message: str) -> None:
        """Note a warning at `key`."""
        self.report.warn(self.key(key), message, self.label)

    def has(self, key: str) -> bool:
        """True when the key is written in the file."""
        return key in self.values

    def raw(self, key: str) -> object | None:
        """The value as TOML gave it; None when absent. The key counts as known from now on."""
        self._known.append(key)
        return self.values.get(key)

    def table(self, key: str) -> Table:
        """The table below, [key]; an empty one when it is absent or no table."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            self.error(key, f"got {kind(value)}, want a table [{self.key(key)}]")
        return Table(self.report, self.key(key), value if isinstance(value, dict) else {})

    def text(self, key: str, *, required: str = "", secret: bool = False) -> str | None:
        """A non-empty string; `required` says what is wanted when it is missing."""
        value = self.raw(key)
        if value is None:
            if required:
                self.error(key, f"is missing; it wants {required}")
            return None
        if not isinstance(value, str):
            got = kind(value) if secret else f"{kind(value)} ({show(value)})"
            self.error(key, f"got {got}, want {required or 'a string'}")
            return None
        if not value.strip():
            self.error(key, f"got an empty string, want {required or 'a string'}")
            return None
        return value.strip()

    def name(self) -> str | None:
        """The required `name` of an entry: short, and fit for a metric label and a log line."""
        want = "a name of letters, digits and _ . : @ / - (at most 64)"
        name = self.text("name", required=want)
        if name is not None and not is_name(name):
            self.error("name", f"got {show(name)}, want {want}")
            return None
        return name

    def integer(self, key: str, low: int, high: int, default: T, unit: str = "") -> int | T:
        """A whole number from `low` to `high`; `unit` names what it counts."""
        value = self.raw(key)
        if value is None:
            return default
        want = f"a number from {low} to {high}{f' ({unit})' if unit else ''}"
        if isinstance(value, bool) or not isinstance(value, int):
            self.error(key, f"got {kind(value)} ({show(value)}), want {want}")
        elif not low <= value <= high:
            self.error(key, f"got {show(value)}, want {want}")
        else:
            return value
        return default

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.error(key, f"got {kind(value)} ({show(value)}), want true or false")
            return default
        return value

    def choice(
        self, key: str, choices: Iterable[str], default: str | None, refused: Mapping[str, str] = NOTHING
    ) -> str | None:
        """One of a few words; without a default the key is required. `refused`: others' words, and why."""
        words = list(choices)
        want = (
            " or ".join(f'"{word}"' for word in words)
            if len(words) < 3
            else "one of " + ", ".join(f'"{word}"' for word in words)
        )
        value = self.text(key, required="" if default is not None else want)
        if value is None:
            return default
        if value.lower() in words:
            return value.lower()
        if value.lower() in refused:
            self.error(key, f"got {show(value)}, {refused[value.lower()]}; want {want}")
        else:
            self.error(key, f"got {show(value)}, want {want}{nearest(value, words)}")
        return default

    def parsed(self, key: str, parse: Callable[[str], T], *, required: str = "") -> T | None:
        """A string that `parse` understands; its ValueError becomes the problem's text."""
        value = self.text(key, required=required)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            self.error(key, f"got {show(value)}, {error}")
            return None

    def parsed_list(self, key: str, parse: Callable[[str], T], *, want: str) -> list[T] | None:
        """A string, or a list of strings, each understood by `parse`; None when absent or wrong."""
        value = self.raw(key)
        if value is None:
            return None
        entries = value if isinstance(value, list) else [value]
        if not entries:
            self.error(key, f"got an empty list, want {want}")
            return None
        found: list[T] = []
        for index, entry in enumerate(entries):
            where = f"{key}[{index}]" if isinstance(value, list) else key
            if not isinstance(entry, str):
                self.error(where, f"got {kind(entry)} ({show(entry)}), want {want}")
                continue
            try:
                found.append(parse(entry.strip()))
            except ValueError as error:
                self.error(where, f"got {show(entry)}, {error}")
        return found if len(found) == len(entries) else None

    def finish(self, unsupported: Mapping[str, Unsupported] = NOTHING) -> None:
        """Report the keys that are not part of this table; of those in `unsupported`, why."""
        for key, value in self.values.items():
            if key in self._known:
                continue
            if key not in unsupported:
                self.error(_quoted(key), f"is not a known key{nearest(key, self._known)}")
            elif not unsupported[key].takes(value):
                self.error(key, f"got {show(value)}, and {unsupported[key].why}")


def _quoted(key: str) -> str:
    """A key as an error shows it: bare when TOML would take it so, else quoted, short and on one line."""
    return key if _BARE.fullmatch(key) else f"({show(key)})"
