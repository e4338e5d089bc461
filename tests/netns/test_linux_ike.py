"""Our gateway and strongSwan over the Linux kernel's own IPsec, by IKEv2: what kernel-libipsec does not have.

ESP as such and in UDP, AH, extended sequence numbers, rekeying when the kernel says that an SA has carried enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from control.lab.space import wait_until
from tests.netns.test_strongswan_matrix import rekey_child, rekey_ike
from tests.peers.daemon import Daemon
from tests.peers.linux.charon import GuestCharon
from tests.peers.linux.guest import Guest
from tests.peers.linux.wire import to_guest
from tests.peers.site import Site, pair
from tests.peers.traffic import lost, ping_from, start_echo
from tests.peers.wires import INSIDE, Wire

pytestmark = [pytest.mark.root, pytest.mark.full]

LATER = 60.0  # a bound for what takes the guest's charon a second or two


@contextmanager
def up(guest: Guest, site: Site) -> Iterator[tuple[Wire, Daemon, GuestCharon]]:
    """Both running and configured; what the kernel counted as errors meanwhile must be nothing."""
    with to_guest(guest) as wire:
        before = guest.xfrm_errors()
        charon = GuestCharon(guest, options=site.options)
        with pair(site, wire, whole=True, charon=charon) as (ours, theirs):
            yield wire, ours, theirs
            # Packets of the peer's new SA may be on their way before the kernel has been told of it, and trigger none.
            assert guest.xfrm_errors() == before


def ping_both_ways(wire: Wire, guest: Guest, *, count: int = 5, version: int = 4) -> None:
    """Nothing lost, whoever begins."""
    there = start_echo(wire, "left", count=count, interval=0.1, version=version)
    argv = ["ping", "-n", "-I", INSIDE["right"][version][0], "-i", "0.1", "-c", str(count), "-w", "30"]
    back = guest.run([*argv, INSIDE["left"][version][0]], check=False)
    assert lost(there, count) == 0
    assert {int(number) for number in re.findall(r"icmp_seq=(\d+) .*time=", back)} >= set(range(1, count + 1))


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("protocol", "proposal", "driver", "version", "inside"),
    [
        ("esp", "aes128gcm16-x25519-esn", "raw", 4, 4),
        ("esp", "aes256-sha256-x25519-esn", "udp", 6, 4),
        ("esp", "chacha20poly1305-x25519", "raw", 6, 6),
        ("ah", "sha256-x25519-esn", "raw", 4, 4),
        ("ah", "sha512-x25519", "raw", 4, 6),
        ("ah", "aesxcbc-x25519", "raw", 6, 4),
        ("ah", "sha384-x25519-esn", "raw", 6, 6),
    ],
)
def test_life(
    linux: Guest, protocol: str, proposal: str, driver: str, version: int, inside: int, initiator: str
) -> None:
    """Up, rekeyed by both, child and IKE SA, and down: the kernel has what was asked for, and pings go both ways."""
    algorithms: dict[str, Any] = {protocol: proposal}
    site = Site(**algorithms, version=version, inside=inside, unprotected=driver)
    with up(linux, site) as (wire, ours, theirs):
        first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
        first.initiate(child="net", timeout=LATER)
        ping_both_ways(wire, linux, version=inside)
        states = linux.run(["ip", "xfrm", "state"])
        assert re.findall(r"proto (\w+) ", states) == [protocol] * 2, states
        assert len(re.findall("flag.* esn", states)) == (2 if "esn" in proposal else 0), states
        assert ("espinudp" in states) == (driver == "udp"), states
        for who in (first, second):
            rekey_child(who, ours, theirs, timeout=LATER)
            ping_both_ways(wire, linux, version=inside)
        rekey_ike(second, ours, theirs, timeout=LATER)
        second.terminate(child="net", timeout=LATER)
        wait_until(lambda: not first.sa(LATER).installed, timeout=LATER, what="the child is gone")
        first.initiate(child="net", timeout=LATER)
        ping_both_ways(wire, linux, version=inside)
        second.terminate(ike="site", timeout=LATER)
        for who in (first, second):
            wait_until(lambda who=who: not who.sas(), timeout=LATER, what="the IKE SA is gone")
        # charon keeps a replaced SA a little longer for what is on its way.
        wait_until(
            lambda: not linux.run(["ip", "xfrm", "state"]).strip(), timeout=LATER, what="no SA in the kernel"
        )


HOSTS: dict[str, Any] = {"mode": "transport", "local_ts": ["dynamic"], "remote_ts": ["dynamic"]}


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("protocol", "proposal", "driver", "version"),
    [
        ("esp", "aes128gcm16-x25519-esn", "raw", 4),
        ("esp", "aes256-sha256-x25519", "raw", 6),
        ("esp", "aes256gcm16-esn", "udp", 4),
        ("ah", "sha256-x25519-esn", "raw", 4),
        ("ah", "sha512-x25519", "raw", 6),
    ],
)
def test_hosts(linux: Guest, protocol: str, proposal: str, driver: str, version: int, initiator: str) -> None:
    """Transport mode between the two themselves, rekeyed by both: pings both ways, and no packet in clear."""
    algorithms: dict[str, Any] = {protocol: proposal}
    site = Site(
        **algorithms,
        version=version,
        unprotected=driver,
        tables={"mobike": False},
        child_tables=HOSTS,
        more={"mobike": "no"},
        child_more=HOSTS,
    )
    with up(linux, site) as (wire, ours, theirs):
        first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
        first.initiate(child="net", timeout=LATER)
        states = linux.run(["ip", "xfrm", "state"])
        assert re.findall(r"proto (\w+) .*mode transport", states) == [protocol] * 2, states
        assert len(re.findall("flag.* esn", states)) == (2 if "esn" in proposal else 0), states
        assert ("espinudp" in states) == (driver == "udp"), states
        for who in (None, first, second):
            if who is not None:
                rekey_child(who, ours, theirs, timeout=LATER)
            before = ours.child(LATER)
            near, far = (wire.outside[side][version] for side in ("left", "right"))
            assert ping_from(wire.left, near, far) == 0
            back = linux.run(["ping", "-n", "-i", "0.1", "-c", "5", "-w", "30", near], check=False)
            assert len(set(re.findall(r"icmp_seq=([1-5]) .*time=", back))) == 5, back
            after = ours.child(LATER)
            assert min(after.packets_in - before.packets_in, after.packets_out - before.packets_out) >= 8


def test_kernel_asks_for_new_keys(linux: Guest) -> None:
    """The kernel's packet limit is reached again and again while pings go through: new SAs, and no ping lost."""
    site = Site(
        esp="aes256gcm16-esn",
        unprotected="raw",
        child_more={"rekey_packets": 60, "life_packets": 5000, "rand_packets": 0},
    )
    with up(linux, site) as (wire, ours, theirs):
        ours.initiate(child="net", timeout=LATER)
        first = ours.child(LATER).spi_in
        pings = start_echo(wire, "left", count=150, interval=0.1)
        assert lost(pings, 150, 120) == 0
        wait_until(
            lambda: ours.child(LATER).spi_in == theirs.child(LATER).spi_out,
            timeout=LATER,
            what="one child on both sides",
        )
        assert ours.child().spi_in != first
        assert "creating rekey job for CHILD_SA" in theirs.log()


def test_compression_is_refused(linux: Guest) -> None:
    """strongSwan asks for IPComp (RFC 7296 section 2.22); we leave it out, and the SA comes up without."""
    site = Site(esp="aes128gcm16-esn", unprotected="raw", child_more={"ipcomp": "yes"})
    with up(linux, site) as (wire, ours, theirs):
        theirs.initiate(child="net", timeout=LATER)
        assert ours.child(LATER).state == "INSTALLED"
        ping_both_ways(wire, linux)
        assert "proto comp" not in linux.run(["ip", "xfrm", "policy"])
        assert "IPCOMP_SUP" in theirs.log()
