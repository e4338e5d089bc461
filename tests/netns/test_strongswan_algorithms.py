"""Every algorithm in an IKE SA or in ESP with strongSwan, made by either side.

What the matrix does not have: truncated ICVs, CCM, XCBC and CMAC, SHA-1, X448, the Brainpool curves, large and old MODP
groups. Of IKE SAs without a child IKE_AUTH and a delete prove both directions of the keys. (It has no ML-KEM before
6.0.) ESP with what the matrix does not have of it, against libipsec, which has no GMAC and no implicit IVs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from control.ike.numbers import Protocol
from control.ike.proposal import parse_proposal
from control.ike.settings import Unique
from control.lab.space import wait_until
from tests.conformance import LIBIPSEC
from tests.conftest import Agreement
from tests.netns.test_strongswan_gateway import reload
from tests.netns.test_strongswan_matrix import rekey_child
from tests.peers import wires
from tests.peers.daemon import Daemon
from tests.peers.node import Node
from tests.peers.site import SECRET, Site, pair
from tests.peers.strongswan import Charon
from tests.peers.traffic import assert_connected
from tests.peers.wires import Wire

pytestmark = pytest.mark.root

SUITES = (
    "aes128-sha1-prfsha1-modp1024",
    "aes192-sha1-prfsha256-modp1536",
    "aes256-aesxcbc-prfaesxcbc-x448",
    "aes128-aescmac-prfaescmac-ecp521",
    "aes256-sha384-prfsha384-ecp256bp",
    "aes256-sha512-prfsha512-ecp384bp",
    "aes192gcm16-prfsha512-ecp512bp",
    "aes128gcm8-prfsha256-modp4096",
    "aes256gcm12-prfsha1-modp2048",
    "aes128ccm8-prfsha256-ecp256",
    "aes192ccm12-prfsha384-ecp384",
    "aes256ccm16-prfaesxcbc-x25519",
    "chacha20poly1305-prfaescmac-modp3072",
    pytest.param("aes256gcm16-prfsha384-modp6144", marks=pytest.mark.full),
    pytest.param("aes256gcm16-prfsha384-modp8192", marks=pytest.mark.full),
)


def texts() -> list[str]:
    """The suites' keywords."""
    return [each if isinstance(each, str) else str(each.values[0]) for each in SUITES]


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Node, Charon]]:
    """Ours left and charon right, with a connection per suite; charon takes any of them."""
    site = Site()
    with wires.direct() as wire:
        ours, theirs = _ours(site, wire), site.charon(wire, "right")
        theirs.start()
        try:
            ours.start()
            for text in texts():
                _load(theirs, wire, text)
            yield ours, theirs
        finally:
            ours.kill()
            theirs.kill()


def _ours(site: Site, wire: Wire) -> Node:
    base = replace(site.connection(wire, "left"), children=(), unique=Unique.NEVER)
    connections = [
        replace(base, name=text, proposals=(parse_proposal(Protocol.IKE, text),)) for text in texts()
    ]
    return Node(wire.left, connections=connections, credentials=site.credentials("left"))


def _load(theirs: Charon, wire: Wire, text: str) -> None:
    connection = {
        "local_addrs": [wire.outside["right"][4]],
        "remote_addrs": [wire.outside["left"][4]],
        "proposals": [text],
        "unique": "never",
        "childless": "allow",
        "local": {"auth": "psk", "id": "right.example"},
        "remote": {"auth": "psk", "id": "left.example"},
    }
    theirs.load({text: connection}, secrets=[{"type": "IKE", "data": SECRET}])


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize("suite", SUITES)
def test_suite(peers: tuple[Node, Charon], suite: str, initiator: str) -> None:
    """Up, with this suite and no other, and deleted."""
    ours, theirs = peers
    first, second = (ours, theirs) if initiator == "ours" else (theirs, ours)
    first.initiate(ike=suite)
    [sa] = ours.endpoint.snapshot()
    assert parse_proposal(Protocol.IKE, sa.suite_name) == parse_proposal(Protocol.IKE, suite)
    assert len(theirs.sas()) == 1
    first.terminate(ike=suite)
    for who in (first, second):
        wait_until(lambda who=who: not who.sas(), timeout=5, what="the IKE SA is gone")


SIGNATURES = (
    ("rsa2048", {"signature_authentication": "no"}, "RSA with SHA1"),  # RFC 7296 section 3.8, method 1
    ("ecdsa256", {"signature_authentication": "no"}, "ECDSA with SHA2-256"),  # RFC 4754, methods 9 to 11
    pytest.param(
        "ecdsa384", {"signature_authentication": "no"}, "ECDSA with SHA2-384", marks=pytest.mark.full
    ),
    pytest.param(
        "ecdsa521", {"signature_authentication": "no"}, "ECDSA with SHA2-512", marks=pytest.mark.full
    ),
    ("rsa3072", {}, "RSA with SHA2-256"),  # strongSwan signs with PKCS#1 v1.5 and takes our PSS
    ("rsa3072", {"rsa_pss": "yes"}, "RSA-PSS with SHA2-256"),
    ("ecdsa521", {}, "ECDSA with SHA2-512"),
    ("ed448", {}, "Ed448"),
)


@pytest.mark.parametrize(("key", "options", "scheme"), SIGNATURES)
def test_signature(key: str, options: dict[str, str], scheme: str) -> None:
    """Ours is taken, and theirs, by the method that both can; it is said which."""
    site = Site(auth=key, options=options)
    with wires.direct() as wire, pair(site, wire) as (ours, theirs):
        ours.initiate(child="net")
        assert f"is authenticated by {scheme}" in ours.log()
        assert theirs.sa().installed


ESP_SUITES = ("aes256gcm8", "aes128ccm8", "aes192ctr-sha384", "aes128-aesxcbc", "null-aescmac")
ESP_MORE = (
    *("aes128gcm12", "aes192gcm8", "aes192ccm12", "aes256ccm16", "aes128ctr-aesxcbc", "aes256ctr-sha1"),
    *("aes256-aescmac", "null-aesxcbc"),
)


def esp_of(ours: Daemon) -> str:
    """The suite of our only child."""
    [sa] = ours.status()["ike"]["ike_sas"]
    [child] = sa["children"]
    return str(child["suite"])


@pytest.mark.parametrize(
    "suites",
    [pytest.param(ESP_SUITES, id="some"), pytest.param(ESP_MORE, id="others", marks=pytest.mark.full)],
)
def test_esp(suites: tuple[str, ...], agreement: Agreement) -> None:
    """The whole gateway and strongSwan's libipsec: a child with each suite and no other, begun by either side, carries
    packets both ways, and does so again when rekeyed."""
    for suite in suites:
        agreement(peer=LIBIPSEC, suite=suite, encap=True)
    with wires.direct() as wire, pair(Site(esp=suites[0]), wire, whole=True) as (ours, theirs):
        for suite in suites:
            reload(ours, theirs, wire, Site(esp=suite))
            for first, second in ((ours, theirs), (theirs, ours)):
                first.initiate(child="net")
                assert esp_of(ours) == suite
                assert_connected(wire)
                rekey_child(second, ours, theirs)
                assert esp_of(ours) == suite
                assert_connected(wire)
                first.terminate(ike="site")
                for who in (first, second):
                    wait_until(lambda who=who: not who.sas(), timeout=10, what="the IKE SA is gone")
