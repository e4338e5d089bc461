"""The IKE part of the status document: connections with last errors, SAs, pools, datagrams. Keys never enter it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from control.admin.events import format_endpoint, format_selector
from control.admin.steering import ChildTraffic, IkeControl
from control.ike.events import Failure
from control.ike.settings import Connection, PoolSettings
from control.ike.snapshot import ChildSnapshot, IkeSnapshot

HALF_OPEN = ("connecting", "authenticating")


def build_ike(control: IkeControl) -> dict[str, Any]:
    """A snapshot of JSON's types only. Times are seconds from now; None where there is no such time."""
    now, traffic = control.now(), control.traffic()
    sas = control.snapshot()
    errors, of_connection = control.feed.last_errors(), defaultdict[str, list[IkeSnapshot]](list)
    for sa in sas:
        of_connection[sa.connection].append(sa)
    leases = control.leases()
    return {
        "connections": [
            _connection(connection, of_connection[name], errors.get(name))
            for name, connection in control.connections.items()
        ],
        "ike_sas": [_ike(sa, traffic, now) for sa in sas],
        "half_open": sum(sa.state in HALF_OPEN for sa in sas),
        "pools": [_pool(pool, leases) for pool in control.pools],
        "datagrams": dict(control.datagrams()),
    }


def _connection(
    connection: Connection, sas: Sequence[IkeSnapshot], error: tuple[float, Failure] | None
) -> dict[str, Any]:
    installed = {child.sa.settings.name for sa in sas for child in sa.children}
    wanted = {child.name for child in connection.children}
    if not any(sa.established for sa in sas):
        state = "connecting" if sas else "down"
    else:
        state = "up" if wanted <= installed else "partly up"
    return {
        "name": connection.name,
        "state": state,
        "local": [str(address) for address in connection.local_addresses] or ["%any"],
        "remote": [str(address) for address in connection.remote_addresses] or ["%any"],
        "children": [
            {"name": child.name, "start_action": child.start_action.value, "up": child.name in installed}
            for child in connection.children
        ],
        "last_error": None
        if error is None
        else {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(error[0])),
            "age": round(max(time.time() - error[0], 0.0), 3),
            "code": error[1].code,
            "text": error[1].text,
            "advice": error[1].advice,
        },
    }


def _ike(sa: IkeSnapshot, traffic: Mapping[int, ChildTraffic], now: float) -> dict[str, Any]:
    return {
        "id": sa.id,
        "connection": sa.connection,
        "state": sa.state,
        "initiator": sa.initiator,
        "local": format_endpoint(sa.path.local, sa.path.local_port),
        "remote": format_endpoint(sa.path.remote, sa.path.remote_port),
        "local_id": sa.local_id,
        "remote_id": sa.remote_id,
        "eap_identity": sa.eap_identity,
        "suite": sa.suite_name,
        "spi_initiator": sa.spi_initiator.hex(),
        "spi_responder": sa.spi_responder.hex(),
        "established": _since(sa.established, now),
        "rekey_in": _until(sa.rekey_at, now),
        "reauth_in": _until(sa.reauth_at, now),
        "nat": [side for side, found in (("local", sa.nat_local), ("remote", sa.nat_remote)) if found],
        "mobike": sa.mobike,
        "virtual_local": [str(address) for address in sa.virtual_local],
        "virtual_remote": [str(address) for address in sa.virtual_remote],
        "children": [_child(child, traffic.get(child.sa.id, ChildTraffic()), now) for child in sa.children],
    }


def _child(child: ChildSnapshot, traffic: ChildTraffic, now: float) -> dict[str, Any]:
    sa = child.sa
    return {
        "id": sa.id,
        "name": sa.settings.name,
        "state": child.state,
        "mode": sa.mode.value,
        "encapsulated": sa.encapsulated,
        "shared": sa.shared,
        "resource": sa.resource,
        "suite": sa.suite_name,
        "spi_in": f"{sa.spi_in:08x}",
        "spi_out": f"{sa.spi_out:08x}",
        "local_ts": [format_selector(selector) for selector in sa.local_selectors],
        "remote_ts": [format_selector(selector) for selector in sa.remote_selectors],
        "established": _since(sa.established, now),
        "rekey_in": _until(sa.rekey_at, now),
        "expires_in": _until(sa.expires_at, now),
        "packets_in": traffic.packets_in,
        "bytes_in": traffic.bytes_in,
        "packets_out": traffic.packets_out,
        "bytes_out": traffic.bytes_out,
    }


def _pool(pool: PoolSettings, leases: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": pool.name,
        "ranges": [f"{first}-{last}" for first, last in pool.ranges],
        "size": sum(int(last) - int(first) + 1 for first, last in pool.ranges),
        "lent": leases.get(pool.name, 0),
    }


def _since(then: float, now: float) -> float | None:
    return round(max(now - then, 0.0), 3) if then else None


def _until(then: float, now: float) -> float | None:
    return round(max(then - now, 0.0), 3) if then else None
