"""AH negotiated: proposals without a cipher, its own SPIs in REKEY_SA and Delete payloads, and no way through a NAT."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from control.ike.events import ChildClosed, Datagram
from control.ike.keywords import word_of
from control.ike.numbers import Encr, Integ, NotifyType, Protocol, TransformType
from control.ike.proposal import Proposal, parse_proposal
from control.ike.settings import ChildSettings
from control.ike.v2 import codec
from control.ike.wire.payloads import DeletePayload, NotifyPayload, SaPayload
from dataplane.model import Cipher, Integrity, Mode
from tests.control.ike.pair import ADDRESS_A, Pair, Wire, child, connection_a, mirror


def ah(*texts: str) -> tuple[Proposal, ...]:
    """AH proposals by keywords."""
    return tuple(parse_proposal(Protocol.AH, text) for text in texts)


def ah_pair(*texts: str, **rest: object) -> Pair:
    a = connection_a(children=(child(proposals=ah(*(texts or ("sha256-esn",))), **rest),))
    return Pair(a=a, b=mirror(a))


@pytest.mark.parametrize(
    ("text", "integrity", "length"),
    [
        ("sha256", Integrity.HMAC_SHA2_256, 32),
        ("sha384", Integrity.HMAC_SHA2_384, 48),
        ("sha512-esn", Integrity.HMAC_SHA2_512, 64),
        ("sha1", Integrity.HMAC_SHA1, 20),
        ("aesxcbc", Integrity.AES_XCBC, 16),
        ("aescmac-esn", Integrity.AES_CMAC, 16),
        ("aes128gmac", Integrity.AES_GMAC, 20),  # with the salt: RFC 4543 section 5.3
        ("aes192gmac", Integrity.AES_GMAC, 28),
        ("aes256gmac-esn", Integrity.AES_GMAC, 36),
    ],
)
def test_algorithms(text: str, integrity: Integrity, length: int) -> None:
    """Integrity alone, its key of the algorithm's own length (RFC 4302, RFC 7296 section 2.17)."""
    pair = ah_pair(text).up()
    pair.check_children()
    (found,) = pair.a.sending.values()
    assert found.protocol == Protocol.AH and found.suite_name == text
    assert (found.suite.cipher, found.suite.integrity) == (Cipher.NULL, integrity)
    assert found.suite.esn is text.endswith("-esn")
    assert found.encryption_key_in == found.encryption_key_out == b""
    assert len(found.integrity_key_in) == len(found.integrity_key_out) == length
    assert found.integrity_key_in != found.integrity_key_out


def test_gmac_is_an_integrity_algorithm_of_ah() -> None:
    """Transform type 3, a number for each length of key and no attribute (RFC 4543 section 9); ESP's is a cipher."""
    for protocol, kind, number, bits in (
        (Protocol.AH, TransformType.INTEG, Integ.AES_192_GMAC, None),
        (Protocol.ESP, TransformType.ENCR, Encr.NULL_AUTH_AES_GMAC, 192),
    ):
        transform = parse_proposal(protocol, "aes192gmac").of(kind)[0]
        assert (transform.id, transform.key_bits) == (number, bits)
        assert word_of(transform) == "aes192gmac"
    with pytest.raises(ValueError, match="an IKE SA is always encrypted"):
        parse_proposal(Protocol.IKE, "aes128gmac-sha256-x25519")


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekeyed_and_deleted_by_either_side(who: str) -> None:
    """REKEY_SA and Delete name the SPI as one of AH (RFC 7296 sections 3.10, 3.11)."""
    pair = ah_pair("sha256-x25519").up()
    side = getattr(pair, who)
    (old,) = side.sending
    side.endpoint.rekey_child(old, pair.now)
    pair.run()
    pair.check_children()
    (new,) = side.sending
    assert new != old
    side.endpoint.terminate_child(new, pair.now)
    pair.run()
    assert not pair.a.children and not pair.b.children
    assert len(pair.a.of(ChildClosed)) == len(pair.b.of(ChildClosed)) == 2


