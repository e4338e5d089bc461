"""Payloads: a frozen dataclass each, with the parser and the builder of its body (RFC 7296 sections 3.3 to 3.16).

`parse_payload` and `build_payload` find the right pair by type. The SK and SKF payloads, which hold all others, are
in control.ike.wire.message. A payload's critical bit is not kept: for the types here it says nothing (section 2.5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import field
from typing import Any

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import FIRST_STATUS, NotifyType, PayloadType, Protocol, name_of
from control.ike.record import record
from control.ike.wire.configuration import Attribute, build_attributes, parse_attributes
from control.ike.wire.proposal import OfferedProposal, build_sa, parse_sa
from control.ike.wire.selector import WireSelector, build_selectors, parse_selectors

NONCE_LENGTHS = range(16, 257)  # RFC 7296 section 3.9


@record(frozen=True, kw_only=True, slots=True)
class SaPayload:
    """Security Association: proposals, or the one accepted."""

    proposals: tuple[OfferedProposal, ...]


@record(frozen=True, kw_only=True, slots=True)
class KePayload:
    """Key Exchange: one side's public value."""

    group: int
    public: bytes


@record(frozen=True, kw_only=True, slots=True)
class IdPayload:
    """Identification of one side; control.ike.identity says what the data means."""

    initiator: bool  # IDi, else IDr
    id_type: int
    data: bytes
    reserved: bytes = bytes(3)  # enters the AUTH computation as it came (RFC 7296 section 2.15)

    @property
    def body(self) -> bytes:
        """The bytes that enter the AUTH computation: type, reserved, data."""
        return bytes([self.id_type]) + self.reserved + self.data


@record(frozen=True, kw_only=True, slots=True)
class CertPayload:
    """One certificate, CRL or the like."""

    encoding: int
    data: bytes


@record(frozen=True, kw_only=True, slots=True)
class CertRequestPayload:
    """Certificate Request: 20-byte SHA-1 hashes of trusted CAs' public keys, for X.509."""

    encoding: int
    authorities: bytes

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The hashes apart; a piece at the end that is no whole hash is left out."""
        return tuple(self.authorities[at : at + 20] for at in range(0, len(self.authorities) // 20 * 20, 20))


@record(frozen=True, kw_only=True, slots=True)
class AuthPayload:
    """Authentication: a signature, or a keyed digest that must not be shown."""

    method: int
    data: bytes = field(repr=False)


@record(frozen=True, kw_only=True, slots=True)
class NoncePayload:
    """16 to 256 random bytes."""

    data: bytes


@record(frozen=True, kw_only=True, slots=True)
class NotifyPayload:
    """An error (type below 16384) or a status."""

    type: int
    protocol: int = Protocol.NONE
    spi: bytes = b""
    data: bytes = b""

    @property
    def is_error(self) -> bool:
        """True for types that say that something failed."""
        return self.type < FIRST_STATUS

    @property
    def name(self) -> str:
        """The registered name, or "NotifyType 12345"."""
        return name_of(NotifyType, self.type)


@record(frozen=True, kw_only=True, slots=True)
class DeletePayload:
    """SAs that the sender has closed: its own inbound SPIs of AH or ESP, or this IKE SA and no SPI."""

    protocol: int
    spis: tuple[bytes, ...] = ()


@record(frozen=True, kw_only=True, slots=True)
class VendorPayload:
    """A vendor's mark."""

    data: bytes


@record(frozen=True, kw_only=True, slots=True)
class TsPayload:
    """Traffic Selectors of one side."""

    initiator: bool  # TSi, else TSr
    selectors: tuple[WireSelector, ...]
    unknown: tuple[int, ...] = ()  # types of selectors that we do not know; never sent


@record(frozen=True, kw_only=True, slots=True)
class CpPayload:
    """Configuration: asked for, or lent."""

    type: int
    attributes: tuple[Attribute, ...]


@record(frozen=True, kw_only=True, slots=True)
class EapPayload:
    """An EAP packet whole; control.ike.wire.eap reads it."""

    packet: bytes = field(repr=False)


