"""Who an end says it is: the Identification payload (RFC 7296 section 3.5), as text, as bytes, and as a pattern.

Text follows strongSwan's rules, tried in this order:

    %any, *, empty               anybody                  C=DE, CN=gw    a distinguished name
    @#0a1b                       an opaque key id         @gw.example    a host name, said to be one
    jo@example.org, @@jo@host    a mail address           10.0.0.1, ::1  an address
    gw.example                   a host name              email: fqdn: keyid: asn1dn: ipv4: ipv6:   say it outright

Patterns add `*` at the front of a name (`*.example.org`, `*@example.org`), `*` as the value of an attribute
(`C=DE, O=Example, CN=*`), and networks and ranges of addresses (`10.0.0.0/8`). Two identities of different kinds
are never the same, however alike they read (RFC 7296 section 3.5). What strongSwan silently takes for a key id
because it is no name (`CN=x, y`) is refused here: it would match nobody.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from control.ike import dn
from control.ike.errors import syntax_error
from dataplane.model import Address


class IdKind(enum.IntEnum):
    """Kinds of identities and patterns: numbers.IdType, and for patterns the numbers that IKEv1 gave them."""

    ANY = 0
    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV4_ADDR_SUBNET = 4
    IPV6_ADDR = 5
    IPV6_ADDR_SUBNET = 6
    IPV4_ADDR_RANGE = 7
    IPV6_ADDR_RANGE = 8
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11
    FC_NAME = 12
    NULL = 13


PERFECT_MATCH = 1000  # quality of an identity that is the pattern
ANY_MATCH = 1  # of one that fits %any only
_WILDCARD_MATCH = 500  # of one that fits a pattern with a wildcard; what the pattern spells out is added

_ADDRESSES = {IdKind.IPV4_ADDR: 4, IdKind.IPV6_ADDR: 16}  # bytes of data
_RANGES = {
    IdKind.IPV4_ADDR_SUBNET: 8,
    IdKind.IPV6_ADDR_SUBNET: 32,
    IdKind.IPV4_ADDR_RANGE: 8,
    IdKind.IPV6_ADDR_RANGE: 32,
}
_PREFIXES = {
    "ipv4": IdKind.IPV4_ADDR,
    "ipv6": IdKind.IPV6_ADDR,
    "fqdn": IdKind.FQDN,
    "dns": IdKind.FQDN,
    "email": IdKind.RFC822_ADDR,
    "rfc822": IdKind.RFC822_ADDR,
    "userfqdn": IdKind.RFC822_ADDR,
    "asn1dn": IdKind.DER_ASN1_DN,
    "keyid": IdKind.KEY_ID,
}
_NAMES = {
    IdKind.ANY: "%any",
    IdKind.IPV4_ADDR: "an IPv4 address",
    IdKind.FQDN: "a host name",
    IdKind.RFC822_ADDR: "a mail address",
    IdKind.IPV4_ADDR_SUBNET: "an IPv4 network",
    IdKind.IPV6_ADDR: "an IPv6 address",
    IdKind.IPV6_ADDR_SUBNET: "an IPv6 network",
    IdKind.IPV4_ADDR_RANGE: "an IPv4 range",
    IdKind.IPV6_ADDR_RANGE: "an IPv6 range",
    IdKind.DER_ASN1_DN: "a distinguished name",
    IdKind.DER_ASN1_GN: "a general name",
    IdKind.KEY_ID: "a key id",
    IdKind.FC_NAME: "a Fibre Channel name",
    IdKind.NULL: "the NULL identity",
}
_ANY = ("", "%any", "%any4", "%any6", "*", "0.0.0.0", "::")
_TEXT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_SHOWN = 300  # characters of an identity that are shown


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity: its kind and the data of the Identification payload (network byte order, DER for names).

    Equal when the kind is the same and the data means the same: host names, mail addresses and distinguished names
    compare without regard to case. A kind that is not known is kept as its number, and is equal by its bytes.
    """

    kind: int
    value: bytes = field(default=b"", compare=False)
    _key: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", _comparable(self.kind, self.value))

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The identity or pattern that `text` names; ValueError that completes "got 'text', ..."."""
        return _parse(text.strip())

    @classmethod
    def from_address(cls, address: Address) -> Identity:
        """The identity of an address, as an end without a name of its own uses it."""
        kind = IdKind.IPV4_ADDR if address.version == 4 else IdKind.IPV6_ADDR
        return cls(kind, address.packed)

    @classmethod
    def from_name(cls, der: bytes) -> Identity:
        """The identity of a distinguished name in DER, such as a certificate's subject."""
        return cls(IdKind.DER_ASN1_DN, der)

    @classmethod
    def from_wire(cls, kind: int, data: bytes) -> Identity:
        """ID type and Identification Data of a payload; PeerError where the data cannot be of this type."""
        # The same peers come again and again; what is long is not remembered.
        return (_known_from_wire if len(data) <= _REMEMBERED else _from_wire)(kind, data)

    def to_wire(self) -> tuple[int, bytes]:
        """ID type and Identification Data; ValueError for what is only a pattern."""
        if self.kind == IdKind.ANY or self.kind in _RANGES:
            raise ValueError(f"{self} is a pattern; want one identity")
        return int(self.kind), self.value

    @property
    def is_pattern(self) -> bool:
        """True for what several identities may fit: wildcards, networks, %any."""
        if self.kind == IdKind.ANY or self.kind in _RANGES:
            return True
        if self.kind in (IdKind.FQDN, IdKind.RFC822_ADDR):
            return self.value.startswith(b"*")
        if self.kind == IdKind.DER_ASN1_DN and isinstance(self._key, tuple):
            return any(text == "*" for rdn in self._key for _, text in rdn)
        return False

    @property
    def address(self) -> Address | None:
        """The address, of an identity that is one."""
        return ip_address(self.value) if self.kind in _ADDRESSES else None

    def matches(self, pattern: Identity | None) -> bool:
        """True when this identity fits `pattern`; None is %any."""
        return self.match_quality(pattern) > 0

    def match_quality(self, pattern: Identity | None) -> int:
        """How well: 0 not at all, ANY_MATCH by %any, up to PERFECT_MATCH for the identity itself."""
        if pattern is None or pattern.kind == IdKind.ANY:
            return ANY_MATCH
        if self == pattern:
            return PERFECT_MATCH
        if self.kind in _ADDRESSES and pattern.kind in _RANGES:
            return _match_range(self.value, pattern)
        if self.kind != pattern.kind or not pattern.is_pattern:
            return 0
        if self.kind == IdKind.DER_ASN1_DN:
            return _match_names(self._key, pattern._key)
        suffix = pattern.value[1:].lower()
        found = self.value.lower().endswith(suffix) and len(self.value) > len(suffix)
        return min(_WILDCARD_MATCH + len(suffix), PERFECT_MATCH - 1) if found else 0

    @property
    def kind_name(self) -> str:
        """The kind in words, with its article: "a host name"."""
        return _NAMES[IdKind(self.kind)] if self.kind in _NAMES else f"an identity of type {self.kind}"

    def __str__(self) -> str:
        """Text that `parse` reads back, if the identity came from text; cut where it is longer than a log line."""
        return (_known_text if len(self.value) <= _REMEMBERED else _text)(self.kind, self.value)


