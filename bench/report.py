"""Rows of results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

Row = Mapping[str, object]
RESULTS = Path(__file__).parent / "results"


def format_table(rows: Sequence[Row]) -> str:
    """The rows under the names of their columns; numbers to the right. Rows of other columns are another table."""
    if not rows:
        return "(nothing measured)"
    return "\n\n".join(_table(list(group)) for _, group in groupby(rows, list))


def _table(rows: Sequence[Row]) -> str:
    names = list(rows[0])
    cells = [names, *([_show(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    text = [isinstance(rows[0][name], str) for name in names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, text, strict=True)
        ).rstrip()
        for line in cells
    )


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, list):
        return " ".join(_show(each) for each in value)
    return "" if value is None else str(value)


def write_json(path: Path, machine: Mapping[str, object], rows: Sequence[Row]) -> None:
    """{"machine": ..., "results": rows}; floats rounded to four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "results": [{name: _round(value) for name, value in row.items()} for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _round(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_round(each) for each in value]
    return value
