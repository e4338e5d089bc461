"""The documents name every key, every drop and every status field that there is, and none that is not."""

from __future__ import annotations

import re
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.admin.events import snake
from control.admin.report import build_status
from control.config import ConfigError, parse
from control.config.children import CHILD_KEYS
from control.config.schema import reassembling
from control.config.table import Table
from control.ike import events
from control.ike.settings import PoolSettings
from control.ike_daemon import IkeDaemon
from control.net.mirror import Way
from control.net.udp import UdpCounters
from dataplane.api import PortStats, SaStats, WorkerStats
from dataplane.model import Direction, PortSpec, Role
from dataplane.ports.drivers import frame_count, frame_size
from ext.counters import DROP_NAMES, VERDICT_NAMES
from ext.deal import team_size
from tests.control.config.good import GOOD
from tests.control.ike.pair import Pair

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


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


def test_every_decision_is_listed() -> None:
    """By its number; some by fewer words than its title has."""
    directory = DOCS / "adr"
    list_of_them = (directory / "README.md").read_text()
    listed = re.findall(r"^(?:- )?(\d+)[.:] \[.*\]\((.*)\)$", list_of_them, re.MULTILINE)
    written = {
        path.name: re.match(r"# (\d+)\. ", path.read_text()) for path in sorted(directory.glob("0*.md"))
    }
    assert {name: number for number, name in listed} == {
        name: match and match[1] for name, match in written.items()
    }
    assert len(listed) == len(written)


def test_every_event_is_described() -> None:
    kinds = [
        each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)
    ]
    documented = section(DOCS / "operations.md", "## Tunnels")
    for kind in set(kinds) - {events.Event}:
        assert f"`{snake(kind.__name__)}`" in documented, kind


def test_huge_pages_that_are_enough() -> None:
    """What is reserved is taken whole or not at all: of two interfaces, with the sockets that IKE has beside them."""
    text = " ".join(section(DOCS / "performance.md", "## Tuning").split())
    match = re.search(r"`vm.nr_hugepages` reserves some, (\w+) per worker or (\d+) with jumbo packets", text)
    assert match
    numbers = {1500: {"ten": 10}[match[1]], 9000: int(match[2])}
    for mtu, enough in numbers.items():
        ports = [PortSpec(name=str(role), role=role, driver="xdp", interface="x", mtu=mtu) for role in Role]
        ports += [
            PortSpec(
                name=driver, role=Role.UNPROTECTED, driver=driver, interface="", mtu=mtu + 128, helper=True
            )
            for driver, _ in reassembling(ports, encapsulated=True)
        ]
        assert len(ports) == 4
        for workers in (1, 2, 8):
            size = team_size(workers, frame_count(ports), frame_size(ports))
            assert size <= enough * workers * 2**21
        assert team_size(1, frame_count(ports), frame_size(ports)) > (enough - 1) * 2**21


def documented_fields() -> dict[str, set[str]]:
    """The tables of the status document: of each object, by its path, the keys that it is said to hold."""
    text = section(DOCS / "operations.md", "## Status")
    found = {}
    for heading, above in (("key of the JSON object", ""), ("key of `ike`", "ike.")):
        _, table = text.split(f"| {heading} |", 1)
        for path, said in re.findall(
            r"^\| `([a-z_.]+)` \| (.*) \|$", table.split("\n\n", 1)[0], re.MULTILINE
        ):
            found[above + path] = set(re.findall(r"`([a-z_]+)`", re.sub(r"\([^()]*\)", "", said)))
    return found


def made(kind: type, **values: object) -> Any:
    """One of the dataplane's reports, with 0 for whatever is not given."""
    return kind(**{field.name: 0 for field in fields(kind)} | values)


