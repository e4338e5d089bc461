"""Certificates that `esplanade pki` makes, against strongSwan: accepted, or what is wrong is said on both sides."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from control.lab.space import wait_until
from control.pki.crl import CrlStore
from control.pki.make import Issued, issue, make_authority, make_crl
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.peers import wires
from tests.peers.credentials import Card
from tests.peers.peer import PeerRefused
from tests.peers.site import Site, pair
from tests.peers.strongswan import Charon
from tests.peers.traffic import assert_connected
from tests.peers.wires import Wire

pytestmark = pytest.mark.root


@cache
def root() -> Issued:
    return make_authority("C=DE, O=Example, CN=Root")


@cache
def middle() -> Issued:
    return make_authority("C=DE, O=Example, CN=Middle", parent=root(), path_length=0)


def card(issued: Issued, side: str) -> Card:
    above = tuple(each for each in issued.chain if each.subject != each.issuer)
    return Card(identity=f"{side}.example", certificate=issued.certificate, key=issued.key, chain=above)


@dataclass(frozen=True, kw_only=True)
class PkiSite(Site):
    """A site whose two ends trust `root`, and know these revocation lists."""

    auth: str = "ecdsa256"
    revocation: str = "relaxed"
    crls: list[bytes] = field(default_factory=list)

    def credentials(self, side: str) -> Credentials:
        """Our certificate and CA."""
        mine, lists = self.card(side), CrlStore()
        for number, crl in enumerate(self.crls):
            lists.add(crl, f"list {number}")
        return Credentials(
            certificates=[
                LoadedCertificate(name=side, certificate=mine.certificate, key=mine.key, chain=mine.chain)
            ],
            authorities=[Authority(name="root", certificates=(root().certificate,))],
            crls=lists,
        )

    def load_charon(self, charon: Charon, wire: Wire, side: str) -> None:
        """The same for strongSwan."""
        super().load_charon(charon, wire, side)
        charon.load({}, authorities=[root().certificate.public_bytes(Encoding.DER)], crls=self.crls)


def site(
    left: Issued, right: Issued, *, revocation: str = "relaxed", crls: list[bytes] | None = None
) -> PkiSite:
    demands = AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("right.example"), revocation=revocation)
    return PkiSite(
        cards={"left": card(left, "left"), "right": card(right, "right")},
        ours={"remote": demands},
        remote_more={"revocation": revocation},
        crls=crls or [],
    )


def end(side: str, authority: Callable[[], Issued] = middle, **more: object) -> Issued:
    return issue(authority(), side, [Identity.parse(f"{side}.example")], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_chain_and_revocation_lists_of_pki(initiator: str) -> None:
    """An intermediate CA, and both ends insist on revocation lists."""
    crls = [make_crl(each).public_bytes(Encoding.DER) for each in (root(), middle())]
    built = site(end("left"), end("right"), revocation="strict", crls=crls)
    with wires.direct() as wire, pair(built, wire) as (ours, theirs):
        (ours if initiator == "ours" else theirs).initiate(child="net")
        assert_connected(wire)


def stranger() -> Issued:
    return make_authority("Stranger")


def past() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)


MISTAKES: dict[str, tuple[Callable[[str], Issued], str, str]] = {
    "missing CA": (
        lambda side: end(side, stranger),
        "has issuer CN=Stranger, which is neither a CA we trust nor sent by the peer; "
        "we trust root (C=DE, O=Example, CN=Root)",
        "no issuer certificate found for",
    ),
    "expired": (
        lambda side: end(side, now=past(), days=10),
        "has expired: notAfter is ",
        "subject certificate invalid",
    ),
    "revoked": (end, "is revoked on ", "certificate was revoked on"),
}


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize("wrong", ["left", "right"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_both_sides_say_what_is_wrong(mistake: str, wrong: str, initiator: str) -> None:
    """`wrong` is whose certificate it is: ours (left) or strongSwan's (right)."""
    make, our_words, their_words = MISTAKES[mistake]
    ends = {side: make(side) if side == wrong else end(side) for side in ("left", "right")}
    now = datetime.datetime.now(datetime.UTC)
    revoked = [(ends[wrong].certificate.serial_number, now)] if mistake == "revoked" else []
    crls = [make_crl(middle(), revoked).public_bytes(Encoding.DER)]
    with wires.direct() as wire, pair(site(ends["left"], ends["right"], crls=crls), wire) as (ours, theirs):
        first = ours if initiator == "ours" else theirs
        if wrong == "left" or initiator == "ours":
            with pytest.raises(PeerRefused):
                first.initiate(child="net")
        else:
            with pytest.raises(PeerRefused, match="AUTHENTICATION_FAILED"):
                first.initiate(child="net")
        wait_until(lambda: not ours.sas() and not theirs.sas(), timeout=10, what="nothing is left")
        if wrong == "right":
            assert f"certificate CN=right of peer right.example {our_words}" in ours.log()
            assert "AUTH_FAILED" in theirs.log()
        else:
            assert their_words in theirs.log()
            refused = "the peer refuses our authentication: we are 'left.example' by pubkey"
            closed = "the peer closed the IKE SA with AUTHENTICATION_FAILED"
            assert (refused if initiator == "ours" else closed) in ours.log()