def test_the_wire_says_ah() -> None:
    """Every payload of a child's that names a protocol names AH."""
    pair = ah_pair("sha256-x25519")
    seen: list[object] = []
    original = codec.seal

    def seal(message: object, *rest: object, **named: object) -> list[bytes]:
        seen.extend(message.payloads)  # type: ignore[attr-defined]
        return original(message, *rest, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "seal", seal)
        pair.up()
        (old,) = pair.b.sending
        pair.b.endpoint.rekey_child(old, pair.now)
        pair.run()
    offered = {
        each.protocol for payload in seen if isinstance(payload, SaPayload) for each in payload.proposals
    }
    assert offered == {Protocol.IKE, Protocol.AH}
    rekeys = [each for each in seen if isinstance(each, NotifyPayload) and each.type == NotifyType.REKEY_SA]
    assert [each.protocol for each in rekeys] == [Protocol.AH]
    deletes = [each for each in seen if isinstance(each, DeletePayload)]
    assert {each.protocol for each in deletes} == {Protocol.AH} and len(deletes) == 2


def test_esp_and_ah_side_by_side() -> None:
    """Children of one connection may be of either; each is taken for what is asked for."""
    both = (
        child("esp"),
        child("ah", local="10.3.0.0/16", remote="10.4.0.0/16", proposals=ah("sha512")),
    )
    a = connection_a(children=both)
    pair = Pair(a=a, b=mirror(a)).up("esp")
    pair.initiate("ah")
    pair.run()
    pair.check_children(2)
    found = {each.settings.name: each.protocol for each in pair.b.sending.values()}
    assert found == {"esp": Protocol.ESP, "ah": Protocol.AH}


def test_one_wants_esp_and_the_other_ah() -> None:
    """The refusal says that the protocol differs."""
    a = connection_a(children=(child(proposals=ah("sha256")),))
    pair = Pair(a=a, b=mirror(a, children=(mirrored_esp(),)))
    pair.initiate()
    pair.run()
    assert "no proposal chosen" in pair.b.failures[0] and "the protocol differs" in pair.b.failures[0]
    assert "ah_proposals" in pair.a.failures[0]


def mirrored_esp() -> ChildSettings:
    return child(local="10.2.0.0/16", remote="10.1.0.0/16")


def test_not_through_a_nat() -> None:
    """It protects the addresses that a NAT changes: the side that finds the NAT says so."""

    def nat(datagram: Datagram) -> Datagram:
        path, public = datagram.path, ip_address("198.51.100.7")
        if path.local == ADDRESS_A:
            path = replace(path, local=public)
        elif path.remote == public:
            path = replace(path, remote=ADDRESS_A)
        return replace(datagram, path=path)

    a = connection_a(children=(child(proposals=ah("sha256")),))
    pair = Pair(a=a, b=mirror(a, remote_addresses=()), wire=Wire(translate=nat))
    pair.initiate()
    pair.run()
    assert not pair.a.children and not pair.b.children
    assert "is AH, and there is a NAT between us: AH cannot pass it" in pair.a.failures[0]


def test_transport_mode() -> None:
    """Between the two hosts, as ESP's."""
    settings = ChildSettings(name="net", proposals=ah("sha256"), mode=Mode.TRANSPORT)
    a = connection_a(children=(settings,))
    pair = Pair(a=a, b=mirror(a)).up()
    pair.check_children()
    assert {each.mode for side in pair.sides for each in side.sending.values()} == {Mode.TRANSPORT}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aes128-sha256", "aes128 has no meaning for AH"),
        ("esn", "names no integrity algorithm"),
        ("sha256-prfsha256", "prfsha256 has no meaning for AH"),
        ("md5", "broken or obsolete"),
    ],
)
def test_what_is_no_proposal_of_ah(text: str, said: str) -> None:
    """Each says what is wrong."""
    with pytest.raises(ValueError, match=said):
        parse_proposal(Protocol.AH, text)
