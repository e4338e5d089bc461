"""What crosses the wall between control and dataplane: frozen, keyword-only specifications.

Control builds these from configuration or from IKE; the dataplane turns them into table entries. Nothing
here touches a packet, a socket or shared memory. Keys never appear in a repr.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


#: SO_MARK of every socket that sends outer packets, IKE, or on behalf of the kernel what policy lets pass in clear:
#: rules that lead the host's own traffic into the dataplane leave these alone.
OUTER_MARK = 0x4553


class Direction(enum.Enum):
    """Direction of an SA, seen from this gateway."""

    IN = "in"
    OUT = "out"


class Protocol(enum.IntEnum):
    """What an SA speaks; values are IP protocol numbers."""

    ESP = 50  # RFC 4303
    AH = 51  # RFC 4302: integrity alone, of the outer IP header too


class Cipher(enum.IntEnum):
    """Encryption algorithms; values are `ext.crypto.Cipher`."""

    NULL = 0
    AES_CBC = 1
    AES_CTR = 2
    AES_GCM = 3
    CHACHA20_POLY1305 = 4
    AES_CCM = 5
    AES_GMAC = 6

    @property
    def is_aead(self) -> bool:
        """True where the cipher brings its own integrity (ENCR_NULL_AUTH_AES_GMAC brings nothing else)."""
        return self >= Cipher.AES_GCM


class Integrity(enum.IntEnum):
    """Integrity algorithms; values are `ext.crypto.Integrity`."""

    NONE = 0
    HMAC_SHA2_256 = 1
    HMAC_SHA2_384 = 2
    HMAC_SHA2_512 = 3
    HMAC_SHA1 = 4
    AES_XCBC = 5
    AES_CMAC = 6
    AES_GMAC = 7  # of AH


class Mode(enum.Enum):
    """What ESP encloses (RFC 4301 section 4.1): whole packets, or what is behind their IP header."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"


class Df(enum.Enum):
    """The outer Don't Fragment bit (RFC 4301 section 8.1)."""

    COPY = "copy"
    SET = "set"
    CLEAR = "clear"


class Fragment(enum.Enum):
    """When a packet is cut that is too big for the SA's path and may be (RFC 4301 section 7, RFC 4459)."""

    BEFORE = "before"  # its pieces are enciphered: their receiver has the work of putting them together
    AFTER = "after"  # the outer packet is cut: the peer has it


#: SaSpec.tfc_dummies at most, per second.
DUMMIES_MOST = 1000
#: SaSpec.tfc_padding: up to the path's MTU, whatever that is.
TFC_MTU = 65535
#: Numbers of a replay window, where none is asked for: the widest, which takes no more room than the others do.
REPLAY_WINDOW = 4096


class Action(enum.IntEnum):
    """What an SPD entry says (RFC 4301 section 4.4.1); values are `ext.sa.Action`."""

    DISCARD = 0
    PROTECT = 1
    BYPASS = 2


