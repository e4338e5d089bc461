"""The small languages inside configuration strings: addresses, ranges, ports, protocols, keys.

Each function takes the text and returns the value, or raises ValueError whose message completes
"got 'text', ..." with what is wanted.
"""

from __future__ import annotations

import base64
import re
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from control.config.problems import nearest
from dataplane.model import Address

# The names that operators write; numbers cover the rest, so /etc/protocols is not needed.
PROTOCOLS = {
    "any": 0,
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "egp": 8,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipcomp": 108,
    "mh": 135,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "eigrp": 88,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}
ICMP_PROTOCOLS = (1, 58)
MOBILITY = 135
PORT_PROTOCOLS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

_ICMP_TYPE = re.compile(r"(\d{1,3})(?:\((\d{1,3})(?:-(\d{1,3}))?\))?")
_NAMELIKE = re.compile(r"[g-z@=]", re.IGNORECASE)
_SPI = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,10}")

AddressRange = tuple[Address, Address]  # first and last, inclusive, of one family


def parse_address(text: str) -> Address:
    """One IPv4 or IPv6 address, without zone."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("want an IPv4 or IPv6 address such as 192.0.2.1 or 2001:db8::1") from None
    if isinstance(address, IPv6Address) and address.scope_id:
        raise ValueError("want an address without zone (%...)")
    return address


def parse_unicast(text: str) -> Address:
    """The address of one host: what an SA's end can be."""
    address = parse_address(text)
    if address.is_multicast:
        raise ValueError(
            "which is a group's, and SAs of groups (RFC 5374) are not supported; want one host's"
        )
    if address.is_unspecified or address == IPv4Address("255.255.255.255"):
        raise ValueError("which is no host's address; want one")
    return address


def no_ports(protocol: int | None) -> str:
    """What is to be said where ports are asked of a protocol that has none."""
    if protocol == MOBILITY:
        return "whose message types (RFC 4301 section 4.4.1.1) cannot be selected"
    return "which has no ports"


def parse_interface_address(text: str) -> IPv4Interface | IPv6Interface:
    """An address with its prefix length, as `ip address add` takes it."""
    try:
        interface = ip_interface(text)
    except ValueError:
        raise ValueError("want an address with prefix length such as 10.0.0.1/24") from None
    if "%" in text:
        raise ValueError("want an address without zone (%...)")
    return interface


ANY_RANGES: tuple[AddressRange, ...] = (
    (IPv4Address(0), IPv4Address(2**32 - 1)),
    (IPv6Address(0), IPv6Address(2**128 - 1)),
)


def parse_ranges(text: str) -> tuple[AddressRange, ...]:
    """An address, a prefix or `first-last` as one inclusive range; `any` is one range per family."""
    return ANY_RANGES if text.lower() == "any" else (_one_range(text),)


def _one_range(text: str) -> AddressRange:
    want = 'want an address, a prefix (10.1.0.0/16), a range (10.1.0.1-10.1.0.9) or "any"'
    if "%" in text:
        raise ValueError(f"which has a zone; {want}")
    if _NAMELIKE.search(text):
        raise ValueError(
            f"which is a name, and selectors by name (RFC 4301 section 4.4.1.1) are not supported; {want}"
        )
    if "-" in text:
        left, _, right = text.partition("-")
        try:
            first, last = ip_address(left.strip()), ip_address(right.strip())
        except ValueError:
            raise ValueError(want) from None
        if first.version != last.version:
            raise ValueError("want a range whose ends are of one address family")
        if int(first) > int(last):
            raise ValueError("want a range whose first address is not above its last")
        return first, last
    try:
        network = ip_network(text)
    except ValueError:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(want) from None
        raise ValueError(
            f"which has bits set right of the prefix; want {network} or a single address"
        ) from None
    return network.network_address, network.broadcast_address


def parse_ports(text: str) -> tuple[int, int]:
    """A port, `a-b`, or `any`, as an inclusive range."""
    if text == "any":
        return 0, 65535
    left, dash, right = text.partition("-")
    try:
        first = _decimal(left)
        last = _decimal(right) if dash else first
    except ValueError:
        raise ValueError('want a port number or a range such as "8000-8999"') from None
    if not 0 <= first <= last <= 65535:
        raise ValueError("want ports from 0 to 65535, the first not above the last")
    return first, last


