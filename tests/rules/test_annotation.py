"""The compiled packet path holds no Python: no line of a function without the GIL is yellow in Cython's annotation.

Reads what the release build left in build/cython: the annotated HTML for .pyx files, whose lines carry a score
(0: plain C, more: calls into Python's C API), and the generated C for inline functions of .pxd files, which the
HTML does not show. Both must be newer than their sources.
"""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT, SOURCES, functions

GENERATED = ROOT / "build" / "cython" / "ext"
SCORED_LINE = re.compile(
    r'<pre class="cython line score-(\d+)"[^>]*>(?:\+|&#xA0;)<span class="[^"]*">(\d+)</span>: (.*)'
)
# What Cython's own scoring counts, in the generated C (reference counting of nothing and tracing apart).
PYTHON_CALL = re.compile(
    r"\b(?:__Pyx_(?!X?(?:GOT|GIVE)REF|RefNanny|Trace)[A-Z][A-Za-z_]+|__pyx_convert_\w+|Py[A-Z][a-z]+_[A-Z][A-Za-z_]+)(?=\()"
)
MODULES = [path for path in SOURCES if path.suffix == ".pyx"]
HEADERS = [path for path in SOURCES if path.suffix == ".pxd"]
if platform.machine() != "x86_64":
    MODULES = [path for path in MODULES if path.stem != "crypto_mb"]


def fresh(path: Path, source: Path) -> str:
    """The text of a generated file, which must not be older than its source."""
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: run ./run build first"
    assert path.stat().st_mtime >= source.stat().st_mtime, (
        f"{path.relative_to(ROOT)} is old: run ./run build first"
    )
    return path.read_text()


def nogil_lines(source: Path) -> dict[int, str]:
    """Line number to function name, for every line of every function body that runs without the GIL."""
    return {
        line: function.name
        for function in functions(source)
        if function.nogil and not function.extern
        for line in range(function.first, function.last + 1)
    }


def scores(html: str) -> dict[int, int]:
    """Line number to score in an annotated HTML file."""
    return {int(line): int(score) for score, line, _ in SCORED_LINE.findall(html)}


def calls_into_python(code: str) -> dict[str, list[tuple[int, str]]]:
    """File of ext to (line, call), for each use of Python's C API that a generated C file has for a header's line."""
    found = defaultdict(list)
    # Code stands behind a comment that names the line it is from, up to the next one or the function's end.
    for chunk in code.split('/* "')[1:]:
        marker = re.match(r'(ext/\w+\.pxd)":(\d+)\n', chunk)
        if marker:
            body = chunk.split("*/", 1)[-1].split("\n}\n", 1)[0]
            found[marker.group(1)].extend((int(marker.group(2)), call) for call in PYTHON_CALL.findall(body))
    return found


@cache
def calls_in_module(module: Path) -> dict[str, list[tuple[int, str]]]:
    """The same for what the release build made of a module."""
    return calls_into_python(fresh(GENERATED / f"{module.stem}.c", module))


@pytest.mark.parametrize("source", MODULES, ids=lambda path: path.name)
def test_functions_without_the_gil_are_plain_c(source: Path) -> None:
    """Every line of every nogil function in a module has score 0."""
    html = fresh(GENERATED / f"{source.stem}.html", source)
    scored = scores(html)
    lines = source.read_text().splitlines()
    assert len(scored) == len(lines), "the annotation does not show every line"
    yellow = [
        f"{source.relative_to(ROOT)}:{line}: score {scored[line]} in {name}: {lines[line - 1].strip()}"
        for line, name in sorted(nogil_lines(source).items())
        if scored[line]
    ]
    assert not yellow, "Python inside functions without the GIL:\n" + "\n".join(yellow)


@pytest.mark.parametrize("source", HEADERS, ids=lambda path: path.name)
def test_inline_functions_are_plain_c(source: Path) -> None:
    """The same for inline functions in .pxd files, in every module that uses them."""
    name = source.relative_to(ROOT).as_posix()
    lines = nogil_lines(source)
    found = set()
    for module in MODULES:
        calls = calls_in_module(module).get(name, [])
        found.update(f"{name}:{line}: {call} in {lines[line]}" for line, call in calls if line in lines)
    assert not found, "Python inside inline functions without the GIL:\n" + "\n".join(sorted(found))


def test_yellow_lines_are_seen() -> None:
    """The readers find what they look for: every module has yellow lines where Python code is."""
    for source in MODULES:
        assert any(scores(fresh(GENERATED / f"{source.stem}.html", source)).values()), source
    code = (
        '/* "ext/a.pxd":7\n * x\n */\n  __Pyx_Raise(a);\n'
        '/* "ext/a.pxd":8\n * y\n */\n  b();\n}\nPyObject_Call(x);\n'
    )
    assert calls_into_python(code) == {"ext/a.pxd": [(7, "__Pyx_Raise")]}
