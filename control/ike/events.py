"""What happened, in the past tense: all that the protocol tells the rest of control. Frozen; keys are not shown.

The order of a child's events is what makes a rekey lossless (RFC 7296 section 2.8):

    we rekey        ChildEstablished(outbound=True, replaces=old)   then, deleted on both sides, ChildClosed(old)
    peer rekeys     ChildEstablished(outbound=False, replaces=old)  then, with the peer's delete,
                    ChildOutboundReady(new), ChildClosed(old)

Whoever installs SAs keeps a closed child's inbound SA for a moment when another replaces it.
"""

from __future__ import annotations

import enum
from dataclasses import field
from functools import cached_property

from control.ike.numbers import Protocol
from control.ike.record import record
from control.ike.settings import ChildSettings, Network, TrafficSelector
from control.text import one_line
from dataplane.model import Address, EspProposal, Mode

LONGEST = 4000  # characters of a text that a log or a status shows
PEER_SILENT = "peer_silent"  # code of the failure of a request that had no answer
TRACEBACK = "internal error"  # how a text begins that ends in a traceback of ours


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with what would disturb a log or a terminal escaped, and cut where it is very long; `lines` may stay."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text)} characters)"
    return one_line(text, lines=lines)


@record(frozen=True, kw_only=True)
class PeerPath:
    """The two ends of a datagram's way; an interface index for link-local addresses is not supported."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int

    @cached_property
    def local_text(self) -> str:
        """Our address as text. A path serves many datagrams and lines of the log, and writing it takes a while."""
        return str(self.local)

    @cached_property
    def remote_text(self) -> str:
        """The peer's address as text."""
        return str(self.remote)


@record(frozen=True, kw_only=True)
class Datagram:
    """A whole IKE message to send, without non-ESP marker: the socket knows whether one belongs before it."""

    path: PeerPath
    data: bytes
    keepalive: bool = False  # data is the single byte 0xFF of RFC 3948 and goes without marker


@record(frozen=True, kw_only=True)
class Failure:
    """Why something did not come about: both sides' view in `text`, what to do in `advice`."""

    code: str  # no_proposal_chosen, authentication_failed, ts_unacceptable, peer_silent, id_mismatch, ...
    text: str
    advice: str = ""

    def __post_init__(self) -> None:
        """What a peer has said is in the text: it stays on its line, and is no longer than a log can bear."""
        object.__setattr__(self, "text", printable(self.text))
        object.__setattr__(self, "advice", printable(self.advice))

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


@record(frozen=True, kw_only=True)
class ChildSa:
    """A negotiated pair of SAs: all that the dataplane needs."""

    id: int  # never used twice while the daemon runs
    ike: int  # id of its IKE SA
    connection: str
    settings: ChildSettings
    mode: Mode
    tfc: bool = True  # the peer takes packets with TFC padding (RFC 7296 section 1.3.1)
    protocol: Protocol = Protocol.ESP  # or AH
    suite: EspProposal  # of AH its integrity algorithm, the cipher being NULL
    suite_name: str  # strongSwan's keywords, e.g. aes128gcm16-esn-x25519
    spi_in: int
    spi_out: int
    encryption_key_in: bytes = field(repr=False)  # salt appended
    encryption_key_out: bytes = field(repr=False)
    integrity_key_in: bytes = field(default=b"", repr=False)
    integrity_key_out: bytes = field(default=b"", repr=False)
    local_selectors: tuple[TrafficSelector, ...]  # narrowed: first and last are set
    remote_selectors: tuple[TrafficSelector, ...]
    path: PeerPath
    encapsulated: bool  # ESP in UDP between the ports of `path`
    # Transport mode through a NAT: our address and the peer's as its TCP and UDP checksums have them; None: unknown.
    nat_original: tuple[Address, Address] | None = None
    shared: bool = False  # one of several with the same selectors (RFC 9611)
    # Of these: its number, in whose order our workers have them; None: the common one.
    resource: int | None = None
    established: float  # time
    rekey_at: float  # time; 0 is never
    expires_at: float  # time; 0 is never

    def without_keys(self) -> ChildSa:
        """The same child for whoever must remember it or tell of it."""
        bare = object.__new__(ChildSa)  # dataclasses.replace takes ten times as long
        bare.__dict__.update(self.__dict__, **_NO_KEYS)
        return bare


