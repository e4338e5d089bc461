"""Messages: a header and a chain of payloads, the last of which may hold all others enciphered (RFC 7296 section 3).

In:  `parse_message` gives the clear payloads and the SK or SKF payload as it is; whoever has the keys opens its body
     and hands what was inside to `parse_payload_chain`. `Message.aad` and the body are what is authenticated.
Out: `build_message` for messages in clear; else `build_payload_chain`, then `build_sealed_prefix` for all that goes
     before the body, which is then sealed with that prefix as associated data and appended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import TypeVar

from control.ike.errors import LocalError, PeerError, syntax_error
from control.ike.numbers import NotifyType, PayloadType, name_of
from control.ike.record import record
from control.ike.wire.header import (
    HEADER_LENGTH,
    MAJOR_VERSION,
    PAYLOAD_HEADER_LENGTH,
    Header,
    build_header,
    build_payload_header,
    parse_header,
    parse_payload_header,
)
from control.ike.wire.payloads import (
    KNOWN_TYPES,
    NotifyPayload,
    Payload,
    build_payload,
    parse_payload,
    payload_type,
)

MAX_PAYLOADS = 256  # of one chain: far more than any exchange has, few enough to cost little
FRAGMENT_FIELDS_LENGTH = 4  # fragment number and total fragments, before the body of SKF
_MAX_MESSAGE = 65535
_NONE, _SEALED = int(PayloadType.NONE), frozenset((int(PayloadType.SK), int(PayloadType.SKF)))

AnyPayload = TypeVar("AnyPayload")


@record(frozen=True, kw_only=True, slots=True)
class Encrypted:
    """An SK payload, or SKF where `total` is not 0 (RFC 7383 section 2.5)."""

    first: int  # type of the first payload inside; of a fragment after the first: 0
    body: bytes = field(repr=False)  # IV, ciphertext and integrity check
    number: int = 0  # of this fragment, from 1
    total: int = 0  # fragments


@record(frozen=True, kw_only=True, slots=True)
class Message:
    """A parsed message."""

    header: Header
    payloads: tuple[Payload, ...]  # in clear
    encrypted: Encrypted | None
    aad: bytes = field(repr=False)  # all before the encrypted body (RFC 5282 section 5.1); b"" without one
    data: bytes = field(repr=False)  # the whole message as it came


def parse_message(data: bytes) -> Message:
    """The message in a datagram (without non-ESP marker); raises PeerError.

    INVALID_MAJOR_VERSION for a version that is not 2, INVALID_SYNTAX, UNSUPPORTED_CRITICAL_PAYLOAD.
    """
    header, _ = parse_header(data)
    if header.major != MAJOR_VERSION:
        # RFC 7296 section 2.5: the answer's header says which version we have.
        raise PeerError(
            NotifyType.INVALID_MAJOR_VERSION,
            f"message of IKE version {header.major}.{header.minor}; want {MAJOR_VERSION}.0",
            advice="make the peer use IKEv2",
        )
    payloads, encrypted = _parse_chain(header.next_payload, data, HEADER_LENGTH, inside=False)
    aad = b"" if encrypted is None else data[: len(data) - len(encrypted.body)]
    return Message(header=header, payloads=payloads, encrypted=encrypted, aad=aad, data=data)


def parse_payload_chain(first: int, data: bytes) -> tuple[Payload, ...]:
    """The payloads that were inside an SK payload, `first` being the type of the first; raises PeerError."""
    payloads, _ = _parse_chain(first, data, 0, inside=True)
    return payloads


def _parse_chain(
    first: int, data: bytes, offset: int, *, inside: bool
) -> tuple[tuple[Payload, ...], Encrypted | None]:
    payloads: list[Payload] = []
    kind = first
    while kind != _NONE:
        if len(payloads) == MAX_PAYLOADS:
            raise syntax_error(f"chain of more than {MAX_PAYLOADS} payloads; want fewer")
        following, critical, length = parse_payload_header(data, offset, kind)
        body = data[offset + PAYLOAD_HEADER_LENGTH : offset + length]
        offset += length
        if kind in _SEALED:
            name = name_of(PayloadType, kind)
            if inside:
                raise syntax_error(f"{name} payload inside another; want it outside only")
            if offset != len(data):
                # RFC 7296 section 3.14: it must be the last, its header names the first payload inside.
                raise syntax_error(f"{len(data) - offset} bytes follow the {name} payload; want it the last")
            return tuple(payloads), _parse_encrypted(kind, following, body)
        if critical and kind not in KNOWN_TYPES:
            # RFC 7296 section 2.5: one that we do not know and must not ignore; its type goes back.
            raise PeerError(
                NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
                f"critical payload of type {kind}, which we do not know",
                data=bytes([kind]),
                advice="turn off the peer's feature that needs it",
            )
        payloads.append(parse_payload(kind, body))
        kind = following
    if offset != len(data):
        raise syntax_error(f"{len(data) - offset} bytes follow the last payload; want none")
    return tuple(payloads), None


def _parse_encrypted(kind: int, first: int, body: bytes) -> Encrypted:
    if kind == PayloadType.SK:
        return Encrypted(first=first, body=body)
    if len(body) < FRAGMENT_FIELDS_LENGTH:
        raise syntax_error(f"SKF payload with a body of {len(body)} bytes; want 4 or more")
    number, total = struct.unpack_from(">HH", body)
    if not 1 <= number <= total:
        raise syntax_error(f"fragment {number} of {total}; want 1 to the total (RFC 7383 section 2.5)")
    return Encrypted(first=first, body=body[FRAGMENT_FIELDS_LENGTH:], number=number, total=total)


def build_payload_chain(payloads: Iterable[Payload]) -> tuple[int, bytes]:
    """(type of the first payload, all of them as bytes)."""
    following = int(PayloadType.NONE)
    parts: list[bytes] = []
    for payload in reversed(tuple(payloads)):
        body = build_payload(payload)
        parts += (body, build_payload_header(following, len(body)))
        following = payload_type(payload)
    return following, b"".join(reversed(parts))


def build_message(header: Header, payloads: Sequence[Payload]) -> bytes:
    """A whole message in clear; `header.next_payload` is not looked at."""
    first, chain = build_payload_chain(payloads)
    if HEADER_LENGTH + len(chain) > _MAX_MESSAGE:
        raise LocalError(f"message of {HEADER_LENGTH + len(chain)} bytes; want {_MAX_MESSAGE} or less")
    return build_header(header, first, len(chain)) + chain


def build_sealed_prefix(
    header: Header, first: int, body_length: int, *, number: int = 0, total: int = 0
) -> bytes:
    """All that goes before the sealed body of an SK payload, or of SKF `number` of `total`: its associated data.

    `first` is the type of the first payload inside (for a fragment after the first it becomes 0), `body_length` the
    bytes of IV, ciphertext and integrity check that will follow.
    """
    fields = struct.pack(">HH", number, total) if total else b""
    if number > 1:
        first = PayloadType.NONE  # RFC 7383 section 2.5
    payload_header = build_payload_header(first, len(fields) + body_length)
    kind = PayloadType.SKF if total else PayloadType.SK
    length = len(payload_header) + len(fields) + body_length
    return build_header(header, kind, length) + payload_header + fields


def first_of(
    payloads: Iterable[Payload], kind: type[AnyPayload], *, initiator: bool | None = None
) -> AnyPayload | None:
    """The payload of a kind, None where there is none; raises PeerError where there are two.

    `initiator` tells IDi and TSi (true) from IDr and TSr.
    """
    found = [
        payload
        for payload in payloads
        if isinstance(payload, kind)
        and (initiator is None or getattr(payload, "initiator", None) == initiator)
    ]
    if len(found) > 1:
        raise syntax_error(f"{len(found)} {_name(kind, initiator)} payloads in one message; want one")
    return found[0] if found else None


def need(payloads: Iterable[Payload], kind: type[AnyPayload], *, initiator: bool | None = None) -> AnyPayload:
    """The one payload of a kind; raises PeerError where there is none, or two."""
    found = first_of(payloads, kind, initiator=initiator)
    if found is None:
        raise syntax_error(f"message without {_name(kind, initiator)} payload; want one")
    return found


def all_of(payloads: Iterable[Payload], kind: type[AnyPayload]) -> tuple[AnyPayload, ...]:
    """All payloads of a kind, in order."""
    return tuple(payload for payload in payloads if isinstance(payload, kind))


def find_notify(payloads: Iterable[Payload], kind: int) -> NotifyPayload | None:
    """The first notification of a type."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.type == kind:
            return payload
    return None


def find_error(payloads: Iterable[Payload]) -> NotifyPayload | None:
    """The first notification that is an error."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.is_error:
            return payload
    return None


def _name(kind: type, initiator: bool | None) -> str:
    """What RFC 7296 calls a payload: KE, NONCE, TSi."""
    side = "" if initiator is None else "i" if initiator else "r"
    special = {"CertRequestPayload": "CERTREQ"}
    return special.get(kind.__name__, kind.__name__.removesuffix("Payload").upper()) + side
