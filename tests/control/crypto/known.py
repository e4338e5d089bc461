"""Reads the known answers of tests/vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[2] / "vectors"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a vector file as dictionaries by column."""
    data = json.loads((VECTORS / name).read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
