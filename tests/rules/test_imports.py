"""Imports run one way: control -> dataplane's faces (api, model, offline, probe) -> ext; `./run lint` checks it.

Files are parsed, not imported, so nothing needs to be compiled, and an import inside a function counts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT
from tests.rules.cython_source import imports as cython_imports

OURS = ("control", "dataplane", "ext", "bench", "tests")

# Package: what else of ours it may import, as module prefixes.
ALLOWED = {
    "control": ("control", "dataplane.api", "dataplane.model", "dataplane.offline", "dataplane.probe"),
    "dataplane": ("dataplane", "ext"),
    "ext": ("ext",),
}


def python_imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a Python file imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def violations(package: str) -> list[str]:
    """Imports of `package` that leave the allowed direction, as file:line: name."""
    found = []
    for path in sorted((ROOT / package).rglob("*")):
        if path.suffix in (".py", ".pyi"):
            inside = path.relative_to(ROOT).parent.as_posix().replace("/", ".")
            imports = python_imports(path, inside)
        elif path.suffix in (".pyx", ".pxd"):
            imports = cython_imports(path)
        else:
            continue
        for line, name in imports:
            ours = name.split(".")[0] in OURS
            allowed = any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED[package])
            if ours and not allowed:
                found.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_run_one_way(package: str) -> None:
    """No package imports against the direction."""
    found = violations(package)
    assert not found, f"{package} may import {', '.join(ALLOWED[package])} of ours only:\n" + "\n".join(found)


def test_relative_and_cython_imports_are_understood(tmp_path: Path) -> None:
    """The readers see relative imports, imports inside functions, and every form of cimport."""
    python = tmp_path / "a.py"
    python.write_text("from . import x\nfrom ..dataplane import api\ndef f():\n    import ext.sa as s\n")
    assert list(python_imports(python, "control.net")) == [
        (1, "control.net.x"),
        (2, "control.dataplane.api"),
        (4, "ext.sa"),
    ]
    cython = tmp_path / "a.pyx"
    cython.write_text(
        "cimport ext.sa\nfrom ext.packet cimport (Batch,\n    Packet as P)\nimport socket  # why\n"
        "def f():\n    from control import cli\n"
    )
    names = ["ext.sa", "ext.packet.Batch", "ext.packet.Packet", "socket", "control.cli"]
    assert [row for row in cython_imports(cython) if row[1] != "control"] == list(
        zip((1, 2, 2, 4, 6), names, strict=True)
    )
