"""[connections.NAME]: the tables of one peer, in swanctl's words, as `control.ike.settings.Connection`.

    1 addresses  2 how either side proves itself  3 proposals and times  4 children  5 what must fit together

What is left out is what most tunnels want: a preshared key where one is given, else certificates; the proposals
of RFC 8247; DPD every 30 seconds; a child that traffic starts, where the peer's address is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.config.authentication import check_sides, read_side
from control.config.children import CHILD_KEYS, duration, read_child
from control.config.credentials import Credentials
from control.config.problems import kind, nearest, show
from control.config.proposals import read_proposals
from control.config.table import Table, is_name
from control.config.unsupported import CHILD, CONNECTION, OVER_TCP
from control.config.values import parse_address, parse_outer
from control.ike.ends import peer_address
from control.ike.numbers import Protocol
from control.ike.settings import (
    ChildSettings,
    Choice,
    Connection,
    Network,
    Retransmission,
    Unique,
)
from dataplane.model import Address, Mode

DPD_DELAY = 30.0  # seconds; a dead peer is what a gateway must notice by itself
_NAME = "letters, digits and _ . : @ - (at most 64)"
_ANY = ("%any", "%any4", "%any6", "any", "0.0.0.0", "::", "0.0.0.0/0", "::/0")
_OUTER = 'an address, a network, "%any", or a list of them'
_FRAGMENTATION = {"no": Choice.NO, "accept": Choice.YES, "yes": Choice.YES, "force": Choice.FORCE}
_CHILDLESS = {"never": Choice.NO, "allow": Choice.YES, "force": Choice.FORCE}
_SIDES = ("local", "remote")
_PAIRS_MOST = 256  # pairs of selectors of one child


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the rest of the file says about every connection."""

    retransmission: Retransmission
    fragment_size: int
    keepalive: float
    only_udp: bool  # every unprotected port is a UDP socket
    pools: tuple[str, ...]  # names that there are
    ports: tuple[int, int]  # our UDP ports: of IKE, and of IKE and ESP behind NAT


def read_connections(
    tables: Sequence[tuple[str, Table]], credentials: Credentials, defaults: Defaults
) -> tuple[Connection, ...]:
    """Every usable connection, in the order of the file; problems go to the tables' report."""
    found = []
    for name, table in tables:
        connection = _read(table, name, credentials, defaults)
        if connection is not None:
            found.append(connection)
    return tuple(found)


def _read(table: Table, name: str, credentials: Credentials, defaults: Defaults) -> Connection | None:
    before = len(table.report.problems)
    if not is_name(name) or "/" in name:
        table.report.error(table.path, f"got the name {show(name)}, want {_NAME}")
    local_addresses, remote_addresses = _outer(table, "local_addrs"), _outer(table, "remote_addrs")
    _check_outer(table, local_addresses, remote_addresses)
    initiates = peer_address(remote_addresses) is not None
    pools, virtual = _pools(table, defaults.pools), _virtual(table)
    local, remote = read_side(table, "local", credentials), read_side(table, "remote", credentials)
    check_sides(table, credentials, local, remote, local_addresses, remote_addresses)
    proposals = read_proposals(table, "proposals", Protocol.IKE, remote_access=bool(pools))
    rekey, reauth = duration(table, "rekey_time", 14400.0), duration(table, "reauth_time", 0.0)
    children = _children(
        table,
        name,
        started=initiates and not pools,
        dials_in=bool(virtual),
        remote_access=bool(pools),
        only_udp=defaults.only_udp,
    )
    ppk_id = table.text("ppk_id")
    connection = Connection(
        name=name,
        local_addresses=local_addresses,
        remote_addresses=remote_addresses,
        local_port=_local_port(table, defaults.ports),
        remote_port=table.integer("remote_port", 1, 65535, 500),
        proposals=proposals,
        local=local,
        remote=remote,
        children=children,
        pools=pools,
        virtual_addresses=virtual,
        rekey_time=rekey,
        reauth_time=reauth,
        over_time=duration(table, "over_time", 0.0, least=1.0),
        random_time=duration(table, "rand_time", 0.0, least=0.0),
        dpd_delay=duration(table, "dpd_delay", DPD_DELAY, least=1.0),
        keepalive=defaults.keepalive,
        retransmission=defaults.retransmission,
        keying_tries=table.integer("keyingtries", 0, 1000, 1, "attempts; 0 is for ever"),
        fragmentation=_forced(table, "fragmentation", _FRAGMENTATION),
        fragment_size=defaults.fragment_size,
        mobike=_mobike(table, children),
        encap=_encap(table, defaults.only_udp),
        childless=_forced(table, "childless", _CHILDLESS),
        unique=Unique(table.choice("unique", [each.value for each in Unique], "no") or "no"),
        send_certificate=table.choice("send_cert", ("always", "never", "ifasked"), "ifasked") or "ifasked",
        request_certificates=table.boolean("send_certreq", True),
        ppk_id=ppk_id,
        ppk_required=table.boolean("ppk_required", False),
    )
    _check_times(table, connection)
    _check_ah(table, connection)
    _check_ppk(table, connection, [key.id for key in credentials.postquantum_keys])
    _check_rounds(table)
    table.finish({**CHILD, **CONNECTION})
    return connection if len(table.report.problems) == before else None


