"""Checks between entries: names, SPIs, keys, ports that fit together, policies that name the right SAs."""

from __future__ import annotations

from collections.abc import Mapping

from control.config.policies import Policy
from control.config.problems import nearest, show
from control.config.sas import warn_of_sockets
from control.config.schema import LINK_DRIVERS, SOCKET_DRIVERS, PortConfig, reassembling
from control.config.table import Report, Table
from dataplane.model import Action, Cipher, Direction, Mode, Protocol, Role, SaSpec

PORTS_MOST = 7  # of one worker, beside its way to the kernel


def check_file_mode(report: Report, source: str, mode: int, values: Mapping[str, object]) -> None:
    """Warn when others can read a file that holds keys; `mode` holds its permission bits."""
    sas = values.get("sa")
    keys = ("encryption_key", "integrity_key")
    has_keys = isinstance(sas, list) and any(
        isinstance(sa, dict) and any(key in sa for key in keys) for sa in sas
    )
    connections = values.get("connections")
    has_keys |= bool(values.get("secrets") or values.get("users"))
    has_keys |= isinstance(connections, dict) and any(
        isinstance(connection, dict) and "psk" in connection for connection in connections.values()
    )
    if has_keys and mode & 0o077:
        report.warn(
            "",
            f"holds keys and has mode {mode:04o}, so others can read or change it; run: chmod 600 {source}",
        )


def check_names(tables: list[Table]) -> None:
    """No two entries of one section share a name, whether they are usable or not."""
    seen: dict[str, str] = {}
    for table in tables:
        if table.label and table.label in seen:
            table.error(
                "name", f'got "{table.label}", which {seen[table.label]} has too; want a name of its own'
            )
        seen.setdefault(table.label, table.path)


def check_sas(report: Report, sas: list[tuple[Table, SaSpec]]) -> None:
    """SPIs are unique, and no two SAs share keys that must differ."""
    spis: dict[object, Table] = {}
    keys: dict[tuple[object, bytes], list[tuple[Table, SaSpec]]] = {}
    for table, sa in sas:
        # Inbound, the SPI alone finds the SA. Outbound, the peer chose it: unique per peer.
        identity = (sa.direction, sa.spi, sa.remote if sa.direction is Direction.OUT else None)
        if identity in spis:
            other = spis[identity]
            where = f'{other.path} ("{other.label}")'
            table.error("spi", f"got 0x{sa.spi:08x}, which {where} has too; want an SPI of its own")
        spis.setdefault(identity, table)
        if sa.proposal.has_nonce:
            # AES counts alike in GCM, GMAC and CTR: under one key, their numbers are the same ones.
            chacha = sa.proposal.cipher is Cipher.CHACHA20_POLY1305
            keys.setdefault((chacha, sa.encryption_key or sa.integrity_key), []).append((table, sa))
    for sharing in keys.values():
        for index, (table, sa) in enumerate(sharing[1:], start=1):
            _shared_key(table, sa, sharing[:index])


def _shared_key(table: Table, sa: SaSpec, others: list[tuple[Table, SaSpec]]) -> None:
    """A key of an AEAD or AES-CTR of two senders repeats nonces (RFC 4106 section 2), which gives both texts away."""
    key = "encryption_key" if sa.encryption_key else "integrity_key"
    for other, spec in others:
        where = f'{other.path} ("{other.label}")'
        if sa.direction is spec.direction is Direction.OUT:
            table.error(
                key,
                f"is the key of {where} too: two senders under one key repeat nonces; want a key of its own",
            )
            return
        if sa.direction is not spec.direction:
            table.warn(
                key,
                f"is the key of {where} too: both directions under one key repeat nonces, "
                "which gives the text away; use a key of its own",
            )
            return


def check_bundles(sas: list[tuple[Table, SaSpec]], names: list[str], policies: list[Policy]) -> None:
    """What is named as `outer` can go around that SA, and does nothing else."""
    known = {sa.name: sa for _, sa in sas}
    within: dict[str, str] = {}
    for table, sa in sas:
        if sa.outer is None:
            continue
        within.setdefault(sa.outer, sa.name)
        if sa.outer not in names:
            table.error(
                "outer", f"got {show(sa.outer)}, and no [[sa]] has that name{nearest(sa.outer, names)}"
            )
        elif sa.outer in known:
            _check_outer(table, sa, known[sa.outer])
    for policy in policies:
        for key, named in (("out", (policy.outbound,)), ("in", policy.inbound)):
            for name in named:
                if name in within:
                    policy.table.error(
                        key,
                        f'got "{name}", which is the outer of "{within[name]}" and carries nothing else; '
                        f'want "{within[name]}"',
                    )


