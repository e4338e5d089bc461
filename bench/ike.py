"""IKE: handshakes per CPU second beside strongSwan's, and what a thousand tunnels need and survive.

Handshakes: one generator, our own endpoint as many initiators over UDP sockets (farm.py), sets up IKE SAs with a child
each, first against our gateway, then against charon with kernel-libipsec, and so on in turns. What counts is the CPU
time, user and system, that the responder with all its processes used meanwhile; the generator has the other CPUs.

Tunnels: two gateways with a thousand connections between them, each for a pair of addresses. Memory is the
proportional set size of all processes of one, with the tunnels less before them. Then one echo request after the other
goes through tunnel after tunnel, a thousand a second, while every child SA is rekeyed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from bench.echo import Echo
from bench.farm import Farm
from bench.options import Options
from bench.report import Row
from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.proposal import parse_proposal
from control.ike.settings import Auth, AuthSettings, ChildSettings, Connection, TrafficSelector
from control.lab.space import wait_until
from control.pki.settings import PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.peers import wires
from tests.peers.credentials import lab_authority, lab_card
from tests.peers.daemon import Daemon
from tests.peers.strongswan import Charon
from tests.peers.wires import Wire

RESPONDERS = ("charon", "esplanade")
AUTHS = {"psk": "psk", "ecdsa": "ecdsa256"}  # name -> kind of key
IKE, ESP = "aes128gcm16-prfsha256-x25519", "aes128gcm16"
SECRET = "a secret for the benchmark alone"
INITIATOR, RESPONDER = "farm.example", "gateway.example"
FARM_NET, GATEWAY_NET = IPv4Network("10.64.0.0/12"), IPv4Network("10.2.0.0/24")
HANDSHAKES = 300
ROUNDS = 3
TUNNELS = 1000
TUNNEL_NETS = {"left": IPv4Network("10.65.0.0/16"), "right": IPv4Network("10.66.0.0/16")}
# Handshakes under way; with one more, both daemons ask the address for a cookie (their default is 3 half-open ones).
AT_ONCE = 3


def run(options: Options) -> list[Row]:
    """Rows {responder, auth, handshakes_per_cpu_second, ratio, ...}; {tunnels, resident_kb_each, pings_lost, ...}."""
    rows: list[Row] = []
    for auth in AUTHS:
        if options.wants(auth):
            rows += handshakes(auth, options.rounds or ROUNDS)
    if options.wants("tunnels"):
        rows.append(tunnels(TUNNELS))
    return rows


def handshakes(auth: str, rounds: int) -> list[Row]:
    """Both responders, in turns; the median of each counts."""
    figures: dict[str, list[float]] = {name: [] for name in RESPONDERS}
    for number in range(rounds):
        for name in RESPONDERS:
            figures[name].append(measure(name, auth, HANDSHAKES))
            _tell(f"round {number + 1}: {auth:6} {name:9} {figures[name][-1]:7.1f} handshakes per CPU second")
    medians = {name: statistics.median(found) for name, found in figures.items()}
    return [
        {
            "responder": name,
            "auth": auth,
            "handshakes_per_cpu_second": medians[name],
            "ratio": medians[name] / medians["charon"],
            "handshakes": HANDSHAKES,
            "runs": figures[name],
        }
        for name in RESPONDERS
    ]


def measure(name: str, auth: str, count: int) -> float:
    """Handshakes per CPU second of one responder."""
    with ExitStack() as stack:
        wire = stack.enter_context(wires.direct())
        responder = stack.enter_context(gateway(wire, auth) if name == "esplanade" else charon(wire, auth))
        farm = stack.enter_context(
            Farm(wire.left, farm_connections(wire, auth, count + 10), farm_credentials(auth))
        )
        farm.set_up(10, at_once=AT_ONCE)  # caches are warm, and whatever is imported late is there
        assert responder.program is not None
        before = cpu_seconds(responder.program.pid)
        farm.set_up(count, at_once=AT_ONCE)
        return count / (cpu_seconds(responder.program.pid) - before)


# ---- the farm


def farm_connections(wire: Wire, auth: str, count: int) -> list[Connection]:
    """One connection per tunnel, each with an address of its own behind it."""
    method = Auth.PSK if auth == "psk" else Auth.PUBKEY
    base = Connection(
        name="farm",
        local_addresses=(wire.address("left"),),
        remote_addresses=(wire.address("right"),),
        proposals=(parse_proposal(Protocol.IKE, IKE),),
        local=AuthSettings(auth=method, identity=Identity.parse(INITIATOR)),
        remote=AuthSettings(auth=method, identity=Identity.parse(RESPONDER)),
        rekey_time=0.0,
    )
    remote = (TrafficSelector(network=GATEWAY_NET),)
    child = ChildSettings(name="net", remote=remote, proposals=(parse_proposal(Protocol.ESP, ESP),))
    return [
        replace(
            base,
            name=f"farm-{number}",
            children=(replace(child, local=(TrafficSelector(network=IPv4Network(FARM_NET[number])),)),),
        )
        for number in range(1, count + 1)
    ]


def farm_credentials(auth: str) -> Credentials:
    """The farm's secret, or its certificate."""
    if auth == "psk":
        return Credentials(preshared_keys=[PresharedKey(secret=SECRET.encode())])
    card = lab_card(INITIATOR, AUTHS[auth])
    return Credentials(
        certificates=[LoadedCertificate(name="farm", certificate=card.certificate, key=card.key)],
        authorities=[Authority(name="lab", certificates=(lab_authority().certificate,))],
    )


# ---- the responders


