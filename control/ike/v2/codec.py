"""Messages of one IKE SA as datagrams: 1 payload chain 2 sealed, cut if too long 3 opened 4 put together 5 parsed.

IKE_SA_INIT goes in clear and whole; all else is in SK (RFC 7296 section 3.14) or SKF payloads (RFC 7383). Every
fragment is authenticated before it is kept, and what is kept is bounded, so a stranger costs no memory here.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from control.ike.errors import LocalError, PeerError, syntax_error
from control.ike.events import ChildSa, Failure, PeerPath
from control.ike.numbers import Exchange, PayloadType
from control.ike.v2.keys import SaKeys
from control.ike.v2.task import Outgoing
from control.ike.wire.header import HEADER_LENGTH, Header, build_header
from control.ike.wire.message import build_payload_chain

_GENERIC = struct.Struct(">BBH")
_FRAGMENT = struct.Struct(">HH")
MAX_FRAGMENTS = 128
MAX_MESSAGE = 131072  # bytes that fragments may add up to
SMALLEST = 576  # bytes of IP packet below which no fragment size goes (RFC 7383 section 2.5.1)


class Reassembly:
    """Fragments of one message of the peer, each authenticated (RFC 7383 section 2.6)."""

    __slots__ = ("first_hash", "first_payload", "message_id", "parts", "size", "total")

    def __init__(self, message_id: int, total: int) -> None:
        self.message_id = message_id
        self.total = total
        self.parts: dict[int, bytes] = {}
        self.first_payload = 0
        self.first_hash = 0
        self.size = 0

    def add(self, number: int, payload: int, plain: bytes, datagram: bytes) -> bool:
        """Keep one; True when all are there."""
        if number not in self.parts:
            self.parts[number] = plain
            self.size += len(plain)
            if self.size > MAX_MESSAGE:
                raise syntax_error(f"fragments of {self.size} bytes together, at most {MAX_MESSAGE} are taken")
            if number == 1:
                self.first_payload, self.first_hash = payload, hash(datagram)
        return len(self.parts) == self.total

    def whole(self) -> bytes:
        """The payloads of the message."""
        return b"".join(self.parts[number] for number in range(1, self.total + 1))


class Opened:
    """The payloads of a message in clear, not parsed yet."""

    __slots__ = ("first", "plain", "request_hash")

    def __init__(self, first: int, plain: bytes, request_hash: int) -> None:
        self.first = first
        self.plain = plain
        self.request_hash = request_hash  # of the datagram, or of the first fragment


def seal(
    message: Outgoing,
    header: Header,
    keys: SaKeys | None,
    *,
    limit: int | None,
) -> list[bytes]:
    """The datagrams of a message. `header` is right but for lengths; None as `limit`: never cut, else bytes of each."""
    first, plain = build_payload_chain(message.payloads)
    message.first, message.plain = first, plain
    if keys is None:
        if header.exchange != Exchange.IKE_SA_INIT:
            raise LocalError(f"{header.exchange} without keys")
        whole = replace(header, next_payload=first, length=HEADER_LENGTH + len(plain))
        return [build_header(whole) + plain]
    sealed = keys.protection.sealed_length(len(plain))
    length = HEADER_LENGTH + _GENERIC.size + sealed
    if limit is None or length <= limit:
        prefix = encrypted_prefix(header, first, length)
        return [prefix + keys.sealer.seal(prefix, plain)]
    return _seal_fragments(header, keys, first, plain, limit)


def encrypted_prefix(header: Header, first: int, length: int) -> bytes:
    """IKE header and the SK payload's generic header, of a message of `length` bytes."""
    whole = replace(header, next_payload=PayloadType.SK, length=length)
    return build_header(whole) + _GENERIC.pack(first, 0, length - HEADER_LENGTH)


