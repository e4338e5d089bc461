"""L2TP-shaped transport mode of two clients behind one NAT: both send UDP from port 1701 of its one address."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from control.lab.space import Program, Space, wait_until
from tests.peers import wires
from tests.peers.daemon import Daemon, base_with
from tests.peers.linux.charon import GuestCharon
from tests.peers.linux.guest import Guest
from tests.peers.linux.wire import behind_nat
from tests.peers.wires import Wire

pytestmark = pytest.mark.root

SERVER = "203.0.113.2"
SECRET = "a secret of clients of one lab"
NAT = "203.0.113.1"
SERVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("203.0.113.2", 1701))
print("bound", flush=True)
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(b"%s from %s:%d" % (data, peer[0].encode(), peer[1]), peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 1701))
s.connect(("203.0.113.2", 1701))
s.settimeout(1.0)
for number in range(int(sys.argv[3])):
    for attempt in range(10):
        s.send(b"%s %d" % (sys.argv[2].encode(), number))
        try:
            print(s.recv(2048).decode(), flush=True)
            break
        except TimeoutError:
            pass
"""


def gateway(wire: Wire, side: str, *, ts: str = "dynamic[udp/1701]") -> Daemon:
    """The server on the right, or a client."""
    server = side == "right"
    connection = {
        "local_addrs": wire.outside[side][4],
        "remote_addrs": "%any" if server else SERVER,
        "psk": SECRET,
        "mobike": False,
        "proposals": ["aes128gcm16-prfsha256-x25519"],
    }
    child = {
        "mode": "transport",
        "local_ts": "dynamic[udp/1701]" if server else ts,
        "remote_ts": "dynamic[udp]" if server else "dynamic[udp/1701]",
        "esp_proposals": ["aes128gcm16"],
        "start_action": "none",
    }
    tables = {
        "connections.l2tp": connection,
        "connections.l2tp.local": {"id": f"{side}.example"},
        "connections.l2tp.remote": {} if server else {"id": "right.example"},
        "connections.l2tp.children.udp": child,
    }
    return Daemon(wire.spaces[side], wire.directory, tables, base=base_with("udp"))


@contextlib.contextmanager
def running(*daemons: Daemon) -> Iterator[None]:
    """All up meanwhile; what they said goes along with what fails."""
    try:
        for daemon in daemons:
            daemon.begin()
        for daemon in daemons:
            daemon.wait_ready()
        yield
    except BaseException as error:
        for daemon in daemons:
            error.add_note(f"---- {daemon.space.name}\n{daemon.log(40)}")
        raise
    finally:
        for daemon in daemons:
            daemon.kill()


def ask(space: Space, address: str, name: str, count: int = 5) -> Program:
    """A client's exchange with the server."""
    return space.start([sys.executable, "-c", ASK, address, name, str(count)])


def answers(program: Program) -> list[str]:
    """What came back to it."""
    program.wait(60)
    return program.output().splitlines()


def test_two_clients_with_one_port() -> None:
    """Both speak with the server at once; each gets its own answers, before and after its SA is rekeyed."""
    with wires.two_behind_one() as wire:
        server, *clients = (gateway(wire, side) for side in ("right", "left", "other"))
        with running(server, *clients):
            listener = wire.right.start([sys.executable, "-c", SERVE])
            wait_until(lambda: "bound" in listener.output(), timeout=10, what="the server listens")
            for client in clients:
                client.initiate(child="udp")
            ports: list[set[str]] = []
            for _ in range(2):
                running_both = [
                    ask(wire.spaces[side], wire.outside[side][4], side) for side in ("left", "other")
                ]
                found = [answers(each) for each in running_both]
                for side, lines in zip(("left", "other"), found, strict=True):
                    assert [line.split(" from ")[0] for line in lines] == [f"{side} {n}" for n in range(5)]
                    assert all(f" from {NAT}:" in line for line in lines)
                ports.append({line.rpartition(":")[2] for lines in found for line in lines})
                for client in clients:
                    client.rekey(child="udp")
                server.rekey(child="udp")
            assert ports[0] == ports[1] and len(ports[0]) == 2 and "1701" in ports[0], ports
            assert "another peer behind the same NAT has that" in server.log()
            counts = [child.packets_in for sa in server.sas() for child in sa.children]
            assert len(server.sas()) == 2, counts
            listener.kill()


@pytest.mark.full
@pytest.mark.parametrize("first", ["ours", "strongSwan"])
def test_with_the_linux_kernel(linux: Guest, first: str) -> None:
    """One of the two clients is strongSwan on the kernel's own transport mode, the first to come or the second."""
    child = {"mode": "transport", "esp_proposals": ["aes128gcm16"]}
    both = ["dynamic[udp/1701]"]
    connection = {
        "local_addrs": ["10.0.0.2"],
        "remote_addrs": [SERVER],
        "proposals": ["aes128gcm16-prfsha256-x25519"],
        "mobike": False,
        "local": {"auth": "psk", "id": "left.example"},
        "remote": {"auth": "psk", "id": "right.example"},
        "children": {"udp": {**child, "local_ts": both, "remote_ts": both}},
    }
    with behind_nat(linux) as wire:
        server, ours = gateway(wire, "right"), gateway(wire, "other")
        charon = GuestCharon(linux)
        charon.start()
        try:
            charon.load({"l2tp": connection}, secrets=[{"type": "IKE", "data": SECRET}])
            with running(server, ours):
                listener = wire.right.start([sys.executable, "-c", SERVE])
                wait_until(lambda: "bound" in listener.output(), timeout=10, what="the server listens")
                clients = [ours, charon] if first == "ours" else [charon, ours]
                for client in clients:
                    client.initiate(child="udp", timeout=60)
                assert "mode transport" in linux.run(["ip", "xfrm", "state"])
                seen: list[set[str]] = []
                for _ in range(2):
                    told: list[str] = []
                    beside = ask(wire.spaces["other"], "10.0.1.2", "other")
                    lines = linux.run(["python3", "-c", ASK, "10.0.0.2", "left", "5"]).splitlines()
                    for name, found in (("left", lines), ("other", answers(beside))):
                        assert [line.split(" from ")[0] for line in found] == [
                            f"{name} {n}" for n in range(5)
                        ]
                        told += found
                    seen.append({line.partition(" ")[0] + line.rpartition(":")[2] for line in told})
                    before = charon.child(60).spi_in
                    charon.rekey(child="udp")
                    wait_until(
                        lambda before=before: charon.child(60).spi_in != before,
                        timeout=60,
                        what="a new child",
                    )
                assert seen[0] == seen[1] and len(seen[0]) == 2
                assert ("other1701" if first == "ours" else "left1701") in seen[0], seen
                listener.kill()
        finally:
            charon.kill()


def test_what_cannot_be_told_apart_is_refused() -> None:
    """A client that wants any port of its own, where another has port 1701: its child is closed, the other's stays."""
    with wires.two_behind_one() as wire:
        server, first = gateway(wire, "right"), gateway(wire, "left")
        second = gateway(wire, "other", ts="dynamic[udp]")
        with running(server, first, second):
            first.initiate(child="udp")
            with contextlib.suppress(Exception):
                second.initiate(child="udp")
            wait_until(
                lambda: "peers behind one NAT are told apart by one UDP or TCP port" in server.log(),
                timeout=10, what="the refusal",
            )  # fmt: skip
            wait_until(
                lambda: sorted(len(sa.installed) for sa in server.sas()) == [0, 1],
                timeout=10, what="one child is left",
            )  # fmt: skip
            assert len(first.sa().installed) == 1
