"""The status document: what `esplanade status --json` prints. docs/operations.md describes its keys."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from control.admin.ike_report import build_ike
from control.config import format_proposal
from control.version import installed_version
from dataplane.api import PortStats, SaStats, WorkerStats
from dataplane.model import Direction

if TYPE_CHECKING:
    from control.gateway import Gateway


def build_status(gateway: Gateway) -> dict[str, Any]:
    """A snapshot of everything, made of JSON's types only."""
    stats = gateway.dataplane.stats()
    mirror = gateway.mirror
    return {
        "gateway": {
            "version": installed_version(),
            "pid": os.getpid(),
            "config": gateway.config.source,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(gateway.started)),
            "uptime": round(max(time.time() - gateway.started, 0.0), 3),
            "reloads": gateway.reloads,
            "engine": stats.engine,
            "policies": stats.policies,
            "tables_locked": stats.tables_locked,
            "routes": mirror.route_count,
            "neighbours": len(mirror.mirror.neighbours),
        },
        "ports": [_port(gateway, port) for port in stats.ports],
        "workers": [_worker(worker) for worker in stats.workers],
        "ike": build_ike(gateway.ike) if gateway.ike is not None else None,
        "sas": [_sa(gateway, sa) for sa in stats.sas],
        "drops": dict(stats.drops),
        "events": dict(stats.verdicts),
    }


def _port(gateway: Gateway, port: PortStats) -> dict[str, Any]:
    link = gateway.links.of(port.name)
    return {
        "name": port.name,
        "role": port.role,
        "driver": port.driver,
        "interface": link.name if link is not None else port.interface,
        "mode": port.active_mode or port.driver,
        "link": "-" if not port.interface else "gone" if link is None else "up" if link.up else "down",
        "rx_packets": port.rx_packets,
        "rx_bytes": port.rx_bytes,
        "tx_packets": port.tx_packets,
        "tx_bytes": port.tx_bytes,
        "rx_syscalls": port.rx_syscalls,
        "tx_syscalls": port.tx_syscalls,
        "tx_full": port.tx_full,
        "tx_errors": port.tx_errors,
    }


def _worker(worker: WorkerStats) -> dict[str, Any]:
    return {
        "index": worker.index,
        "pid": worker.pid,
        "cpu": worker.cpu,
        "state": worker.state,
        "restarts": worker.restarts,
        "last_end": worker.last_end,
        "recovery_ms": worker.recovery_ms,
        "memory_lock_error": worker.lock_error,
        "frame_pages": worker.frame_pages,
        "loops": worker.loops,
        "sleeps": worker.sleeps,
        "dealt": worker.dealt,
        "helped": worker.helped,
        "packets": worker.passed,
        "drops": worker.dropped,
    }


def _sa(gateway: Gateway, sa: SaStats) -> dict[str, Any]:
    spec = gateway.sa(sa.name)
    document: dict[str, Any] = {
        "name": sa.name,
        "direction": sa.direction.value,
        "spi": sa.spi,
        "local": str(sa.local),
        "remote": str(sa.remote),
        "protocol": spec.protocol.name.lower() if spec is not None else "",
        "proposal": format_proposal(spec.proposal, spec.protocol) if spec is not None else "",
        "encap": spec is not None and spec.encap is not None,
        "outer": spec.outer if spec is not None else None,
        "packets": sa.packets,
        "bytes": sa.bytes,
        # Seconds since the last packet, by the clock that workers read; None: never used.
        "idle": round(max(time.monotonic_ns() - sa.last_used, 0) / 1e9, 3) if sa.last_used else None,
        "sequence": sa.sequence,
        "replay_window": sa.replay_window,
        "path": "",
        "drops": dict(sa.drops),
    }
    if sa.direction is Direction.OUT:
        way = gateway.paths.of(sa.name)
        if way.mtu is None:
            document["path"] = "no route"
        elif way.adjacency is None:
            document["path"] = "kernel"
        else:
            document["path"] = " ".join(
                filter(None, [way.adjacency.port, way.adjacency.destination_mac.hex(":")])
            )
        document |= {"path_mtu": way.mtu, "inner_mtu": sa.inner_mtu, "sequence_limit": sa.sequence_limit}
    return document
