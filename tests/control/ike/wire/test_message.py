"""Messages and their chains of payloads: bytes to dataclasses and back, and every refusal with its words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.ike.errors import LocalError, PeerError
from control.ike.numbers import Exchange, NotifyType, PayloadType
from control.ike.wire import (
    AuthPayload,
    EapPayload,
    Header,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    TsPayload,
    UnknownPayload,
    all_of,
    build_message,
    build_payload_chain,
    build_sealed_prefix,
    find_error,
    find_notify,
    first_of,
    need,
    parse_header,
    parse_message,
    parse_payload_chain,
)
from control.ike.wire.message import MAX_PAYLOADS
from tests.ike_messages import header as any_header
from tests.ike_messages import payloads as any_payloads

HEADER = Header(
    initiator_spi=b"initiate", exchange=Exchange.IKE_SA_INIT, initiator=True, response=False, message_id=0
)
NONCE = NoncePayload(data=bytes(range(32)))


def refused(data: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        parse_message(data)
    return caught.value


@given(st.integers(0, 2**32))
def test_round_trip(seed: int) -> None:
    chance = random.Random(seed)
    header, payloads = any_header(chance), any_payloads(chance)
    message = parse_message(build_message(header, payloads))
    assert message.payloads == payloads
    assert message.encrypted is None and message.aad == b""
    first, chain = build_payload_chain(payloads)
    assert message.header.next_payload == first
    assert parse_payload_chain(first, chain) == payloads
    assert parse_header(message.data)[0] == message.header


def test_header_by_hand() -> None:
    data = bytes.fromhex(
        "1122334455667788 99aabbccddeeff00 29 20 25 20 00000007 0000002a"  # INFORMATIONAL response 7
        "00 00 000e 00 00 4002 010203040506"  # N(ADDITIONAL_TS_POSSIBLE) with data
    )
    message = parse_message(data)
    assert message.header == Header(
        initiator_spi=bytes.fromhex("1122334455667788"),
        responder_spi=bytes.fromhex("99aabbccddeeff00"),
        next_payload=41,
        exchange=Exchange.INFORMATIONAL,
        initiator=False,
        response=True,
        message_id=7,
    )
    assert message.payloads == (
        NotifyPayload(type=NotifyType.ADDITIONAL_TS_POSSIBLE, data=bytes(range(1, 7))),
    )
    assert build_message(message.header, message.payloads) == data


@pytest.mark.parametrize("total", [0, 3])
def test_sealed(total: int) -> None:
    body = bytes(range(60))
    prefix = build_sealed_prefix(HEADER, PayloadType.IDi, len(body), number=min(total, 1), total=total)
    message = parse_message(prefix + body)
    assert message.encrypted is not None
    assert (message.encrypted.first, message.encrypted.body) == (PayloadType.IDi, body)
    assert (message.encrypted.number, message.encrypted.total) == (min(total, 1), total)
    assert message.aad == prefix
    assert message.header.next_payload == (PayloadType.SKF if total else PayloadType.SK)


def test_later_fragments_name_no_payload() -> None:
    message = parse_message(build_sealed_prefix(HEADER, PayloadType.IDi, 20, number=2, total=2) + bytes(20))
    assert message.encrypted is not None and message.encrypted.first == PayloadType.NONE


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "message of 0 bytes; want 28 of IKE header or more"),
        (build_message(HEADER, [NONCE])[:-1], "IKE header says the message has 64 bytes; got 63"),
        (build_message(HEADER, [NONCE]) + b"x", "IKE header says the message has 64 bytes; got 65"),
        (bytes(8) + build_message(HEADER, [])[8:], "initiator's SPI of zero"),
    ],
)
def test_bad_headers(data: bytes, text: str) -> None:
    error = refused(data)
    assert error.notify == NotifyType.INVALID_SYNTAX and text in error.text


def test_other_versions() -> None:
    data = bytearray(build_message(HEADER, [NONCE]))
    for version in (0x10, 0x30):
        data[17] = version
        error = refused(bytes(data))
        assert error.notify == NotifyType.INVALID_MAJOR_VERSION
        assert f"version {version >> 4}.0; want 2.0" in error.text
    data[17] = 0x2F  # RFC 7296 section 2.5: the minor version is ignored
    assert parse_message(bytes(data)).payloads == (NONCE,)


def changed(payloads: list[bytes], first: int) -> bytes:
    chain = b"".join(payloads)
    whole = bytearray(build_message(HEADER, []) + chain)
    whole[16], whole[24:28] = first, len(whole).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (changed([b"\0\0"], 40), "2 bytes are left for the NONCE payload at byte 28; want 4 or more"),
        (changed([b"\0\0\0\3"], 40), "NONCE payload at byte 28 says it has 3 bytes; want 4 to 4"),
        (changed([b"\0\0\0\x20", bytes(20)], 40), "says it has 32 bytes; want 4 to 24"),
        (changed([b"\0\0\0\x0c", bytes(8)], 40), "nonce of 8 bytes; want 16 to 256"),
        (changed([b"\0\0\0\x14", bytes(16), b"xy"], 40), "2 bytes follow the last payload; want none"),
        (changed([b"\x21\0\0\x08", b"abcd", b"tail"], 46), "4 bytes follow the SK payload; want it the last"),
        (changed([b"\x21\0\0\x06", b"ab"], 53), "SKF payload with a body of 2 bytes; want 4 or more"),
        (changed([b"\x21\0\0\x08", b"\0\3\0\2"], 53), "fragment 3 of 2; want 1 to the total"),
        (changed([b"\x21\0\0\x08", b"\0\0\0\2"], 53), "fragment 0 of 2"),
        (changed([b"\0\0\0\x07", b"abc"], 34), "KE payload with a body of 3 bytes; want 5 or more"),
        (changed([b"\0\0\0\x07", b"abc"], 39), "AUTH payload with a body of 3 bytes"),
        (changed([b"\0\0\0\x07", b"abc"], 35), "IDi payload with a body of 3 bytes"),
        (changed([b"\0\0\0\x05", b"a"], 37), "CERT payload with a body of 1 bytes"),
        (
            changed([b"\0\0\0\x08", b"\0\4\x40\0"], 41),
            "INITIAL_CONTACT (SPI of 4 bytes) payload with a body of 4",
        ),
        (changed([b"\0\0\0\x08", b"\3\x08\0\1"], 42), "delete payload with SPIs of 8 bytes; want 4 for ESP"),
        (changed([b"\0\0\0\x08", b"\3\4\0\1"], 42), "says it has 1 SPIs of 4 bytes; got 0 bytes of them"),
        (changed([b"\0\0\0\x08", b"\x09\4\0\0"], 42), "delete payload for protocol 9"),
        (changed([b"\0\0\0\x08", b"\1\0\0\5"], 42), "says it has 5 SPIs of 0 bytes"),
        (changed([b"\x2b\0\0\4"] * (MAX_PAYLOADS + 1), 43), "chain of more than 256 payloads"),
    ],
)
def test_bad_payloads(data: bytes, text: str) -> None:
    error = refused(data)
    assert error.notify == NotifyType.INVALID_SYNTAX and text in error.text


@pytest.mark.parametrize("kind", [PayloadType.SK, PayloadType.SKF])
def test_nothing_sealed_inside_the_sealed(kind: PayloadType) -> None:
    with pytest.raises(PeerError, match=rf"{kind.name} payload inside another"):
        parse_payload_chain(kind, b"\0\0\0\x08\0\1\0\1")


def test_critical_bit() -> None:
    """RFC 7296 section 2.5: it counts for payloads that are not known, and only for those."""
    unknown = b"\0\0\0\x06ab"
    assert parse_payload_chain(200, unknown) == (UnknownPayload(type=200, body=b"ab"),)
    with pytest.raises(PeerError, match="critical payload of type 200") as caught:
        parse_payload_chain(200, b"\0\x80\0\x06ab")
    assert (caught.value.notify, caught.value.data) == (NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc8")
    assert parse_payload_chain(PayloadType.NONCE, b"\0\x80\0\x14" + bytes(16)) == (
        NoncePayload(data=bytes(16)),
    )


def test_finding_payloads() -> None:
    side = IdPayload(initiator=True, id_type=2, data=b"a"), IdPayload(initiator=False, id_type=2, data=b"b")
    error = NotifyPayload(type=NotifyType.NO_PROPOSAL_CHOSEN)
    payloads = [
        *side,
        NONCE,
        NotifyPayload(type=NotifyType.COOKIE, data=b"1"),
        error,
        KePayload(group=31, public=b"k"),
    ]
    assert need(payloads, NoncePayload) is NONCE
    assert first_of(payloads, IdPayload, initiator=False) is side[1]
    assert first_of(payloads, AuthPayload) is None
    assert all_of(payloads, IdPayload) == side
    assert find_error(payloads) is error
    cookie = find_notify(payloads, NotifyType.COOKIE)
    assert cookie is not None and cookie.data == b"1"
    with pytest.raises(PeerError, match="message without AUTH payload; want one"):
        need(payloads, AuthPayload)
    with pytest.raises(PeerError, match="message without TSr payload; want one"):
        need(payloads, TsPayload, initiator=False)
    with pytest.raises(PeerError, match="2 NONCE payloads in one message; want one"):
        first_of([NONCE, NONCE], NoncePayload)


def test_secrets_are_not_shown() -> None:
    text = repr([AuthPayload(method=2, data=b"digest!"), EapPayload(packet=b"\2\1\0\x0bpasswd!")])
    assert "digest" not in text and "passwd" not in text


def test_own_mistakes() -> None:
    with pytest.raises(LocalError, match="nonce of 3 bytes"):
        build_message(HEADER, [NoncePayload(data=b"abc")])
    with pytest.raises(LocalError, match="its header has room for 65535"):
        build_message(HEADER, [UnknownPayload(type=99, body=bytes(65532))])
    with pytest.raises(LocalError, match="message of"):
        build_message(HEADER, [UnknownPayload(type=99, body=bytes(65531))])
