"""What lies inside SA, TS, CP and EAP payloads: each refusal with its words, and bytes written by hand."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from control.ike.errors import LocalError, PeerError
from control.ike.numbers import CfgAttribute, Encr, Group, NotifyType, Protocol, TransformType
from control.ike.wire import (
    Attribute,
    EapPacket,
    OfferedProposal,
    Transform,
    WireSelector,
    build_eap,
    parse_eap,
)
from control.ike.wire.configuration import (
    address_attribute,
    build_attributes,
    parse_address,
    parse_attributes,
    parse_subnet,
    subnet_attribute,
)
from control.ike.wire.proposal import build_sa, parse_sa
from control.ike.wire.selector import build_selectors, parse_selectors

# aes256gcm16-prfsha256-x25519, and the same for ESP with an SPI.
IKE_SA = bytes.fromhex(
    "02 00 0024 01 01 00 03  03 00 000c 01 00 0014 800e0100  03 00 0008 02 00 0005  00 00 0008 04 00 001f"
    "00 00 0020 02 03 04 02 c0ffee01  03 00 000c 01 00 0014 800e0100  00 00 0008 05 00 0000"
)


def test_proposals_by_hand() -> None:
    ike, esp = parse_sa(IKE_SA)
    aes = Transform(type=TransformType.ENCR, id=Encr.AES_GCM_16, key_bits=256)
    assert ike == OfferedProposal(
        number=1,
        protocol=Protocol.IKE,
        transforms=(
            aes,
            Transform(type=TransformType.PRF, id=5),
            Transform(type=TransformType.KE, id=Group.CURVE25519),
        ),
    )
    assert (esp.number, esp.protocol, esp.spi) == (2, Protocol.ESP, bytes.fromhex("c0ffee01"))
    assert esp.transforms == (aes, Transform(type=TransformType.ESN, id=0))
    assert build_sa((ike, esp)) == IKE_SA


def test_unknown_attributes_spoil_their_transform_only() -> None:
    """RFC 7296 section 3.3.6."""
    body = bytes.fromhex(
        "00 00 0030 01 03 00 03  03 00 0010 01 00 000c 800e0080 80630001  03 00 0010 01 00 000c 800e0080 00630000"
        "00 00 0008 05 00 0000"
    )
    short, long, last = parse_sa(body)[0].transforms
    assert short.unknown_attribute and long.unknown_attribute and not last.unknown_attribute
    twice = bytes.fromhex("00 00 0018 01 03 00 01  00 00 0010 01 00 000c 800e0080 800e0100")
    assert parse_sa(twice)[0].transforms[0].unknown_attribute


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "SA payload ends in proposal 1: 0 bytes are left, want 8 or more"),
        ("00 00 0007 01 01 00 00", "proposal 1 of the SA payload says it has 7 bytes; want 8 to 8"),
        ("00 00 0008 01 03 04 00", "says it has 8 bytes; want 12 to 8"),
        ("00 00 0009 01 01 00 00", "says it has 9 bytes; want 8 to 8"),
        ("01 00 0008 01 01 00 00", "proposal 1 begins with 1; want 0 (the last) or 2 (more follow)"),
        ("02 00 0008 01 01 00 00", "SA payload ends in proposal 2: 0 bytes are left"),
        (
            "02 00 0008 01 01 00 00 00 00 0008 03 01 00 00",
            "proposal 2 of the SA payload has number 3; want 2",
        ),
        ("00 00 0008 01 01 00 00 ff", "1 bytes follow the last proposal"),
        ("00 00 000c 01 01 00 01 00000008", "ends in transform 1 of proposal 1: 4 bytes are left"),
        ("00 00 0010 01 01 00 01 00 00 0007 01 00 000c", "transform 1 of proposal 1 says it has 7 bytes"),
        (
            "00 00 0010 01 01 00 01 02 00 0008 01 00 000c",
            "begins with 2; want 0 (the last) or 3 (more follow)",
        ),
        ("00 00 0010 01 01 00 02 00 00 0008 01 00 000c", "says it has 2 transforms; got 1 and 0 bytes more"),
        ("00 00 0010 01 01 00 00 00 00 0008 01 00 000c", "says it has 0 transforms; got 0 and 8 bytes more"),
        ("00 00 0012 01 01 00 01 00 00 000a 01 00 000c 800e", "ends in an attribute: 2 bytes are left"),
        ("00 00 0014 01 01 00 01 00 00 000c 01 00 000c 000e0001", "says it has 1 bytes; 0 are left"),
    ],
)
def test_bad_proposals(body: str, text: str) -> None:
    with pytest.raises(PeerError) as caught:
        parse_sa(bytes.fromhex(body))
    assert caught.value.notify == NotifyType.INVALID_SYNTAX and text in caught.value.text


def test_no_empty_sa_is_built() -> None:
    with pytest.raises(LocalError):
        build_sa(())


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("01000000 07 00 0010 0000 ffff 0a010000 0a01ffff", "10.1.0.0/16"),
        ("01000000 07 11 0010 01f4 01f4 0a010001 0a010001", "10.1.0.1[udp/500]"),
        ("01000000 07 06 0010 03e8 07d0 0a010001 0a010005", "10.1.0.1..10.1.0.5[tcp/1000-2000]"),
        ("01000000 07 01 0010 0800 0800 00000000 ffffffff", "0.0.0.0/0[icmp/8(0)]"),
        ("01000000 07 32 0010 ffff 0000 0a010001 0a010001", "10.1.0.1[50/opaque]"),
        (
            "01000000 08 3a 0028 0000 ffff 20010db8000000000000000000000000 20010db80000ffffffffffffffffffff",
            "2001:db8::/48[ipv6-icmp]",
        ),
    ],
)
def test_selectors_by_hand(body: str, shown: str) -> None:
    data = bytes.fromhex(body)
    selectors, unknown = parse_selectors(data)
    assert ([str(each) for each in selectors], unknown) == ([shown], ())
    assert build_selectors(selectors) == data


def test_unknown_selectors_are_told_apart() -> None:
    data = bytes.fromhex("02000000 0a 00 000c 0000 0000 6c61626c 07 00 0010 0000 ffff 0a010001 0a010001")
    selectors, unknown = parse_selectors(data)
    assert unknown == (10,)
    assert selectors == (WireSelector(first=IPv4Address("10.1.0.1"), last=IPv4Address("10.1.0.1")),)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("0100", "TS payload with a body of 2 bytes; want 4 or more"),
        ("00000000", "TS payload without selector; want one or more"),
        ("01000000 07", "ends in selector 1 of 1: 1 bytes are left"),
        ("01000000 07 00 0007 0000 ffff", "selector 1 of the TS payload says it has 7 bytes; want 8 to 8"),
        ("01000000 07 00 000c 0000 ffff 0a010000", "has 4 bytes of addresses; want 8 for IPv4"),
        ("01000000 08 00 0010 0000 ffff 0a010000 0a01ffff", "has 8 bytes of addresses; want 32 for IPv6"),
        (
            "01000000 07 00 0010 0000 ffff 0a010001 0a010000",
            "goes from 10.1.0.1 down to 10.1.0.0; want it upward",
        ),
        ("01000000 07 11 0010 0002 0001 0a010000 0a01ffff", "has ports 2 to 1; want them upward, or OPAQUE"),
        ("01000000 07 00 0010 0000 ffff 0a010000 0a01ffff 00", "1 bytes follow the last selector"),
    ],
)
def test_bad_selectors(body: str, text: str) -> None:
    with pytest.raises(PeerError) as caught:
        parse_selectors(bytes.fromhex(body))
    assert caught.value.notify == NotifyType.INVALID_SYNTAX and text in caught.value.text


def test_configuration_by_hand() -> None:
    data = bytes.fromhex("02000000 0001 0004 0a090001 0003 0000 000d 0008 0a010000 ffff0000 8008 0000")
    kind, attributes = parse_attributes(data)
    assert kind == 2
    assert [parse_address(each) for each in attributes[:2]] == [ip_address("10.9.0.1"), None]
    assert parse_subnet(attributes[2]) == ip_network("10.1.0.0/16")
    assert attributes[3].type == CfgAttribute.INTERNAL_IP6_ADDRESS  # the reserved bit is ignored
    assert build_attributes(kind, attributes[:3]) == data[:-4]


def test_configured_addresses() -> None:
    six = address_attribute(CfgAttribute.INTERNAL_IP6_ADDRESS, IPv6Address("2001:db8::1"))
    assert len(six.value) == 17 and parse_address(six) == ip_address("2001:db8::1")
    assert parse_address(Attribute(type=six.type, value=six.value[:16])) == ip_address("2001:db8::1")
    network = ip_network("2001:db8:1::/48")
    assert parse_subnet(subnet_attribute(network)) == network
    assert parse_subnet(Attribute(type=CfgAttribute.INTERNAL_IP4_SUBNET)) is None
    with pytest.raises(LocalError, match="INTERNAL_IP4_DNS cannot hold 2001:db8::1"):
        address_attribute(CfgAttribute.INTERNAL_IP4_DNS, IPv6Address("2001:db8::1"))


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (CfgAttribute.INTERNAL_IP4_ADDRESS, 5, "INTERNAL_IP4_ADDRESS of 5 bytes; want 0 or 4"),
        (CfgAttribute.INTERNAL_IP6_ADDRESS, 4, "INTERNAL_IP6_ADDRESS of 4 bytes; want 0 or 17"),
        (CfgAttribute.INTERNAL_IP6_DNS, 17, None),
    ],
)
def test_bad_addresses(kind: CfgAttribute, value: int, text: str | None) -> None:
    with pytest.raises(PeerError, match=text or "INTERNAL_IP6_DNS of 17 bytes; want 0 or 16"):
        parse_address(Attribute(type=kind, value=bytes(value)))


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        (Attribute(type=13, value=bytes.fromhex("0a010000ff00ff00")), "netmask 255.0.255.0; want ones"),
        (Attribute(type=13, value=bytes(7)), "INTERNAL_IP4_SUBNET of 7 bytes; want 8 for IPv4, 17 for IPv6"),
        (Attribute(type=15, value=bytes(16) + b"\x81"), "prefix length 129; want 0 to 128"),
    ],
)
def test_bad_subnets(attribute: Attribute, text: str) -> None:
    with pytest.raises(PeerError, match=text):
        parse_subnet(attribute)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("0100", "CP payload with a body of 2 bytes; want 4 or more"),
        ("01000000 0001", "CP payload ends in attribute 1: 2 bytes are left, want 4"),
        ("01000000 0001 0005 00000000", "attribute 1 of the CP payload says it has 5 bytes; 4 are left"),
    ],
)
def test_bad_configuration(body: str, text: str) -> None:
    with pytest.raises(PeerError, match=text):
        parse_attributes(bytes.fromhex(body))


def test_eap() -> None:
    data = bytes.fromhex("01 07 0008 01 616263")
    assert parse_eap(data) == EapPacket(code=1, identifier=7, type=1, data=b"abc")
    assert build_eap(parse_eap(data)) == data
    assert parse_eap(b"\3\7\0\4") == EapPacket(code=3, identifier=7)
    assert "abc" not in repr(parse_eap(data))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("01 07 00", "EAP payload with a body of 3 bytes; want 4 or more"),
        ("01 07 0006 01", "EAP packet says it has 6 bytes; got 5"),
        ("01 07 0004", "EAP REQUEST of 4 bytes; want 5 or more"),
        ("03 07 0005 00", "EAP SUCCESS of 5 bytes; want 4"),
        ("09 07 0004", "EAP packet with code 9; want 1 to 4"),
    ],
)
def test_bad_eap(body: str, text: str) -> None:
    with pytest.raises(PeerError, match=text):
        parse_eap(bytes.fromhex(body))
