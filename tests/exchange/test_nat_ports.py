"""Two L2TP clients behind one NAT: each is known here by a port that is not the one in its SA (control/sa/apart.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP

from dataplane.model import Action, Encap, EspProposal, PolicySpec, SaSpec
from dataplane.records import check_sa
from tests import packets as make
from tests.exchange.suites import SUITES, mirror, suite_id
from tests.exchange.test_transport import ends, host_selector, payloads, scapy_sa, transport_pair
from tests.gateway import Gateway, MakeGateway

L2TP, SHOWN = 1701, 20077


def selector(port: int, protocol: int = 17) -> object:
    """Between our port 1701 and one of the peer's."""
    return host_selector(4, protocol=protocol, local_ports=(L2TP, L2TP), remote_ports=(port, port))


def client(suite: EspProposal, number: int, shown: int = L2TP, protocol: int = 17) -> tuple[SaSpec, SaSpec]:
    """The SAs of one client behind the NAT; `shown` is its port here, 1701 in its SA."""
    ours, theirs = transport_pair(suite, encap=True, seed=number)
    ports = None if shown == L2TP else (L2TP, shown)
    encap = Encap(source_port=4500, destination_port=20000 + number)
    rest = {"nat_ports": ports, "encap": encap}
    return (
        replace(ours, name=f"out{number}", spi=ours.spi + number, **rest),
        replace(
            theirs,
            name=f"in{number}",
            spi=theirs.spi + number,
            selectors=(selector(shown, protocol),),
            **rest,
        ),
    )


def packet(build: object, data: bytes, port: int, *, back: bool = False) -> bytes:
    """From our port 1701 to the peer's, or back."""
    ports = (port, L2TP) if back else (L2TP, port)
    return build(4, data=data, ports=ports, **ends(4, back=back))  # type: ignore[operator]


def two(gateway: Gateway, suite: EspProposal, protocol: int = 17) -> list[tuple[SaSpec, SaSpec]]:
    """The first client is as it is, the second is known by another port."""
    clients = [client(suite, 0, protocol=protocol), client(suite, 1, SHOWN, protocol)]
    for each in clients:
        gateway.add(*each)
    gateway.set_policies(
        [
            PolicySpec(name=f"p{n}", action=Action.PROTECT, selector=selector(port, protocol), sa=f"out{n}")  # type: ignore[arg-type]
            for n, port in enumerate((L2TP, SHOWN))
        ]
    )
    return clients


@pytest.mark.parametrize("protocol", [17, 6])
@pytest.mark.parametrize("suite", [SUITES[0], SUITES[4]], ids=suite_id)
def test_each_gets_its_own(make_gateway: MakeGateway, suite: EspProposal, protocol: int) -> None:
    """Both clients' packets have port 1701 on the wire, both ways, and whole checksums; here each has its own."""
    gateway = make_gateway()
    clients = two(gateway, suite, protocol)
    build = make.udp_packet if protocol == 17 else make.tcp_packet
    peers = [scapy_sa(theirs) for _, theirs in clients]
    for data in payloads([0, 1, 7, 64, 999]):
        for number, port in enumerate((L2TP, SHOWN)):
            ours, _ = clients[number]
            sent = gateway.send([packet(build, data, port)])
            assert sent.verdicts == {"pass": 1} and sent.passed == {
                f"out{number}": (1, len(packet(build, data, port)))
            }
            far = scapy_sa(mirror(ours, nat_ports=None, selectors=(host_selector(4),)))
            opened = bytes(far.decrypt(IP(sent.packets[0])))
            assert opened == packet(build, data, L2TP), "as the client expects it, checksum and all"
            outer = peers[number].encrypt(IP(packet(build, data, L2TP, back=True)))
            received = gateway.receive([bytes(outer)])
            assert received.verdicts == {"pass": 1}
            assert received.packets == [packet(build, data, port, back=True)]


