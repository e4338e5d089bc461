"""[connections.NAME.children.CHILD]: what one child SA protects and how, in swanctl's words.

A connection with one child may hold the child's keys itself; the child then has the connection's name.
"""

from __future__ import annotations

from collections.abc import Sequence

from control.config.proposals import read_proposals
from control.config.sas import dscp_of, fragment_of, replay_window, tfc_dummies, tfc_padding, warn_of_sockets
from control.config.selectors import parse_selector
from control.config.table import Table
from control.config.unsupported import CHILD, MODES
from control.config.values import parse_duration, parse_size
from control.ike.numbers import Protocol
from control.ike.proposal import Proposal
from control.ike.settings import (
    ChildSettings,
    DpdAction,
    Lifetime,
    StartAction,
    TrafficSelector,
)
from dataplane.model import Df, Mode

CHILD_KEYS = (
    *(
        "local_ts",
        "remote_ts",
        "esp_proposals",
        "ah_proposals",
        "mode",
        "start_action",
        "close_action",
        "dpd_action",
    ),
    *("df", "dscp", "fragment", "mss_clamp", "replay_window", "tfc_dummies", "tfc_padding", "per_cpu_sas"),
)
SELECTORS_MOST = 32  # of one side; their pairs become SPD entries
_TS = 'a selector such as "10.1.0.0/24", "dynamic" or "10.1.0.9/32[tcp/443]", or a list of them'
_LEAST = 10.0  # seconds of any lifetime: less is a mistake of units


def read_child(
    table: Table,
    name: str,
    *,
    started: bool,
    dials_in: bool = False,
    embedded: bool = False,
    remote_access: bool = False,
    only_udp: bool = False,
) -> ChildSettings | None:
    """The child in `table`. `started`: the peer has an address to initiate to, so traffic may start the child.

    `dials_in`: we ask the peer for an address. No traffic has it before, so the child starts at once.
    Problems go to the table's report. An `embedded` child shares its table with the connection, whose reader
    finishes it, and has the default lifetimes: these keys are the connection's there. `only_udp`: every
    unprotected port is a UDP socket.
    """
    before = len(table.report.problems)
    local, remote = _selectors(table, "local_ts"), _selectors(table, "remote_ts")
    proposals = _proposals(table, remote_access=remote_access)
    mode = Mode(table.choice("mode", [each.value for each in Mode], "tunnel", MODES) or "tunnel")
    _check_ah(table)
    if mode is Mode.TRANSPORT:
        _check_transport(table, local, remote, lends=dials_in or remote_access)
    first = StartAction.START if dials_in else StartAction.TRAP
    start = _start_action(table, "start_action", first if started else StartAction.NONE, started)
    # What was there when the gateway started is to be there again.
    again = StartAction.NONE if start is StartAction.NONE else first
    close = _start_action(table, "close_action", again, started)
    dpd = table.choice("dpd_action", [each.value for each in DpdAction], _DPD[start].value)
    lifetime = Lifetime() if embedded else _lifetime(table)
    settings = ChildSettings(
        name=name,
        local=local,
        remote=remote,
        proposals=proposals,
        mode=mode,
        lifetime=lifetime,
        start_action=start,
        close_action=close,
        dpd_action=DpdAction(dpd),
        replay_window=replay_window(table),
        df=Df(table.choice("df", [each.value for each in Df], "copy") or "copy"),
        dscp=dscp_of(table),
        mss_clamp=table.boolean("mss_clamp", False),
        fragment=fragment_of(table),
        tfc_padding=tfc_padding(table),
        tfc_dummies=tfc_dummies(table),
        per_cpu_sas=table.boolean("per_cpu_sas", False),
    )
    if only_udp:
        warn_of_sockets(table)
    if not embedded:
        table.finish(CHILD)
    _check_families(table, local, remote)
    return settings if len(table.report.problems) == before else None


def _proposals(table: Table, *, remote_access: bool) -> tuple[Proposal, ...]:
    """Of ESP, or of AH where these are named."""
    if table.raw("ah_proposals") is None:
        return read_proposals(table, "esp_proposals", Protocol.ESP, remote_access=remote_access)
    if table.raw("esp_proposals") is not None:
        table.error(
            "ah_proposals", "stands beside esp_proposals, and a child is of ESP or of AH; want one of the two"
        )
    return read_proposals(table, "ah_proposals", Protocol.AH, remote_access=remote_access)


_DPD = {
    StartAction.NONE: DpdAction.CLEAR,
    StartAction.TRAP: DpdAction.TRAP,
    StartAction.START: DpdAction.RESTART,
}


