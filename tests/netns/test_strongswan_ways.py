"""Our endpoint and strongSwan over ways that are not a plain cable: NAT, narrow links, bad wires, moving addresses."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from control.ike.settings import Retransmission
from control.lab.space import wait_until
from tests.netns.test_strongswan_matrix import rekey_child, rekey_ike
from tests.peers import wires
from tests.peers.credentials import lab_authority
from tests.peers.relay import Relay
from tests.peers.site import Site, pair
from tests.peers.strongswan import said
from tests.peers.traffic import assert_connected, echo

pytestmark = pytest.mark.root

SIDES = ("left", "right")
RARER = (("left", False), ("right", True))  # which side is behind the NAT, and MOBIKE
PATIENT = Retransmission(timeout=0.5, base=1.4, tries=12)
PATIENT_CHARON = {"retransmit_timeout": 0.5, "retransmit_base": 1.4, "retransmit_tries": 12}


@pytest.mark.parametrize(("outside", "inside"), [(4, 6), (6, 4), pytest.param(6, 6, marks=pytest.mark.full)])
def test_families(outside: int, inside: int) -> None:
    """Each family in each."""
    site = Site(version=outside, inside=inside)
    with wires.direct() as wire, pair(site, wire) as (ours, theirs):
        ours.initiate(child="net")
        assert_connected(wire, version=inside)
        rekey_child(theirs, ours, theirs)
        assert_connected(wire, version=inside)


@pytest.mark.parametrize(
    ("side", "mobike"),
    [("left", True), ("right", False), *(pytest.param(*each, marks=pytest.mark.full) for each in RARER)],
)
def test_nat(side: str, mobike: bool) -> None:
    """The left one, ours or theirs, is behind a masquerading router that forgets its mappings half-way."""
    # charon follows a new mapping on IKE messages only: whoever is behind the NAT must say something.
    site = Site(
        more={
            "dpd_delay": "1s",
            "mobike": mobike,
            "remote_addrs": ["%any"] if side == "left" else ["203.0.113.2"],
        },
        ours={"dpd_delay": 1.0, "mobike": mobike, **({"remote_addresses": ()} if side == "right" else {})},
    )
    with wires.routed(nat=True) as wire, pair(site, wire, ours=side) as (ours, theirs):
        inner, outer = (ours, theirs) if side == "left" else (theirs, ours)
        inner.initiate(child="net")
        assert_connected(wire)
        before = outer.sa().remote
        assert before.startswith("203.0.113.1:2")
        assert inner.sa().remote == "203.0.113.2:4500"
        # With MOBIKE the first answer to DPD tells charon its mapping, and a later one that it has changed.
        wait_until(
            lambda: not mobike or side == "left" or said(theirs.log(), "parsed INFORMATIONAL response"),
            timeout=10, what="charon has learned its mapping",
        )  # fmt: skip
        wires.forget_mappings(wire.middle)
        wait_until(
            lambda: echo(wire, count=2) == 0, timeout=15, what="pings pass by the new mapping", interval=0.2
        )
        assert outer.sa().remote != before
        assert_connected(wire)
        rekey_ike(outer, ours, theirs)
        rekey_child(inner, ours, theirs)
        assert_connected(wire)


@pytest.mark.parametrize("mobike", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_mapping_that_changes_while_only_esp_flows(mobike: bool) -> None:
    """charon, behind the NAT, has nothing to say by IKE, and does not know: our dataplane sees where ESP comes from.

    With MOBIKE we ask there first (COOKIE2), and it answers.
    """
    quiet = {"dpd_delay": "0s", "mobike": mobike, "local_addrs": ["10.0.0.2"]}
    site = Site(more=quiet, options={"keep_alive": 0}, tables={"dpd_delay": "0s", "mobike": mobike})
    site = replace(site, tables=site.tables | {"remote_addrs": "%any"})
    with wires.routed(nat=True) as wire, pair(site, wire, ours="right", whole=True) as (ours, theirs):
        theirs.initiate(child="net")
        assert_connected(wire)
        before, child = ours.sa().remote, ours.child()
        said_before = len(re.findall("generating", theirs.log()))
        wires.forget_mappings(wire.middle)
        wait_until(
            lambda: echo(wire, count=2) == 0, timeout=15, what="pings pass by the new mapping", interval=0.1
        )
        after = ours.sa().remote
        assert after != before and after.startswith("203.0.113.1:2")
        generated = re.findall("generating ([A-Z_]+) (request|response)", theirs.log())[said_before:]
        assert generated == ([("INFORMATIONAL", "response")] if mobike else []), "what charon had to say"
        assert "packets come from 203.0.113.1:" in ours.log()
        assert_connected(wire)
        assert (ours.child().spi_in, ours.child().spi_out) == (child.spi_in, child.spi_out)
        rekey_child(ours, ours, theirs)
        rekey_ike(ours, ours, theirs)
        assert_connected(wire)


@pytest.mark.parametrize("initiator", SIDES)
def test_long_chains_over_a_narrow_link(initiator: str) -> None:
    """Chains of 4 KB, cut into fragments by both (RFC 7383), over an MTU of 1280."""
    issuer = lab_authority().intermediate("Esplanade Lab Intermediate", key="rsa2048")
    cards = {side: issuer.issue(f"{side}.example", key="rsa2048", filler=2600) for side in SIDES}
    assert all(len(card.der) + sum(map(len, card.chain_der)) > 4000 for card in cards.values())
    site = Site(auth="rsa2048", cards=cards)
    with wires.routed(mtu=1280) as wire, pair(site, wire) as (ours, theirs):
        (ours if initiator == "left" else theirs).initiate(child="net")
        assert "EF(4/" in theirs.log() or "EF(3/" in theirs.log()
        assert_connected(wire)


@pytest.mark.parametrize("mover", ["ours", "theirs"])
def test_mobike(mover: str) -> None:
    """The address of the left one, who initiated, changes (RFC 4555): the other follows, and so do both children."""
    site = Site(
        more={"local_addrs": ["%any"], "remote_addrs": ["192.0.2.1" if mover == "ours" else "192.0.2.2"]},
        ours={"local_addresses": ()},
    )
    with (
        wires.direct() as wire,
        pair(site, wire, ours="left" if mover == "ours" else "right") as (ours, theirs),
    ):
        moves, stays = (ours, theirs) if mover == "ours" else (theirs, ours)
        moves.initiate(child="net")
        assert_connected(wire)
        wire.left.ip("address add 192.0.2.77/24 dev eth0", "address del 192.0.2.1/24 dev eth0")
        wire.left.ip("address replace 192.0.2.77/24 dev eth0")
        if mover == "ours":
            ours.address_changed("192.0.2.1", "192.0.2.77")
        wait_until(
            lambda: stays.sa().remote == "192.0.2.77:4500",
            timeout=20, what="the other knows the new address", interval=0.2,
        )  # fmt: skip
        wait_until(lambda: echo(wire, count=1) == 0, timeout=10, what="pings pass again", interval=0.2)
        assert_connected(wire)
        rekey_child(stays, ours, theirs)
        rekey_ike(moves, ours, theirs)
        assert_connected(wire)


@pytest.mark.parametrize("initiator", ["ours", pytest.param("theirs", marks=pytest.mark.full)])
def test_a_bad_wire(initiator: str) -> None:
    """30 % lost, a tenth doubled, all reordered: it comes up, both SAs are rekeyed by either, it is deleted."""
    site = Site(
        options=PATIENT_CHARON,
        ours={"retransmission": PATIENT},
        ike="aes256-sha256-modp2048",
        esp="aes256-sha256",
    )
    with wires.relayed() as wire:
        with (
            Relay(wire.middle, loss=0.3, double=0.1, jitter=0.02) as relay,
            pair(site, wire) as (ours, theirs),
        ):
            first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
            first.initiate(child="net", timeout=60)
            assert echo(wire, count=60) < 60
            begun = time.monotonic()
            for who in (first, second):
                rekey_child(who, ours, theirs, timeout=60)
                rekey_ike(who, ours, theirs, timeout=60)
            assert relay.counts["lost"] > 10
            assert time.monotonic() - begun < 120
            relay.loss = relay.double = relay.jitter = 0.0
            assert_connected(wire)
            second.terminate(ike="site")
            wait_until(
                lambda: all(sa.state != "ESTABLISHED" for sa in first.sas()),
                timeout=40,
                what="the IKE SA is gone",
            )
