"""All that IKE is configured with: [ike], [connections], [secrets], [users], [certificates], [authorities], [pools].

1 credentials and pools   2 what [ike] says about every connection   3 the connections
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.config.children import duration
from control.config.connections import Defaults, read_connections
from control.config.credentials import read_credentials
from control.config.pools import read_pools
from control.config.problems import kind
from control.config.table import Table
from control.ike.settings import (
    Connection,
    EndpointSettings,
    PoolSettings,
    Retransmission,
)
from control.pki.settings import CredentialSettings, stamped

FRAGMENT_LEAST = 576  # bytes: what every IPv4 host takes (RFC 7383 section 2.5.1)


@dataclass(frozen=True, kw_only=True)
class IkeConfig:
    """What IKE runs with; without connections there is no IKE."""

    settings: EndpointSettings = field(default_factory=EndpointSettings)
    connections: tuple[Connection, ...] = ()
    credentials: CredentialSettings = field(default_factory=CredentialSettings)
    pools: tuple[PoolSettings, ...] = ()

    def connection(self, name: str) -> Connection:
        """The connection of this name; KeyError if there is none."""
        for connection in self.connections:
            if connection.name == name:
                return connection
        raise KeyError(name)


def read_ike(top: Table, directory: Path, *, only_udp: bool) -> IkeConfig:
    """All sections; problems go to the report. `only_udp`: every unprotected port is a UDP socket."""
    settings, retransmission, fragment_size, keepalive = _read_settings(top.table("ike"))
    secrets, users = top.table("secrets"), top.table("users")
    pools = read_pools(_named(top, "pools"))
    credentials = read_credentials(
        top.report, directory, secrets, users, _named(top, "certificates"), _named(top, "authorities")
    )
    connections = read_connections(
        _named(top, "connections"),
        credentials,
        Defaults(
            retransmission=retransmission,
            fragment_size=fragment_size,
            keepalive=keepalive,
            only_udp=only_udp,
            pools=tuple(pool.name for pool in pools),
            ports=settings.nat_ports,
        ),
    )
    return IkeConfig(
        settings=settings, connections=connections, credentials=stamped(credentials.settings()), pools=pools
    )


def _named(top: Table, section: str) -> Sequence[tuple[str, Table]]:
    """The tables [section.NAME], those that are tables, with their names."""
    found = []
    for name, value in top.table(section).values.items():
        path = f"{section}.{name[:64]}"
        if isinstance(value, dict):
            table = Table(top.report, path, value)
            table.label = ""  # the path has the name
            found.append((name, table))
        else:
            top.report.error(path, f"got {kind(value)}, want a table [{path}]")
    return found


def _read_settings(table: Table) -> tuple[EndpointSettings, Retransmission, int, float]:
    default, sent_again = EndpointSettings(), Retransmission()
    ports = (table.integer("port", 1, 65535, 500), table.integer("nat_port", 1, 65535, 4500))
    if ports[0] == ports[1]:
        table.error("nat_port", f"got {ports[1]}, which is the port too; want two different ports")
    settings = EndpointSettings(
        cookie_threshold=table.integer("cookie_threshold", 0, 1000000, default.cookie_threshold, "SAs"),
        block_threshold=table.integer("block_threshold", 1, 1000000, default.block_threshold, "SAs"),
        half_open_limit=table.integer("half_open_limit", 1, 1000000, default.half_open_limit, "SAs"),
        half_open_timeout=duration(
            table, "half_open_timeout", default.half_open_timeout, least=1.0, never=False
        ),
        initial_contact=table.boolean("initial_contact", default.initial_contact),
        send_vendor_id=table.boolean("send_vendor_id", default.send_vendor_id),
        export_keys=table.boolean("export_keys", default.export_keys),
        nat_ports=ports,
    )
    if settings.export_keys:
        table.warn("export_keys", "is true: whoever may use the status socket can read all tunnels' traffic")
    base = table.raw("retransmit_base")
    if base is not None and (
        isinstance(base, bool) or not isinstance(base, int | float) or not 1 <= base <= 10
    ):
        table.error("retransmit_base", f"got {kind(base)} ({base!r:.20}), want a number from 1 to 10")
        base = None
    retransmission = Retransmission(
        timeout=duration(table, "retransmit_timeout", sent_again.timeout, least=0.1, never=False),
        base=float(base) if isinstance(base, int | float) else sent_again.base,
        tries=table.integer("retransmit_tries", 1, 100, sent_again.tries, "times"),
        limit=duration(table, "retransmit_limit", sent_again.limit, least=0.1),
    )
    fragment_size = table.integer("fragment_size", FRAGMENT_LEAST, 65535, 1280, "bytes of IP packet")
    keepalive = duration(table, "keep_alive", 20.0, least=1.0)
    table.finish()
    return settings, retransmission, fragment_size, keepalive
