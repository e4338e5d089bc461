"""What a connection is configured with: frozen, keyword-only, complete. Words and defaults are swanctl.conf's.

`control.config` makes these from esplanade.toml; the protocol reads them and nothing else. Times are in seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.proposal import Proposal
from dataplane.model import REPLAY_WINDOW, Address, Df, Fragment, Mode

Network = IPv4Network | IPv6Network


class Auth(enum.Enum):
    """How one side proves who it is."""

    PSK = "psk"
    PUBKEY = "pubkey"  # any signature that its key can make
    EAP = "eap"
    NONE = "none"  # EAP-only authentication (RFC 5998) of the other side


class StartAction(enum.Enum):
    """What is done about a child when the connection is loaded, and again by `close_action` when it is closed."""

    NONE = "none"
    TRAP = "trap"  # wait for traffic
    START = "start"  # at once


class DpdAction(enum.Enum):
    """What becomes of the children of a peer that has died."""

    CLEAR = "clear"
    TRAP = "trap"
    RESTART = "restart"


class Unique(enum.Enum):
    """What becomes of an older IKE SA of the same two identities (swanctl's `unique`)."""

    NEVER = "never"  # even INITIAL_CONTACT is ignored
    NO = "no"  # kept, unless the peer says INITIAL_CONTACT
    KEEP = "keep"  # the new one is refused
    REPLACE = "replace"  # the old one is closed


class Choice(enum.Enum):
    """A feature that may be forced."""

    NO = "no"
    YES = "yes"  # where the peer can
    FORCE = "force"


@dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """One side of the authentication: ours (what we use) or the peer's (what we demand)."""

    auth: Auth = Auth.PSK
    # None: ours is the certificate's subject or our address; the peer's: anyone.
    identity: Identity | None = None
    certificates: tuple[str, ...] = ()  # names in the credential store: ours to use, or the peer's only ones
    # Names of CAs that the peer's chain must lead to; () is every one we trust.
    authorities: tuple[str, ...] = ()
    eap_methods: tuple[str, ...] = ()  # mschapv2, tls; the first is what a server asks for
    eap_identity: str | None = None  # what we answer to EAP-Identity; None: our IKE identity
    # Of signatures (sha256, sha384, sha512, identity); () is all of them.
    signature_hashes: tuple[str, ...] = ()
    revocation: str = "relaxed"  # relaxed: a CRL that is missing is no reason; ifuri; strict


@dataclass(frozen=True, kw_only=True)
class TrafficSelector:
    """Addresses, protocol and ports of one side of a child SA (RFC 7296 section 3.13.1); `dynamic` follows the SA."""

    # None with first and last None: dynamic, the IKE SA's own (or virtual) address.
    network: Network | None = None
    first: Address | None = None
    last: Address | None = None
    protocol: int = 0  # 0 is any
    ports: tuple[int, int] = (0, 65535)  # (65535, 0) is OPAQUE; for ICMP: type << 8 | code


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """When a child SA is replaced (soft) and when it dies (hard); 0 is never."""

    rekey: float = 3600.0
    life: float = 0.0  # 0 with rekey set: 1.1 x rekey
    random: float = 0.0  # taken off rekey, at random up to this; 0 with rekey set: life - rekey
    rekey_bytes: int = 0
    life_bytes: int = 0
    rekey_packets: int = 0
    life_packets: int = 0


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """One child SA of a connection: what it protects and how."""

    name: str
    local: tuple[TrafficSelector, ...] = (TrafficSelector(),)
    remote: tuple[TrafficSelector, ...] = (TrafficSelector(),)
    proposals: tuple[Proposal, ...]  # all of ESP, or all of AH
    mode: Mode = Mode.TUNNEL
    lifetime: Lifetime = Lifetime()
    start_action: StartAction = StartAction.NONE
    close_action: StartAction = StartAction.NONE
    dpd_action: DpdAction = DpdAction.CLEAR
    replay_window: int = REPLAY_WINDOW
    df: Df = Df.COPY
    dscp: int | None = None
    mss_clamp: bool = False
    fragment: Fragment = Fragment.BEFORE
    tfc_dummies: int = 0  # per second, as the next
    tfc_padding: int = 0  # as SaSpec has it; nothing is padded for a peer that says it cannot have that
    per_cpu_sas: bool = False  # further SAs, one per worker, where the peer can (RFC 9611)

    @property
    def protocol(self) -> Protocol:
        """ESP, or AH."""
        return self.proposals[0].protocol if self.proposals else Protocol.ESP


@dataclass(frozen=True, kw_only=True)
class Retransmission:
    """When an unanswered request is sent again: after timeout x base^n, tries times; then the peer is dead."""

    timeout: float = 4.0
    base: float = 1.8
    tries: int = 5
    limit: float = 0.0  # the longest pause; 0 is none


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Everything about one peer, or one kind of peers."""

    name: str
    local_addresses: tuple[Address | Network, ...] = ()  # () is any
    # () is any; the first plain address is where we initiate to.
    remote_addresses: tuple[Address | Network, ...] = ()
    local_port: int = 500
    remote_port: int = 500
    proposals: tuple[Proposal, ...]
    local: AuthSettings = AuthSettings()
    remote: AuthSettings = AuthSettings()
    children: tuple[ChildSettings, ...] = ()
    pools: tuple[str, ...] = ()  # address pools whose addresses a client may get
    virtual_addresses: tuple[Address, ...] = ()  # what we ask a server for; 0.0.0.0 and :: are "any"
    rekey_time: float = 14400.0  # of the IKE SA; 0 is never
    reauth_time: float = 0.0
    over_time: float = 0.0  # grace after rekey_time or reauth_time; 0: a tenth of them
    random_time: float = 0.0  # taken off rekey_time and reauth_time; 0: over_time
    dpd_delay: float = 0.0  # silence after which the peer is asked; 0 is never
    keepalive: float = 20.0  # NAT keepalive (RFC 3948 section 4); 0 is never
    retransmission: Retransmission = Retransmission()
    keying_tries: int = 1  # attempts of an initiation; 0 is for ever
    fragmentation: Choice = Choice.YES  # RFC 7383
    fragment_size: int = 1280  # bytes of IP packet
    mobike: bool = True  # RFC 4555
    encap: bool = False  # UDP encapsulation even without NAT
    childless: Choice = Choice.YES  # RFC 6023
    unique: Unique = Unique.NO
    send_certificate: str = "ifasked"  # always, ifasked, never
    request_certificates: bool = True
    ppk_id: str | None = None  # RFC 8784; None: no post-quantum preshared key
    ppk_required: bool = False


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """What holds for all connections of a gateway."""

    cookie_threshold: int = 30  # half-open SAs from which on a cookie is demanded (RFC 7296 section 2.6)
    block_threshold: int = 5  # half-open SAs of one address from which on its new ones are dropped
    half_open_limit: int = 2000  # half-open SAs of all
    half_open_timeout: float = 30.0
    initial_contact: bool = True
    send_vendor_id: bool = False
    export_keys: bool = False  # IKE and ESP keys leave in events, for Wireshark
    nat_ports: tuple[int, int] = field(default=(500, 4500))
    workers: int = 1  # of the dataplane: how many SAs a child with `per_cpu_sas` has beside the common one


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Addresses lent to clients, and what they are told beside (RFC 7296 section 3.15)."""

    name: str
    ranges: tuple[tuple[Address, Address], ...]  # first and last, inclusive, each of one family
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()  # INTERNAL_DNS_DOMAIN (RFC 8598)
    split: tuple[Network, ...] = ()  # INTERNAL_IP4_SUBNET, INTERNAL_IP6_SUBNET
