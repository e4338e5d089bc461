"""Identities: strongSwan's rules for their text, the payload's bytes, and patterns."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from control.ike.dn import decode_name, encode_name, format_name, parse_name
from control.ike.errors import PeerError
from control.ike.identity import ANY_MATCH, PERFECT_MATCH, Identity, IdKind
from control.ike.numbers import IdType

KINDS = {
    "%any": (IdKind.ANY, b""),
    "": (IdKind.ANY, b""),
    "0.0.0.0": (IdKind.ANY, b""),
    "10.0.0.1": (IdKind.IPV4_ADDR, bytes((10, 0, 0, 1))),
    "2001:db8::1": (IdKind.IPV6_ADDR, ip_address("2001:db8::1").packed),
    "10.0.0.0/8": (IdKind.IPV4_ADDR_SUBNET, bytes((10, 0, 0, 0, 255, 0, 0, 0))),
    "10.0.0.1-10.0.0.9": (IdKind.IPV4_ADDR_RANGE, bytes((10, 0, 0, 1, 10, 0, 0, 9))),
    "gw.example": (IdKind.FQDN, b"gw.example"),
    "branch-7": (IdKind.FQDN, b"branch-7"),
    "cafe": (IdKind.FQDN, b"cafe"),
    "@10.0.0.1": (IdKind.FQDN, b"10.0.0.1"),
    "fqdn:10.0.0.1": (IdKind.FQDN, b"10.0.0.1"),
    "jo@example.org": (IdKind.RFC822_ADDR, b"jo@example.org"),
    "@@jo@host": (IdKind.RFC822_ADDR, b"jo@host"),
    "@#0a:1B": (IdKind.KEY_ID, b"\x0a\x1b"),
    "keyid:office": (IdKind.KEY_ID, b"office"),
    "keyid:#6f6b": (IdKind.KEY_ID, b"ok"),
    "*.example.org": (IdKind.FQDN, b"*.example.org"),
}


@pytest.mark.parametrize("text", KINDS)
def test_text_names_kind_and_bytes(text: str) -> None:
    identity = Identity.parse(text)
    assert (identity.kind, identity.value) == KINDS[text]
    assert Identity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CN=gw, nonsense", "which reads as a distinguished name, but 'nonsense' is no TYPE=value"),
        (
            "XY=gw",
            "which reads as a distinguished name, but 'XY' is no attribute type (C, ST, L, O, OU, CN, E, ...)",
        ),
        ('CN="gw', "which reads as a distinguished name, but a double quote is not closed"),
        ("@#0a1", "whose key id of 3 characters is no pairs of hex digits"),
        ("@", "which is empty behind its mark; want the identity there"),
        ("300.0.0.1", "want an address, a network such as 10.0.0.0/8, or @ before a host name"),
        ("10.0.0.9-10.0.0.1", "want an address, a network such as 10.0.0.0/8, or @ before a host name"),
        ("10.0.0.1/8", "want an address, a network such as 10.0.0.0/8, or @ before a host name"),
        ("my gateway", "which has a blank; want a host name, or keyid: before any other text"),
        ("jo@", "want a mail address such as jo@example.org"),
    ],
)
def test_text_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Identity.parse(text)
    assert str(caught.value) == message


def test_name_is_the_der_that_a_certificate_has() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Exämple, Inc."),
            x509.NameAttribute(NameOID.COMMON_NAME, "gw"),
        ]
    )
    text = r"C=DE, O=Exämple\, Inc., CN=gw"
    identity = Identity.parse(text)
    assert identity == Identity.from_name(name.public_bytes())
    assert str(identity) == text
    assert Identity.parse("/C=DE/O=Exämple, Inc./CN=gw") == identity
    # The string type and the case of a value make no other name (RFC 5280 section 7.1).
    assert Identity.parse(r"c=de, o=EXÄMPLE\,  INC., cn=GW") == identity
    assert Identity.parse(r"C=DE, CN=gw, O=Exämple\, Inc.") != identity


def test_equality_follows_meaning() -> None:
    assert Identity.parse("GW.example") == Identity.parse("gw.EXAMPLE")
    assert hash(Identity.parse("GW.example")) == hash(Identity.parse("gw.EXAMPLE"))
    assert Identity.parse("10.0.0.1") != Identity.parse("@10.0.0.1")
    assert Identity.parse("keyid:A") != Identity.parse("keyid:a")


QUALITIES = [
    ("gw.example", "%any", ANY_MATCH),
    ("gw.example", "GW.example", PERFECT_MATCH),
    ("gw.example", "*.example", 508),
    ("gw.example", "*", ANY_MATCH),
    ("example", "*.example", 0),
    ("x.gw.example", "gw.example", 0),
    ("jo@example.org", "*@example.org", 512),
    ("jo@example.com", "*@example.org", 0),
    ("jo@example.org", "@*.org", 0),
    ("10.1.2.3", "10.0.0.0/8", 508),
    ("11.1.2.3", "10.0.0.0/8", 0),
    ("2001:db8::5", "2001:db8::/32", 532),
    ("2001:db8::5", "10.0.0.0/8", 0),
    ("10.0.0.5", "10.0.0.1-10.0.0.9", 500),
    ("C=DE, O=Ex, CN=gw", "C=DE, O=Ex, CN=*", 998),
    ("C=DE, O=Ex, CN=gw", "C=DE, O=*, CN=*", 997),
    ("C=DE, O=Ex, CN=gw", "C=DE, CN=*", 0),
    ("C=DE, O=Ex, CN=gw", "C=DE, O=Other, CN=*", 0),
    ("@#0102", "@#0103", 0),
]


@pytest.mark.parametrize(("identity", "pattern", "quality"), QUALITIES)
def test_patterns(identity: str, pattern: str, quality: int) -> None:
    assert Identity.parse(identity).match_quality(Identity.parse(pattern)) == quality
    assert Identity.parse(identity).matches(Identity.parse(pattern)) is (quality > 0)


def test_a_pattern_has_no_bytes_on_the_wire() -> None:
    for text in ("%any", "10.0.0.0/8", "10.0.0.1-10.0.0.9"):
        with pytest.raises(ValueError, match="is a pattern; want one identity"):
            Identity.parse(text).to_wire()


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (1, bytes(3), "an IPv4 address of 3 bytes, want 4"),
        (5, bytes(4), "an IPv6 address of 4 bytes, want 16"),
        (2, b"", "an empty identity of type 2"),
        (4, bytes(8), "ID type 4, which is no identity in IKEv2"),
        (9, b"\x30\x05\x31", "ID payload: a DER element of 5 bytes with only 1 there"),
        (9, b"\x30\x02\x31\x00", "ID payload: a distinguished name has an empty SET"),
        (9, b"\x31\x00", "ID payload: a distinguished name begins with tag 0x31 and has 0 bytes behind it"),
    ],
)
def test_bytes_refused(kind: int, data: bytes, message: str) -> None:
    with pytest.raises(PeerError) as caught:
        Identity.from_wire(kind, data)
    assert str(caught.value) == message


@given(kind=st.integers(0, 255), data=st.binary(max_size=40))
def test_any_bytes_are_an_identity_or_refused(kind: int, data: bytes) -> None:
    try:
        identity = Identity.from_wire(kind, data)
    except PeerError:
        return
    assert identity.to_wire() == (kind, data)
    text = str(identity)
    assert text.isprintable()
    assert identity.matches(identity) and identity.kind_name


@given(st.binary(max_size=60))
def test_any_bytes_are_a_name_or_refused(data: bytes) -> None:
    try:
        format_name(decode_name(data))
    except ValueError:
        pass


@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20), min_size=1))
def test_names_survive_text(values: list[str]) -> None:
    der = encode_name([("2.5.4.3", value) for value in values])
    assert parse_name(format_name(decode_name(der))) == der


def test_kinds_are_the_registry_s() -> None:
    assert {kind.name: int(kind) for kind in IdType}.items() <= {
        kind.name: int(kind) for kind in IdKind
    }.items()


def test_a_name_of_a_thousand_attributes_is_none() -> None:
    """A stranger's ID payload or certificate may have one: it is not taken apart, and not shown in full."""
    der = encode_name([("2.5.4.3", "x")] * 1000)
    with pytest.raises(PeerError, match=f"a distinguished name has {len(der)} bytes, at most 4096 are taken"):
        Identity.from_wire(IdKind.DER_ASN1_DN, der)
    identity = Identity.from_name(der)  # of a certificate
    assert str(identity).startswith("asn1dn:#30") and len(str(identity)) < 400
    assert identity == Identity.from_name(der) and not identity.matches(Identity.parse("CN=x"))
    assert decode_name(encode_name([("2.5.4.3", "x")] * 300))


def test_a_hostile_name_does_not_disturb_the_log() -> None:
    assert str(Identity.from_wire(2, b"gw\n\x1b[2J")) == r"@gw\n\x1b[2J"
    assert str(Identity.from_wire(2, b"10.0.0.1")) == "@10.0.0.1"
    assert len(str(Identity.from_wire(2, b"a" * 5000))) < 350
