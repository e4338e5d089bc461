"""What .pyx and .pxd files hold, C functions and imports, as Cython's own parser sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from Cython.Compiler import Errors, ExprNodes, Nodes
from Cython.Compiler.TreeFragment import parse_from_strings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "ext").glob("*.pyx"), *(ROOT / "ext").glob("*.pxd")])


@dataclass(frozen=True, kw_only=True)
class Function:
    """One cdef or cpdef function, or a C function pointer, or a declaration.

    Lines count from 1; `last` is the last line with code of its body (of the header, for a declaration).
    """

    name: str
    first: int
    last: int
    nogil: bool
    noexcept: bool  # no caller needs to look for an exception
    extern: bool  # declared in an extern block: a C function, or a pointer in a C struct


def children(node: Nodes.Node) -> Iterator[Nodes.Node]:
    """The nodes directly below a node of the parse tree."""
    for name in node.child_attrs or ():
        child = getattr(node, name, None)
        for item in child if isinstance(child, list) else [child]:
            if isinstance(item, Nodes.Node):
                yield item


def last_line(node: Nodes.Node) -> int:
    """The highest line of a node and all below it."""
    return max([node.pos[1], *(last_line(child) for child in children(node))])


def name_of(declarator: Nodes.Node) -> str:
    """The name inside nested pointer and function declarators."""
    while not hasattr(declarator, "name"):
        declarator = declarator.base
    return str(declarator.name)


def walk(node: Nodes.Node, extern: bool, first: int, last: int) -> Iterator[Function]:
    """Functions at and below a node; `first` and `last` are the lines of the statement around it."""
    extern = extern or isinstance(node, Nodes.CDefExternNode)
    if isinstance(node, Nodes.CFuncDefNode | Nodes.CVarDefNode):
        first, last = node.pos[1], last_line(node)
    if isinstance(node, Nodes.CFuncDeclaratorNode):
        yield Function(
            name=name_of(node.base),
            first=first,
            last=last,
            nogil=bool(node.nogil),
            noexcept=not node.exception_check and node.exception_value is None,
            extern=extern,
        )
    for child in children(node):
        yield from walk(child, extern, first, last)


def parse(path: Path) -> Nodes.Node:
    """The parse tree of a .pyx or .pxd file."""
    Errors.init_thread()
    level = "module_pxd" if path.suffix == ".pxd" else "module"
    return parse_from_strings(path.stem, path.read_text(), level=level)


def functions(path: Path) -> list[Function]:
    """Every C function that the file declares or defines, in order."""
    return list(walk(parse(path), extern=False, first=1, last=1))


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and full name of everything that the file imports or cimports; `from a cimport b` gives a.b."""
    found = []

    def visit(node: Nodes.Node) -> None:
        line = node.pos[1]
        if isinstance(node, Nodes.CImportStatNode):
            found.append((line, str(node.module_name)))
        elif isinstance(node, Nodes.FromCImportStatNode):
            found.extend((line, f"{node.module_name}.{name}") for _, name, *_ in node.imported_names)
        elif isinstance(node, Nodes.FromImportStatNode):
            found.extend((line, f"{node.module.module_name.value}.{name}") for name, _ in node.items)
        elif isinstance(node, ExprNodes.ImportNode):
            found.append((line, str(node.module_name.value)))
        for child in children(node):
            visit(child)

    visit(parse(path))
    return found