def _check_outer(table: Table, sa: SaSpec, outer: SaSpec) -> None:
    """The one around it is AH in transport mode between the same two addresses, and goes the same way."""
    got = f'got "{outer.name}", whose'
    if outer.protocol is not Protocol.AH:
        table.error("outer", f'{got} protocol is "esp"; want an SA with protocol = "ah"')
    elif outer.mode is not Mode.TRANSPORT:
        table.error("outer", f'{got} mode is "tunnel"; want an SA with mode = "transport"')
    elif outer.direction is not sa.direction:
        table.error(
            "outer", f'{got} direction is "{outer.direction.value}"; want "{sa.direction.value}" as here'
        )
    elif (outer.local, outer.remote) != (sa.local, sa.remote):
        table.error(
            "outer",
            f"{got} ends are {outer.local} and {outer.remote}; want {sa.local} and {sa.remote} as here",
        )


def check_ports(
    report: Report, ports: list[tuple[Table, PortConfig]], sas: list[tuple[Table, SaSpec]], *, ike: bool
) -> None:
    """A port on either side, not too many, no interface used twice, and each driver where it can stand."""
    interfaces: dict[str, Table] = {}
    for table, port in ports:
        if port.interface and port.interface in interfaces:
            other = interfaces[port.interface]
            table.error(
                "interface",
                f'got "{port.interface}", which {other.path} ("{other.label}") has too; '
                "want an interface of its own",
            )
        interfaces.setdefault(port.interface, table)
        if port.driver in SOCKET_DRIVERS and port.role is Role.PROTECTED:
            table.error(
                "driver",
                f'got "{port.driver}" on a protected port; it carries ESP, so it can only be unprotected',
            )
        if port.driver == "tun" and port.role is Role.UNPROTECTED:
            table.error(
                "driver",
                'got "tun" on an unprotected port; it carries packets in clear, so it can only be '
                "protected (use udp or raw on the unprotected side)",
            )
    if not report.problems:
        for role in Role:
            if not any(port.role is role for _, port in ports):
                report.error(
                    "port", f'no port has role = "{role.value}"; want at least one [[port]] on either side'
                )
    _check_number(report, [port for _, port in ports], ike or any(sa.encap is not None for _, sa in sas))
    zero_copy = {
        port.zero_copy: table for table, port in ports if port.driver == "xdp" and port.zero_copy != "auto"
    }
    if len(zero_copy) > 1:
        zero_copy["on"].error(
            "zero_copy", "differs from another port's, and all xdp ports share their frames; want one value"
        )
    _check_unprotected(report, [entry for entry in ports if entry[1].role is Role.UNPROTECTED], sas)


def _check_number(report: Report, ports: list[PortConfig], encapsulated: bool) -> None:
    """A worker has the configured ports, and the sockets that some of them want beside them."""
    sockets = reassembling(ports, encapsulated=encapsulated)
    if len(ports) + len(sockets) <= PORTS_MOST:
        return
    beside = (
        f" beside {len(sockets)} socket{'s' if len(sockets) > 1 else ''} of our own, for what the kernel puts together "
        "of fragments on unprotected xdp and packet ports"
    )
    report.error(
        "port", f"got {len(ports)} ports, want at most {PORTS_MOST - len(sockets)}{beside if sockets else ''}"
    )