def status() -> dict[str, Any]:
    """The status of a gateway with a port, a worker, SAs both ways, a pool, and a tunnel that once failed."""
    config, pair = parse(GOOD), Pair().up()
    ends = {"local": ip_address("192.0.2.1"), "remote": ip_address("192.0.2.2")}
    sas = [
        made(SaStats, name=name, direction=direction, drops={}, **ends)
        for name, direction in (("ab", Direction.OUT), ("ba", Direction.IN))
    ]
    dataplane = {"engine": "openssl", "policies": 1, "tables_locked": True, "sas": sas}
    dataplane |= {"ports": [made(PortStats)], "workers": [made(WorkerStats)], "drops": {}}
    dataplane["verdicts"] = {name: 0 for number, name in VERDICT_NAMES.items() if number not in DROP_NAMES}
    daemon: Any = SimpleNamespace(
        sockets=SimpleNamespace(counters=UdpCounters()),
        door=SimpleNamespace(refused=0),
        endpoint=pair.a.endpoint,
    )
    ike = SimpleNamespace(
        now=lambda: pair.now,
        traffic=dict,
        snapshot=pair.a.endpoint.snapshot,
        feed=SimpleNamespace(
            last_errors=lambda: {"a-b": (0.0, events.Failure(code="peer_silent", text="no answer"))}
        ),
        leases=dict,
        connections={each.name: each for each in pair.a.endpoint.connections},
        pools=[PoolSettings(name="p", ranges=((ip_address("10.9.0.1"), ip_address("10.9.0.9")),))],
        datagrams=lambda: IkeDaemon.datagrams(daemon),
    )
    gateway: Any = SimpleNamespace(
        dataplane=SimpleNamespace(stats=lambda: SimpleNamespace(**dataplane)),
        mirror=SimpleNamespace(route_count=0, mirror=SimpleNamespace(neighbours={})),
        config=config,
        started=0.0,
        reloads=0,
        links=SimpleNamespace(of=lambda port: None),
        paths=SimpleNamespace(of=lambda name: Way()),
        sa={sa.name: sa for sa in config.sas}.get,
        ike=ike,
    )
    return build_status(gateway)


def shapes(path: str, value: object) -> dict[str, set[str]]:
    """Of each object in a document, by its path, its keys; those of one list are taken together."""
    if isinstance(value, list):
        found: dict[str, set[str]] = {}
        for each in value:
            for where, keys in shapes(path, each).items():
                found[where] = found.get(where, set()) | keys
        return found
    if not isinstance(value, dict):
        return {}
    found = {path: set(value)} if path else {}
    for key, below in value.items():
        found |= shapes(f"{path}.{key}" if path else key, below)
    return found


def test_every_status_field_is_described() -> None:
    """Object by object, what the code behind `esplanade status` makes; drops have a section of their own."""
    document, described = status(), documented_fields()
    found = {path: keys for path, keys in shapes("", document).items() if not path.endswith("drops")}
    assert {
        "ports",
        "workers",
        "sas",
        "ike.connections.last_error",
        "ike.ike_sas.children",
        "ike.pools",
    } < set(found)
    for path, keys in found.items():
        assert described[path] == keys, path
    assert {path for path, keys in described.items() if keys} == set(found)
    assert {path for path in described if "." not in path} == set(document)
    assert {path.removeprefix("ike.") for path in described if path.count(".") == 1} == set(document["ike"])


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


@pytest.mark.parametrize(
    ("rfc", "names"),
    [
        (9867, r"USE_PPK_INT"),
        (5723, r"IKE_SESSION_RESUME|TICKET_\w+"),
        (6290, r"QUICK_CRASH_DETECTION"),
        (6311, r"IKEV2_MESSAGE_ID_SYNC\w*|IPSEC_REPLAY_COUNTER_SYNC\w*"),
        (5685, r"REDIRECT\w*"),
    ],
)
def test_what_is_not_there_is_said(rfc: int, names: str) -> None:
    """Extensions of IKEv2 that have numbers here, and nothing else, are listed as not supported."""
    assert re.search(
        rf"^\| .*RFC {rfc}\) \|", section(DOCS / "configuration.md", "## What is not supported"), re.MULTILINE
    )
    numbers = ROOT / "control" / "ike" / "numbers.py"
    assert re.search(rf"\b({names}) = ", numbers.read_text())
    for path in (ROOT / "control").rglob("*.py"):
        used = re.search(rf"\.({names})\b", path.read_text())
        assert used is None, f"{path} has {used[0]}: RFC {rfc} is not missing any more"
