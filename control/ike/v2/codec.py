"""Messages of one IKE SA as datagrams: 1 payload chain 2 sealed, cut if too long 3 opened 4 put together 5 parsed.

IKE_SA_INIT goes in clear and whole; all else is in SK (RFC 7296 section 3.14) or SKF payloads (RFC 7383). Every
fragment is authenticated before it is kept, and what is kept is bounded, so a stranger costs no memory here.
"""

from __future__ import annotations

from control.ike.errors import LocalError, PeerError, syntax_error
from control.ike.events import Failure, PeerPath
from control.ike.numbers import Exchange, name_of
from control.ike.v2.keys import SaKeys
from control.ike.v2.task import Outgoing
from control.ike.wire.header import HEADER_LENGTH, PAYLOAD_HEADER_LENGTH, Header
from control.ike.wire.message import (
    FRAGMENT_FIELDS_LENGTH,
    Message,
    build_message,
    build_payload_chain,
    build_sealed_prefix,
)

SK_OVERHEAD = HEADER_LENGTH + PAYLOAD_HEADER_LENGTH
MAX_FRAGMENTS = 128
MAX_MESSAGE = 65536  # bytes that fragments may add up to
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
            size = self.size + len(plain)
            if size > MAX_MESSAGE:
                raise syntax_error(f"fragments of {size} bytes together, at most {MAX_MESSAGE} are taken")
            self.parts[number] = plain
            self.size = size
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
    """The datagrams of a message. `limit` is how many bytes each may have; None is as many as it takes."""
    if keys is None:
        if header.exchange != Exchange.IKE_SA_INIT:
            raise LocalError(f"{name_of(Exchange, header.exchange)} without keys")
        return [build_message(header, message.payloads)]
    first, plain = build_payload_chain(message.payloads)
    message.first, message.plain = first, plain
    sealed = keys.protection.sealed_length(len(plain))
    if limit is None or SK_OVERHEAD + sealed <= limit:
        prefix = build_sealed_prefix(header, first, sealed)
        return [prefix + keys.sealer.seal(prefix, plain)]
    room = keys.protection.payload_room(limit - SK_OVERHEAD - FRAGMENT_FIELDS_LENGTH)
    total = -(-len(plain) // room)
    datagrams = []
    for number in range(1, total + 1):
        part = plain[(number - 1) * room : number * room]
        sealed = keys.protection.sealed_length(len(part))
        prefix = build_sealed_prefix(header, first, sealed, number=number, total=total)
        datagrams.append(prefix + keys.sealer.seal(prefix, part))
    return datagrams


def unseal(keys: SaKeys, message: Message, reassemblies: dict[bool, Reassembly]) -> Opened | None:
    """A message of the peer in clear; None while fragments are missing.

    Raises IntegrityError for what is not sealed with our keys, PeerError for what is not sealed at all.
    """
    sealed, response = message.encrypted, message.header.response
    if sealed is None:
        raise syntax_error("message in clear; want an SK payload (RFC 7296 section 1.2)")
    if sealed.total == 0:
        plain = keys.opener.open(message.aad, sealed.body)
        reassemblies.pop(response, None)
        return Opened(sealed.first, plain, hash(message.data))
    if sealed.total > MAX_FRAGMENTS:
        raise syntax_error(f"{sealed.total} fragments; at most {MAX_FRAGMENTS} are taken")
    kept = reassemblies.get(response)
    if kept is not None and kept.message_id == message.header.message_id:
        # RFC 7383 section 2.6: a set with more fragments takes the place of one with fewer, which did not get through.
        if sealed.total < kept.total or (sealed.total == kept.total and sealed.number in kept.parts):
            return None
        if sealed.total > kept.total:
            kept = None
    else:
        kept = None
    plain = keys.opener.open(message.aad, sealed.body)
    if kept is None:
        kept = reassemblies[response] = Reassembly(message.header.message_id, sealed.total)
    if not kept.add(sealed.number, sealed.first, plain, message.data):
        return None
    del reassemblies[response]
    return Opened(kept.first_payload, kept.whole(), kept.first_hash)


def datagram_limit(path: PeerPath, fragment_size: int, *, marker: bool) -> int:
    """Bytes of IKE message that a fragment may have so that its IP packet fits `fragment_size` bytes."""
    overhead = (20 if path.remote.version == 4 else 40) + 8 + (4 if marker else 0)
    return max(fragment_size, SMALLEST) - overhead


def failure_of(error: PeerError) -> Failure:
    """An error as users are told it."""
    code = getattr(error, "code", "") or error.notify.name.lower()
    return Failure(code=code, text=error.text, advice=error.advice)
