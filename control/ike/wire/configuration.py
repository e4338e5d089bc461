"""The configuration payload: what a remote client asks for and is lent (RFC 7296 section 3.15).

CP body    = type, 0 0 0, Attribute...
Attribute  = reserved bit and type (2), length (2), value
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from control.ike.errors import LocalError, syntax_error
from control.ike.numbers import CfgAttribute, name_of
from control.ike.record import record
from dataplane.model import Address, Network

_ADDRESSES = {
    CfgAttribute.INTERNAL_IP4_ADDRESS: 4,
    CfgAttribute.INTERNAL_IP4_NETMASK: 4,
    CfgAttribute.INTERNAL_IP4_DNS: 4,
    CfgAttribute.INTERNAL_IP4_NBNS: 4,
    CfgAttribute.INTERNAL_IP4_DHCP: 4,
    CfgAttribute.INTERNAL_IP6_ADDRESS: 17,  # with a prefix length
    CfgAttribute.INTERNAL_IP6_DNS: 16,
    CfgAttribute.INTERNAL_IP6_DHCP: 16,
    CfgAttribute.P_CSCF_IP4_ADDRESS: 4,
    CfgAttribute.P_CSCF_IP6_ADDRESS: 16,
}


@record(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One thing asked for (an empty value asks for any) or given."""

    type: int
    value: bytes = b""


def parse_attributes(body: bytes) -> tuple[int, tuple[Attribute, ...]]:
    """(configuration type, attributes) of a CP payload's body; raises PeerError."""
    if len(body) < 4:
        raise syntax_error(f"CP payload with a body of {len(body)} bytes; want 4 or more")
    attributes: list[Attribute] = []
    offset = 4
    while offset < len(body):
        left = len(body) - offset
        if left < 4:
            raise syntax_error(
                f"CP payload ends in attribute {len(attributes) + 1}: {left} bytes are left, want 4"
            )
        kind, length = struct.unpack_from(">HH", body, offset)
        offset += 4
        if length > len(body) - offset:
            raise syntax_error(
                f"attribute {len(attributes) + 1} of the CP payload says it has {length} bytes; "
                f"{len(body) - offset} are left"
            )
        attributes.append(Attribute(type=kind & 0x7FFF, value=body[offset : offset + length]))
        offset += length
    return body[0], tuple(attributes)


def build_attributes(kind: int, attributes: Sequence[Attribute]) -> bytes:
    """The body of a CP payload of configuration type `kind`."""
    parts = [struct.pack(">Bxxx", kind)]
    for attribute in attributes:
        if len(attribute.value) > 0xFFFF:
            raise LocalError(f"attribute of {len(attribute.value)} bytes; its header has room for 65535")
        parts.append(struct.pack(">HH", attribute.type & 0x7FFF, len(attribute.value)) + attribute.value)
    return b"".join(parts)


def parse_address(attribute: Attribute) -> Address | None:
    """The address in an attribute that holds one; None where it is empty: any. Raises PeerError."""
    size = _ADDRESSES.get(CfgAttribute(attribute.type)) if attribute.type in _ADDRESSES else None
    if size is None:
        raise LocalError(f"{name_of(CfgAttribute, attribute.type)} holds no address")
    value = attribute.value
    if not value:
        return None
    if size == 4 and len(value) == 4:
        return IPv4Address(value)
    # Some peers leave the prefix length of INTERNAL_IP6_ADDRESS out; it says nothing that is used.
    if size >= 16 and len(value) in (16, size):
        return IPv6Address(value[:16])
    raise syntax_error(f"{name_of(CfgAttribute, attribute.type)} of {len(value)} bytes; want 0 or {size}")


def address_attribute(kind: CfgAttribute, address: Address | None) -> Attribute:
    """An attribute that holds an address, or asks for any."""
    size = _ADDRESSES.get(kind)
    if size is None or (address is not None and (size == 4) != (address.version == 4)):
        raise LocalError(f"{kind.name} cannot hold {address}")
    if address is None:
        return Attribute(type=kind)
    return Attribute(type=kind, value=address.packed + (b"\x80" if size == 17 else b""))


def parse_subnet(attribute: Attribute) -> Network | None:
    """The network of INTERNAL_IP4_SUBNET or INTERNAL_IP6_SUBNET; None where it is empty. Raises PeerError."""
    value, name = attribute.value, name_of(CfgAttribute, attribute.type)
    if not value:
        return None
    if attribute.type == CfgAttribute.INTERNAL_IP4_SUBNET and len(value) == 8:
        mask = int.from_bytes(value[4:], "big")
        inverse = mask ^ 0xFFFFFFFF
        if inverse & inverse + 1:
            raise syntax_error(f"{name} with netmask {IPv4Address(mask)}; want ones followed by zeros")
        return IPv4Network((value[:4], 32 - inverse.bit_length()), strict=False)
    if attribute.type == CfgAttribute.INTERNAL_IP6_SUBNET and len(value) == 17:
        if value[16] > 128:
            raise syntax_error(f"{name} with prefix length {value[16]}; want 0 to 128")
        return IPv6Network((value[:16], value[16]), strict=False)
    raise syntax_error(f"{name} of {len(value)} bytes; want 8 for IPv4, 17 for IPv6")


def subnet_attribute(network: Network) -> Attribute:
    """The attribute that tells a client of a network behind the gateway."""
    if network.version == 4:
        value = network.network_address.packed + network.netmask.packed
        return Attribute(type=CfgAttribute.INTERNAL_IP4_SUBNET, value=value)
    value = network.network_address.packed + bytes([network.prefixlen])
    return Attribute(type=CfgAttribute.INTERNAL_IP6_SUBNET, value=value)
