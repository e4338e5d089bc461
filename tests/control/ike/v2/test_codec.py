"""Messages cut, sealed, opened and put together again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.crypto.errors import CryptoError
from control.crypto.keys import IkeKeys
from control.crypto.prf import prf
from control.crypto.sk import Protection
from control.ike.errors import PeerError
from control.ike.numbers import Exchange
from control.ike.v2 import codec
from control.ike.v2.keys import SaKeys
from control.ike.v2.task import Outgoing
from control.ike.wire.header import Header
from control.ike.wire.message import parse_message, parse_payload_chain
from control.ike.wire.payloads import VendorPayload

SUITES = {
    "AES-GCM": Protection(20, 128),
    "ChaCha20-Poly1305": Protection(28),
    "AES-CBC with SHA2-256": Protection(12, 256, 12),
}


def keys(protection: Protection) -> tuple[SaKeys, SaKeys]:
    """Both sides' of one IKE SA."""
    random = Random(1).randbytes
    size, integrity = protection.encryption_key_length, protection.integrity_key_length
    secrets = IkeKeys(
        d=random(32),
        ai=random(integrity),
        ar=random(integrity),
        ei=random(size),
        er=random(size),
        pi=random(32),
        pr=random(32),
    )
    return (
        SaKeys(prf(5), protection, secrets, initiator=True, random=random),
        SaKeys(prf(5), protection, secrets, initiator=False, random=random),
    )


def header(message_id: int = 1) -> Header:
    """Of a request of the initiator."""
    return Header(
        initiator_spi=b"initiate",
        responder_spi=b"response",
        exchange=Exchange.IKE_AUTH,
        initiator=True,
        response=False,
        message_id=message_id,
    )


def sealed(ours: SaKeys, size: int, limit: int | None, message_id: int = 1) -> list[bytes]:
    """A message with so many bytes in it."""
    message = Outgoing(Exchange.IKE_AUTH)
    message.add(VendorPayload(data=bytes(size)), VendorPayload(data=b"end"))
    return codec.seal(message, header(message_id), ours, limit=limit)


@pytest.mark.parametrize("name", SUITES)
@given(size=st.integers(0, 6000), limit=st.integers(200, 1300), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pieces_in_any_order(name: str, size: int, limit: int, seed: int) -> None:
    """Each fits the limit; together they are the message, repeated ones or not."""
    ours, theirs = keys(SUITES[name])
    pieces = sealed(ours, size, limit)
    assert all(len(piece) <= limit for piece in pieces)
    shuffled = [*pieces, *pieces[:-1]]
    Random(seed).shuffle(shuffled)
    kept: dict[bool, codec.Reassembly] = {}
    found = [opened for data in shuffled if (opened := codec.unseal(theirs, parse_message(data), kept))]
    assert found
    payloads = parse_payload_chain(found[0].first, found[0].plain)
    assert payloads == (VendorPayload(data=bytes(size)), VendorPayload(data=b"end"))
    if len(pieces) > 1:
        assert found[0].request_hash == hash(pieces[0])


def test_more_pieces_take_the_place_of_fewer() -> None:
    """RFC 7383 section 2.6: the sender had to cut smaller; late pieces of the first set are dropped."""
    ours, theirs = keys(SUITES["AES-GCM"])
    large, small = sealed(ours, 3000, 1200), sealed(ours, 3000, 500)
    kept: dict[bool, codec.Reassembly] = {}
    assert codec.unseal(theirs, parse_message(large[0]), kept) is None
    for piece in small[:-1]:
        assert codec.unseal(theirs, parse_message(piece), kept) is None
        assert codec.unseal(theirs, parse_message(large[1]), kept) is None
    assert codec.unseal(theirs, parse_message(small[-1]), kept) is not None
    assert not kept


def test_what_is_refused() -> None:
    """Clear messages, other keys, too many pieces."""
    ours, theirs = keys(SUITES["AES-GCM"])
    [data] = sealed(ours, 10, None)
    with pytest.raises(CryptoError):
        codec.unseal(ours, parse_message(data), {})
    [clear] = codec.seal(
        Outgoing(Exchange.IKE_SA_INIT),
        Header(
            initiator_spi=b"initiate",
            exchange=Exchange.IKE_SA_INIT,
            initiator=True,
            response=False,
            message_id=0,
        ),
        None,
        limit=None,
    )
    with pytest.raises(PeerError, match="message in clear"):
        codec.unseal(theirs, parse_message(clear), {})
    many = sealed(ours, 60000, 200)
    assert len(many) > codec.MAX_FRAGMENTS
    with pytest.raises(PeerError, match="fragments; at most"):
        codec.unseal(theirs, parse_message(many[0]), {})