def test_in_one_batch(make_gateway: MakeGateway) -> None:
    """Runs of both clients and several packets of each."""
    gateway = make_gateway()
    clients = two(gateway, SUITES[0])
    order = [0, 0, 1, 1, 1, 0, 1, 0, 0]
    peers = [scapy_sa(theirs) for _, theirs in clients]
    arrived = [
        bytes(peers[n].encrypt(IP(packet(make.udp_packet, b"%d" % at, L2TP, back=True))))
        for at, n in enumerate(order)
    ]
    wanted = [packet(make.udp_packet, b"%d" % at, (L2TP, SHOWN)[n], back=True) for at, n in enumerate(order)]
    assert gateway.receive(arrived).packets == wanted
    answers = [packet(make.udp_packet, b"%d" % at, (L2TP, SHOWN)[n]) for at, n in enumerate(order)]
    sent = gateway.send(answers)
    assert sent.passed["out0"][0] == order.count(0) and sent.passed["out1"][0] == order.count(1)


def test_without_checksum(make_gateway: MakeGateway) -> None:
    """A UDP checksum of zero says that there is none, and stays (RFC 768)."""
    gateway = make_gateway()
    clients = two(gateway, SUITES[0])
    way = ends(4, back=True)
    inner = make.ip(4, make.udp(b"data", none=True, ports=(L2TP, L2TP), **way), **way)  # type: ignore[arg-type]
    received = gateway.receive([bytes(scapy_sa(clients[1][1]).encrypt(IP(inner)))])
    assert received.packets == [make.ip(4, make.udp(b"data", none=True, ports=(SHOWN, L2TP), **way), **way)]  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [True, False])
def test_checksums_of_addresses_and_ports(make_gateway: MakeGateway, known: bool) -> None:
    """The client summed its own address and port: both are mended."""
    from ipaddress import ip_address

    gateway = make_gateway()
    before = (ip_address("203.0.113.2"), ip_address("10.0.0.2"))
    ours, theirs = client(SUITES[0], 1, SHOWN)
    gateway.add(ours, replace(theirs, nat_original=before if known else None))
    way = ends(4, back=True)
    for build in (make.udp_packet,):
        inner = build(4, data=b"hello", ports=(L2TP, L2TP), source=before[1], destination=before[0])
        outer = scapy_sa(theirs).encrypt(IP(inner))
        outer.src, outer.dst = str(way["source"]), str(way["destination"])
        del outer.chksum
        assert gateway.receive([bytes(outer)]).packets == [packet(build, b"hello", SHOWN, back=True)]


def test_what_is_not_the_port_s_is_dropped(make_gateway: MakeGateway) -> None:
    """Another port, the very port by which the client is known here, no ports at all: none is what the SA is for."""
    gateway = make_gateway()
    clients = two(gateway, SUITES[0])
    peer = scapy_sa(clients[1][1])
    way = ends(4, back=True)
    bad = [
        make.udp_packet(4, data=b"x", ports=(1702, L2TP), **way),
        make.udp_packet(4, data=b"x", ports=(SHOWN, L2TP), **way),
        make.ip(4, b"\x06\xa5\x06\xa5", protocol=17, **way),
        make.ip(4, bytes(30), protocol=1, **way),
    ]
    received = gateway.receive([bytes(peer.encrypt(IP(each))) for each in bad])
    assert received.packets == [] and sum(received.verdicts.values()) == len(bad)
    assert set(received.verdicts) <= {"inner_selectors", "inner_malformed"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encap": None}, "transport mode and UDP over IPv4"),
        ({"nat_ports": (0, SHOWN)}, "nat_ports are 0 and 20077; they are 1 to 65535"),
        ({"selectors": (host_selector(4),)}, "a selector is not of TCP or UDP and that"),
        ({"selectors": (selector(L2TP),)}, "nat_ports show 20077"),
    ],
)
def test_specifications_that_cannot_be(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_sa(replace(client(SUITES[0], 1, SHOWN)[1], **changes))  # type: ignore[arg-type]
