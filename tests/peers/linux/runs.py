"""Inside the guest: batches of UDP leave by a TUN port and by a packet port, to sockets of this kernel.

Runs alone (`python runs.py`), with the tree's compiled modules; prints what became of each batch as JSON. Which kernel
takes runs of UDP in one piece, and which says EINVAL, is for the ports to find out.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from dataplane.ports import packet, tun
from ext import porttool
from ext.packet import Pool, PortHandle
from ext.packetsock import PacketPort
from ext.tunio import TunPort
from tests.packets import udp_packet

FRAMES = 256
PORT = 5000
NEAR = {"tun": {4: "10.9.0.1", 6: "fd09::1"}, "packet": {4: "10.8.0.1", 6: "fd08::1"}}
FAR = {"tun": {4: "10.9.0.7", 6: "fd09::7"}, "packet": {4: "10.8.0.7", 6: "fd08::7"}}
BITS = {4: "/24", 6: "/64 nodad"}
# As many as a batch holds, the last one shorter: one run where runs can be.
PAYLOADS = [bytes([index]) * (1200 if index < 63 else 77) for index in range(64)]


def ip(*commands: str) -> None:
    """Run `ip` commands, each without the leading "ip"."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands).encode(), check=True)


def deliver(
    kind: str, open_port: Callable[[Pool], PortHandle], link: bytes, family: int
) -> dict[str, object]:
    """Send the batch by a port that has sent nothing yet, as the worker's loop does: what is left over once more."""
    pool = Pool(FRAMES)
    port = open_port(pool)
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(domain, socket.SOCK_DGRAM) as sink:
        sink.bind((NEAR[kind][family], PORT))
        sink.settimeout(20)
        # Without DF, runs ask for IDs that count up.
        ends: dict[str, Any] = {"source": FAR[kind][family], "destination": NEAR[kind][family]}
        ends |= {"df": True} if family == 4 else {}
        batch = [link + udp_packet(family, data, ports=(4000, PORT), **ends) for data in PAYLOADS]
        tried = [porttool.transmit(port, batch)]
        if tried[0] < len(batch):
            tried.append(porttool.transmit(port, batch[tried[0] :]))
        arrived: list[bytes] = []
        try:
            while len(arrived) < len(PAYLOADS):
                arrived.append(sink.recv(1 << 16))
        except TimeoutError:
            pass
    counters = port.counters
    port.close()
    return {
        "port": kind,
        "family": family,
        "tried": tried,
        "arrived": len(arrived),
        "same": arrived == PAYLOADS,
        "errors": counters["tx_errors"],
        "system_calls": counters["tx_syscalls"],
        "packets": counters["tx_packets"],
        "frames": pool.free_count,
    }


def main() -> None:
    """Both kinds of port, both families; a TUN port also with what its kernel can do overstated."""
    keeper = tun.create_device("t0")
    ip(
        *(f"addr add {NEAR['tun'][family]}{bits} dev t0" for family, bits in BITS.items()),
        "link set t0 txqueuelen 1000 up",
        "link add veth-a type veth peer name veth-b",
        "link set veth-a address 02:00:00:00:00:0a addrgenmode none up",
        "link set veth-b address 02:00:00:00:00:0b addrgenmode none up",
        *(f"addr add {NEAR['packet'][family]}{bits} dev veth-b" for family, bits in BITS.items()),
    )
    claims: set[str] = set()

    def honest(pool: Pool) -> PortHandle:
        fd = tun.open_queue("t0")
        claims.add(tun.set_offloads(fd))
        return TunPort(pool, "t0", fd, offloads=next(iter(claims)))

    def boasting(pool: Pool) -> PortHandle:
        return TunPort(pool, "t0", tun.open_queue("t0"), offloads="tso+uso")

    def packet_port(pool: Pool) -> PortHandle:
        return PacketPort(pool, "veth-a", packet.open_socket("veth-a", filter_fd=None, group=None))

    results = []
    for family, kind in ((4, b"\x08\x00"), (6, b"\x86\xdd")):
        ethernet = bytes.fromhex("02000000000b02000000000a") + kind
        for port, opener, link in (
            ("tun", honest, b""),
            ("tun", boasting, b""),
            ("packet", packet_port, ethernet),
        ):
            results.append(deliver(port, opener, link, family))
            if not results[-1]["same"]:
                sys.exit(json.dumps(results[-1]))
    print(json.dumps({"offloads": sorted(claims), "results": results}))
    assert keeper >= 0


if __name__ == "__main__":
    main()
