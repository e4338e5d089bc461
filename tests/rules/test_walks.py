"""The walks name code that exists: functions, classes, methods, fields and files in backticks are found in the tree.

Names are looked for where they are defined, in the syntax trees of Python and Cython, so one that only comments still
know is not found. Paths from the top are test_docs.py's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from Cython.Compiler import Nodes

from control.cli import build_parser
from tests.rules.cython_source import ROOT, children, name_of, parse

WALKS = [ROOT / "docs" / name for name in ("walk-packet.md", "walk-ike.md", "development.md")]
PACKAGES = ("control", "dataplane", "ext", "bench", "tests")
NAME = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*)(?:\(\))?`")
# Names said to be in a file: `name` in `path`, or `name` (`path`) behind one name or several.
PLACED = re.compile(r"`([A-Za-z_][\w.]*)`(?: or `([A-Za-z_][\w.]*)`)? (?:in |\()`([\w./-]+\.(?:py|pyx))`")
SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".so", ".o")
# What is others', or a word that users write: system calls, packages, drivers of ports, markers of tests, examples.
OTHERS = {
    *("poll", "read", "recvmmsg", "cryptography", "noexcept"),
    *("xdp", "packet", "tun", "udp", "raw", "memory", "root", "full"),
    *("esplanade.toml", "gw.example.org"),
}


def python_names(path: Path) -> Iterator[str]:
    """What a Python file defines; members also behind their class: Class.member."""

    def below(body: list[ast.stmt], owner: str) -> Iterator[str]:
        for node in body:
            found: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found = [node.name]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = [node.target.id]
            elif isinstance(node, ast.Assign):
                found = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in found:
                yield name
                if owner:
                    yield f"{owner}.{name}"
            if isinstance(node, ast.ClassDef):
                yield from below(node.body, node.name)

    yield from below(ast.parse(path.read_text(), str(path)).body, "")


def cython_names(path: Path) -> Iterator[str]:
    """What a Cython file defines or declares: functions, classes, structs with their fields, enumerators, variables."""

    def below(node: Nodes.Node) -> Iterator[str]:
        for each in (node, *getattr(node, "declarators", ())):
            if isinstance(each, Nodes.CDeclaratorNode):
                yield name_of(each)
            elif isinstance(getattr(each, "name", None), str):
                yield str(each.name)
        if isinstance(node, Nodes.CFuncDefNode):
            yield name_of(node.declarator)
        for child in children(node):
            yield from below(child)

    yield from below(parse(path))


@cache
def names_in(path: Path) -> frozenset[str]:
    """The names that a file defines."""
    return frozenset(python_names(path) if path.suffix in (".py", ".pyi") else cython_names(path))


@cache
def everything() -> frozenset[str]:
    """Every name that may stand in backticks: defined in the tree, a module or package, a command, or one of OTHERS."""
    found = set(OTHERS) | set(PACKAGES)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py*"):
            if path.suffix in (".py", ".pyx", ".pxd"):
                found |= names_in(path)
                found.add(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    return frozenset(found | commands())


def commands() -> set[str]:
    """The words behind `esplanade`."""
    actions = build_parser()._actions
    return {word for action in actions if isinstance(action.choices, dict) for word in action.choices}


@cache
def files() -> frozenset[str]:
    """The names of all source files."""
    below = (path.name for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return frozenset((*below, *(path.name for path in ROOT.iterdir())))


def wrong(text: str) -> list[str]:
    """What a document names and does not exist, or not where it says."""
    found = [
        name
        for name in NAME.findall(text)
        if name not in (files() if name.endswith(SUFFIXES) else everything())
    ]
    for *names, place in PLACED.findall(text):
        path = ROOT / place
        here = names_in(path) if path.exists() else frozenset()
        found += [f"{name} in {place}" for name in names if name and name not in here]
    return found


@pytest.mark.parametrize("document", WALKS, ids=lambda path: path.name)
def test_code_that_is_named_exists(document: Path) -> None:
    """Every name, and where a document says in which file it is, that file has it."""
    missing = wrong(document.read_text())
    assert not missing, f"{document.name} names what is not there: {', '.join(missing)}"


def test_what_is_not_there_is_found() -> None:
    """A function that went, a method of no class, a name in another file, and a file."""
    assert (
        wrong("`parse_batch` in `ext/wire.pyx`, `Endpoint.initiate` (`control/ike/endpoint.py`), `PeerError`")
        == []
    )
    assert wrong("`parse_bunch`, `Endpoint.begin()`, `parse_batch` in `ext/esp_in.pyx`, `tidy_up.py`") == [
        "parse_bunch",
        "Endpoint.begin",
        "tidy_up.py",
        "parse_batch in ext/esp_in.pyx",
    ]
