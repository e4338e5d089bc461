"""Functions without the GIL say `noexcept`: else every caller takes the GIL to look for an exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.cython_source import ROOT, SOURCES, functions

EXAMPLE = '''
cdef extern from "a.h":
    int outside(int a) nogil

cdef struct Verbs:
    uint32_t (*receive)(Port *port,
                        Batch *batch) nogil       # a pointer
    int plain

cdef inline bint good(Batch *batch,
                      int count) noexcept nogil:
    """Mentions cdef int trap(int a) nogil: only here."""
    cdef int size = sizeof(int)
    return count

cdef int bad(int a) nogil:
    return a

cdef int worse(int a) except -1 nogil

cdef class Pool:
    cdef int inside(self) noexcept:
        cdef object x = f(1)
        return 2

def python(a):
    return a
'''


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nogil_functions_are_noexcept(path: Path) -> None:
    """Every nogil function, declared or defined, is noexcept; extern C functions are C's own affair."""
    found = [
        f"{path.relative_to(ROOT)}:{function.first}: {function.name}"
        for function in functions(path)
        if function.nogil and not function.noexcept and not function.extern
    ]
    assert not found, "nogil without noexcept:\n" + "\n".join(found)


def test_reader_finds_functions(tmp_path: Path) -> None:
    """The reader sees what this rule is about, and where bodies end."""
    path = tmp_path / "example.pyx"
    path.write_text(EXAMPLE)
    seen = {function.name: function for function in functions(path)}
    assert list(seen) == ["outside", "receive", "good", "bad", "worse", "inside"]
    assert [name for name, function in seen.items() if not function.nogil] == ["inside"]
    assert [name for name, function in seen.items() if function.noexcept] == ["outside", "good", "inside"]
    assert [name for name, function in seen.items() if function.extern] == ["outside"]
    lines = EXAMPLE.splitlines()
    assert lines[seen["good"].last - 1].strip() == "return count"
    assert lines[seen["inside"].last - 1].strip() == "return 2"
