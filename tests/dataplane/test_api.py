"""DataPlane: what it refuses and how it says so, and changes that take effect while packets pass (real kernels)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from dataplane.api import DataPlane, DataPlaneError
from dataplane.book import MOVE_NUMBERS
from dataplane.layout import NO_INDEX
from dataplane.model import (
    Action,
    AdjacencySpec,
    Cipher,
    Direction,
    Encap,
    EspProposal,
    Integrity,
    Mode,
    PortSpec,
    Protocol,
    Role,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from tests.dataplane.conftest import SMALL
from tests.dataplane.make import CBC, GCM, make_inbound, make_policy, make_sa, memory_ports
from tests.dataplane.plane import Gateway, udp

HERE, THERE = IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16")
WAN = AdjacencySpec(port="wan")
LAN = AdjacencySpec(port="lan")
AH = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_256)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[DataPlane]:
    made = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path / "state")
    yield made
    made.close()


def tunnel(plane: DataPlane, suffix: str = "", spi: int = 0xC0000001) -> None:
    """An SA out and its mirror image in, so that the gateway can be its own peer."""
    out = make_sa(f"out{suffix}", spi=spi)
    back = SelectorSpec.from_networks(THERE, HERE)
    mirrored = make_inbound(
        f"in{suffix}",
        spi=spi,
        local=out.remote,
        remote=out.local,
        encryption_key=out.encryption_key,
        selectors=(back,),
    )
    plane.add_sas([out, mirrored])
    plane.set_sa_adjacency(f"out{suffix}", WAN, 1500)


POLICY = make_policy("to-branch", selector=SelectorSpec.from_networks(HERE, THERE))


def test_packets_follow_every_change(plane: DataPlane) -> None:
    async def scenario() -> None:
        gateway = Gateway(plane)
        packet = udp("10.1.0.5", "10.2.0.9")
        assert gateway.out(packet) == []
        assert gateway.drops() == {"no_policy": 1}
        await plane.set_policies([POLICY])
        assert gateway.out(packet) == []
        assert gateway.drops()["policy_no_sa"] == 1
        tunnel(plane)
        await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
        plane.set_policy_sa("to-branch", "out")
        (esp,) = gateway.out(packet)
        assert esp[9] == 50
        assert packet[20:] not in esp
        assert gateway.back(esp) == [packet]
        assert gateway.back(esp) == []
        assert gateway.drops()["replay"] == 1

        # Rekey: another SA by one store, then the old one goes.
        tunnel(plane, "2", 0xC0000002)
        plane.set_policy_sa("to-branch", "out2")
        plane.remove_sa("out")
        (second,) = gateway.out(packet)
        assert second[20:24].hex() == "c0000002"
        assert gateway.back(second) == [packet]
        plane.remove_sa("in")
        assert gateway.back(esp) == []
        assert gateway.drops()["no_sa"] == 1

        # A new SPD in which something narrower is discarded first.
        narrow = replace(
            POLICY,
            name="not-there",
            action=Action.DISCARD,
            selector=SelectorSpec.from_networks(HERE, IPv4Network("10.2.0.9/32")),
        )
        await plane.set_policies([narrow, replace(POLICY, sa="out2")])
        assert gateway.out(packet) == []
        assert gateway.drops()["policy_discard"] == 1
        assert len(gateway.out(udp("10.1.0.5", "10.2.0.10"))) == 1
        plane.remove_sa("out2")
        assert gateway.out(udp("10.1.0.5", "10.2.0.10")) == []
        assert gateway.drops()["policy_no_sa"] == 2
        await plane.settle()
        assert not any(plane.tables.sas[0].tobytes())

    asyncio.run(scenario())


def test_stats_count_per_sa(plane: DataPlane) -> None:
    async def scenario() -> None:
        gateway = Gateway(plane)
        tunnel(plane)
        await plane.set_policies([replace(POLICY, sa="out")])
        await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
        for number in range(5):
            (esp,) = gateway.out(udp("10.1.0.5", "10.2.0.9", bytes(100 + number)))
            gateway.back(esp)
        gateway.back(esp)
        stats = plane.stats()
        out, into = stats.sas
        assert (out.name, out.packets, out.bytes, out.sequence) == ("out", 5, 5 * 128 + 10, 6)
        assert (into.packets, into.bytes, into.sequence, into.replay_window) == (5, 5 * 128 + 10, 5, 4096)
        assert into.drops["replay"] == 1
        assert stats.drops["replay"] == 1
        assert stats.verdicts["pass"] == 10
        assert out.inner_mtu == 1500 - 20 - 8 - 8 - 16 - 2
        assert [port.rx_packets for port in stats.ports] == [5, 6]
        assert stats.engine == plane.tables.engine.name
        assert plane.stats(sas=False).sas == ()

    asyncio.run(scenario())


def test_replace_keeps_policies_and_adjacency(plane: DataPlane) -> None:
    async def scenario() -> None:
        gateway = Gateway(plane)
        tunnel(plane)
        await plane.set_policies([replace(POLICY, sa="out")])
        packet = udp("10.1.0.5", "10.2.0.9")
        (first,) = gateway.out(packet)
        await plane.replace_sa(make_sa("out", spi=0xC0000009))
        (second,) = gateway.out(packet)
        assert (first[20:24].hex(), second[20:24].hex()) == ("c0000001", "c0000009")
        await plane.settle()
        assert plane.stats().sas[-1].name == "out"
        assert plane.stats().sas[-1].packets == 1

    asyncio.run(scenario())


def test_replacing_an_inbound_sa_accepts_nothing_twice(plane: DataPlane) -> None:
    async def scenario() -> None:
        gateway = Gateway(plane)
        tunnel(plane)
        await plane.set_policies([replace(POLICY, sa="out")])
        await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
        (esp,) = gateway.out(udp("10.1.0.5", "10.2.0.9"))
        key = plane.tables.sas["key"]["encryption"][1].tobytes()[:16]
        salt = plane.tables.sas["hot"]["salt"][1].tobytes()
        mirrored = make_inbound(
            "in",
            local=IPv4Address("192.0.2.2"),
            remote=IPv4Address("192.0.2.1"),
            encryption_key=key + salt,
            selectors=(SelectorSpec.from_networks(THERE, HERE),),
        )
        assert len(gateway.back(esp)) == 1
        await plane.replace_sa(replace(mirrored, replay_window=256))
        assert gateway.back(esp) == []
        assert plane.stats().sas[-1].replay_window == 256
        (following,) = gateway.out(udp("10.1.0.5", "10.2.0.9"))
        assert len(gateway.back(following)) == 1
        # Another key under the same SPI: by one store.
        await plane.replace_sa(replace(mirrored, encryption_key=bytes(20)))
        (following,) = gateway.out(udp("10.1.0.5", "10.2.0.9"))
        assert gateway.back(following) == []
        assert gateway.drops()["integrity"] == 1

    asyncio.run(scenario())


def test_duplicates_and_strangers_are_named(plane: DataPlane) -> None:
    plane.add_sa(make_sa("a"))
    plane.add_sa(make_inbound("b"))
    for spec, message in (
        (make_sa("a"), "SA 'a': there is one of that name already"),
        (make_inbound("c"), "SA 'c': SPI 0xc0000001 belongs to SA 'b'"),
        (make_sa("d", encryption_key=b"1"), "SA 'd': encryption key has 1 bytes"),
    ):
        with pytest.raises(DataPlaneError, match=message):
            plane.add_sa(spec)
    with pytest.raises(DataPlaneError, match="there is no SA 'x'"):
        plane.remove_sa("x")
    with pytest.raises(DataPlaneError, match="SA 'b' is inbound; wanted an outbound one"):
        plane.set_sa_adjacency("b", WAN)
    with pytest.raises(DataPlaneError, match="adjacency on port 'moon'; there are lan, wan"):
        plane.set_sa_adjacency("a", AdjacencySpec(port="moon"))
    with pytest.raises(DataPlaneError, match=r"MAC 02:.*; a memory port has no link header"):
        plane.set_sa_adjacency("a", AdjacencySpec(port="wan", destination_mac=b"\2\0\0\0\0\1"))
    with pytest.raises(DataPlaneError, match="there is no policy 'p'"):
        plane.set_policy_sa("p", "a")


def test_policies_that_cannot_be_leave_the_old_ones(plane: DataPlane) -> None:
    async def scenario() -> None:
        await plane.set_policies([POLICY])
        for policies, message in (
            ([POLICY, POLICY], "policy 'to-branch' is given twice"),
            ([replace(POLICY, sa="ghost")], "policy 'to-branch': there is no SA 'ghost'"),
            ([replace(POLICY, action=Action.BYPASS, sa="x")], "BYPASS takes no SA"),
            ([replace(POLICY, name=str(i)) for i in range(33)], "33 policies; the table holds 32"),
        ):
            with pytest.raises(DataPlaneError, match=message):
                await plane.set_policies(policies)
        assert plane.stats().policies == 1
        with pytest.raises(DataPlaneError, match=r"route 10\.2\.0\.0/16 is given twice"):
            await plane.set_routes([RouteSpec(prefix=THERE, adjacency=None)] * 2)

    asyncio.run(scenario())


def test_bulk_is_all_or_none(plane: DataPlane) -> None:
    specs = [make_inbound(f"s{i}", spi=0x1000 + i) for i in range(65)]
    with pytest.raises(DataPlaneError, match="table of SAs is full"):
        plane.add_sas(specs)
    assert plane.stats().sas == ()
    plane.add_sas(specs[:64])
    assert len(plane.stats().sas) == 64


def test_manual_keys_need_state(tmp_path: Path) -> None:
    plane = DataPlane.create(ports=memory_ports(), limits=SMALL)
    with pytest.raises(DataPlaneError, match=r"SA 'm'.*state directory.*RFC 4106 section 2\); none is set"):
        plane.add_sa(make_sa("m", negotiated=False))
    plane.close()
    (tmp_path / "file").write_text("")
    plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path / "file" / "x")
    with pytest.raises(DataPlaneError, match="Not a directory"):
        plane.add_sa(make_sa("m", negotiated=False))
    plane.close()


def test_manual_sa_goes_on_where_it_stood(tmp_path: Path) -> None:
    spec = make_sa("m", negotiated=False)

    def run(packets: int) -> list[int]:
        plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path)
        plane.add_sa(spec)
        plane.set_sa_adjacency("m", WAN)
        asyncio.run(plane.set_policies([replace(POLICY, sa="m")]))
        gateway = Gateway(plane)
        sent = [gateway.out(udp("10.1.0.5", "10.2.0.9"))[0] for _ in range(packets)]
        plane.close()
        return [int.from_bytes(esp[24:28], "big") for esp in sent]

    assert run(3) == [1, 2, 3]
    assert run(2) == [4, 5]


def test_a_worker_that_cannot_be_ended_keeps_its_numbers(tmp_path: Path) -> None:
    spec = make_sa("m", negotiated=False)
    plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path)
    plane.add_sa(spec)
    end = plane.tables.view.sequence(0)[1]
    view = plane.tables.view
    plane._close(workers_gone=False)
    assert spec.encryption_key[:16] in bytes(memoryview(view))  # it may still send with it
    plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path)
    plane.add_sa(spec)
    assert plane.tables.view.sequence(0)[0] == end
    plane.close()


def test_no_key_is_left_when_it_closes(tmp_path: Path) -> None:
    plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path)
    spec = make_sa("a")
    plane.add_sa(spec)
    view = plane.tables.view
    assert spec.encryption_key[:16] in bytes(memoryview(view))
    plane.close()
    assert spec.encryption_key[:16] not in bytes(memoryview(view))
    assert spec.encryption_key.hex() not in repr(plane.__dict__)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (memory_ports() * 2, "port 'lan' is given twice"),
        (
            [PortSpec(name=str(i), role=Role.PROTECTED, driver="memory", interface="") for i in range(8)],
            "8 ports",
        ),
        (
            [PortSpec(name="x", role=Role.PROTECTED, driver="carrier-pigeon", interface="")],
            "driver 'carrier-pigeon'",
        ),
        ([PortSpec(name="x", role=Role.PROTECTED, driver="xdp", interface="eth0")], "MAC of 0 bytes"),
    ],
)
def test_ports_that_cannot_be(ports: list[PortSpec], message: str) -> None:
    with pytest.raises(DataPlaneError, match=message):
        DataPlane.create(ports=ports)


def test_other_arguments_that_cannot_be() -> None:
    with pytest.raises(DataPlaneError, match="0 workers"):
        DataPlane.create(workers=0)
    with pytest.raises(DataPlaneError, match="abacus"):
        DataPlane.create(engine="abacus")


def test_removed_adjacencies_ask_the_kernel(plane: DataPlane) -> None:
    tunnel(plane)
    plane.set_sa_adjacency("out", None)
    assert plane.tables.sas["hot"]["adjacency"][0] == NO_INDEX
    assert make_sa(proposal=GCM).direction is Direction.OUT


@pytest.mark.parametrize("proposal", [GCM, CBC], ids=["aead", "cbc"])
def test_an_sa_moves_and_keeps_its_numbers(plane: DataPlane, proposal: EspProposal) -> None:
    """Another path: outbound, later numbers in another outer header; inbound, the window as it was."""

    async def scenario() -> None:
        gateway = Gateway(plane)
        packet = udp("10.1.0.5", "10.2.0.9")
        out = make_sa("out", proposal)
        # A key that ends in zeros: nothing may be cut off it.
        integrity = out.integrity_key[:-3] + bytes(3) if out.integrity_key else b""
        out = replace(out, encryption_key=out.encryption_key[:-3] + bytes(3), integrity_key=integrity)
        inbound = make_inbound(
            "in",
            proposal,
            spi=out.spi,
            integrity_key=out.integrity_key,
            local=out.remote,
            remote=out.local,
            encryption_key=out.encryption_key,
            selectors=(SelectorSpec.from_networks(THERE, HERE),),
        )
        plane.add_sas([out, inbound])
        plane.set_sa_adjacency("out", WAN)
        await plane.set_policies([replace(POLICY, sa="out")])
        await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
        before = [gateway.out(packet)[0] for _ in range(3)]
        assert gateway.back(before[0]) == [packet]

        there, ports = IPv4Address("198.51.100.1"), Encap(destination_port=40001)
        await plane.move_sa("out", local=there, remote=out.remote, encap=ports, adjacency=WAN)
        await plane.move_sa("in", local=out.remote, remote=there, encap=Encap())
        (after,) = gateway.out(packet)
        assert after[12:20] == there.packed + out.remote.packed
        assert after[22:24] == (40001).to_bytes(2, "big")
        number = int.from_bytes(after[32:36], "big")
        assert 3 < number <= MOVE_NUMBERS + 4
        assert gateway.back(after) == [packet]
        assert gateway.back(after) == [] and gateway.drops()["replay"] == 1
        # In the old clothes it is refused, whatever its number.
        assert gateway.back(before[1]) == [] and gateway.drops()["encap_mismatch"] == 1
        stats = {sa.name: sa for sa in plane.stats().sas}
        assert stats["out"].packets == 4 and stats["out"].local == there
        assert [each.packets for each in plane.traffic(["in", "out"])] == [2, 4]

        # Inbound at another address of ours, too.
        await plane.move_sa("in", local=IPv4Address("192.0.2.77"), remote=there, encap=Encap())
        assert gateway.back(gateway.out(packet)[0]) == [] and gateway.drops()["wrong_address"] == 1
        plane.add_sa(make_inbound("manual", spi=5000, negotiated=False))
        with pytest.raises(DataPlaneError, match="'manual' has manual keys; only an SA of IKE can move"):
            await plane.move_sa("manual", local=there, remote=out.remote, encap=None)
        await plane.settle()
        assert plane.tables._sa_slots.taken == 3

    asyncio.run(scenario())


def test_moving_never_repeats_a_number(plane: DataPlane) -> None:
    """A packet that is sent between every two steps of a move has a number of its own."""

    async def scenario() -> None:
        gateway = Gateway(plane)
        packet = udp("10.1.0.5", "10.2.0.9")
        out = make_sa("out")
        plane.add_sa(out)
        plane.set_sa_adjacency("out", WAN)
        await plane.set_policies([replace(POLICY, sa="out")])
        numbers = []

        def send() -> None:
            numbers.extend(int.from_bytes(esp[24:28], "big") for esp in gateway.out(packet))

        for turn in range(20):
            there = IPv4Address(f"192.0.2.{turn + 10}")
            moving = plane.move_sa("out", local=there, remote=out.remote, encap=None, adjacency=WAN)
            move = asyncio.create_task(moving)
            while not move.done():
                send()
                await asyncio.sleep(0)
            await move
            send()
        assert len(numbers) >= 40 and numbers == sorted(set(numbers))

    asyncio.run(scenario())


def bundled(plane: DataPlane, **rest: object) -> list[SaSpec]:
    """`tunnel`, with AH around it in both directions; all four are added at once, inner ones first."""
    out = make_sa("out", outer="ah-out", outer_length=28, **rest)
    around = make_sa("ah-out", AH, spi=0xA0000001, protocol=Protocol.AH, mode=Mode.TRANSPORT, **rest)
    ends = {"direction": Direction.IN, "local": out.remote, "remote": out.local}
    esp = SelectorSpec.from_networks(IPv4Network(out.remote), IPv4Network(out.local), protocol=50)
    found = [
        out,
        replace(out, name="in", outer="ah-in", selectors=(SelectorSpec.from_networks(THERE, HERE),), **ends),
        around,
        replace(around, name="ah-in", selectors=(esp,), **ends),
    ]
    plane.add_sas(found)
    for name in ("out", "ah-out"):
        plane.set_sa_adjacency(name, WAN, 1500)
    return found


def test_bundles_change_while_packets_pass(plane: DataPlane) -> None:
    """Either SA is replaced or goes away: what is sent is always AH around ESP, or nothing."""

    async def scenario() -> None:
        gateway = Gateway(plane)
        out, into, ah_out, ah_in = bundled(plane)
        await plane.set_policies([replace(POLICY, sa="out")])
        await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
        packet = udp("10.1.0.5", "10.2.0.9")

        def passes() -> list[bytes]:
            wires = gateway.out(packet)
            assert all(wire[9] == 51 and wire[20] == 50 for wire in wires), wires
            return [inner for wire in wires for inner in gateway.back(wire)]

        assert len(passes()) == 1
        inner_mtus = {sa.name: sa.inner_mtu for sa in plane.stats().sas}
        assert inner_mtus["out"] == 1500 - 28 - 20 - 8 - 8 - 16 - 2
        # New keys of both AHs, then of both ESPs; the key of one alone makes the other end refuse it.
        key = bytes(range(32))
        await plane.replace_sa(replace(ah_out, integrity_key=key, sequence=50))
        assert passes() == []
        assert gateway.drops() == {"integrity": 1}
        await plane.replace_sa(replace(ah_in, integrity_key=key))
        assert len(passes()) == 1
        await plane.replace_sa(replace(out, encryption_key=key[:20]))
        await plane.replace_sa(replace(into, encryption_key=key[:20]))
        assert len(passes()) == 1
        # The same key again: the window's state goes along, and so does what the AH is around.
        await plane.replace_sa(replace(ah_in, integrity_key=key, replay_window=64))
        assert len(passes()) == 1
        await plane.settle()
        assert len(passes()) == 1
        # Other ends of the AH alone: nothing leaves until the ESP has them too.
        elsewhere = IPv4Address("192.0.2.77")
        await plane.replace_sa(replace(ah_out, remote=elsewhere))
        assert passes() == [] and gateway.drops()["bundle"] == 1
        await plane.replace_sa(replace(out, remote=elsewhere))
        (wire,) = gateway.out(packet)
        assert (wire[9], wire[16:20]) == (51, elsewhere.packed)
        # Without its AH there is no ESP.
        plane.remove_sa("ah-out")
        assert gateway.out(packet) == [] and gateway.drops()["bundle"] == 2
        plane.add_sa(replace(ah_out, remote=elsewhere))
        plane.set_sa_adjacency("ah-out", WAN, 1500)
        assert len(gateway.out(packet)) == 1
        for name in ("ah-in", "in", "out", "ah-out"):
            plane.remove_sa(name)
        await plane.settle()
        assert plane.stats().sas == ()

    asyncio.run(scenario())


def test_bundles_that_cannot_be(plane: DataPlane) -> None:
    """An outer SA that is not there, goes another way or is no AH between the same ends; nothing is added then."""
    out, _, around, _ = bundled(plane)
    other = replace(out, name="other", spi=0xC0000005, encryption_key=bytes(range(20)))
    for change, message in (
        ({"outer": "moon"}, "outer 'moon' is no SA that there is"),
        ({"outer": "other"}, "an SA cannot be its own outer"),
        ({"outer": "out"}, "outer 'out' has protocol ESP; wanted AH"),
        ({"outer": "ah-in"}, "outer 'ah-in' has direction in; wanted out"),
        (
            {"outer": "ah-out", "remote": IPv4Address("192.0.2.9")},
            "remote address 192.0.2.2; wanted 192.0.2.9",
        ),
        ({"outer": "ah-out", "encap": Encap()}, "outer and encap exclude each other"),
    ):
        with pytest.raises(DataPlaneError, match=f"SA 'other': .*{message}"):
            plane.add_sa(replace(other, **change))  # type: ignore[arg-type]
    for change, message in (
        ({"outer": "moon"}, "SA 'out': outer 'moon' is no SA"),
        ({"remote": IPv4Address("192.0.2.9")}, "SA 'out': outer 'ah-out' has remote address 192.0.2.2"),
    ):
        with pytest.raises(DataPlaneError, match=message):
            asyncio.run(plane.replace_sa(replace(out, **change)))  # type: ignore[arg-type]
    with pytest.raises(DataPlaneError, match="outer is for ESP: a bundle is AH around ESP, and this is AH"):
        plane.add_sa(replace(around, name="third", outer="ah-out"))
    with pytest.raises(DataPlaneError, match="has mode tunnel; wanted transport"):
        plane.add_sas(
            [other_ah := replace(around, name="wide", mode=Mode.TUNNEL), replace(other, outer="wide")]
        )
    with pytest.raises(DataPlaneError, match="outer 'esp' has protocol ESP; wanted AH"):
        plane.add_sas([replace(other, outer="esp"), replace(other, name="esp", outer=None, spi=0xC0000006)])
    assert other_ah.name not in [sa.name for sa in plane.stats().sas]
    assert len(plane.stats().sas) == 4


def test_both_sas_of_a_bundle_keep_their_numbers(tmp_path: Path) -> None:
    """With keys by hand each of the two goes on where it stood, out and in, when the gateway begins anew."""
    specs: list[SaSpec] = []

    async def course() -> None:
        plane = DataPlane.create(ports=memory_ports(), limits=SMALL, state_dir=tmp_path)
        try:
            if specs:
                plane.add_sas(specs)
                plane.set_sa_adjacency("out", WAN, 1500)
                plane.set_sa_adjacency("ah-out", WAN, 1500)
            else:
                specs.extend(bundled(plane, negotiated=False))
            await plane.set_policies([replace(POLICY, sa="out")])
            await plane.set_routes([RouteSpec(prefix=THERE, adjacency=LAN)])
            gateway = Gateway(plane)
            wires = [gateway.out(udp("10.1.0.5", "10.2.0.9"))[0] for _ in range(3)]
            assert [len(gateway.back(wire)) for wire in wires] == [1, 1, 1]
            assert [gateway.back(wire) for wire in seen] == [[], [], []][: len(seen)]
            seen[:] = wires
            numbers.append((plane.next_number("out"), plane.next_number("ah-out")))
        finally:
            plane.close()

    seen: list[bytes] = []
    numbers: list[tuple[int, int]] = []
    asyncio.run(course())
    asyncio.run(course())
    assert numbers == [(4, 4), (7, 7)]