@record(frozen=True, kw_only=True, slots=True)
class UnknownPayload:
    """A payload that we do not know and may ignore, for it is not critical."""

    type: int
    body: bytes = field(repr=False)


Payload = (
    SaPayload
    | KePayload
    | IdPayload
    | CertPayload
    | CertRequestPayload
    | AuthPayload
    | NoncePayload
    | NotifyPayload
    | DeletePayload
    | VendorPayload
    | TsPayload
    | CpPayload
    | EapPayload
    | UnknownPayload
)


def parse_payload(kind: int, body: bytes) -> Payload:
    """The payload of a body; raises PeerError. A type that is not known gives UnknownPayload."""
    parser = _PARSERS.get(kind)
    return UnknownPayload(type=kind, body=body) if parser is None else parser(body)


def build_payload(payload: Payload) -> bytes:
    """The body of a payload; `payload_type` says of which type it is."""
    return _BUILDERS[type(payload)](payload)


def payload_type(payload: Payload) -> int:
    """The number of a payload's type."""
    found = _TYPES.get(type(payload))
    if found is not None:
        return found
    if isinstance(payload, IdPayload):
        return PayloadType.IDi if payload.initiator else PayloadType.IDr
    if isinstance(payload, TsPayload):
        return PayloadType.TSi if payload.initiator else PayloadType.TSr
    assert isinstance(payload, UnknownPayload)
    return payload.type


def _need(body: bytes, length: int, name: str) -> None:
    if len(body) < length:
        raise syntax_error(f"{name} payload with a body of {len(body)} bytes; want {length} or more")


def _parse_ke(body: bytes) -> KePayload:
    _need(body, 5, "KE")
    return KePayload(group=int.from_bytes(body[:2], "big"), public=body[4:])


def _parse_id(body: bytes, initiator: bool) -> IdPayload:
    _need(body, 4, "IDi" if initiator else "IDr")
    return IdPayload(initiator=initiator, id_type=body[0], reserved=body[1:4], data=body[4:])


def _parse_cert(body: bytes) -> CertPayload:
    _need(body, 2, "CERT")
    return CertPayload(encoding=body[0], data=body[1:])


def _parse_cert_request(body: bytes) -> CertRequestPayload:
    _need(body, 1, "CERTREQ")
    return CertRequestPayload(encoding=body[0], authorities=body[1:])


def _parse_auth(body: bytes) -> AuthPayload:
    _need(body, 5, "AUTH")
    return AuthPayload(method=body[0], data=body[4:])


def _parse_nonce(body: bytes) -> NoncePayload:
    if len(body) not in NONCE_LENGTHS:
        raise syntax_error(f"nonce of {len(body)} bytes; want 16 to 256")
    return NoncePayload(data=body)


def _parse_notify(body: bytes) -> NotifyPayload:
    _need(body, 4, "notify")
    protocol, size, kind = struct.unpack_from(">BBH", body)
    if size:
        _need(body, 4 + size, f"notify {name_of(NotifyType, kind)} (SPI of {size} bytes)")
    return NotifyPayload(type=kind, protocol=protocol, spi=body[4 : 4 + size], data=body[4 + size :])


def _parse_delete(body: bytes) -> DeletePayload:
    _need(body, 4, "delete")
    protocol, size, count = struct.unpack_from(">BBH", body)
    # RFC 7296 section 3.11: no SPI for the IKE SA, 4 bytes for AH and ESP.
    wanted = {Protocol.IKE: 0, Protocol.AH: 4, Protocol.ESP: 4}.get(protocol)
    if wanted is None:
        raise syntax_error(f"delete payload for protocol {protocol}; want 1 (IKE), 2 (AH) or 3 (ESP)")
    if size != wanted and count:
        raise syntax_error(
            f"delete payload with SPIs of {size} bytes; want {wanted} for {Protocol(protocol).name}"
        )
    if (wanted == 0 and count) or len(body) != 4 + wanted * count:
        raise syntax_error(
            f"delete payload says it has {count} SPIs of {wanted} bytes; got {len(body) - 4} bytes of them"
        )
    return DeletePayload(protocol=protocol, spis=tuple(body[4 + 4 * at : 8 + 4 * at] for at in range(count)))