def _selectors(table: Table, key: str) -> tuple[TrafficSelector, ...]:
    found = table.parsed_list(key, parse_selector, want=_TS)
    if found is not None and len(found) > SELECTORS_MOST:
        table.error(key, f"got {len(found)} selectors, want at most {SELECTORS_MOST} on one side of a child")
    return tuple(dict.fromkeys(found)) if found else (TrafficSelector(),)


def _check_families(
    table: Table, local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]
) -> None:
    """A packet has one family: a child with IPv4 on one side only and IPv6 on the other protects nothing."""
    ours, theirs = _versions(local), _versions(remote)
    if ours and theirs and not ours & theirs:
        table.error(
            "remote_ts",
            f"got IPv{min(theirs)} only and local_ts has IPv{min(ours)} only, want a pair of one family",
        )


def _check_ah(table: Table) -> None:
    """What is ESP's alone."""
    for key in ("tfc_dummies", "tfc_padding"):
        if table.has("ah_proposals") and table.has(key):
            table.error(key, "has no meaning with ah_proposals: AH hides nothing")


def _check_transport(
    table: Table, local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector], *, lends: bool
) -> None:
    """It is between the IKE SA's own two hosts (RFC 4301 section 4.1), whose packets keep their header."""
    if lends:
        table.error(
            "mode",
            'got "transport", and the connection lends or asks for addresses, which want a tunnel; want "tunnel"',
        )
    for key, selectors in (("local_ts", local), ("remote_ts", remote)):
        for each in selectors:
            network = each.network
            if (network is not None and network.num_addresses > 1) or each.first != each.last:
                table.error(
                    key,
                    f'got {network or f"{each.first}-{each.last}"}, and mode = "transport" is between the two hosts '
                    'themselves; want it left out, "dynamic", or "dynamic[tcp/443]"',
                )
                break
    for key in ("dscp", "df", "fragment", "tfc_padding", "tfc_dummies"):
        if table.has(key):
            table.error(key, 'has no meaning with mode = "transport", where packets keep their own IP header')


def _versions(selectors: Sequence[TrafficSelector]) -> set[int]:
    """IP versions of one side; none where a dynamic selector leaves it open."""
    versions: set[int] = set()
    for selector in selectors:
        where = selector.network or selector.first
        if where is None:
            return set()
        versions.add(where.version)
    return versions


def _start_action(table: Table, key: str, default: StartAction, possible: bool) -> StartAction:
    word = table.choice(key, [each.value for each in StartAction], default.value) or default.value
    action = StartAction(word)
    if action is not StartAction.NONE and not possible:
        table.error(
            key,
            f'got "{word}", and the connection has no single address in remote_addrs to initiate to; '
            'want "none", or an address there',
        )
        return StartAction.NONE
    return action


def _lifetime(table: Table) -> Lifetime:
    default = Lifetime()
    lifetime = Lifetime(
        rekey=duration(table, "rekey_time", default.rekey),
        life=duration(table, "life_time", 0.0),
        random=duration(table, "rand_time", 0.0),
        rekey_bytes=amount(table, "rekey_bytes"),
        life_bytes=amount(table, "life_bytes"),
        rekey_packets=amount(table, "rekey_packets"),
        life_packets=amount(table, "life_packets"),
    )
    for soft, hard, rekey_at, life_ends in (
        ("rekey_time", "life_time", lifetime.rekey, lifetime.life),
        ("rekey_bytes", "life_bytes", lifetime.rekey_bytes, lifetime.life_bytes),
        ("rekey_packets", "life_packets", lifetime.rekey_packets, lifetime.life_packets),
    ):
        if life_ends and rekey_at and life_ends <= rekey_at:
            table.error(hard, f"got {life_ends:g}, want more than {soft}, which is {rekey_at:g}")
    if lifetime.rekey and lifetime.random >= lifetime.rekey:
        table.error(
            "rand_time", f"got {lifetime.random:g} s, want less than rekey_time ({lifetime.rekey:g} s)"
        )
    return lifetime


def duration(table: Table, key: str, default: float, *, least: float = _LEAST, never: bool = True) -> float:
    """Seconds: a number, or text such as "4h"; 0 is never, where `never` has a meaning."""
    value = table.raw(key)
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds: float | None = float(value)
    else:
        seconds = table.parsed(key, parse_duration)
    if seconds is None:
        return default
    if (seconds or not never) and not least <= seconds <= 1e9:
        table.error(key, f"got {seconds:g} s, want {'0 (never) or ' if never else ''}at least {least:g} s")
        return default
    return seconds


def amount(table: Table, key: str) -> int:
    """Bytes or packets: a number, or text such as "2G"; 0 is no limit."""
    value = table.raw(key)
    if isinstance(value, str):
        return table.parsed(key, parse_size) or 0
    return table.integer(key, 0, 2**63 - 1, 0)
