"""The whole gateway and strongSwan: every pair of algorithms through the real dataplane, configured by reloads.

One gateway and one charon stay up while connection after connection is configured, initiated by either, pinged through
both ways, rekeyed by either and deleted by either. By default a combination per value of each axis, all with --full.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading

import pytest

from control.lab.space import wait_until
from control.lab.traffic import iperf3
from tests.conformance import LIBIPSEC
from tests.conftest import Agreement
from tests.netns.test_strongswan_matrix import AUTHS, CIPHERS, GROUPS, SHORT, rekey_child, rekey_ike
from tests.peers import wires
from tests.peers.daemon import Daemon
from tests.peers.site import Site, pair
from tests.peers.strongswan import Charon
from tests.peers.traffic import assert_connected, echo, lost, start_echo
from tests.peers.wires import INSIDE, Wire

pytestmark = pytest.mark.root


def site_of(auth: str, cipher: str, group: str) -> Site:
    """One combination: the group for both kinds of SA."""
    return Site(auth=auth, ike=f"{CIPHERS[cipher]}-{group}", esp=f"{cipher}-{group}")


def reload(ours: Daemon, theirs: Charon, wire: Wire, site: Site) -> None:
    """Both have another connection of the same name."""
    site.daemon(wire, "left")
    done = ours.log().count("reloaded")
    assert ours.program is not None
    os.kill(ours.program.pid, signal.SIGHUP)
    theirs.unload("site")
    site.load_charon(theirs, wire, "right")
    wait_until(lambda: ours.log().count("reloaded") > done, timeout=10, what=f"a reload; {ours.log(10)}")


def live(ours: Daemon, theirs: Charon, wire: Wire, initiator: str) -> None:
    """One life of the connection."""
    first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
    first.initiate(child="net")
    assert_connected(wire)
    rekey_child(first, ours, theirs)
    rekey_child(second, ours, theirs)
    rekey_ike(first, ours, theirs)
    rekey_ike(second, ours, theirs)
    assert_connected(wire)
    second.terminate(child="net")
    wait_until(lambda: not first.sa().installed, timeout=10, what="the child is gone")
    first.initiate(child="net")
    assert_connected(wire)
    second.terminate(ike="site")
    for who in (first, second):
        wait_until(lambda who=who: not who.sas(), timeout=10, what="the IKE SA is gone")


@pytest.mark.parametrize(
    "combinations",
    [
        pytest.param(SHORT, id="short"),
        *(
            pytest.param(list(itertools.product([auth], CIPHERS, GROUPS)), id=auth, marks=pytest.mark.full)
            for auth in AUTHS
        ),
    ],
)
def test_matrix(combinations: list[tuple[str, str, str]], agreement: Agreement) -> None:
    """Each combination has one life begun by us and one begun by strongSwan."""
    for suite in dict.fromkeys(cipher for _, cipher, _ in combinations):
        agreement(peer=LIBIPSEC, suite=suite, encap=True)
    with wires.direct() as wire, pair(site_of(*combinations[0]), wire, whole=True) as (ours, theirs):
        for number, combination in enumerate(combinations):
            if number:
                reload(ours, theirs, wire, site_of(*combination))
            for initiator in ("ours", "theirs"):
                try:
                    live(ours, theirs, wire, initiator)
                except BaseException as error:
                    error.add_note(f"with {'-'.join(combination)}, initiated by {initiator}")
                    raise


def test_sha1(agreement: Agreement) -> None:
    """ESP with HMAC-SHA1-96, as clients that are built into Windows have it: one life begun by either."""
    agreement(peer=LIBIPSEC, suite="aes256-sha1", encap=True)
    site = Site(ike="aes256-sha1-modp2048", esp="aes256-sha1")
    with wires.direct() as wire, pair(site, wire, whole=True) as (ours, theirs):
        for initiator in ("ours", "theirs"):
            live(ours, theirs, wire, initiator)


@pytest.mark.parametrize("version", [4, 6])
def test_traffic(version: int) -> None:
    """iperf3 through both, TCP and UDP, outer and inner headers of one family."""
    site = Site(version=version, inside=version, esp="aes256gcm16")
    with wires.direct() as wire, pair(site, wire, whole=True) as (ours, theirs):
        ours.initiate(child="net")
        assert_connected(wire, version=version)
        target = INSIDE["right"][version][0]
        assert iperf3(wire.left, wire.right, target, proto="tcp", seconds=1).gbps > 0.01
        assert iperf3(wire.left, wire.right, target, proto="udp", seconds=1, rate="20M").gbps > 0.01
        assert theirs.child().packets_in > 100


def test_rekeys_lose_nothing() -> None:
    """A ping every 2 ms while either gives child and IKE SA new keys, and both at once."""
    count = 2000
    with wires.direct() as wire, pair(Site(esp="aes128gcm16-x25519"), wire, whole=True) as (ours, theirs):
        ours.initiate(child="net")
        assert_connected(wire)
        pings = start_echo(wire, "left", count=count, interval=0.002)
        for who in (ours, theirs):
            rekey_child(who, ours, theirs)
            rekey_ike(who, ours, theirs)
            rekey_child(who, ours, theirs)
        threads = [threading.Thread(target=who.rekey, kwargs={"child": "net"}) for who in (ours, theirs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lost(pings, count) == 0
        assert echo(wire) == 0


def test_traffic_starts_a_tunnel() -> None:
    """start_action = "trap": the first packet to the far network brings it up."""
    site = Site(child_tables={"start_action": "trap"})
    with wires.direct() as wire, pair(site, wire, whole=True) as (_, theirs):
        wait_until(lambda: echo(wire, count=1) == 0, timeout=15, what="a ping that starts the tunnel")
        assert len(theirs.sas()) == 1


def test_stop_says_goodbye() -> None:
    """A gateway that is stopped deletes its IKE SAs at the peer."""
    with wires.direct() as wire, pair(Site(), wire, whole=True) as (ours, theirs):
        ours.initiate(child="net")
        assert theirs.sa().installed
        ours.stop()
        wait_until(lambda: not theirs.sas(), timeout=5, what="the peer has forgotten us")
