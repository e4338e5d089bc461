"""The SA payload: proposals, each a list of transforms (RFC 7296 section 3.3).

    SA body    = Proposal...
    Proposal   = last (0, or 2: more), 0, length (2), number, protocol, SPI size, transforms, SPI, Transform...
    Transform  = last (0, or 3: more), 0, length (2), type, 0, id (2), Attribute...
    Attribute  = TV: 0x8000 | type (2), value (2)      TLV: type (2), length (2), value

Of attributes only Key Length is defined. A transform with another is kept and marked, for it must not be chosen,
but does not spoil its proposal (RFC 7296 section 3.3.6). What the offers mean is judged in control.ike.proposal.
"""

from __future__ import annotations

import struct
from functools import cached_property, lru_cache

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import AttributeType
from control.ike.record import record

_MORE_PROPOSALS, _MORE_TRANSFORMS = 2, 3
_SHARED = 512  # bytes of transforms that are remembered
_TV = 0x8000  # attribute format bit: the value is in place of a length


@record(frozen=True, kw_only=True)
class Transform:
    """One algorithm of one type; `id` is of the registry that the type names."""

    type: int
    id: int
    key_bits: int | None = None  # the Key Length attribute
    unknown_attribute: bool = False  # it has an attribute that we do not know: never choose it


@record(frozen=True, kw_only=True)
class OfferedProposal:
    """A proposal as it is on the wire: all transforms of one type are alternatives, all types are needed."""

    number: int
    protocol: int
    spi: bytes = b""  # empty in IKE_SA_INIT, 8 bytes for an IKE SA's rekeying, 4 for AH and ESP
    transforms: tuple[Transform, ...]

    @cached_property
    def by_type(self) -> dict[int, frozenset[Transform]]:
        """The alternatives of each type. Many configured proposals are held against one offer, which may be long."""
        found: dict[int, set[Transform]] = {}
        for transform in self.transforms:
            found.setdefault(transform.type, set()).add(transform)
        return {kind: frozenset(transforms) for kind, transforms in found.items()}


def parse_sa(body: bytes) -> tuple[OfferedProposal, ...]:
    """The proposals of an SA payload's body, at least one; raises PeerError."""
    proposals: list[OfferedProposal] = []
    offset, more = 0, True
    while more:
        where = f"proposal {len(proposals) + 1}"
        if len(body) - offset < 8:
            raise syntax_error(
                f"SA payload ends in {where}: {len(body) - offset} bytes are left, want 8 or more"
            )
        last, _, length, number, protocol, spi_size, count = struct.unpack_from(">BBHBBBB", body, offset)
        if not 8 + spi_size <= length <= len(body) - offset:
            raise syntax_error(
                f"{where} of the SA payload says it has {length} bytes; "
                f"want {8 + spi_size} to {len(body) - offset}"
            )
        more = _more(last, _MORE_PROPOSALS, where)
        # RFC 7296 section 3.3.1: numbers count up by one from 1; a reply has one, with the number it accepts.
        if proposals and number != proposals[-1].number + 1:
            raise syntax_error(
                f"{where} of the SA payload has number {number}; want {proposals[-1].number + 1}"
            )
        proposals.append(
            OfferedProposal(
                number=number,
                protocol=protocol,
                spi=body[offset + 8 : offset + 8 + spi_size],
                transforms=_transforms(body[offset + 8 + spi_size : offset + length], count, where),
            )
        )
        offset += length
    if offset != len(body):
        raise syntax_error(
            f"{len(body) - offset} bytes follow the last proposal of the SA payload; want none"
        )
    return tuple(proposals)


def _transforms(body: bytes, count: int, where: str) -> tuple[Transform, ...]:
    """Peers offer the same again and again; what is long is not remembered."""
    return (_shared_transforms if len(body) <= _SHARED else _parse_transforms)(body, count, where)


def _parse_transforms(body: bytes, count: int, where: str) -> tuple[Transform, ...]:
    transforms: list[Transform] = []
    offset, more = 0, count > 0
    while more:
        here = f"transform {len(transforms) + 1} of {where}"
        if len(body) - offset < 8:
            raise syntax_error(f"{where} ends in {here}: {len(body) - offset} bytes are left, want 8 or more")
        last, _, length, kind, _, number = struct.unpack_from(">BBHBBH", body, offset)
        if not 8 <= length <= len(body) - offset:
            raise syntax_error(f"{here} says it has {length} bytes; want 8 to {len(body) - offset}")
        more = _more(last, _MORE_TRANSFORMS, here)
        key_bits, unknown = _parse_attributes(body[offset + 8 : offset + length], here)
        transforms.append(Transform(type=kind, id=number, key_bits=key_bits, unknown_attribute=unknown))
        offset += length
    if offset != len(body) or len(transforms) != count:
        raise syntax_error(
            f"{where} says it has {count} transforms; got {len(transforms)} and {len(body) - offset} bytes more"
        )
    return tuple(transforms)


def _more(last: int, wanted: int, where: str) -> bool:
    """Whether another substructure follows."""
    if last not in (0, wanted):
        raise syntax_error(f"{where} begins with {last}; want 0 (the last) or {wanted} (more follow)")
    return last != 0


_shared_transforms = lru_cache(256)(_parse_transforms)


def _parse_attributes(body: bytes, where: str) -> tuple[int | None, bool]:
    """(key length in bits, whether there is an attribute that we do not know)."""
    key_bits: int | None = None
    unknown = False
    offset = 0
    while offset < len(body):
        if len(body) - offset < 4:
            raise syntax_error(
                f"{where} ends in an attribute: {len(body) - offset} bytes are left, want 4 or more"
            )
        kind, value = struct.unpack_from(">HH", body, offset)
        offset += 4
        if kind == _TV | AttributeType.KEY_LENGTH:
            unknown = unknown or key_bits is not None
            key_bits = value
        else:
            unknown = True
            if not kind & _TV:
                if value > len(body) - offset:
                    raise syntax_error(
                        f"attribute {kind} in {where} says it has {value} bytes; {len(body) - offset} are left"
                    )
                offset += value
    return key_bits, unknown


def build_sa(proposals: tuple[OfferedProposal, ...]) -> bytes:
    """The body of an SA payload; raises LocalError for what does not fit its fields."""
    if not proposals:
        raise LocalError("an SA payload without proposal")
    parts = []
    for index, proposal in enumerate(proposals):
        transforms = b"".join(
            _build_transform(transform, last=position == len(proposal.transforms) - 1)
            for position, transform in enumerate(proposal.transforms)
        )
        length = 8 + len(proposal.spi) + len(transforms)
        if len(proposal.transforms) > 255 or length > 0xFFFF:
            raise LocalError(f"a proposal of {len(proposal.transforms)} transforms and {length} bytes")
        parts.append(
            struct.pack(
                ">BBHBBBB",
                0 if index == len(proposals) - 1 else _MORE_PROPOSALS,
                0,
                length,
                proposal.number,
                proposal.protocol,
                len(proposal.spi),
                len(proposal.transforms),
            )
            + proposal.spi
            + transforms
        )
    return b"".join(parts)


def _build_transform(transform: Transform, *, last: bool) -> bytes:
    attribute = b""
    if transform.key_bits is not None:
        attribute = struct.pack(">HH", _TV | AttributeType.KEY_LENGTH, transform.key_bits)
    more = 0 if last else _MORE_TRANSFORMS
    return struct.pack(">BBHBBH", more, 0, 8 + len(attribute), transform.type, 0, transform.id) + attribute