@dataclass(frozen=True, kw_only=True)
class EspProposal:
    """One ESP algorithm suite: strongSwan's `aes128gcm16`, `aes256-sha256-esn`, and so on."""

    cipher: Cipher
    key_bits: int  # 128, 192 or 256; 0 for NULL, but of AH with AES_GMAC its key's
    integrity: Integrity = Integrity.NONE
    esn: bool = False
    tag_length: int = 16  # bytes of an AEAD's ICV: 16, or for AES-GCM and AES-CCM 12 or 8
    implicit_iv: bool = False  # RFC 8750: the IV is the sequence number and is not sent

    @cached_property
    def salt_length(self) -> int:
        """Bytes of salt at the end of KEYMAT.

        RFC 4106 section 8.1, RFC 4543 section 5.3, RFC 7634 section 2, RFC 3686 section 5.1; RFC 4309 section 7.1
        has one less.
        """
        if self.integrity is Integrity.AES_GMAC:
            return 4
        if self.cipher in (Cipher.NULL, Cipher.AES_CBC):
            return 0
        return 3 if self.cipher is Cipher.AES_CCM else 4

    @cached_property
    def is_aead(self) -> bool:
        """True where the cipher brings its own integrity."""
        return self.cipher.is_aead

    @cached_property
    def has_nonce(self) -> bool:
        """True where a number sent twice under one key gives texts or the key away: AEADs, AES-CTR, AES-GMAC."""
        return self.salt_length > 0

    @cached_property
    def encryption_key_length(self) -> int:
        """Bytes of encryption key, salt included."""
        return 0 if self.cipher is Cipher.NULL else self.key_bits // 8 + self.salt_length

    @cached_property
    def integrity_key_length(self) -> int:
        """Bytes of integrity key.

        HMACs: as long as the hash's output (RFC 4868 section 2.1.1, RFC 2404 section 3). AES: RFC 3566 section 4.1,
        RFC 4494 section 2; of AH's AES-GMAC with the salt (RFC 4543 section 5.3).
        """
        if self.integrity is Integrity.AES_GMAC:
            return self.key_bits // 8 + self.salt_length
        return {
            Integrity.NONE: 0,
            Integrity.HMAC_SHA2_256: 32,
            Integrity.HMAC_SHA2_384: 48,
            Integrity.HMAC_SHA2_512: 64,
            Integrity.HMAC_SHA1: 20,
            Integrity.AES_XCBC: 16,
            Integrity.AES_CMAC: 16,
        }[self.integrity]

    @cached_property
    def icv_length(self) -> int:
        """Bytes of ICV at the end of each packet."""
        if self.is_aead:
            return self.tag_length
        return {
            Integrity.NONE: 0,
            Integrity.HMAC_SHA2_256: 16,
            Integrity.HMAC_SHA2_384: 24,
            Integrity.HMAC_SHA2_512: 32,
            Integrity.HMAC_SHA1: 12,
            Integrity.AES_XCBC: 12,
            Integrity.AES_CMAC: 12,
            Integrity.AES_GMAC: 16,
        }[self.integrity]

    @cached_property
    def iv_length(self) -> int:
        """Bytes of IV in each packet; AH has one in its ICV field where this is AES-GMAC (RFC 4543 section 4)."""
        if self.implicit_iv:
            return 0
        if self.integrity is Integrity.AES_GMAC:
            return 8
        return {Cipher.NULL: 0, Cipher.AES_CBC: 16}.get(self.cipher, 8)

    @cached_property
    def alignment(self) -> int:
        """What payload and trailer are padded to, bytes."""
        return 16 if self.cipher == Cipher.AES_CBC else 4


@dataclass(frozen=True, kw_only=True)
class Encap:
    """UDP encapsulation (RFC 3948): the ports of packets that this SA sends."""

    source_port: int = 4500
    destination_port: int = 4500


#: Ports of a selector: every packet, whether it shows ports or not, and packets that show none (RFC 4301 section
#: 4.4.1.1; on the wire as RFC 7296 section 3.13.1 writes them).
ANY_PORTS = (0, 65535)
OPAQUE_PORTS = (65535, 0)