def _seal_fragments(header: Header, keys: SaKeys, first: int, plain: bytes, limit: int) -> list[bytes]:
    around = HEADER_LENGTH + _GENERIC.size + _FRAGMENT.size
    room = keys.protection.payload_room(limit - around)
    total = -(-len(plain) // room)
    datagrams = []
    for number in range(1, total + 1):
        part = plain[(number - 1) * room : number * room]
        length = around + keys.protection.sealed_length(len(part))
        whole = replace(header, next_payload=PayloadType.SKF, length=length)
        # RFC 7383 section 2.5: only the first fragment names the first payload.
        inner = first if number == 1 else PayloadType.NONE
        prefix = (
            build_header(whole)
            + _GENERIC.pack(inner, 0, length - HEADER_LENGTH)
            + _FRAGMENT.pack(number, total)
        )
        datagrams.append(prefix + keys.sealer.seal(prefix, part))
    return datagrams


def unseal(
    keys: SaKeys, header: Header, data: bytes, reassemblies: dict[bool, Reassembly]
) -> Opened | None:
    """A datagram of the peer in clear; None while fragments are missing.

    Raises IntegrityError for what is not sealed with our keys, PeerError for what is no SK or SKF at all.
    """
    if header.next_payload not in (PayloadType.SK, PayloadType.SKF):
        raise syntax_error(
            f"payload {header.next_payload} outside of SK in a message that must be encrypted (RFC 7296 section 1.2)"
        )
    if len(data) < HEADER_LENGTH + _GENERIC.size:
        raise syntax_error(f"{len(data)} bytes, too short for an SK payload")
    first, _, length = _GENERIC.unpack_from(data, HEADER_LENGTH)
    if length != len(data) - HEADER_LENGTH:
        raise syntax_error(
            f"SK payload of {length} bytes in a message with {len(data) - HEADER_LENGTH} after its header"
        )
    body = HEADER_LENGTH + _GENERIC.size
    if header.next_payload == PayloadType.SK:
        plain = keys.opener.open(data[:body], data[body:])
        reassemblies.pop(header.response, None)
        return Opened(first, plain, hash(data))
    return _unseal_fragment(keys, header, first, data, reassemblies)


def _unseal_fragment(
    keys: SaKeys, header: Header, first: int, data: bytes, reassemblies: dict[bool, Reassembly]
) -> Opened | None:
    body = HEADER_LENGTH + _GENERIC.size + _FRAGMENT.size
    if len(data) < body:
        raise syntax_error(f"{len(data)} bytes, too short for an SKF payload")
    number, total = _FRAGMENT.unpack_from(data, body - _FRAGMENT.size)
    if not 1 <= number <= total <= MAX_FRAGMENTS:
        raise syntax_error(f"fragment {number} of {total}; at most {MAX_FRAGMENTS} are taken")
    kept = reassemblies.get(header.response)
    if kept is not None and kept.message_id == header.message_id:
        # RFC 7383 section 2.6: a set with more fragments (a smaller size was needed) takes the place of one with fewer.
        if total < kept.total or number in kept.parts and total == kept.total:
            return None
        if total > kept.total:
            kept = None
    else:
        kept = None
    plain = keys.opener.open(data[:body], data[body:])
    if kept is None:
        kept = reassemblies[header.response] = Reassembly(header.message_id, total)
    if not kept.add(number, first, plain, data):
        return None
    del reassemblies[header.response]
    return Opened(kept.first_payload, kept.whole(), kept.first_hash)


def datagram_limit(path: PeerPath, fragment_size: int, *, marker: bool) -> int:
    """Bytes of IKE message that a fragment may have so that its IP packet fits `fragment_size` bytes."""
    overhead = (20 if path.remote.version == 4 else 40) + 8 + (4 if marker else 0)
    return max(fragment_size, SMALLEST) - overhead


def failure_of(error: PeerError) -> Failure:
    """An error as users are told it."""
    code = getattr(error, "code", "") or error.notify.name.lower()
    return Failure(code=code, text=error.text, advice=error.advice)


def without_keys(child: ChildSa) -> ChildSa:
    """The same child, its keys forgotten."""
    return replace(
        child,
        encryption_key_in=b"",
        encryption_key_out=b"",
        integrity_key_in=b"",
        integrity_key_out=b"",
    )
