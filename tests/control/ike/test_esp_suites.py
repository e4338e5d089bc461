"""Children with every ESP suite: what is agreed on, how KEYMAT is cut, and that the dataplane can have it."""

from __future__ import annotations

import pytest

from control.config import format_proposal
from control.ike.numbers import Encr, Integ
from dataplane.model import Direction, SaSpec, SelectorSpec
from dataplane.records import check_sa
from tests.control.ike.pair import (
    ADDRESS_A,
    ADDRESS_B,
    Pair,
    child,
    connection_a,
    connection_b,
    esp,
)

# Keywords -> registered numbers of cipher and integrity algorithm (IANA), bytes of their keys in KEYMAT.
SUITES = {
    "aes128gcm8": (18, 0, 20, 0),
    "aes192gcm12": (19, 0, 28, 0),
    "aes256gcm16": (20, 0, 36, 0),
    "aes128ccm8": (14, 0, 19, 0),  # RFC 4309 section 7.1: three bytes of salt
    "aes192ccm12": (15, 0, 27, 0),
    "aes256ccm16": (16, 0, 35, 0),
    "aes256gmac": (21, 0, 36, 0),  # RFC 4543 section 5.3
    "aes128ctr-sha256": (13, 12, 20, 32),  # RFC 3686 section 5.1
    "aes256ctr-aesxcbc": (13, 5, 36, 16),
    "aes128-aescmac": (12, 8, 16, 16),
    "null-aesxcbc": (11, 5, 0, 16),
    "aes128ccm8iiv": (29, 0, 19, 0),  # RFC 8750 section 8
    "aes256gcm16iiv-esn": (30, 0, 36, 0),
    "chacha20poly1305iiv": (31, 0, 36, 0),
}


def brought_up(ours: str, theirs: str) -> Pair:
    """A and B with a child of these proposals, alternatives in order."""
    a, b = (child(proposals=esp(*text.split(","))) for text in (ours, theirs))
    pair = Pair(a=connection_a(children=(a,)), b=connection_b(children=(b,)))
    return pair.up()


@pytest.mark.parametrize("text", SUITES)
def test_agreed(text: str) -> None:
    """Both sides have this suite with keys of its lengths, and each key once."""
    pair = brought_up(text, text)
    [ours], [theirs] = pair.a.sending.values(), pair.b.sending.values()
    assert format_proposal(ours.suite) == format_proposal(theirs.suite) == text
    cipher, integrity, key, integrity_key = SUITES[text]
    [transforms] = [each.transforms for each in esp(text)]
    assert {each.id for each in transforms if isinstance(each.id, Encr)} == {cipher}
    assert {each.id for each in transforms if isinstance(each.id, Integ)} <= {integrity}
    for one, other in ((ours, theirs), (theirs, ours)):
        assert one.encryption_key_out == other.encryption_key_in
        assert one.integrity_key_out == other.integrity_key_in
        assert (len(one.encryption_key_out), len(one.integrity_key_out)) == (key, integrity_key)
    if key:
        assert ours.encryption_key_out != ours.encryption_key_in
    for direction, spi, encryption, mac in (
        (Direction.OUT, ours.spi_out, ours.encryption_key_out, ours.integrity_key_out),
        (Direction.IN, ours.spi_in, ours.encryption_key_in, ours.integrity_key_in),
    ):
        check_sa(
            SaSpec(
                name="net",
                direction=direction,
                spi=spi,
                local=ADDRESS_A,
                remote=ADDRESS_B,
                proposal=ours.suite,
                encryption_key=encryption,
                integrity_key=mac,
                negotiated=True,
                selectors=(
                    SelectorSpec(
                        local_first=ADDRESS_A,
                        local_last=ADDRESS_A,
                        remote_first=ADDRESS_B,
                        remote_last=ADDRESS_B,
                    ),
                ),
            )
        )


@pytest.mark.parametrize("initiator_has", [True, False])
def test_an_implicit_iv_is_a_wish(initiator_has: bool) -> None:
    """RFC 8750 sections 5 and 6: offered beside the same with an IV, a peer that knows only that takes it."""
    sides = ["aes128gcm16iiv-aes128gcm16", "aes128gcm16"]
    pair = brought_up(*(sides if initiator_has else sides[::-1]))
    [ours] = pair.a.sending.values()
    assert format_proposal(ours.suite) == "aes128gcm16" and not ours.suite.implicit_iv


def test_our_order_decides_over_implicit_ivs() -> None:
    """The responder's own preference, as for every algorithm."""
    [ours] = brought_up("aes128gcm16-aes128gcm16iiv", "aes128gcm16iiv-aes128gcm16").a.sending.values()
    assert ours.suite.implicit_iv