def _from_wire(kind: int, data: bytes) -> Identity:
    want = _ADDRESSES.get(kind)  # type: ignore[call-overload]
    if want is not None and len(data) != want:
        raise syntax_error(f"{_NAMES[IdKind(kind)]} of {len(data)} bytes, want {want}")
    if kind in _RANGES or kind == IdKind.ANY:
        raise syntax_error(f"ID type {kind}, which is no identity in IKEv2")
    if not data and kind != IdKind.NULL:  # RFC 7619 section 2.2: NULL is empty
        raise syntax_error(f"an empty identity of type {kind}")
    if kind == IdKind.DER_ASN1_DN:
        try:
            dn.decode_name(data)
        except ValueError as error:
            raise syntax_error(f"ID payload: {error}") from None
    return Identity(IdKind(kind) if kind in _NAMES else kind, data)


def _text(kind: int, value: bytes) -> str:
    text = _format(Identity(kind, value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


_REMEMBERED = 256  # bytes
_known_text = functools.lru_cache(maxsize=1024)(_text)
_known_from_wire = functools.lru_cache(maxsize=1024)(_from_wire)


def _comparable(kind: int, value: bytes) -> object:
    """What the values of equal identities of one kind share."""
    if kind in (IdKind.FQDN, IdKind.RFC822_ADDR):
        return value.lower()
    if kind == IdKind.DER_ASN1_DN:
        return _known_name(value) if len(value) <= _KNOWN_LENGTH else _name(value)
    return value


_KNOWN_LENGTH = 512  # bytes of a name that is worth remembering, so that peers cannot fill the memory


def _name(der: bytes) -> object:
    try:
        return dn.comparable(dn.decode_name(der))
    except ValueError:
        return der


_known_name = functools.lru_cache(maxsize=1024)(_name)


def _match_range(address: bytes, pattern: Identity) -> int:
    half = len(pattern.value) // 2
    first, last = pattern.value[:half], pattern.value[half:]
    if len(address) != half:
        return 0
    if pattern.kind in (IdKind.IPV4_ADDR_SUBNET, IdKind.IPV6_ADDR_SUBNET):
        inside = all(byte & mask == net for byte, mask, net in zip(address, last, first, strict=True))
        return _WILDCARD_MATCH + int.from_bytes(last, "big").bit_count() if inside else 0
    return _WILDCARD_MATCH if first <= address <= last else 0


def _match_names(found: object, pattern: object) -> int:
    """Attribute by attribute, in order; `*` in the pattern stands for any value of its attribute."""
    if not isinstance(found, tuple) or not isinstance(pattern, tuple) or len(found) != len(pattern):
        return 0
    wildcards = 0
    for ours, wanted in zip(found, pattern, strict=True):
        if len(ours) != len(wanted):
            return 0
        for (oid, text), (wanted_oid, wanted_text) in zip(ours, wanted, strict=True):
            if oid != wanted_oid or (text != wanted_text and wanted_text != "*"):
                return 0
            wildcards += wanted_text == "*"
    return max(PERFECT_MATCH - 1 - wildcards, _WILDCARD_MATCH)


# ---- text ---------------------------------------------------------------------------------------------------


def _parse(text: str) -> Identity:
    if text in _ANY:
        return Identity(IdKind.ANY)
    prefix, colon, rest = text.partition(":")
    if colon and prefix.lower() in _PREFIXES:
        return _PARSERS[_PREFIXES[prefix.lower()]](rest.strip())
    if "=" in text and not text.startswith("@"):
        return _parse_name(text)
    if text.startswith("@#"):
        return _parse_key_id(text[1:])
    if text.startswith("@@"):
        return _parse_mail(text[2:])
    if text.startswith("@"):
        return _parse_host(text[1:])
    if "@" in text:
        return _parse_mail(text)
    if re.fullmatch(r"[0-9a-fA-F.:/-]+", text) and (":" in text or re.match(r"[0-9.]+([/-]|$)", text)):
        return _parse_address(text)
    if ":" in text:
        return _parse_key_id(text)
    return _parse_host(text)


def _parse_name(text: str) -> Identity:
    try:
        return Identity(IdKind.DER_ASN1_DN, dn.parse_name(text))
    except ValueError as error:
        raise ValueError(f"which reads as a distinguished name, but {error}") from None


def _parse_key_id(text: str) -> Identity:
    if not text.startswith("#"):
        return Identity(IdKind.KEY_ID, _encode(text))
    digits = text[1:].replace(":", "")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if not value:
        raise ValueError(f"whose key id of {len(digits)} characters is no pairs of hex digits")
    return Identity(IdKind.KEY_ID, value)


def _parse_mail(text: str) -> Identity:
    value = _encode(text)
    local, _, host = text.rpartition("@")
    if not host or not local or " " in text:
        raise ValueError("want a mail address such as jo@example.org")
    return Identity(IdKind.RFC822_ADDR, value)


def _parse_host(text: str) -> Identity:
    value = _encode(text)
    if " " in text:
        raise ValueError("which has a blank; want a host name, or keyid: before any other text")
    return Identity(IdKind.FQDN, value)


def _parse_address(text: str) -> Identity:
    try:
        if "/" in text:
            network = ip_network(text)
            data = network.network_address.packed + network.netmask.packed
            kind = IdKind.IPV4_ADDR_SUBNET if network.version == 4 else IdKind.IPV6_ADDR_SUBNET
            return Identity(kind, data)
        if "-" in text:
            first, last = (ip_address(part.strip()) for part in text.split("-", 1))
            if first.version != last.version or int(first) > int(last):
                raise ValueError
            kind = IdKind.IPV4_ADDR_RANGE if first.version == 4 else IdKind.IPV6_ADDR_RANGE
            return Identity(kind, first.packed + last.packed)
        return Identity.from_address(ip_address(text))
    except ValueError:
        raise ValueError("want an address, a network such as 10.0.0.0/8, or @ before a host name") from None


def _encode(text: str) -> bytes:
    if not text:
        raise ValueError("which is empty behind its mark; want the identity there")
    return text.encode()


_PARSERS: dict[IdKind, Callable[[str], Identity]] = {
    IdKind.IPV4_ADDR: _parse_address,
    IdKind.IPV6_ADDR: _parse_address,
    IdKind.FQDN: _parse_host,
    IdKind.RFC822_ADDR: _parse_mail,
    IdKind.DER_ASN1_DN: _parse_name,
    IdKind.KEY_ID: _parse_key_id,
}


def _format(identity: Identity) -> str:
    kind, value = identity.kind, identity.value
    if kind == IdKind.ANY:
        return "%any"
    if kind in _ADDRESSES and len(value) == _ADDRESSES[IdKind(kind)]:
        return str(ip_address(value))
    if kind in _RANGES and len(value) == _RANGES[IdKind(kind)]:
        return _format_range(IdKind(kind), value)
    if kind == IdKind.DER_ASN1_DN:
        try:
            return _printable(dn.format_name(dn.decode_name(value)))
        except ValueError:
            return f"asn1dn:#{value.hex()}"
    if kind == IdKind.NULL:
        return "%null"
    text = value.decode("utf-8", "replace")
    if kind in (IdKind.FQDN, IdKind.RFC822_ADDR) and identity == _reread(text):
        return text
    if kind == IdKind.FQDN:
        return f"@{_printable(text)}"
    if kind == IdKind.RFC822_ADDR:
        return f"email:{_printable(text)}"
    if kind == IdKind.KEY_ID:
        plain = text.isascii() and _TEXT.fullmatch(text) and not text.startswith("#")
        return f"keyid:{text}" if plain else f"@#{value.hex()}"
    return f"{{{int(kind)}}}:#{value.hex()}"


def _reread(text: str) -> Identity | None:
    """The identity that plain `text` would name, if it is fit to be shown as it is."""
    try:
        return _parse(text) if _TEXT.fullmatch(text) else None
    except ValueError:
        return None


def _format_range(kind: IdKind, value: bytes) -> str:
    half = len(value) // 2
    first, last = value[:half], value[half:]
    if kind in (IdKind.IPV4_ADDR_RANGE, IdKind.IPV6_ADDR_RANGE):
        return f"{ip_address(first)}-{ip_address(last)}"
    return f"{ip_address(first)}/{int.from_bytes(last, 'big').bit_count()}"


def _printable(text: str) -> str:
    """`text` with everything that would disturb a log line or a terminal escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
