"""EAP packets, which EAP payloads carry as they are (RFC 3748 section 4, RFC 7296 section 3.16).

code, identifier, length (2), and of requests and responses: type, data
expanded type:  254, vendor (3), vendor's type (4), data
"""

from __future__ import annotations

import struct
from dataclasses import field

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import EapCode, name_of
from control.ike.record import record


@record(frozen=True, kw_only=True, slots=True)
class EapPacket:
    """One EAP packet; its data may hold a password's digest, and is not shown."""

    code: int
    identifier: int
    type: int | None = None  # of requests and responses
    data: bytes = field(default=b"", repr=False)


def parse_eap(body: bytes) -> EapPacket:
    """The packet in an EAP payload's body; raises PeerError."""
    if len(body) < 4:
        raise syntax_error(f"EAP payload with a body of {len(body)} bytes; want 4 or more")
    code, identifier, length = struct.unpack_from(">BBH", body)
    if length != len(body):
        raise syntax_error(f"EAP packet says it has {length} bytes; got {len(body)}")
    if code in (EapCode.REQUEST, EapCode.RESPONSE):
        if length < 5:
            raise syntax_error(f"EAP {name_of(EapCode, code)} of {length} bytes; want 5 or more")
        return EapPacket(code=code, identifier=identifier, type=body[4], data=body[5:])
    if code in (EapCode.SUCCESS, EapCode.FAILURE):
        if length != 4:
            raise syntax_error(f"EAP {name_of(EapCode, code)} of {length} bytes; want 4")
        return EapPacket(code=code, identifier=identifier)
    raise syntax_error(f"EAP packet with code {code}; want 1 to 4")


def build_eap(packet: EapPacket) -> bytes:
    """The body of an EAP payload."""
    content = b"" if packet.type is None else bytes([packet.type]) + packet.data
    if len(content) + 4 > 0xFFFF:
        raise LocalError(f"EAP packet of {len(content) + 4} bytes; its header has room for 65535")
    return struct.pack(">BBH", packet.code, packet.identifier, 4 + len(content)) + content