def _outer(table: Table, key: str) -> tuple[Address | Network, ...]:
    """Addresses and networks of one end; () for any."""

    def parse(text: str) -> tuple[Address | Network, ...]:
        return () if text.lower() in _ANY else (parse_outer(text),)

    found = table.parsed_list(key, parse, want=_OUTER)
    if not found or not all(found):
        return ()
    return tuple(dict.fromkeys(address for entry in found for address in entry))


def _check_outer(
    table: Table, local: Sequence[Address | Network], remote: Sequence[Address | Network]
) -> None:
    ours, theirs = {each.version for each in local}, {each.version for each in remote}
    if ours and theirs and not ours & theirs:
        table.error(
            "remote_addrs",
            f"got IPv{min(theirs)} only and local_addrs is IPv{min(ours)}, want one family",
        )
    for address in local:
        if address in remote:
            table.error(
                "remote_addrs", f"got {address}, which is in local_addrs too; want the peer's address"
            )


def _local_port(table: Table, bound: tuple[int, int]) -> int:
    """Where we initiate from: a port that a socket of ours is bound to."""
    port = table.integer("local_port", 1, 65535, bound[0])
    if port not in bound:
        table.error(
            "local_port", f"got {port}, want {bound[0]} or {bound[1]}, which are port and nat_port of [ike]"
        )
    return port


def _pools(table: Table, known: Sequence[str]) -> tuple[str, ...]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"and there is no [pools.{text[:64]}]{nearest(text, known)}")
        return text

    return tuple(table.parsed_list("pools", parse, want="the name of a pool, or a list of them") or ())


def _virtual(table: Table) -> tuple[Address, ...]:
    def parse(text: str) -> Address:
        return parse_address({"%any": "0.0.0.0", "%any4": "0.0.0.0", "%any6": "::"}.get(text, text))

    found = table.parsed_list("vips", parse, want='"0.0.0.0" or "::" for any address, an address, or a list')
    return tuple(found or ())