def parse_icmp(text: str) -> tuple[int, int]:
    """`type`, `type(code)` or `type(code-code)` as a range of type << 8 | code (RFC 7296 section 3.13.1)."""
    match = _ICMP_TYPE.fullmatch(text)
    numbers = [int(each) for each in match.groups() if each is not None] if match is not None else []
    if not numbers or max(numbers) > 255 or (len(numbers) == 3 and numbers[1] > numbers[2]):
        raise ValueError("want an ICMP type, type(code) or type(code-code), each from 0 to 255")
    kind = numbers[0] << 8
    return (kind | numbers[1], kind | numbers[-1]) if len(numbers) > 1 else (kind, kind | 255)


def parse_protocol(text: str) -> int:
    """A protocol by name or number; 0 is ANY."""
    word = text.lower()
    if word in PROTOCOLS:
        return PROTOCOLS[word]
    try:
        number = _decimal(word)
    except ValueError:
        raise ValueError(
            f"want a protocol name or a number from 0 to 255{nearest(word, PROTOCOLS)}"
        ) from None
    if number > 255:
        raise ValueError("want a protocol number from 0 to 255")
    return number


def parse_spi(text: str) -> int:
    """An SPI as `0x1001` or `4097`; the range is checked by the caller."""
    if not _SPI.fullmatch(text):
        raise ValueError('want an SPI from 256 to 4294967295, such as 4097 or "0x1001"')
    return int(text, 16 if text[:2].lower() == "0x" else 10)


def parse_hex(text: str) -> bytes:
    """Key material in hex; a leading 0x and any spaces, colons or underscores are ignored."""
    digits = text.strip()
    if digits[:2].lower() == "0x":
        digits = digits[2:]
    for separator in " :_\t\n":
        digits = digits.replace(separator, "")
    bad = sum(1 for digit in digits if digit not in "0123456789abcdefABCDEF")
    if bad:
        raise ValueError(f"{len(digits)} characters of which {bad} are no hex digits")
    if len(digits) % 2:
        raise ValueError(f"{len(digits)} hex digits, an odd number")
    return bytes.fromhex(digits)


def _decimal(text: str) -> int:
    """A plain ASCII decimal number of at most 10 digits."""
    word = text.strip()
    if not word.isascii() or not word.isdigit() or len(word) > 10:
        raise ValueError("no decimal number")
    return int(word)


_DURATION = re.compile(r"(?:\d{1,9}[smhdw])+")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = re.compile(r"(\d{1,18})\s*([kKmMgGtT]?)(?:i?[bB])?")
_MULTIPLES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_duration(text: str) -> float:
    """Seconds, from `90s`, `30m`, `1h30m`, `4h`, `1d` or `2w`."""
    word = text.strip().lower()
    if word.isascii() and word.isdigit() and len(word) <= 9:
        return float(word)
    if not _DURATION.fullmatch(word):
        raise ValueError('want a time such as "90s", "30m", "4h", "1d", or a number of seconds')
    return float(sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhdw])", word)))


def parse_size(text: str) -> int:
    """Bytes, from `500M` or `2G`, in powers of 1024 as swanctl counts them."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError('want a number of bytes such as 1000000, "500M" or "2G"')
    return int(match[1]) * _MULTIPLES[match[2].lower()]


def parse_outer(text: str) -> Address | IPv4Network | IPv6Network:
    """One end of an IKE SA's path: an address, or a network that addresses may be of."""
    want = 'want an address, a network such as 198.51.100.0/24, or "%any"'
    try:
        outer = ip_network(text) if "/" in text else parse_address(text)
    except ValueError as error:
        raise ValueError(f"{want} ({error})" if "/" in text else want) from None
    if outer.is_multicast:
        raise ValueError(
            f"which is a group's, and SAs of groups (RFC 5374) are not supported; {want} of hosts"
        )
    return outer


def parse_secret(text: str) -> bytes:
    """A shared secret: `0x` hex, `0s` base64 (swanctl's forms), else the characters themselves in UTF-8.

    The message of its ValueError shows nothing of the text.
    """
    try:
        if text[:2].lower() == "0x":
            secret = bytes.fromhex(text[2:])
        elif text[:2].lower() == "0s":
            secret = base64.b64decode(text[2:], validate=True)
        else:
            secret = text.encode()
    except (ValueError, UnicodeEncodeError):
        form = "hex digits after 0x" if text[:2].lower() == "0x" else "base64 after 0s"
        raise ValueError(f"want {form}, or a secret that begins with neither 0x nor 0s") from None
    if not secret:
        raise ValueError("want at least one byte of secret")
    return secret