@contextmanager
def gateway(wire: Wire, auth: str) -> Iterator[Daemon]:
    """Ours, with one connection for all of the farm."""
    local: dict[str, Any] = {"id": RESPONDER}
    remote: dict[str, Any] = {"id": INITIATOR}
    connection: dict[str, Any] = {
        "local_addrs": wire.outside["right"][4],
        "proposals": IKE,
        "dpd_delay": "0s",
    }
    files: dict[str, bytes] = {}
    if auth == "psk":
        connection["psk"] = SECRET
    else:
        card = lab_card(RESPONDER, AUTHS[auth])
        local |= {"certs": "./card.pem", "key": "./card.key"}
        remote["cacerts"] = "./ca.pem"
        files = {"card.pem": card.pem, "card.key": card.key_pem, "ca.pem": lab_authority().pem}
    tables = {
        "connections.farm": connection,
        "connections.farm.local": local,
        "connections.farm.remote": remote,
        "connections.farm.children.net": {
            "local_ts": str(GATEWAY_NET),
            "remote_ts": str(FARM_NET),
            "esp_proposals": ESP,
            "start_action": "none",
        },
    }
    daemon = Daemon(wire.right, wire.directory, tables, files)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.kill()


@contextmanager
def charon(wire: Wire, auth: str) -> Iterator[Charon]:
    """strongSwan, with the same; its log is as short as ours."""
    logging = {"filelog": {"stderr": {"default": 0, "ike": 0, "cfg": 0, "enc": -1, "net": -1}}}
    daemon = Charon(wire.right, wire.directory, options=logging)
    daemon.start()
    method = "psk" if auth == "psk" else "pubkey"
    local: dict[str, Any] = {"auth": method, "id": RESPONDER}
    card = None if auth == "psk" else lab_card(RESPONDER, AUTHS[auth])
    if card is not None:
        local["certs"] = [card.der]
    connection = {
        "local_addrs": [wire.outside["right"][4]],
        "proposals": [IKE],
        "local": local,
        "remote": {"auth": method, "id": INITIATOR},
        "children": {
            "net": {"local_ts": [str(GATEWAY_NET)], "remote_ts": [str(FARM_NET)], "esp_proposals": [ESP]}
        },
    }
    try:
        daemon.load(
            {"farm": connection},
            secrets=[{"type": "IKE", "data": SECRET}],
            keys=[] if card is None else [card.pkcs8],
            authorities=[lab_authority().der],
        )
        yield daemon
    finally:
        daemon.kill()


# ---- a thousand tunnels


def tunnels(count: int) -> Row:
    """Set them up, weigh them, rekey them all while echo requests pass."""
    with wires.direct() as wire, many(wire, "left", count) as near, many(wire, "right", count) as far:
        for side, network in TUNNEL_NETS.items():
            wire.spaces[side].ip(f"route add local {network} dev lo")
        names = [f"t{number}" for number in range(1, count + 1)]
        assert far.program is not None
        before = memory_kb(far.program.pid)
        begun = time.monotonic()
        _all(names, lambda name: near.command("up", {"name": name}, 120.0))
        seconds = time.monotonic() - begun
        wait_until(lambda: _installed(far) == count, timeout=30, what=f"{count} tunnels at the responder")
        each = (memory_kb(far.program.pid) - before) / count
        _tell(f"{count} tunnels in {seconds:.1f} s, {each:.1f} KB each")
        pairs = [(_inner("left", number), _inner("right", number)) for number in range(1, count + 1)]
        with Echo(wire.left, pairs) as echo:
            begun = time.monotonic()
            _all(names, lambda name: near.command("rekey", {"name": name, "what": "child"}, 120.0))
            rekeying = time.monotonic() - begun
            time.sleep(1.0)
        _tell(f"all rekeyed in {rekeying:.1f} s, {echo.lost} of {echo.sent} echo requests lost")
    return {
        "tunnels": count,
        "resident_kb_each": each,
        "pings_lost": echo.lost,
        "pings": echo.sent,
        "set_up_seconds": seconds,
        "rekey_seconds": rekeying,
    }


@contextmanager
def many(wire: Wire, side: str, count: int) -> Iterator[Daemon]:
    """A gateway with `count` connections; the right one waits for the left one."""
    other = wires.OTHER[side]
    tables: dict[str, dict[str, Any]] = {}
    for number in range(1, count + 1):
        tables[f"connections.t{number}"] = {
            "local_addrs": wire.outside[side][4],
            "remote_addrs": wire.outside[other][4],
            "proposals": IKE,
            "psk": f"{SECRET} {number}",
            "dpd_delay": "0s",
            "local_ts": f"{_inner(side, number)}/32",
            "remote_ts": f"{_inner(other, number)}/32",
            "esp_proposals": ESP,
            "start_action": "none",
        }
        tables[f"connections.t{number}.local"] = {"id": f"{side}{number}.example"}
        tables[f"connections.t{number}.remote"] = {"id": f"{other}{number}.example"}
    daemon = Daemon(wire.spaces[side], wire.directory, tables)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.kill()


def _inner(side: str, number: int) -> IPv4Address:
    """The address behind one side of a tunnel."""
    return TUNNEL_NETS[side][number]


def _installed(daemon: Daemon) -> int:
    return sum(len(sa.installed) for sa in daemon.sas())


def _all(names: Sequence[str], act: Any) -> None:
    """`act` for each name, a few at a time; the first error goes on."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(act, names):
            pass


# ---- what processes use


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, user and system."""
    total = 0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / 100  # USER_HZ


def memory_kb(pid: int) -> int:
    """Proportional set size of a process and its children: what is shared is divided among those who share it."""
    total = 0
    for each in _family(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