@dataclass(frozen=True, kw_only=True)
class SelectorSpec:
    """One traffic selector pair: inclusive ranges, as seen from this gateway (RFC 4301 section 4.4.1.1).

    Ports of ICMP are type << 8 | code, the same on both sides of a packet.
    """

    local_first: Address
    local_last: Address
    remote_first: Address
    remote_last: Address
    protocol: int = 0  # 0 is ANY
    local_ports: tuple[int, int] = ANY_PORTS
    remote_ports: tuple[int, int] = ANY_PORTS

    def __hash__(self) -> int:
        """Worked out once: an SPD finds its policies by their selectors."""
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            ends = (self.local_first, self.local_last, self.remote_first, self.remote_last)
            known = self.__dict__["_hash"] = hash(
                (*map(int, ends), self.protocol, self.local_ports, self.remote_ports)
            )
        return known

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What is worked out of this selector again and again, for it never changes; each user has a key of its own."""
        return {}

    @classmethod
    def from_networks(cls, local: Network, remote: Network, **rest: object) -> SelectorSpec:
        """A selector of two networks; `rest` may hold protocol, local_ports and remote_ports."""
        return cls(
            local_first=local.network_address,
            local_last=local.broadcast_address,
            remote_first=remote.network_address,
            remote_last=remote.broadcast_address,
            **rest,  # type: ignore[arg-type]
        )

    @cached_property
    def family(self) -> int:
        """4 or 6; ValueError for a selector that is none. Looked at once: an SPD is built again and again."""
        ends = (self.local_first, self.local_last, self.remote_first, self.remote_last)
        families = {end.version for end in ends}
        if len(families) != 1:
            raise ValueError(f"selector mixes IPv4 and IPv6: {', '.join(map(str, ends))}")
        for name, first, last in (
            ("local", int(self.local_first), int(self.local_last)),
            ("remote", int(self.remote_first), int(self.remote_last)),
            ("local ports", *self.local_ports),
            ("remote ports", *self.remote_ports),
        ):
            if first > last and (first, last) != OPAQUE_PORTS:
                raise ValueError(f"selector's {name} range is upside down: {self}")
        if not 0 <= self.protocol <= 255:
            raise ValueError(f"selector's protocol is {self.protocol}; it is 0 (any) to 255")
        for low, high in (self.local_ports, self.remote_ports):
            if (low < 0 or high > 65535) and (low, high) != OPAQUE_PORTS:
                raise ValueError(f"selector's ports are {low}-{high}; they are 0 to 65535")
        return ends[0].version


@dataclass(frozen=True, kw_only=True)
class SaSpec:
    """One security association (RFC 4301 section 4.4.2). DF, DSCP and TTL are of tunnel mode's outer header."""

    name: str
    direction: Direction
    spi: int
    local: Address  # this gateway's outer address
    remote: Address  # the peer's outer address
    proposal: EspProposal  # of AH: Cipher.NULL and an integrity algorithm
    mode: Mode = Mode.TUNNEL
    encryption_key: bytes = field(repr=False)  # salt appended, as in KEYMAT
    integrity_key: bytes = field(default=b"", repr=False)
    protocol: Protocol = Protocol.ESP
    encap: Encap | None = None
    replay_window: int = REPLAY_WINDOW  # numbers; 0 turns replay protection off
    sequence: int = 1  # outbound: next number to send; inbound: next number expected
    sequence_limit: int | None = None  # outbound: first number not reserved; None: the algorithm's end
    selectors: tuple[SelectorSpec, ...] = ()  # inbound: what decrypted packets may be (RFC 4301 section 5.2)
    df: Df = Df.COPY
    dscp: int | None = None  # None copies the inner DSCP outward
    ttl: int = 64  # of outer packets
    mss_clamp: bool = False
    fragment: Fragment = Fragment.BEFORE
    tfc_padding: int = 0  # outbound: inner packets are padded to so many bytes (RFC 4303 section 2.7)
    tfc_dummies: int = 0  # outbound: so many dummy packets per second, on the average (RFC 4303 section 2.6)
    negotiated: bool = False  # keys by IKE, gone with this process; else numbers are reserved on disk
    iv_mask: bytes | None = field(default=None, repr=False)  # None: zero (AEAD), random (CBC)
    # Inbound, transport mode in UDP: (local, remote) as the peer's TCP and UDP checksums have them, before NAT.
    # None: unknown, checksums are made anew (RFC 3948 section 3.1.2).
    nat_original: tuple[Address, Address] | None = None
    # Transport mode in UDP over IPv4, for one of several peers behind one NAT: (the peer's TCP or UDP port in the SA,
    # the port by which this host, policies and selectors know it). None: they are one.
    nat_ports: tuple[int, int] | None = None
    # Of an SA bundle (RFC 2401 section 4.3), ESP's: the name of the SA between the same ends, AH in transport mode,
    # that goes around its packets, and the bytes that this one adds to each.
    outer: str | None = None
    outer_length: int = 0

    @property
    def alignment(self) -> int:
        """What ESP's payload and trailer, or AH with its ICV, are padded to, bytes (RFC 4302 section 3.3.3.2.1)."""
        if self.protocol is Protocol.AH:
            return 4 if self.local.version == 4 else 8
        return self.proposal.alignment

    @property
    def raw_keys(self) -> tuple[bytes, bytes]:
        """Encryption and integrity key without the salt that the one or the other ends in."""
        end = -self.proposal.salt_length or None
        if self.proposal.integrity is Integrity.AES_GMAC:
            return self.encryption_key, self.integrity_key[:end]
        return self.encryption_key[:end], self.integrity_key

    @property
    def salt(self) -> bytes:
        """The end of the key that nonces are made with; empty where there are none."""
        gmac = self.proposal.integrity is Integrity.AES_GMAC
        key = self.integrity_key if gmac else self.encryption_key
        return key[len(key) - self.proposal.salt_length :]

    @property
    def ah_length(self) -> int:
        """Bytes of the authentication header, its IV, ICV and padding included."""
        length = 12 + self.proposal.iv_length + self.proposal.icv_length
        return length + -length % self.alignment

    def inner_mtu(self, path: int) -> int:
        """The largest inner packet whose outer packet fits a path MTU, bytes; 0 when none does.

        Transport mode: whatever the length of its header, so with 16-byte blocks up to 12 bytes less than could be.
        """
        path -= self.outer_length
        header = 20 if self.local.version == 4 else 40
        overhead = header + (8 if self.encap is not None else 0)
        if self.protocol is Protocol.AH:
            room = path - self.ah_length - (header if self.mode is Mode.TUNNEL else 0)
            return min(max(room, 0), 65535)
        overhead += 8 + self.proposal.iv_length + self.proposal.icv_length
        room = path - overhead
        room -= room % self.proposal.alignment + 2
        if self.mode is Mode.TRANSPORT:
            # Options are multiples of 4 bytes, extension headers of 8: they shift the blocks by so much.
            room += header - max(self.proposal.alignment - (4 if header == 20 else 8), 0)
        return min(max(room, 0), 65535)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """One outbound SPD entry; order in the list is order of match."""

    name: str
    action: Action
    selector: SelectorSpec
    sa: str | None = None  # name of the outbound SA when action is PROTECT


