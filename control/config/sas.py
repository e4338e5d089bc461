"""[[sa]] entries: security associations on keys written by hand, one direction each."""

from __future__ import annotations

from control.config.problems import kind, show
from control.config.proposal import AH_EXAMPLES, EXAMPLES, format_proposal, parse_ah_proposal, parse_proposal
from control.config.table import Table
from control.config.unsupported import MODES, OVER_TCP, PROTOCOLS, SA
from control.config.values import parse_address, parse_hex, parse_spi, parse_unicast
from dataplane.model import (
    DUMMIES_MOST,
    REPLAY_WINDOW,
    TFC_MTU,
    Address,
    Df,
    Direction,
    Encap,
    EspProposal,
    Fragment,
    Integrity,
    Mode,
    Protocol,
    SaSpec,
)

# Key: the value that comes to what a UDP socket does, and what that is (dataplane/ports/udp.py).
_SOCKETS = {
    "df": ("set", "a UDP socket sends every packet with DF set"),
    "ttl": (None, "a UDP socket sends packets with the TTL or hop limit of their route"),
    "fragment": ("before", "a UDP socket sends no fragments, so packets are cut before encapsulation"),
}


def read_sa(table: Table) -> SaSpec | None:
    """One [[sa]]; None, and problems in the table's report, where it is not usable."""
    before = len(table.report.problems)
    name = table.name()
    direction = table.choice("direction", ("in", "out"), None)
    mode = Mode(table.choice("mode", tuple(mode.value for mode in Mode), "tunnel", MODES) or "tunnel")
    spi = _spi(table)
    local, remote = _ends(table)
    protocol = Protocol[(table.choice("protocol", ("esp", "ah"), "esp", PROTOCOLS) or "esp").upper()]
    proposal = _proposal(table, protocol)
    encryption_key = _key(table, "encryption_key", protocol, proposal)
    integrity_key = _key(table, "integrity_key", protocol, proposal)
    largest = 2**64 - 2 if proposal is not None and proposal.esn else 2**32 - 1
    sequence = table.integer("sequence", 1, largest, 1, "the first number to send or expect")
    window = _window(table, proposal)
    encap = _encap(table)
    if protocol is Protocol.AH:
        _check_ah(table, encap)
    nat_original = _nat_original(table, mode, direction, encap)
    outer = _outer(table, name, protocol, encap)
    if mode is Mode.TRANSPORT:
        _check_transport(table)
    dscp = dscp_of(table)
    ttl = table.integer("ttl", 1, 255, 64, "hops")
    df = table.choice("df", tuple(df.value for df in Df), "copy") or "copy"
    mss_clamp = table.boolean("mss_clamp", False)
    fragment, padding, dummies = fragment_of(table), tfc_padding(table), tfc_dummies(table)
    table.finish(SA)
    if len(table.report.problems) > before:
        return None
    if (
        name is None
        or direction is None
        or spi is None
        or local is None
        or remote is None
        or proposal is None
    ):
        return None
    return SaSpec(
        name=name,
        direction=Direction(direction),
        spi=spi,
        local=local,
        remote=remote,
        proposal=proposal,
        mode=mode,
        nat_original=nat_original,
        encryption_key=encryption_key,
        integrity_key=integrity_key,
        protocol=protocol,
        encap=encap,
        replay_window=window,
        sequence=sequence,
        df=Df(df),
        dscp=dscp,
        ttl=ttl,
        mss_clamp=mss_clamp,
        fragment=fragment,
        tfc_padding=padding,
        tfc_dummies=dummies,
        outer=outer,
    )


def _spi(table: Table) -> int | None:
    """An SPI as number or string; 1 to 255 are reserved and 0 never goes on the wire (RFC 4303 section 2.1)."""
    want = 'want an SPI from 256 to 4294967295, such as 4097 or "0x1001"'
    value = table.raw("spi")
    if value is None:
        table.error("spi", f"is missing; {want}")
        return None
    try:
        spi = parse_spi(value) if isinstance(value, str) else value
    except ValueError as error:
        table.error("spi", f"got {show(value)}, {error}")
        return None
    if isinstance(spi, bool) or not isinstance(spi, int):
        table.error("spi", f"got {kind(value)} ({show(value)}), {want}")
        return None
    if not 256 <= spi <= 0xFFFFFFFF:
        table.error("spi", f"got {show(value)}, {want}")
        return None
    return spi


