"""Our endpoint and strongSwan, every pair of algorithms: up, ping both ways, rekeyed and deleted by either side.

By default three combinations, each as initiator and as responder; all of them with --full. The whole gateway has its
own matrix (test_strongswan_gateway.py).
"""

from __future__ import annotations

import itertools

import pytest

from control.lab.space import wait_until
from tests.peers import wires
from tests.peers.peer import Peer
from tests.peers.site import Site, pair
from tests.peers.traffic import assert_connected

pytestmark = pytest.mark.root

AUTHS = ("psk", "rsa2048", "ecdsa256", "ecdsa384", "ed25519")
CIPHERS = {  # ESP -> IKE in front of the group
    "aes128gcm16": "aes128gcm16-prfsha256",
    "aes256gcm16": "aes256gcm16-prfsha384",
    "chacha20poly1305": "chacha20poly1305-prfsha512",
    "aes256-sha256": "aes256-sha256",
}
GROUPS = ("x25519", "ecp256", "ecp384", "modp2048", "modp3072")
SHORT = list(zip(AUTHS, itertools.cycle(CIPHERS), GROUPS, strict=False))
ALL = [
    pytest.param(*each, id="-".join(each), marks=() if each in SHORT[:3] else pytest.mark.full)
    for each in itertools.product(AUTHS, CIPHERS, GROUPS)
]


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize(("auth", "cipher", "group"), ALL)
def test_matrix(auth: str, cipher: str, group: str, initiator: str) -> None:
    """One combination, one life."""
    site = Site(auth=auth, ike=f"{CIPHERS[cipher]}-{group}", esp=f"{cipher}-{group}")
    with wires.direct() as wire, pair(site, wire) as (ours, theirs):
        first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
        first.initiate(child="net")
        assert_connected(wire)
        for who in (first, second):
            rekey_child(who, ours, theirs)
            assert_connected(wire)
            rekey_ike(who, ours, theirs)
            assert_connected(wire)
        second.terminate(child="net")
        wait_until(lambda: not first.sa().installed, timeout=5, what="the child is gone")
        first.initiate(child="net")
        assert_connected(wire)
        second.terminate(ike="site")
        for who in (first, second):
            wait_until(lambda who=who: not who.sas(), timeout=5, what="the IKE SA is gone")


def rekey_child(who: Peer, ours: Peer, theirs: Peer, timeout: float = 10) -> None:
    """`who` rekeys the only child; both have another one then, and the same."""
    before = ours.child(timeout).spi_in
    who.rekey(child="net")
    wait_until(
        lambda: ours.child(timeout).spi_in != before, timeout=timeout, what="our new child", interval=0.05
    )
    child = ours.child()
    wait_until(
        lambda: theirs.child(timeout).spi_in == child.spi_out,
        timeout=timeout,
        what="their new child",
        interval=0.05,
    )
    assert theirs.child(timeout).spi_out == child.spi_in


def rekey_ike(who: Peer, ours: Peer, theirs: Peer, timeout: float = 10) -> None:
    """`who` rekeys the only IKE SA; both have another one then, the same, with the child."""
    before = ours.sa(timeout).spi_initiator
    who.rekey(ike="site")
    wait_until(
        lambda: ours.sa(timeout).spi_initiator != before,
        timeout=timeout,
        what="our new IKE SA",
        interval=0.05,
    )
    new = ours.sa()
    wait_until(
        lambda: theirs.sa(timeout).spi_initiator == new.spi_initiator,
        timeout=10,
        what="their new IKE SA",
        interval=0.05,
    )
    assert theirs.sa(timeout).spi_responder == new.spi_responder
    assert len(theirs.sa().installed) == len(ours.sa().installed) == 1
