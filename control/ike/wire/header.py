"""The header of an IKE message and the one of each payload (RFC 7296 sections 3.1 and 3.2).

IKE header      initiator's SPI (8), responder's SPI (8), next payload, version, exchange, flags, message id (4),
                length (4)
payload header  next payload, critical bit and 7 reserved bits, length (2) with these four bytes
"""

from __future__ import annotations

import struct

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import PayloadType, name_of
from control.ike.record import record

HEADER_LENGTH = 28
PAYLOAD_HEADER_LENGTH = 4
NO_SPI = bytes(8)
MAJOR_VERSION = 2

_HEADER = struct.Struct(">8s8sBBBBII")
_RESPONSE, _HIGHER_VERSION, _INITIATOR = 0x20, 0x10, 0x08
_CRITICAL = 0x80
_PAYLOAD_HEADER = struct.Struct(">BBH")


@record(frozen=True, kw_only=True, slots=True)
class Header:
    """What stands before the payloads; their length is known to whoever builds or parses them."""

    initiator_spi: bytes  # 8 bytes of whoever began the IKE SA
    responder_spi: bytes = NO_SPI  # 8 bytes; zero in the first request
    next_payload: int = 0  # `build_message` puts the right one
    major: int = MAJOR_VERSION
    minor: int = 0
    exchange: int
    initiator: bool  # sent by whoever began this IKE SA
    response: bool
    higher_version: bool = False
    message_id: int


def parse_header(data: bytes) -> tuple[Header, int]:
    """(header, length in bytes that it gives the message) of a datagram of any version; raises PeerError.

    The length must be the datagram's for version 2; of other versions nothing but the header is understood.
    """
    if len(data) < HEADER_LENGTH:
        raise syntax_error(f"message of {len(data)} bytes; want {HEADER_LENGTH} of IKE header or more")
    initiator_spi, responder_spi, following, version, exchange, flags, message_id, length = (
        _HEADER.unpack_from(data)
    )
    header = Header(
        initiator_spi=initiator_spi,
        responder_spi=responder_spi,
        next_payload=following,
        major=version >> 4,
        minor=version & 15,
        exchange=exchange,
        initiator=bool(flags & _INITIATOR),
        response=bool(flags & _RESPONSE),
        higher_version=bool(flags & _HIGHER_VERSION),
        message_id=message_id,
    )
    if header.major != MAJOR_VERSION:
        return header, length
    if length != len(data):
        raise syntax_error(f"IKE header says the message has {length} bytes; got {len(data)}")
    if initiator_spi == NO_SPI:
        # RFC 7296 section 3.1: the initiator's SPI must not be zero.
        raise syntax_error("IKE header with an initiator's SPI of zero; want any other")
    return header, length


def build_header(header: Header, first: int, payload_length: int) -> bytes:
    """The 28 bytes before `payload_length` bytes of payloads, of which the first has type `first`."""
    if len(header.initiator_spi) != 8 or len(header.responder_spi) != 8:
        raise LocalError(
            f"SPIs of {len(header.initiator_spi)} and {len(header.responder_spi)} bytes; want 8 each"
        )
    flags = (
        (_INITIATOR if header.initiator else 0)
        | (_RESPONSE if header.response else 0)
        | (_HIGHER_VERSION if header.higher_version else 0)
    )
    return _HEADER.pack(
        header.initiator_spi,
        header.responder_spi,
        first,
        header.major << 4 | header.minor,
        header.exchange,
        flags,
        header.message_id,
        HEADER_LENGTH + payload_length,
    )


def build_payload_header(following: int, body_length: int, *, critical: bool = False) -> bytes:
    """The 4 bytes before a payload's body; `following` is the next payload's type."""
    length = PAYLOAD_HEADER_LENGTH + body_length
    if length > 0xFFFF:
        raise LocalError(f"payload of {length} bytes; its header has room for 65535")
    return _PAYLOAD_HEADER.pack(following, _CRITICAL if critical else 0, length)


def parse_payload_header(data: bytes, offset: int, kind: int) -> tuple[int, bool, int]:
    """(next payload, critical, whole length) of the payload of type `kind` at `offset`."""
    left = len(data) - offset
    if left < PAYLOAD_HEADER_LENGTH:
        name = name_of(PayloadType, kind)
        raise syntax_error(f"{left} bytes are left for the {name} payload at byte {offset}; want 4 or more")
    following, flags, length = _PAYLOAD_HEADER.unpack_from(data, offset)
    if not PAYLOAD_HEADER_LENGTH <= length <= left:
        name = name_of(PayloadType, kind)
        raise syntax_error(f"{name} payload at byte {offset} says it has {length} bytes; want 4 to {left}")
    return following, bool(flags & _CRITICAL), length
