"""Documents, docstrings and comments name what exists: every path of the tree that they mention is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TOP = "bench|control|dataplane|docs|ext|tests"
IN_CODE = re.compile(rf"`((?:{TOP})/[\w./-]*)`")
LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")
IN_SOURCE = re.compile(rf"(?<![\w/.])((?:{TOP}|v2|wire)/[\w/.-]*\w)")
SOURCES = sorted(
    path
    for package in ("control", "dataplane", "ext", "bench")
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".h") or path.name.endswith(".bpf.c")
)
MADE = ("bench/results",)  # appears when benchmarks have run


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


def test_paths_in_sources_exist() -> None:
    """From the top, or, within the IKE package, from there: v2/sa.py."""
    mentions = [
        (path, name)
        for path in SOURCES
        for name in IN_SOURCE.findall(path.read_text())
        if not name.startswith(MADE)
    ]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in mentions
        if not exists(name) and not exists(f"control/ike/{name}")
    ]
    assert len(mentions) > 30 and not missing, f"there is no such file: {', '.join(missing)}"
