"""Path MTU of tunnels, learned from ICMP errors about outer packets, and forgotten in time (RFC 4301 section 8.2).

    IcmpSockets   raw sockets that hear fragmentation needed and packet too big
    read_error    such a message -> TooBig: the MTU, and what it quotes of our packet
    PathMtus      TooBig -> may it be believed? -> the path's MTU, for a while

Nobody signs these errors, and who could send us any might shrink every tunnel (RFC 4301 section 6.1). Believed is only
what quotes an ESP or AH packet that we have just sent: addresses, SPI and a sequence number among the last WINDOW of
that SA, which only someone on the path sees; which says less than the quoted packet had; and never less than what the
family guarantees. Errors about packets *inside* tunnels come by an SA and are authenticated: those are the packet
path's.

What is learned holds for every SA between the two addresses: the SA that follows a rekeyed one takes the same way.
Errors that quote too little to show the number (RFC 792 allows 8 bytes; with UDP before ESP, and of AH, that is not
enough) are not heeded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from control.net.limiter import RateLimiter
from dataplane.model import Address

log = logging.getLogger(__name__)

AGE = 600.0  # seconds: RFC 1191 section 6.3 and RFC 8201 section 5.3 suggest ten minutes
WINDOW = 1 << 16  # numbers: about as many packets can be on their way and back
LEAST = {4: 576, 6: 1280}  # bytes; RFC 791 section 3.1, RFC 8200 section 5
PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1280, 1006, 576)  # RFC 1191 section 7.1, as far as they go
ERRORS_PER_SECOND, ERRORS_AT_ONCE = 100.0, 200.0  # that are looked at, per sender

_UDP = 17
# By protocol, where SPI and number are (RFC 4303 section 2, RFC 3948 section 2.1, RFC 4302 section 2).
_SPI_AT = {50: 0, _UDP: 8, 51: 4}
_UNREACHABLE, _FRAGMENTATION_NEEDED, _PACKET_TOO_BIG = 3, 4, 2
_SOL_RAW, _ICMP_FILTER = 255, 1
_ICMP6_FILTER = 1  # IPPROTO_ICMPV6
_READ = 2048


@dataclass(frozen=True, kw_only=True)
class TooBig:
    """What an ICMP error says of an outer packet."""

    mtu: int  # bytes; 0: the router is too old to say
    length: int  # of the packet that was too big
    local: Address
    remote: Address
    spi: int
    number: int  # the low 32 bits of its sequence number
    encapsulated: bool


def read_error(icmp: bytes, family: int) -> TooBig | None:
    """An ICMP message from its type on; None where it is no such error or quotes no ESP or AH."""
    if len(icmp) < 8 or (icmp[0], icmp[1]) != (
        (_UNREACHABLE, _FRAGMENTATION_NEEDED) if family == 4 else (_PACKET_TOO_BIG, 0)
    ):
        return None
    mtu = int.from_bytes(icmp[6:8] if family == 4 else icmp[4:8], "big")
    return (_quoted_ipv4 if family == 4 else _quoted_ipv6)(icmp[8:], mtu)


def _quoted_ipv4(packet: bytes, mtu: int) -> TooBig | None:
    if len(packet) < 20 or packet[0] >> 4 != 4 or int.from_bytes(packet[6:8], "big") & 0x1FFF:
        return None
    return _quoted(
        packet[(packet[0] & 15) * 4 :],
        protocol=packet[9],
        mtu=mtu,
        length=int.from_bytes(packet[2:4], "big"),
        local=IPv4Address(packet[12:16]),
        remote=IPv4Address(packet[16:20]),
    )


def _quoted_ipv6(packet: bytes, mtu: int) -> TooBig | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    return _quoted(
        packet[40:],
        protocol=packet[6],
        mtu=mtu,
        length=40 + int.from_bytes(packet[4:6], "big"),
        local=IPv6Address(packet[8:24]),
        remote=IPv6Address(packet[24:40]),
    )


def _quoted(
    rest: bytes, *, protocol: int, mtu: int, length: int, local: Address, remote: Address
) -> TooBig | None:
    at = _SPI_AT.get(protocol)
    if at is None or len(rest) < at + 8:
        return None
    spi, number = struct.unpack_from(">II", rest, at)
    return TooBig(
        mtu=mtu,
        length=length,
        local=local,
        remote=remote,
        spi=spi,
        number=number,
        encapsulated=protocol == _UDP,
    )


@dataclass(frozen=True, kw_only=True)
class OutboundSa:
    """What an error is held against: an outbound SA as it stands."""

    name: str
    local: Address
    remote: Address
    spi: int
    encapsulated: bool
    sequence: int  # the next number to send


@dataclass(kw_only=True)
class _Learned:
    mtu: int
    until: float  # time


class PathMtus:
    """What is known of paths beyond their first link; times are those of any one clock."""

    def __init__(self, age: float = AGE) -> None:
        self.refused = 0  # errors that were not believed
        self._age = age
        self._learned: dict[tuple[Address, Address], _Learned] = {}

    def heard(self, error: TooBig, sas: Iterable[OutboundSa], link_mtu: int, now: float) -> int | None:
        """The path's MTU after this error where it is believed and changes something; `link_mtu` without it."""
        if not any(_sent_by(error, sa) for sa in sas):
            self.refused += 1
            return None
        mtu = error.mtu or next((each for each in PLATEAUS if each < error.length), 0)
        mtu = max(mtu, LEAST[error.remote.version])
        path = (error.local, error.remote)
        held = self._learned.get(path)
        known = link_mtu if held is None else min(held.mtu, link_mtu)
        if mtu >= error.length or mtu > known:
            self.refused += 1  # what went through, or could not even have left
            return None
        if mtu == known and held is None:
            return None
        self._learned[path] = _Learned(mtu=mtu, until=now + self._age)
        return mtu if mtu < known else None

    def limit(self, local: Address, remote: Address, link_mtu: int) -> int:
        """The path's MTU: the link's, or less where less was learned."""
        held = self._learned.get((local, remote))
        return link_mtu if held is None else min(held.mtu, link_mtu)

    def expire(self, now: float) -> list[tuple[Address, Address]]:
        """Forget what is old; the paths that may be larger again. The next packet that is not, brings an error."""
        gone = [path for path, held in self._learned.items() if held.until <= now]
        for path in gone:
            del self._learned[path]
        return gone

    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        return min((held.until for held in self._learned.values()), default=None)