_NO_KEYS = dict.fromkeys(
    ("encryption_key_in", "encryption_key_out", "integrity_key_in", "integrity_key_out"), b""
)


class Closed(enum.Enum):
    """Why an IKE or child SA is gone."""

    LOCAL = "closed by us"
    PEER = "closed by the peer"
    REPLACED = "replaced"
    EXPIRED = "expired"
    PEER_DEAD = "the peer is silent"
    FAILED = "failed"


@record(frozen=True, kw_only=True)
class Event:
    """Something that happened to an IKE SA."""

    ike: int  # unique id, kept by the daemon's lifetime
    connection: str


@record(frozen=True, kw_only=True)
class IkeEstablished(Event):
    """Both sides are authenticated."""

    path: PeerPath
    local_id: str
    remote_id: str
    suite_name: str
    initiator: bool
    eap_identity: str | None = None


@record(frozen=True, kw_only=True)
class IkeRekeyed(Event):
    """`ike` goes on as `new`, which has all its children."""

    new: int
    suite_name: str


@record(frozen=True, kw_only=True)
class IkeClosed(Event):
    """An established IKE SA is gone, and its children with it (each has had its own event before)."""

    why: Closed
    failure: Failure | None = None


@record(frozen=True, kw_only=True)
class IkeFailed(Event):
    """An IKE SA did not come about. Without a connection's name none fitted."""

    path: PeerPath
    failure: Failure


@record(frozen=True, kw_only=True)
class ChildEstablished(Event):
    """Install the inbound SA; the outbound one too where `outbound` says so."""

    child: ChildSa
    outbound: bool
    replaces: int | None = None  # id of the child that this one takes the place of


@record(frozen=True, kw_only=True)
class ChildOutboundReady(Event):
    """The peer is ready for this child: send through it from now on."""

    child: int


@record(frozen=True, kw_only=True)
class ChildClosed(Event):
    """Neither side sends through this child any more."""

    child: int
    name: str
    why: Closed
    replaced_by: int | None = None
    failure: Failure | None = None


@record(frozen=True, kw_only=True)
class ChildFailed(Event):
    """A child SA did not come about; the IKE SA lives on."""

    name: str
    failure: Failure


@record(frozen=True, kw_only=True)
class ChildWanted(Event):
    """A child that is gone is to come back, and nothing leads to its peer now: initiate it when something does."""

    name: str
    reason: str


@record(frozen=True, kw_only=True)
class PathChanged(Event):
    """The peer, or we, moved (RFC 4555, RFC 7296 section 2.23): all children use the new path."""

    path: PeerPath
    encapsulated: bool


@record(frozen=True, kw_only=True)
class VirtualAddressesAssigned(Event):
    """A server lent us addresses; they go when the IKE SA goes."""

    addresses: tuple[Address, ...]
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()
    # To reach through the server; what goes there the children's selectors say.
    networks: tuple[Network, ...] = ()


@record(frozen=True, kw_only=True)
class KeysExported(Event):
    """Lines for Wireshark's ikev2_decryption_table and esp_sa; made only where the settings allow it."""

    table: str
    line: str = field(repr=False)


@record(frozen=True, kw_only=True)
class Noted(Event):
    """Worth a line in the log, and nothing else: a retransmission, a message that was refused, a weak setting."""

    level: str  # debug, info, warning
    text: str  # of several lines only where it is a traceback

    def __post_init__(self) -> None:
        """As for a failure: nothing of a peer's disturbs the log."""
        object.__setattr__(self, "text", printable(self.text, lines=self.text.startswith(TRACEBACK)))
