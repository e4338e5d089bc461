"""Well-formed IKE payloads made at random: what the wire's property tests and its fuzzer begin with."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from control.ike.numbers import (
    CfgAttribute,
    Encr,
    Exchange,
    Group,
    Integ,
    NotifyType,
    PrfId,
    Protocol,
    TransformType,
)
from control.ike.wire import (
    Attribute,
    AuthPayload,
    CertPayload,
    CertRequestPayload,
    CpPayload,
    DeletePayload,
    EapPacket,
    EapPayload,
    Header,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OfferedProposal,
    Payload,
    SaPayload,
    Transform,
    TsPayload,
    UnknownPayload,
    VendorPayload,
    WireSelector,
    build_eap,
)
from control.ike.wire.configuration import address_attribute, subnet_attribute

_SIZES = (0, 1, 4, 8, 16, 20, 32, 64, 100, 256, 1184)


def _bytes(chance: random.Random, least: int = 0) -> bytes:
    return chance.randbytes(max(least, chance.choice(_SIZES)))


def transform(chance: random.Random) -> Transform:
    """A transform, mostly of numbers that exist."""
    kind = chance.choice((*TransformType, 200))
    registry = {TransformType.ENCR: Encr, TransformType.PRF: PrfId, TransformType.INTEG: Integ}.get(
        kind, Group
    )
    number = chance.choice((*registry, 0, 1, 999))
    bits = chance.choice((128, 192, 256)) if chance.random() < 0.3 else None
    return Transform(type=int(kind), id=int(number), key_bits=bits)


def proposals(chance: random.Random) -> tuple[OfferedProposal, ...]:
    """One to four proposals, numbered from 1."""
    return tuple(
        OfferedProposal(
            number=number,
            protocol=chance.choice((1, 1, 3, 3, 2)),
            spi=chance.randbytes(chance.choice((0, 4, 8))),
            transforms=tuple(transform(chance) for _ in range(chance.randrange(9))),
        )
        for number in range(1, chance.randrange(2, 6))
    )


def selector(chance: random.Random) -> WireSelector:
    """A selector of either family."""
    bits = chance.choice((32, 128))
    first, last = sorted((chance.getrandbits(bits), chance.getrandbits(bits)))
    make = IPv4Address if bits == 32 else IPv6Address
    low, high = sorted((chance.randrange(65536), chance.randrange(65536)))
    ports = chance.choice(((0, 65535), (0, 65535), (low, high), (65535, 0)))
    return WireSelector(
        first=make(first), last=make(last), protocol=chance.choice((0, 0, 1, 6, 17, 58)), ports=ports
    )


def attribute(chance: random.Random) -> Attribute:
    """Something asked for or lent."""
    four = IPv4Address(chance.getrandbits(32))
    six = IPv6Address(chance.getrandbits(128))
    return chance.choice(
        (
            address_attribute(CfgAttribute.INTERNAL_IP4_ADDRESS, chance.choice((None, four))),
            address_attribute(CfgAttribute.INTERNAL_IP6_ADDRESS, chance.choice((None, six))),
            address_attribute(CfgAttribute.INTERNAL_IP4_DNS, four),
            address_attribute(CfgAttribute.INTERNAL_IP6_DNS, six),
            subnet_attribute(IPv4Network((int(four) >> 8 << 8, 24))),
            subnet_attribute(IPv6Network((int(six) >> 64 << 64, 64))),
            Attribute(type=chance.randrange(0x8000), value=_bytes(chance)),
        )
    )


def eap(chance: random.Random) -> bytes:
    """An EAP packet."""
    code = chance.randrange(1, 5)
    if code > 2:
        return build_eap(EapPacket(code=code, identifier=chance.randrange(256)))
    kind = chance.choice((1, 2, 3, 4, 13, 21, 26, 254))
    return build_eap(EapPacket(code=code, identifier=chance.randrange(256), type=kind, data=_bytes(chance)))


def notify(chance: random.Random) -> NotifyPayload:
    """A notification with data of any length."""
    kind = chance.choice((*NotifyType, 8192, 40960))
    protocol, size = chance.choice(((0, 0), (0, 0), (3, 4), (1, 0)))
    return NotifyPayload(type=int(kind), protocol=protocol, spi=chance.randbytes(size), data=_bytes(chance))


def payload(chance: random.Random) -> Payload:
    """Any payload but SK and SKF."""
    makers = (
        lambda: SaPayload(proposals=proposals(chance)),
        lambda: KePayload(group=int(chance.choice(tuple(Group))), public=_bytes(chance, 1)),
        lambda: IdPayload(
            initiator=chance.random() < 0.5, id_type=chance.randrange(14), data=_bytes(chance, 1)
        ),
        lambda: CertPayload(encoding=chance.randrange(16), data=_bytes(chance, 1)),
        lambda: CertRequestPayload(encoding=4, authorities=_bytes(chance)),
        lambda: AuthPayload(method=chance.randrange(16), data=_bytes(chance, 1)),
        lambda: NoncePayload(data=chance.randbytes(chance.randrange(16, 257))),
        lambda: notify(chance),
        lambda: DeletePayload(protocol=Protocol.IKE),
        lambda: DeletePayload(
            protocol=Protocol.ESP, spis=tuple(chance.randbytes(4) for _ in range(chance.randrange(5)))
        ),
        lambda: VendorPayload(data=_bytes(chance)),
        lambda: TsPayload(
            initiator=chance.random() < 0.5,
            selectors=tuple(selector(chance) for _ in range(chance.randrange(1, 5))),
        ),
        lambda: CpPayload(
            type=chance.randrange(1, 5),
            attributes=tuple(attribute(chance) for _ in range(chance.randrange(6))),
        ),
        lambda: EapPayload(packet=eap(chance)),
        lambda: UnknownPayload(type=chance.choice((49, 54, 100, 200)), body=_bytes(chance)),
    )
    return chance.choice(makers)()


def payloads(chance: random.Random) -> tuple[Payload, ...]:
    """None to nine payloads."""
    return tuple(payload(chance) for _ in range(chance.randrange(10)))


def header(chance: random.Random) -> Header:
    """A header of version 2."""
    return Header(
        initiator_spi=chance.randbytes(7) + b"\1",
        responder_spi=chance.choice((bytes(8), chance.randbytes(8))),
        exchange=int(chance.choice((*Exchange, 99))),
        initiator=chance.random() < 0.5,
        response=chance.random() < 0.5,
        message_id=chance.choice((0, 1, chance.getrandbits(32))),
    )