def _check_unprotected(
    report: Report, ports: list[tuple[Table, PortConfig]], sas: list[tuple[Table, SaSpec]]
) -> None:
    """Each SA can leave and arrive by some unprotected port."""
    drivers = {port.driver for _, port in ports}
    if not ports:
        return
    on_links = bool(drivers & set(LINK_DRIVERS))
    if not on_links:
        _check_bound(ports, sas)
    encap_ports = sorted({port.encap_port for _, port in ports if port.driver != "raw"})
    for table, sa in sas:
        if sa.encap is None and not on_links and "raw" not in drivers:
            table.error(
                "encap",
                "is missing, and every unprotected port is a UDP socket; want encap = true, or a port "
                'with driver = "raw"',
            )
        elif sa.encap is not None and not encap_ports:
            table.error(
                "encap",
                "is set, and every unprotected port is a raw socket; want encap = false, or a port with "
                'driver = "udp"',
            )
        elif (
            sa.encap is not None and sa.direction is Direction.OUT and sa.encap.source_port not in encap_ports
        ):
            # What the peer sends comes to the port that we send from.
            listed = ", ".join(map(str, encap_ports))
            table.error(
                "encap.source_port",
                f"got {sa.encap.source_port}, and the unprotected ports have encap_port {listed}; want the same",
            )
        if sa.encap is not None and drivers <= set(SOCKET_DRIVERS):
            warn_of_sockets(table)  # of sockets, raw ones carry no ESP in UDP


def _check_bound(ports: list[tuple[Table, PortConfig]], sas: list[tuple[Table, SaSpec]]) -> None:
    """Where `bind` names one address of a family, its socket serves no other; of several, it serves all."""
    for table, sa in sas:
        drivers = [port for _, port in ports if port.driver == ("raw" if sa.encap is None else "udp")]
        bound = {address for port in drivers for address in port.bind}
        one = {address for address in bound if address.version == sa.local.version}
        if drivers and all(port.bind for port in drivers) and sa.local not in bound and len(one) < 2:
            listed = ", ".join(sorted(map(str, bound)))
            table.error(
                "local",
                f"got {sa.local}, and the sockets of {drivers[0].name} have bind = {listed}; want one of these",
            )


def check_encap_ports(ports: list[tuple[Table, PortConfig]], nat_port: int) -> None:
    """ESP in UDP comes by the port that IKE floats to (RFC 7296 section 2.23)."""
    for table, port in ports:
        if port.role is Role.UNPROTECTED and port.driver != "raw" and port.encap_port != nat_port:
            table.error(
                "encap_port",
                f"got {port.encap_port}, and [ike] nat_port is {nat_port}; want the same, or none here",
            )


def check_policies(policies: list[Policy], sas: dict[str, SaSpec]) -> None:
    """What a policy names has the direction that it is named for."""
    for policy in policies:
        for key, names, direction in (
            ("out", (policy.outbound,) if policy.outbound else (), Direction.OUT),
            ("in", policy.inbound, Direction.IN),
        ):
            for name in names:
                if name in sas and sas[name].direction is not direction:
                    policy.table.error(
                        key,
                        f'got "{name}", whose direction is "{sas[name].direction.value}"; '
                        f'want an SA with direction = "{direction.value}"',
                    )
                elif name in sas and sas[name].mode is Mode.TRANSPORT:
                    _check_hosts(policy, key, sas[name])
        if policy.action is Action.PROTECT and not policy.inbound:
            policy.table.warn(
                "in", "is missing, so nothing that answers this traffic is accepted by this policy"
            )


def _check_hosts(policy: Policy, key: str, sa: SaSpec) -> None:
    """In transport mode a policy is between the SA's own two hosts (RFC 4301 section 4.1)."""
    for spec in policy.specs:
        for side, address in (("local", sa.local), ("remote", sa.remote)):
            first, last = getattr(spec.selector, f"{side}_first"), getattr(spec.selector, f"{side}_last")
            if first == last == address:
                continue
            got = f"{first}" if first == last else f"{first}-{last}"
            policy.table.error(
                side,
                f'got {got}, and {key} = "{sa.name}" is in transport mode, which protects its own two hosts; '
                f'want "{address}"',
            )
            return


def check_use(sas: list[tuple[Table, SaSpec]], policies: list[Table]) -> None:
    """Every SA is named by a policy, be that policy right or wrong in other ways, or goes around one that is."""
    named: set[object] = {sa.outer for _, sa in sas}
    for policy in policies:
        for value in (policy.values.get("out"), policy.values.get("in")):
            named.update(
                entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str)
            )
    for table, sa in sas:
        if sa.name in named:
            continue
        if sa.direction is Direction.IN:
            # RFC 4301 section 5.2: what comes by it is held against its selectors, and it would have none.
            table.error("name", 'is in the "in" of no [[policy]], so nothing may come by it; want it in one')
        else:
            table.warn("name", 'is the "out" of no [[policy]], so nothing goes out by it')
