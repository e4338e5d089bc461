"""IKE messages as bytes and back (RFC 7296 section 3): `parse_x` takes bytes, `build_x` gives them, in pairs.

    header.py         the 28 bytes before everything      message.py        chains of payloads; SK and SKF around them
    proposal.py       SA: proposals and transforms        selector.py       TSi and TSr
    payloads.py       KE, ID, CERT, AUTH, nonce, notify   configuration.py  CP: addresses asked for and lent
    eap.py            EAP packets (RFC 3748)

Numbers are big-endian. Whatever a parser dislikes is a PeerError that says what was got, what was wanted and
where; time and memory grow with the length of the input, no matter what its fields claim.
"""

from control.ike.wire.configuration import Attribute
from control.ike.wire.eap import EapPacket, build_eap, parse_eap
from control.ike.wire.header import Header, build_header, parse_header
from control.ike.wire.message import (
    Encrypted,
    Message,
    all_of,
    build_message,
    build_payload_chain,
    build_sealed_prefix,
    find_error,
    find_notify,
    first_of,
    need,
    parse_message,
    parse_payload_chain,
)
from control.ike.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertRequestPayload,
    CpPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
    payload_type,
)
from control.ike.wire.proposal import OfferedProposal, Transform
from control.ike.wire.selector import WireSelector

__all__ = [
    "Attribute",
    "AuthPayload",
    "CertPayload",
    "CertRequestPayload",
    "CpPayload",
    "DeletePayload",
    "EapPacket",
    "EapPayload",
    "Encrypted",
    "Header",
    "IdPayload",
    "KePayload",
    "Message",
    "NoncePayload",
    "NotifyPayload",
    "OfferedProposal",
    "Payload",
    "SaPayload",
    "Transform",
    "TsPayload",
    "UnknownPayload",
    "VendorPayload",
    "WireSelector",
    "all_of",
    "build_eap",
    "build_header",
    "build_message",
    "build_payload_chain",
    "build_sealed_prefix",
    "find_error",
    "find_notify",
    "first_of",
    "need",
    "parse_eap",
    "parse_header",
    "parse_message",
    "parse_payload_chain",
    "payload_type",
]