def _sent_by(error: TooBig, sa: OutboundSa) -> bool:
    """The SA has sent the quoted packet lately: RFC 5927 section 4 asks such questions of TCP's numbers."""
    if (error.local, error.remote, error.spi, error.encapsulated) != (
        *(sa.local, sa.remote, sa.spi, sa.encapsulated),
    ):
        return False
    return 0 < (sa.sequence - error.number) % 2**32 <= min(WINDOW, sa.sequence - 1)


class IcmpSockets:
    """Raw sockets of both families; each message that could be about an outer packet goes to `heard`."""

    def __init__(self, heard: Callable[[TooBig], None]) -> None:
        self._heard = heard
        self._sockets: list[socket.socket] = []
        self._limiter = RateLimiter(ERRORS_PER_SECOND, ERRORS_AT_ONCE)

    def open(self) -> None:
        """Listen on the running loop. OSError where the kernel allows no raw socket; no IPv6 is no error."""
        loop = asyncio.get_running_loop()
        for family in (4, 6):
            try:
                sock = _open(family)
            except OSError:
                if family == 6 and self._sockets:
                    continue
                raise
            self._sockets.append(sock)
            loop.add_reader(sock.fileno(), self._read, sock, family)

    def close(self) -> None:
        """Stop listening."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._sockets = []

    def _read(self, sock: socket.socket, family: int) -> None:
        try:
            data, sender = sock.recvfrom(_READ)
        except OSError:
            return
        if not self._limiter.allow(sender[0], asyncio.get_running_loop().time()):
            return
        if family == 4:  # an IPv4 raw socket has the IP header before it
            data = data[(data[0] & 15) * 4 :] if data else b""
        error = read_error(data, family)
        if error is not None:
            self._heard(error)


def _open(family: int) -> socket.socket:
    """A socket that gets nothing but the messages that read_error knows."""
    domain, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if family == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    sock = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        # A bit that is set keeps its type out.
        if family == 4:
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~(1 << _UNREACHABLE)))
        else:
            words = [0xFFFFFFFF & ~(1 << _PACKET_TOO_BIG), *[0xFFFFFFFF] * 7]
            sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
    except OSError:
        sock.close()
        raise
    return sock
