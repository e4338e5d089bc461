"""The documents name what exists: every path of the tree that a Markdown file mentions is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TOP = "bench|control|dataplane|docs|ext|tests"
IN_CODE = re.compile(rf"`((?:{TOP})/[\w./-]*)`")
LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")
MADE = ("bench/results/",)  # appears when benchmarks have run


def exists(name: str) -> bool:
    """True for a file, a directory, or a module named without its suffix."""
    return any((ROOT / f"{name}{suffix}").exists() for suffix in ("", ".py", ".pyx"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_exist(document: Path) -> None:
    """Paths in backticks count from the top, links from the document's directory."""
    text = document.read_text()
    missing = [name for name in IN_CODE.findall(text) if not name.startswith(MADE) and not exists(name)]
    missing += [name for name in LINK.findall(text) if not (document.parent / name).exists()]
    assert not missing, f"{document.relative_to(ROOT)} mentions what is not there: {', '.join(missing)}"