def _ends(table: Table) -> tuple[Address | None, Address | None]:
    """The outer addresses, ours and the peer's."""
    local = table.parsed("local", parse_unicast, required="this gateway's outer address")
    remote = table.parsed("remote", parse_unicast, required="the peer's outer address")
    if local is not None and remote is not None and local.version != remote.version:
        table.error(
            "remote", f"got an IPv{remote.version} address and local is IPv{local.version}, want one family"
        )
    return local, remote


def _proposal(table: Table, protocol: Protocol) -> EspProposal | None:
    """The algorithms, of ESP or of AH."""
    if protocol is Protocol.AH:
        return table.parsed(
            "proposal", parse_ah_proposal, required=f"integrity algorithms such as {AH_EXAMPLES}"
        )
    return table.parsed("proposal", parse_proposal, required=f"ESP algorithms such as {EXAMPLES}")


def _window(table: Table, proposal: EspProposal | None) -> int:
    """The replay window, which tells the high half of extended numbers (RFC 4303 appendix A2): these need one."""
    window = replay_window(table)
    if proposal is not None and proposal.esn and window == 0:
        table.error(
            "replay_window",
            f"got 0 (off), which extended sequence numbers cannot do without; want 64 to {REPLAY_WINDOW}",
        )
    return window


def _check_ah(table: Table, encap: Encap | None) -> None:
    """What is ESP's alone."""
    for key in ("tfc_dummies", "tfc_padding"):
        if table.has(key):
            table.error(key, 'has no meaning with protocol = "ah", which hides nothing')
    if encap is not None:
        table.error(
            "encap", "has no place with AH, which protects the very addresses that NAT changes; want ESP"
        )


def _check_transport(table: Table) -> None:
    """What is about the outer header, which transport mode does not make."""
    for key in ("dscp", "ttl", "df", "fragment", "tfc_padding", "tfc_dummies"):
        if table.has(key):
            table.error(key, 'has no meaning with mode = "transport", where packets keep their own IP header')


def _key(table: Table, key: str, protocol: Protocol, proposal: EspProposal | None) -> bytes:
    """Key material in hex, of the length that the proposal wants; its bytes never enter a message."""
    text = table.text(key, secret=True)
    if proposal is None:
        return b""
    encryption = key == "encryption_key"
    length = proposal.encryption_key_length if encryption else proposal.integrity_key_length
    suite = format_proposal(proposal, protocol)
    salted = proposal.has_nonce and encryption == (proposal.integrity is not Integrity.AES_GMAC)
    parts = f": {length - proposal.salt_length} key + {proposal.salt_length} salt" if salted else ""
    want = f"{2 * length} hex digits ({length} bytes{parts}) for {suite}"
    if text is None:
        if length and not table.has(key):
            table.error(key, f"is missing; it wants {want}")
        return b""
    if length == 0:
        table.error(key, f"has no place with {suite}; leave it out")
        return b""
    try:
        material = parse_hex(text)
    except ValueError as error:
        table.error(key, f"got {error}, want {want}")
        return b""
    if len(material) != length:
        table.error(key, f"got {2 * len(material)} hex digits ({len(material)} bytes), want {want}")
    elif not any(material):
        table.error(
            key, f"got all zeros, want {want} from a random source, such as `openssl rand -hex {length}`"
        )
    return material


def replay_window(table: Table) -> int:
    """0, or as many numbers as the replay window of the dataplane can have."""
    window = table.integer("replay_window", 0, REPLAY_WINDOW, REPLAY_WINDOW, "numbers")
    if 0 < window < 64:
        table.error("replay_window", f"got {window}, want 0 (off) or a number from 64 to 4096")
    return window


