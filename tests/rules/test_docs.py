"""Documents, docstrings and comments name what exists: every path of the tree that they mention is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TOP = "bench|control|dataplane|docs|ext|tests"
IN_CODE = re.compile(rf"`((?:{TOP})/[\w./-]*)`")
OWN_MODULE = re.compile(r"(?<![\w/.])(\w+\.py)\b")
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


def test_maps_of_packages_are_whole() -> None:
    """A package whose docstring names its modules names all of them, and a module that went is not there."""
    maps = 0
    for path in sorted((ROOT / "control").rglob("__init__.py")):
        text, folder = path.read_text(), path.parent
        named = set(OWN_MODULE.findall(text))
        if len(named) < 3:
            continue
        maps += 1
        modules = {each.name for each in folder.glob("*.py")} - {"__init__.py"}
        assert named == modules, f"{path.relative_to(ROOT)}: {', '.join(sorted(named ^ modules))}"
    assert maps >= 4
