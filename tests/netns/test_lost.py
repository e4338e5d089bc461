"""What the kernel throws away before a worker comes to it is a drop like any other: `no_frame`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from control.lab.space import Space, wait_until
from dataplane.engine import open_engine
from dataplane.ports import packet
from dataplane.stats import verdict_sums
from dataplane.tables import Limits, Tables
from ext.loop import Loop
from ext.memory import MemoryPort
from ext.packet import Pool, PortHandle
from ext.packetsock import PacketPort
from ext.sa import TablesView
from tests.netns.test_udp import PEERS, connect, esp, open_raw, open_udp
from tests.netns.wires import MakeSpaces

pytestmark = pytest.mark.root

SENT = 20000
SIZE = 1400
LIMITS = Limits(
    max_sas=8,
    max_policies=8,
    max_selectors=8,
    max_adjacencies=8,
    max_routes=8,
    max_prefixes=8,
    max_candidates=64,
)


def open_packet(space: Space, pool: Pool) -> PacketPort:
    """A port that sees everything on the interface."""
    return PacketPort(
        pool, "eth0", space.call(lambda: packet.open_socket("eth0", filter_fd=None, group=None))
    )


@pytest.fixture
def tables() -> Iterator[Tables]:
    """Tables of one worker."""
    made = Tables(engine=open_engine("auto"), workers=1, limits=LIMITS)
    yield made
    made.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("open_port", [open_udp, open_raw, open_packet])
def test_what_a_full_socket_lost_is_counted(
    spaces: MakeSpaces, tables: Tables, open_port: Callable[[Space, Pool], PortHandle], version: int
) -> None:
    """More than a socket holds comes while the worker is away: what it gets and what it counts are all of it."""
    left, right = spaces("left", "right")
    connect(left, right)
    pool = Pool(1024)
    port = open_port(left, pool)
    lan = MemoryPort(pool, "lan", 0)
    # Behind a packet socket, which sees the packet first, somebody has to want it, or there are ICMP errors.
    behind = [open_udp(left, Pool(64))] if open_port is open_packet else []
    send(right, version, encapsulated=open_port is not open_raw)
    view = TablesView(tables.fd, 0)
    view.worker_enter(os.getpid())
    stop_read, stop_write = os.pipe()
    loop = Loop(view, tables.engine, [lan, port], None, stop_read)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        wait_until(lambda: found(tables) >= SENT, timeout=20, what=f"all of {SENT}")
    finally:
        os.write(stop_write, b"x")
        thread.join()
        os.close(stop_read)
        os.close(stop_write)
    assert lost(tables) > 0
    # A packet socket sees the neighbours' talk, too.
    assert found(tables) == SENT or open_port is open_packet
    for each in (port, *behind):
        each.close()


def send(space: Space, version: int, *, encapsulated: bool) -> None:
    """ESP that nobody knows, in UDP or by itself; the kernel of the sender keeps all of it apart from the wire."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind = (socket.SOCK_DGRAM, 0) if encapsulated else (socket.SOCK_RAW, socket.IPPROTO_ESP)
    with space.call(lambda: socket.socket(family, *kind)) as sock:
        sock.connect((PEERS[version][0], 4500 if encapsulated else 0))
        for number in range(SENT):
            sock.send(esp(9, number, SIZE))


def lost(tables: Tables) -> int:
    """What the worker says was lost."""
    return verdict_sums(tables)[0]["no_frame"]


def found(tables: Tables) -> int:
    """What it received, and that."""
    return int(tables.workers["ports"]["rx_packets"].sum()) + lost(tables)