def _encap(table: Table) -> Encap | None:
    """`true` for port 4500 both ways, or the two ports."""
    value = table.raw("encap")
    if value is None or value is False:
        return None
    if value == "tcp":
        table.error("encap", f"got 'tcp', {OVER_TCP}")
        return None
    if value is True:
        return Encap()
    if not isinstance(value, dict):
        table.error(
            "encap",
            f"got {kind(value)} ({show(value)}), want true, false or "
            "{ source_port = 4500, destination_port = 4500 }",
        )
        return None
    ports = Table(table.report, table.key("encap"), value)
    ports.label = table.label
    encap = Encap(
        source_port=ports.integer("source_port", 1, 65535, 4500),
        destination_port=ports.integer("destination_port", 1, 65535, 4500),
    )
    ports.finish()
    return encap


def _outer(table: Table, name: str | None, protocol: Protocol, encap: Encap | None) -> str | None:
    """Of an SA bundle: the name of the SA around this one, which checks.check_bundles looks at."""
    outer = table.text("outer")
    if outer is None:
        return None
    if protocol is Protocol.AH:
        table.error(
            "outer", 'has no place with protocol = "ah": a bundle is AH around ESP, two SAs and no more'
        )
    elif outer == name:
        table.error("outer", "names this SA itself; want another one, of AH")
    elif encap is not None:
        table.error(
            "outer", "has no place with encap: AH protects the very addresses that NAT changes; leave one out"
        )
    return outer


def _nat_original(
    table: Table, mode: Mode, direction: str | None, encap: Encap | None
) -> tuple[Address, Address] | None:
    """`{ local = "10.0.0.1", remote = "10.9.0.1" }`: both ends as the peer's checksums have them, before NAT."""
    value = table.raw("nat_original")
    if value is None:
        return None
    if mode is not Mode.TRANSPORT or encap is None or direction != "in":
        table.error(
            "nat_original",
            'has no meaning but with mode = "transport", encap and direction = "in"; leave it out',
        )
        return None
    if not isinstance(value, dict):
        table.error(
            "nat_original",
            f'got {kind(value)} ({show(value)}), want {{ local = "10.0.0.1", remote = "10.9.0.1" }}',
        )
        return None
    ends = Table(table.report, table.key("nat_original"), value)
    ends.label = table.label
    local = ends.parsed("local", parse_address, required="our address as the peer sees it")
    remote = ends.parsed("remote", parse_address, required="the peer's own address")
    ends.finish()
    if local is None or remote is None:
        return None
    if local.version != remote.version:
        ends.error(
            "remote", f"got an IPv{remote.version} address and local is IPv{local.version}, want one family"
        )
        return None
    return local, remote


def dscp_of(table: Table) -> int | None:
    """ "copy" (the default) or a fixed code point (RFC 4301 section 5.1.2.1)."""
    if table.values.get("dscp") == "copy":
        table.raw("dscp")
        return None
    return table.integer("dscp", 0, 63, None, 'code point, or "copy"')


def fragment_of(table: Table) -> Fragment:
    """When packets that are too big, and may be fragmented, are: before or after encapsulation."""
    return Fragment(table.choice("fragment", tuple(each.value for each in Fragment), "before") or "before")


def warn_of_sockets(table: Table) -> None:
    """Name what is written about the outer header and a UDP socket, which makes that header, does otherwise."""
    for key, (kept, instead) in _SOCKETS.items():
        value = table.values.get(key)
        word = value.lower() if isinstance(value, str) else value
        if table.has(key) and word != kept:
            table.warn(key, f"got {show(value)}, which udp ports do not heed: {instead}")


def tfc_padding(table: Table) -> int:
    """Bytes that inner packets are padded to (RFC 4303 section 2.7), "mtu", or 0 for none; the word is swanctl's."""
    if table.values.get("tfc_padding") == "mtu":
        table.raw("tfc_padding")
        return TFC_MTU
    return table.integer("tfc_padding", 0, 65534, 0, 'bytes, or "mtu"')


def tfc_dummies(table: Table) -> int:
    """Dummy packets per second (RFC 4303 section 2.6)."""
    return table.integer("tfc_dummies", 0, DUMMIES_MOST, 0, "packets per second")
