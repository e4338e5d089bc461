"""Specifications written to the shared tables read back as what they said; slots and keys are freed in time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from dataplane import layout
from dataplane.layout import NO_INDEX
from dataplane.model import (
    Action,
    AdjacencySpec,
    Cipher,
    Df,
    Direction,
    Encap,
    EspProposal,
    Integrity,
    PolicySpec,
    Protocol,
    RouteSpec,
    SaSpec,
    SelectorSpec,
)
from dataplane.records import check_sa, inner_mtu, outer_header
from dataplane.slots import Runs, Slots, TableFullError
from dataplane.tables import Limits, Tables
from ext.crypto import EngineHandle
from tests.dataplane.make import (
    CBC,
    CCM8,
    CHACHA,
    CTR,
    GCM,
    GCM_ESN,
    GMAC,
    IMPLICIT,
    NULL,
    SELECTOR,
    SELECTOR6,
    SHA1,
    make_inbound,
    make_policy,
    make_sa,
    make_v6,
)

PROPOSALS = [GCM, GCM_ESN, CBC, CHACHA, SHA1, NULL, CCM8, GMAC, CTR, IMPLICIT]
MAC = bytes.fromhex("020000000001")
NEXT_HOP = AdjacencySpec(port="wan", destination_mac=bytes.fromhex("020000000002"), mtu=1400)


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_gmac_of_ah(tables: Tables, bits: int) -> None:
    """The salt is the integrity key's; keys come back as they went in."""
    proposal = EspProposal(cipher=Cipher.NULL, key_bits=bits, integrity=Integrity.AES_GMAC, esn=True)
    spec = make_sa(proposal=proposal, protocol=Protocol.AH)
    check_sa(spec)
    index = tables.add_sa(spec, start=5, limit=1000, mtu=1500)
    sa = tables.sas[index]
    assert sa["hot"]["salt"].tobytes() == spec.integrity_key[-4:]
    assert (sa["hot"]["iv_length"], sa["hot"]["icv_length"], sa["hot"]["align"]) == (8, 16, 4)
    assert sa["hot"]["suite"] == (bits // 64 - 2) << 3 | Integrity.AES_GMAC << 5
    assert (sa["key"]["encryption_length"], sa["key"]["integrity_length"]) == (0, bits // 8)
    assert tables.keys(index, proposal) == (b"", spec.integrity_key)
    assert tables.has_key(index, spec)
    assert not tables.has_key(index, replace(spec, integrity_key=bytes(bits // 8) + spec.integrity_key[-4:]))
    assert inner_mtu(spec, 1500) == 1500 - 20 - 36
    assert inner_mtu(make_v6(spec), 1500) == 1500 - 40 - 40
    assert not sa["sequence"]["iv_mask"].tobytes().strip(b"\0")
    with pytest.raises(
        ValueError, match=r"integrity key has 16 bytes; AES_GMAC wants \d+ \(4 of them salt\)"
    ):
        check_sa(replace(spec, integrity_key=bytes(16)))


@pytest.mark.parametrize("proposal", PROPOSALS, ids=str)
@pytest.mark.parametrize("encap", [None, Encap(source_port=4500, destination_port=34567)])
@pytest.mark.parametrize("v6", [False, True])
def test_outbound_sa(tables: Tables, proposal: Any, encap: Encap | None, v6: bool) -> None:
    spec = make_sa(proposal=proposal, encap=encap, dscp=46, ttl=77, df=Df.SET, mss_clamp=True)
    spec = make_v6(spec) if v6 else spec
    check_sa(spec)
    index = tables.add_sa(spec, start=5, limit=1000, mtu=1500)
    sa = tables.sas[index]
    hot, key, sequence = sa["hot"], sa["key"], sa["sequence"]

    header = hot["header"].tobytes()[: hot["header_length"]]
    assert header == outer_header(spec)
    if v6:
        assert header[0] >> 4 == 6
        assert int.from_bytes(header[:2], "big") >> 4 & 0xFF == 46 << 2
        assert (header[6], header[7]) == (17 if encap else 50, 77)
        assert header[8:] == spec.local.packed + spec.remote.packed
    else:
        assert (header[0], header[1]) == (0x45, 46 << 2)
        assert (header[8], header[9]) == (77, 17 if encap else 50)
        assert header[12:] == spec.local.packed + spec.remote.packed
    assert hot["spi"].tobytes() == bytes.fromhex("c0000001")
    assert hot["encap_ports"].tobytes() == (bytes.fromhex("11948707") if encap else bytes(4))
    raw = spec.encryption_key[: proposal.key_bits // 8]
    assert hot["salt"].tobytes() == spec.encryption_key[len(raw) :].rjust(4, b"\0")
    assert tables.keys(index, proposal) == (spec.encryption_key, spec.integrity_key)
    flags = layout.SA_LIVE | layout.SA_DF_SET | layout.SA_MSS_CLAMP
    flags |= layout.SA_ESN if proposal.esn else 0
    flags |= layout.SA_ENCAP if encap else 0
    assert hot["flags"] == flags
    assert hot["adjacency"] == NO_INDEX
    assert (hot["suite"], hot["iv_length"], hot["icv_length"], hot["align"]) == (
        proposal.cipher
        | {0: 0, 128: 0, 192: 1, 256: 2}[proposal.key_bits] << 3
        | ({16: 0, 12: 1, 8: 2}[proposal.tag_length] if proposal.is_aead else proposal.integrity) << 5,
        proposal.iv_length,
        proposal.icv_length,
        proposal.alignment,
    )
    assert (sequence["next"], sequence["limit"]) == (5, 1000)
    assert sequence["hard_limit"] == (2**64 - 2**32 if proposal.esn else 2**32)
    assert (sequence["iv_mask"].tobytes() == bytes(16)) == (
        proposal.cipher not in (Cipher.NULL, Cipher.AES_CBC)
    )

    assert key["encryption"].tobytes() == raw.ljust(32, b"\0")
    assert key["integrity_key"].tobytes() == spec.integrity_key.ljust(64, b"\0")
    assert (key["encryption_length"], key["integrity_length"]) == (len(raw), len(spec.integrity_key))
    assert key["index"] == index
    assert tables.header[0]["sas_used"] == index + 1


def test_inbound_sa(tables: Tables) -> None:
    spec = make_inbound(selectors=(SELECTOR, SELECTOR6), replay_window=256)
    check_sa(spec)
    index = tables.add_sa(spec, start=1, limit=0)
    tables.publish_inbound(spec.spi, index)
    assert tables.view.spi_lookup(spec.spi) == index
    sa = tables.sas[index]
    assert sa["hot"]["flags"] & layout.SA_INBOUND
    assert (sa["inbound"]["local_high"], sa["inbound"]["local_low"]) == (0, 0xC0000201)
    assert (sa["replay"]["window"], sa["replay"]["top"]) == (256, 0)
    first = int(sa["inbound"]["first_selector"])
    assert sa["inbound"]["selector_count"] == 2
    # Oriented like the packet: our remote side is its source.
    one, six = tables.selectors[first], tables.selectors[first + 1]
    assert (one["source_first_low"], one["source_last_low"]) == (0x0A020000, 0x0A0200FF)
    assert (one["destination_first_low"], one["destination_last_low"]) == (0x0A010000, 0x0A01FFFF)
    assert (one["source_port_first"], one["source_port_last"]) == (80, 443)
    assert (one["destination_port_first"], one["destination_port_last"]) == (0, 65535)
    assert (one["family"], one["protocol"]) == (4, 6)
    assert (six["family"], six["source_first_high"], six["source_last_low"]) == (
        6,
        0x20010DB800020000,
        2**64 - 1,
    )


def test_inbound_start_counts_everything_before_it_as_seen(tables: Tables) -> None:
    from ext.replay import check_and_accept

    index = tables.add_sa(make_inbound(), start=1001, limit=0)
    assert check_and_accept(tables.view, index, 1000, False)[0] != 0
    assert check_and_accept(tables.view, index, 990, False)[0] != 0
    assert check_and_accept(tables.view, index, 1001, False)[0] == 0


@pytest.mark.parametrize(
    ("proposal", "encap", "v6"), list(itertools.product([GCM, CBC, NULL], [None, Encap()], [False, True]))
)
def test_inner_mtu_is_the_largest_that_fits(proposal: Any, encap: Encap | None, v6: bool) -> None:
    spec = make_sa(proposal=proposal, encap=encap)
    spec = make_v6(spec) if v6 else spec

    def outer(inner: int) -> int:
        padded = -(-(inner + 2) // proposal.alignment) * proposal.alignment
        header = (40 if v6 else 20) + (8 if encap else 0)
        return header + 8 + proposal.iv_length + padded + proposal.icv_length

    for mtu in range(1280, 1520):
        inner = inner_mtu(spec, mtu)
        assert outer(inner) <= mtu < outer(inner + 1)
    assert inner_mtu(spec, 30) == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            make_sa(encryption_key=b"short"),
            r"encryption key has 5 bytes; AES_GCM wants 20 \(4 of them salt\)",
        ),
        (make_sa(integrity_key=b"x"), "integrity key has 1 bytes; NONE wants 0"),
        (make_sa(proposal=replace(GCM, key_bits=64)), "AES_GCM has keys of 128 or 192 or 256 bits, not 64"),
        (make_sa(proposal=replace(CBC, integrity=0)), "AES_CBC needs an integrity algorithm"),
        (make_sa(proposal=replace(GCM, integrity=CBC.integrity)), "brings its own integrity"),
        (make_sa(spi=255), "SPI is 0xff; RFC 4303"),
        (make_sa(spi=2**32), "SPI is 0x100000000"),
        (make_sa(remote=IPv6Network("2001:db8::/128")[0]), "are of different families"),
        (make_sa(ttl=0), "ttl is 0"),
        (make_sa(dscp=64), "dscp is 64"),
        (make_sa(encap=Encap(source_port=0)), "encapsulation port is 0"),
        (make_sa(sequence=0), "sequence is 0; it is 1 to 4294967295"),
        (make_sa(sequence=2**32), "sequence is 4294967296"),
        (make_sa(sequence_limit=2**33), "sequence_limit is 8589934592"),
        (make_inbound(replay_window=63), "replay_window is 63; it is 0 .off. or 64 to 4096"),
        (make_inbound(replay_window=4097), "replay_window is 4097"),
        (make_inbound(proposal=GCM_ESN, replay_window=0), "extended sequence numbers need a replay window"),
        (make_inbound(selectors=()), "an inbound SA needs selectors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_sa_cannot_be_is_named(spec: SaSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sa(spec)


def test_removal_waits_for_the_workers_then_zeroes_everything(tables: Tables) -> None:
    from ext.sa import TablesView

    worker = TablesView(tables.fd, 0)
    spec = make_inbound()
    index = tables.add_sa(spec, start=1, limit=0)
    tables.publish_inbound(spec.spi, index)
    worker.worker_enter(4711)
    tables.workers[0]["seen_generation"] = tables.view.generation  # in the middle of a batch
    tables.sa_counters["packets"][0, index] = 7
    tables.view.spi_remove(spec.spi)
    tables.drop_sa(index)
    assert tables.later.run() == 1
    assert spec.encryption_key[:16] in tables.sas[index].tobytes()
    other = tables.add_sa(make_sa("other"), start=1, limit=2)
    assert other != index
    tables.workers[0]["seen_generation"] = tables.view.generation  # the next round
    assert tables.later.run() == 0
    assert not any(tables.sas[index].tobytes())
    assert tables.sa_counters["packets"][0, index] == 0
    assert tables.add_sa(make_sa("again"), start=1, limit=2) == index


def test_a_key_the_engine_refuses_leaves_nothing(tables: Tables) -> None:
    broken = make_sa(proposal=replace(GCM, key_bits=64), encryption_key=bytes(12))
    with pytest.raises(ValueError, match="cannot do cipher"):
        tables.add_sa(broken, start=1, limit=2)
    index = tables.add_sa(make_sa(), start=1, limit=2)
    assert index == 0


def test_adjacencies_are_shared_and_counted(tables: Tables) -> None:
    a, b = (tables.add_sa(make_sa(name), start=1, limit=2) for name in "ab")
    spec = make_sa()
    for index in (a, b):
        tables.set_sa_adjacency(index, spec, NEXT_HOP, source_mac=MAC, port=1, mtu=1400)
    entry = int(tables.sas["hot"]["adjacency"][a])
    assert entry == tables.sas["hot"]["adjacency"][b]
    assert tables.sas["hot"]["inner_mtu"][a] == inner_mtu(spec, 1400)
    row = tables.adjacencies[entry]
    assert row["link_header"].tobytes() == NEXT_HOP.destination_mac + MAC + b"\x08\x00"
    assert (row["link_length"], row["valid"], row["port"], row["mtu"]) == (14, 1, 1, 1400)
    tables.set_sa_adjacency(a, spec, None, source_mac=b"", port=0, mtu=1500)
    tables.drop_sa(b)
    assert tables.later.run() == 0
    assert tables.adjacencies[entry]["valid"] == 0
    # IPv6 SAs to the same next hop need another ethertype.
    six = make_v6(spec)
    c = tables.add_sa(six, start=1, limit=2)
    tables.set_sa_adjacency(c, six, NEXT_HOP, source_mac=MAC, port=1, mtu=1400)
    header = tables.adjacencies[int(tables.sas["hot"]["adjacency"][c])]["link_header"].tobytes()
    assert header[12:] == b"\x86\xdd"


def test_policies_flip_as_a_whole(tables: Tables) -> None:
    sa = tables.add_sa(make_sa(), start=1, limit=2)
    first = tables.set_policies([make_policy("a"), make_policy("b", action=Action.DISCARD)], [sa, NO_INDEX])
    assert tables.policies[first[0]]["sa"] == sa
    assert tables.policies[first[0]]["selector"]["source_first_low"] == 0x0A010000
    assert tables.policies[first[1]]["action"] == Action.DISCARD
    active = int(tables.header[0]["spd"]["active"])
    second = tables.set_policies([make_policy("c")], [NO_INDEX])
    assert int(tables.header[0]["spd"]["active"]) == 1 - active
    assert not set(first) & set(second)
    assert tables.policies[first[0]]["sa"] == sa  # workers in mid-batch still read it
    tables.set_policies([], [])


def test_too_many_policies_leave_the_old_ones(tables: Tables) -> None:
    kept = tables.set_policies([make_policy("kept")], [NO_INDEX])
    active = int(tables.header[0]["spd"]["active"])
    with pytest.raises(OverflowError, match="33 policies; the table holds 32"):
        tables.set_policies([make_policy(f"p{i}") for i in range(33)], [NO_INDEX] * 33)
    with pytest.raises(ValueError, match="upside down"):
        upside = replace(SELECTOR, remote_ports=(2, 1))
        tables.set_policies([PolicySpec(name="x", action=Action.DISCARD, selector=upside)], [NO_INDEX])
    assert int(tables.header[0]["spd"]["active"]) == active
    assert tables.policies[kept[0]]["action"] == Action.PROTECT


def test_routes_hold_their_adjacencies(tables: Tables) -> None:
    ports = {"wan": (1, MAC)}
    routes = [
        RouteSpec(prefix=IPv4Network("10.0.0.0/8"), adjacency=NEXT_HOP),
        RouteSpec(prefix=IPv6Network("2001:db8::/32"), adjacency=NEXT_HOP),
        RouteSpec(prefix=IPv4Network("0.0.0.0/0"), adjacency=None),
    ]
    tables.set_routes(routes, ports)
    assert int(tables.adjacencies["valid"].sum()) == 2
    with pytest.raises(ValueError, match="given twice"):
        tables.set_routes([routes[0], routes[0]], ports)
    assert int(tables.adjacencies["valid"].sum()) == 2
    tables.set_routes([routes[2]], ports)
    tables.later.run()
    assert int(tables.adjacencies["valid"].sum()) == 0


def test_full_tables_say_so(tables: Tables) -> None:
    for index in range(64):
        tables.add_sa(make_inbound(f"sa{index}"), start=1, limit=0)
    with pytest.raises(TableFullError, match="table of SAs is full: all 64 are in use"):
        tables.add_sa(make_sa("more"), start=1, limit=2)
    tables.drop_sa(3)
    tables.later.run()
    with pytest.raises(TableFullError, match="selectors has no 2 free neighbours"):
        tables.add_sa(make_inbound(selectors=(SELECTOR, SELECTOR6)), start=1, limit=0)
    assert tables.add_sa(make_inbound(), start=1, limit=0) == 3


def test_slots_and_runs() -> None:
    slots = Slots("things", 3)
    assert [slots.take() for _ in range(3)] == [0, 1, 2]
    slots.give(1)
    assert (slots.take(), slots.taken) == (1, 3)
    runs = Runs("things", 10)
    a, b, c = runs.take(3), runs.take(3), runs.take(4)
    runs.give(a, 3)
    runs.give(b, 3)
    assert runs.take(6) == 0  # neighbours grew together
    runs.give(c, 4)
    runs.give(0, 6)
    assert runs.take(10) == 0


def test_unused_room_costs_no_memory(engine: EngineHandle) -> None:
    def shared_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssShmem:")[1].split()[0])

    before = shared_kb()
    tables = Tables(engine=engine, workers=2, limits=Limits())
    assert tables.view.size > 400 << 20
    assert shared_kb() - before < 256
    for index in range(2000):
        spec = make_inbound(f"sa{index}", spi=0x1000 + index * 7919)
        tables.publish_inbound(spec.spi, tables.add_sa(spec, start=1, limit=0))
        for worker in range(2):
            tables.sa_counters[worker, index]["packets"] = 1
    half = shared_kb()
    for index in range(2000, 4000):
        spec = make_inbound(f"sa{index}", spi=0x1000 + index * 7919)
        tables.publish_inbound(spec.spi, tables.add_sa(spec, start=1, limit=0))
        for worker in range(2):
            tables.sa_counters[worker, index]["packets"] = 1
    assert (shared_kb() - half) / 2000 <= 4.0
    tables.close()


def test_directions_of_address_space() -> None:
    """A selector of single hosts covers exactly those."""
    host = IPv4Address("10.9.8.7")
    selector = SelectorSpec(local_first=host, local_last=host, remote_first=host, remote_last=host)
    check_sa(make_inbound(selectors=(selector,)))
    assert make_inbound().direction is Direction.IN