@dataclass(frozen=True, kw_only=True)
class Acquire:
    """Traffic waits for the SA of a PROTECT policy: the policy, and the packet as a selector of just its flow."""

    policy: str
    packet: SelectorSpec


@dataclass(frozen=True, kw_only=True)
class Source:
    """Authenticated packets of an inbound SA in UDP come from here, not from its remote end."""

    sa: str
    address: Address
    port: int


class Role(enum.Enum):
    """Which side of the gateway a port is on (RFC 4301 section 3.1)."""

    PROTECTED = "protected"
    UNPROTECTED = "unprotected"


@dataclass(frozen=True, kw_only=True)
class PortSpec:
    """One port of the gateway. Every worker opens queue k of it."""

    name: str
    role: Role
    driver: str  # xdp, packet, tun, udp, raw, memory, pcap
    interface: str  # network interface, or the TUN device's name; "" for udp, raw and memory
    mtu: int = 1500
    mac: bytes = b""  # 6 bytes on Ethernet ports
    addresses: tuple[Address, ...] = ()  # its own: sources of ICMP errors; udp and raw bind to it
    encap_port: int = 4500  # udp driver: local port
    xdp_mode: str = "auto"  # auto, native, generic
    zero_copy: str = "auto"  # auto, on, off
    busy_poll: int = 0  # xdp: microseconds that a look drives the driver for; 0: interrupts do
    options: dict[str, str] = field(default_factory=dict)
    helper: bool = False  # nobody has configured it: no part of what users are told


@dataclass(frozen=True, kw_only=True)
class AdjacencySpec:
    """A next hop on a port: what the link header before a packet must be."""

    port: str  # PortSpec.name
    destination_mac: bytes = b""  # empty on ports without link header
    mtu: int = 1500


@dataclass(frozen=True, kw_only=True)
class RouteSpec:
    """A route of decrypted packets: destination prefix to adjacency; None hands its packets to the kernel.

    Without adjacency, `inside` says whether the prefix is this host's or on the protected side all the same (a
    neighbour yet to be resolved). If it is not, the SPD is asked before the kernel: another tunnel may be the way.
    """

    prefix: Network
    adjacency: AdjacencySpec | None
    inside: bool = True
