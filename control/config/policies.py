"""[[policy]] entries: one entry, several ranges, hence several SPD entries in the order of the file.

Every local range is paired with every remote range of its own address family (RFC 4301 section 4.4.1.2
allows lists; the dataplane's SPD holds pairs).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from control.config.problems import kind, nearest, show
from control.config.table import Table
from control.config.unsupported import POLICY
from control.config.values import (
    ANY_RANGES,
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    AddressRange,
    no_ports,
    parse_icmp,
    parse_ports,
    parse_protocol,
    parse_ranges,
)
from dataplane.model import ANY_PORTS, OPAQUE_PORTS, Action, PolicySpec, SelectorSpec

_ACTIONS = {"protect": Action.PROTECT, "bypass": Action.BYPASS, "discard": Action.DISCARD}
_RANGES = "an address, a prefix, a first-last range, or a list of them"
_PAIRS_MAX = 1024  # pairs of ranges that one entry may make


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One [[policy]] as read: its SPD entries, and the inbound SAs that get their selectors."""

    table: Table = field(repr=False, compare=False)
    name: str
    action: Action
    specs: tuple[PolicySpec, ...]
    inbound: tuple[str, ...]
    outbound: str | None


def read_policies(tables: list[Table], sa_names: list[str]) -> list[Policy]:
    """Every usable [[policy]], in order; problems go to the tables' report."""
    found = []
    for table in tables:
        before = len(table.report.problems)
        name = table.name()
        action = _ACTIONS[table.choice("action", _ACTIONS, "protect") or "protect"]
        selectors = _selectors(table)
        outbound = _sa_name(table, "out", sa_names)
        inbound = _inbound(table, sa_names)
        _check_action(table, action)
        table.finish(POLICY)
        if name is None or len(table.report.problems) > before:
            continue
        specs = tuple(
            # Names are unique in the SPD, and "#" is in no name that can be written.
            PolicySpec(
                name=name if number == 1 else f"{name}#{number}",
                action=action,
                selector=selector,
                sa=outbound,
            )
            for number, selector in enumerate(selectors, start=1)
        )
        found.append(
            Policy(table=table, name=name, action=action, specs=specs, inbound=inbound, outbound=outbound)
        )
    return found


def _selectors(table: Table) -> list[SelectorSpec]:
    """The pairs of local and remote ranges of one family."""
    local, remote = _ranges(table, "local"), _ranges(table, "remote")
    protocol = _protocol(table)
    local_ports, remote_ports = _ports(table, "local_port", protocol), _ports(table, "remote_port", protocol)
    icmp = _icmp(table, protocol)
    if icmp is not None:
        local_ports = remote_ports = icmp
    if local is None or remote is None:
        return []
    if len(local) * len(remote) > _PAIRS_MAX:
        table.error(
            "remote",
            f"{len(local)} local times {len(remote)} remote ranges are {len(local) * len(remote)} "
            f"pairs, want at most {_PAIRS_MAX} in one policy",
        )
        return []
    pairs = [
        (ours, theirs)
        for ours, theirs in itertools.product(local, remote)
        if ours[0].version == theirs[0].version
    ]
    if not pairs:
        table.error(
            "remote",
            f"got IPv{remote[0][0].version} ranges only and local has IPv{local[0][0].version} "
            "ranges only, want a pair of one family",
        )
    return [
        SelectorSpec(
            local_first=ours[0],
            local_last=ours[1],
            remote_first=theirs[0],
            remote_last=theirs[1],
            protocol=protocol or 0,
            local_ports=local_ports,
            remote_ports=remote_ports,
        )
        for ours, theirs in pairs
    ]


def _ranges(table: Table, key: str) -> list[AddressRange] | None:
    """Address ranges of one side; absent means any address; None when wrong."""
    if not table.has(key):
        table.raw(key)
        return list(ANY_RANGES)
    listed = table.parsed_list(key, parse_ranges, want=_RANGES)
    return None if listed is None else list(dict.fromkeys(itertools.chain.from_iterable(listed)))


def _protocol(table: Table) -> int | None:
    """A protocol as name or number; 0 is ANY; None when wrong."""
    value = table.raw("protocol")
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= 255:
            return value
        table.error("protocol", f"got {show(value)}, want a protocol number from 0 to 255")
        return None
    return table.parsed("protocol", parse_protocol)


def _ports(table: Table, key: str, protocol: int | None) -> tuple[int, int]:
    """Ports as number or "a-b"; they need a protocol that has ports. Any protocol can hide them: "opaque"."""
    value = table.raw(key)
    if value is None or value == "any":
        return ANY_PORTS
    if value == "opaque":
        return OPAQUE_PORTS
    if protocol is not None and protocol not in PORT_PROTOCOLS:
        table.error(
            key,
            f"needs protocol = {', '.join(PORT_PROTOCOLS.values())}; got protocol "
            f"{protocol if protocol else 'any'}, {no_ports(protocol)}",
        )
        return ANY_PORTS
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= 65535:
            return value, value
        table.error(key, f"got {show(value)}, want a port from 0 to 65535")
        return ANY_PORTS
    return table.parsed(key, parse_ports) or ANY_PORTS


def _icmp(table: Table, protocol: int | None) -> tuple[int, int] | None:
    """Message type and code of ICMP, which stand where ports do (RFC 4301 section 4.4.1.1); None for any."""
    value = table.raw("icmp")
    if value is None:
        return None
    if protocol is not None and protocol not in ICMP_PROTOCOLS:
        table.error(
            "icmp", f'needs protocol = "icmp" or "icmpv6"; got protocol {protocol if protocol else "any"}'
        )
        return None
    if any(table.has(key) for key in ("local_port", "remote_port")):
        table.error("icmp", "stands in the place of ports; leave local_port and remote_port out")
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        table.error(
            "icmp", f'got {kind(value)} ({show(value)}), want a type such as 8, or "3(4)" with its code'
        )
        return None
    try:
        return parse_icmp(value)
    except ValueError as error:
        table.error("icmp", f"got {show(value)}, {error}")
        return None


def _inbound(table: Table, sa_names: list[str]) -> tuple[str, ...]:
    """The names in `in`: one, or a list."""
    value = table.raw("in")
    if value is None:
        return ()
    entries = value if isinstance(value, list) else [value]
    names = []
    for index, entry in enumerate(entries):
        where = f"in[{index}]" if isinstance(value, list) else "in"
        if not isinstance(entry, str):
            table.error(
                where, f'got {kind(entry)} ({show(entry)}), want the name of an [[sa]] with direction = "in"'
            )
        elif entry not in sa_names:
            table.error(where, f"got {show(entry)}, and no [[sa]] has that name{nearest(entry, sa_names)}")
        else:
            names.append(entry)
    return tuple(dict.fromkeys(names))


def _sa_name(table: Table, key: str, sa_names: list[str]) -> str | None:
    name = table.text(key)
    if name is not None and name not in sa_names:
        table.error(key, f"got {show(name)}, and no [[sa]] has that name{nearest(name, sa_names)}")
    return name


def _check_action(table: Table, action: Action) -> None:
    """protect needs an SA to send by; the others must have none."""
    if action is Action.PROTECT:
        if not table.has("out"):
            table.error("out", 'is missing; action "protect" wants the name of the [[sa]] to send by')
        return
    for key in ("out", "in"):
        if table.has(key):
            table.error(key, f'has no meaning with action "{action.name.lower()}"; leave it out')
