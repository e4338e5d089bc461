"""The documents name every key, every drop and every status field that there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from control.admin.events import snake
from control.config import ConfigError, parse
from control.config.children import CHILD_KEYS
from control.config.table import Table
from control.ike import events
from ext.counters import DROP_NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def section(path: Path, heading: str) -> str:
    """The text of one section of a document."""
    match = re.search(rf"^{re.escape(heading)}$(.*?)(?=^##|\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"{path.name} has no section {heading}"
    return match[1]


def first_column(text: str, heading: str) -> list[str]:
    """The names in the first column of the table whose heading begins with `heading`."""
    names, inside = [], False
    for line in text.splitlines():
        if line.startswith(f"| {heading} |"):
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and (match := re.match(r"\| `([a-z_]+)` \|", line)):
            names.append(match[1])
    return names


def test_every_drop_is_described() -> None:
    documented = first_column(section(DOCS / "operations.md", "## Drops"), "name")
    assert documented == [name for _, name in sorted(DROP_NAMES.items())]


def test_every_event_is_described() -> None:
    kinds = [
        each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)
    ]
    documented = section(DOCS / "operations.md", "## Tunnels")
    for kind in set(kinds) - {events.Event}:
        assert f"`{snake(kind.__name__)}`" in documented, kind


CONNECTION = {"connections": {"c": {"children": {"d": {}}, "local": {}, "remote": {}}}}


@pytest.mark.parametrize(
    ("heading", "path", "values"),
    [
        ("## `[gateway]`", "gateway", {}),
        ("## `[[port]]`", "port", {"port": [{"driver": driver} for driver in ("xdp", "tun", "udp")]}),
        ("## `[[sa]]`", "sa", {"sa": [{}]}),
        ("## `[[policy]]`", "policy", {"policy": [{}]}),
        ("## `[ike]`", "ike", {}),
        ("## `[connections.NAME]`", "connections.c", CONNECTION),
        ("### `local` and `remote`", "connections.c.local", CONNECTION),
        ("### `[connections.NAME.children.CHILD]`", "connections.c.children.d", CONNECTION),
        ("## `[secrets]` and `[users]`", "secrets.s", {"secrets": {"s": {}}}),
        ("## `[certificates.NAME]`", "certificates.x", {"certificates": {"x": {}}}),
        ("## `[authorities.NAME]`", "authorities.x", {"authorities": {"x": {}}}),
        ("## `[pools.NAME]`", "pools.p", {"pools": {"p": {}}}),
    ],
)
def test_every_key_is_described(
    heading: str, path: str, values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read empty tables and see which keys the reader asks for."""
    asked: dict[str, set[str]] = {}

    def finish(table: Table, _unsupported: object = None) -> None:
        asked.setdefault(table.path.partition("[")[0], set()).update(table._known)

    monkeypatch.setattr(Table, "finish", finish)
    with pytest.raises(ConfigError):
        parse({"port": 3, **values})
    known = asked[path]
    if path.endswith(".local"):
        known |= asked["connections.c.remote"]
    if path == "connections.c":
        known -= {*CHILD_KEYS}  # described with the children
    assert set(first_column(section(DOCS / "configuration.md", heading), "key")) == known