def _parse_ts(body: bytes, initiator: bool) -> TsPayload:
    selectors, unknown = parse_selectors(body)
    return TsPayload(initiator=initiator, selectors=selectors, unknown=unknown)


def _parse_cp(body: bytes) -> CpPayload:
    kind, attributes = parse_attributes(body)
    return CpPayload(type=kind, attributes=attributes)


def _parse_eap(body: bytes) -> EapPayload:
    _need(body, 4, "EAP")
    return EapPayload(packet=body)


def _build_delete(payload: DeletePayload) -> bytes:
    size = 0 if payload.protocol == Protocol.IKE else 4
    if any(len(spi) != size for spi in payload.spis) or len(payload.spis) > 0xFFFF:
        raise LocalError(
            f"delete of {len(payload.spis)} SPIs of protocol {payload.protocol}; want {size} bytes each"
        )
    return struct.pack(">BBH", payload.protocol, size, len(payload.spis)) + b"".join(payload.spis)


def _build_notify(payload: NotifyPayload) -> bytes:
    return struct.pack(">BBH", payload.protocol, len(payload.spi), payload.type) + payload.spi + payload.data


def _build_nonce(payload: NoncePayload) -> bytes:
    if len(payload.data) not in NONCE_LENGTHS:
        raise LocalError(f"nonce of {len(payload.data)} bytes; want 16 to 256")
    return payload.data


_PARSERS: dict[int, Callable[[bytes], Payload]] = {
    PayloadType.SA: lambda body: SaPayload(proposals=parse_sa(body)),
    PayloadType.KE: _parse_ke,
    PayloadType.IDi: lambda body: _parse_id(body, True),
    PayloadType.IDr: lambda body: _parse_id(body, False),
    PayloadType.CERT: _parse_cert,
    PayloadType.CERTREQ: _parse_cert_request,
    PayloadType.AUTH: _parse_auth,
    PayloadType.NONCE: _parse_nonce,
    PayloadType.NOTIFY: _parse_notify,
    PayloadType.DELETE: _parse_delete,
    PayloadType.VENDOR: lambda body: VendorPayload(data=body),
    PayloadType.TSi: lambda body: _parse_ts(body, True),
    PayloadType.TSr: lambda body: _parse_ts(body, False),
    PayloadType.CP: _parse_cp,
    PayloadType.EAP: _parse_eap,
}
KNOWN_TYPES = frozenset(_PARSERS)

_TYPES: dict[type, int] = {
    SaPayload: PayloadType.SA,
    KePayload: PayloadType.KE,
    CertPayload: PayloadType.CERT,
    CertRequestPayload: PayloadType.CERTREQ,
    AuthPayload: PayloadType.AUTH,
    NoncePayload: PayloadType.NONCE,
    NotifyPayload: PayloadType.NOTIFY,
    DeletePayload: PayloadType.DELETE,
    VendorPayload: PayloadType.VENDOR,
    CpPayload: PayloadType.CP,
    EapPayload: PayloadType.EAP,
}
_BUILDERS: dict[type, Callable[[Any], bytes]] = {
    SaPayload: lambda payload: build_sa(payload.proposals),
    KePayload: lambda payload: struct.pack(">Hxx", payload.group) + payload.public,
    IdPayload: lambda payload: payload.body,
    CertPayload: lambda payload: bytes([payload.encoding]) + payload.data,
    CertRequestPayload: lambda payload: bytes([payload.encoding]) + payload.authorities,
    AuthPayload: lambda payload: struct.pack(">Bxxx", payload.method) + payload.data,
    NoncePayload: _build_nonce,
    NotifyPayload: _build_notify,
    DeletePayload: _build_delete,
    VendorPayload: lambda payload: payload.data,
    TsPayload: lambda payload: build_selectors(payload.selectors),
    CpPayload: lambda payload: build_attributes(payload.type, payload.attributes),
    EapPayload: lambda payload: payload.packet,
    UnknownPayload: lambda payload: payload.body,
}