def _children(
    table: Table, name: str, *, started: bool, dials_in: bool, remote_access: bool, only_udp: bool
) -> tuple[ChildSettings, ...]:
    """The children's tables, or the one child that the connection's own keys describe."""
    value = table.raw("children")
    own = [key for key in CHILD_KEYS if table.has(key)]
    if value is None:
        child = read_child(
            table,
            name,
            started=started,
            dials_in=dials_in,
            embedded=True,
            remote_access=remote_access,
            only_udp=only_udp,
        )
        return () if child is None else (child,)
    if own:
        table.error(
            own[0],
            f"stands beside [{table.path}.children]; want it in one of the children "
            f"({', '.join(list(value)[:4]) if isinstance(value, dict) else '...'})",
        )
    for key in CHILD_KEYS:
        table.raw(key)
    if not isinstance(value, dict):
        table.error("children", f"got {kind(value)}, want tables [{table.path}.children.NAME]")
        return ()
    children = []
    for child_name, entry in value.items():
        path = table.key(f"children.{child_name}")
        if not isinstance(entry, dict):
            table.report.error(path, f"got {kind(entry)}, want a table [{path}]")
            continue
        if not is_name(child_name) or "/" in child_name:
            table.report.error(path, f"got the name {show(child_name)}, want {_NAME}")
        child = read_child(
            Table(table.report, path, entry),
            child_name,
            started=started,
            dials_in=dials_in,
            remote_access=remote_access,
            only_udp=only_udp,
        )
        if child is not None:
            children.append(child)
    return tuple(children)


def _forced(table: Table, key: str, words: dict[str, Choice]) -> Choice:
    """A feature by one of its words; true and false are understood for yes and no."""
    value = table.raw(key)
    if isinstance(value, bool) and "yes" in words:
        return Choice.YES if value else Choice.NO
    word = table.choice(key, words, "")
    return words[word] if word else Choice.YES


def _mobike(table: Table, children: Sequence[ChildSettings]) -> bool:
    """RFC 4555 moves tunnels; what is in transport mode is bound to its two addresses."""
    hosts = [child.name for child in children if child.mode is Mode.TRANSPORT]
    mobike = table.boolean("mobike", not hosts)
    if mobike and hosts:
        table.error(
            "mobike",
            f'is true, and child "{hosts[0]}" is in transport mode, which cannot move; want it left out, or "tunnel"',
        )
    return mobike


def _encap(table: Table, needed: bool) -> bool:
    if table.values.get("encap") == "tcp":
        table.raw("encap")
        table.error("encap", f"got 'tcp', {OVER_TCP}")
        return needed
    encap = table.boolean("encap", needed)
    if needed and not encap:
        table.error(
            "encap",
            "is false, and every unprotected port is a UDP socket; want it left out, or a port that carries "
            'bare ESP (driver = "xdp", "packet" or "raw")',
        )
    return encap


def _check_ah(table: Table, connection: Connection) -> None:
    """AH goes in no UDP: what encapsulates all it sends has no place for it."""
    ah = [child.name for child in connection.children if child.protocol == Protocol.AH]
    if ah and connection.encap:
        table.error(
            "encap",
            ("is true" if table.has("encap") else "is true, as every unprotected port is a UDP socket")
            + f', and child "{ah[0]}" has ah_proposals: AH goes in no UDP; want a port that carries bare packets '
            '(driver = "xdp", "packet" or "raw"), or esp_proposals',
        )


def _check_times(table: Table, connection: Connection) -> None:
    for key, time in (("rekey_time", connection.rekey_time), ("reauth_time", connection.reauth_time)):
        if time and connection.random_time >= time:
            table.error("rand_time", f"got {connection.random_time:g} s, want less than {key} ({time:g} s)")


def _check_rounds(table: Table) -> None:
    """`local2`, `remote-eap`: swanctl's further rounds of authentication."""
    for key in table.values:
        if key not in _SIDES and isinstance(table.values[key], dict) and key.startswith(_SIDES):
            table.raw(key)
            table.error(
                key,
                "is a further round of authentication (RFC 4739), which is not supported; "
                "want one local and one remote",
            )


def _check_ppk(table: Table, connection: Connection, known: Sequence[str]) -> None:
    name = connection.ppk_id
    if name is None and connection.ppk_required:
        table.error("ppk_id", "is missing, and ppk_required is true; want the identity of a PPK in [secrets]")
    elif name is not None and name not in known:
        table.error(
            "ppk_id",
            f'got {show(name)}, and no secret of type "ppk" has that id{nearest(name, known)}; want one in [secrets]',
        )
