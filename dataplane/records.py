"""From the frozen specifications of dataplane.model to rows of the shared structs.

Pure functions: a spec in, a tuple in the order of the dtype's fields out (dataplane.layout). What a spec may
not say is refused here, with what was got and what was wanted; `check_sa` first, so that nothing half-made
ever reaches a table.
"""

from __future__ import annotations

import os

from dataplane.layout import (
    CUT_AFTER,
    CUT_BEFORE,
    NO_INDEX,
    SA_DF_COPY,
    SA_DF_SET,
    SA_DSCP_COPY,
    SA_ENCAP,
    SA_ESN,
    SA_INBOUND,
    SA_LIVE,
    SA_MSS_CLAMP,
)
from dataplane.model import (
    DUMMIES_MOST,
    TFC_MTU,
    Address,
    AdjacencySpec,
    Cipher,
    Df,
    Direction,
    EspProposal,
    Fragment,
    Integrity,
    Mode,
    PolicySpec,
    Protocol,
    SaSpec,
    SelectorSpec,
)
from dataplane.spd import selector_family

PROTOCOL_UDP = 17
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
#: Past these a number would repeat (RFC 4303 section 3.3.3); exclusive. Workers add a whole batch and look
#: afterwards, so `next` runs a little past its limit: with ESN that must not come round to 0.
HARD_LIMIT = 2**32
HARD_LIMIT_ESN = 2**64 - 2**32

ANY_PORTS = (0, 65535)
#: Offsets in the header template of an inbound SA in transport mode; see ext/sa.pxd.
MEND_KNOWN = 2
OWN_PORT, SHOWN_PORT = 6, 10  # the same for both ports of a peer
MEND_SUM = 4

_LOW = 2**64 - 1
_KEY_BITS = {
    Cipher.NULL: (0,),
    Cipher.AES_CBC: (128, 192, 256),
    Cipher.AES_CTR: (128, 192, 256),
    Cipher.AES_GCM: (128, 192, 256),
    Cipher.CHACHA20_POLY1305: (256,),
    Cipher.AES_CCM: (128, 192, 256),
    Cipher.AES_GMAC: (128, 192, 256),
}


def hard_limit(proposal: EspProposal) -> int:
    """The first sequence number that must never be sent."""
    return HARD_LIMIT_ESN if proposal.esn else HARD_LIMIT


def without_keys(spec: SaSpec) -> SaSpec:
    """The same SA without its secrets: for whoever must remember it."""
    bare = object.__new__(SaSpec)  # dataclasses.replace takes ten times as long, per SA of a bulk load
    bare.__dict__.update(spec.__dict__, encryption_key=b"", integrity_key=b"", iv_mask=None)
    return bare


def check_sa(spec: SaSpec) -> None:
    """Raise ValueError for an SA that the dataplane cannot be, naming what was got and what was wanted."""
    _check_proposal(spec)
    if not 256 <= spec.spi < 2**32:
        raise ValueError(f"SPI is 0x{spec.spi:x}; RFC 4303 section 2.1 leaves 0x100 to 0xffffffff")
    if spec.local.version != spec.remote.version:
        raise ValueError(f"outer addresses {spec.local} and {spec.remote} are of different families")
    if not 1 <= spec.ttl <= 255:
        raise ValueError(f"ttl is {spec.ttl}; it is 1 to 255")
    if spec.dscp is not None and not 0 <= spec.dscp <= 63:
        raise ValueError(f"dscp is {spec.dscp}; it is 0 to 63, or none to copy the inner one")
    if not 0 <= spec.tfc_dummies <= DUMMIES_MOST:
        raise ValueError(f"tfc_dummies is {spec.tfc_dummies}; it is 0 (none) to {DUMMIES_MOST} per second")
    if spec.tfc_dummies and (spec.mode is not Mode.TUNNEL or spec.protocol is not Protocol.ESP):
        raise ValueError("tfc_dummies are for ESP in tunnel mode")
    if not 0 <= spec.tfc_padding <= TFC_MTU:
        raise ValueError(f"tfc_padding is {spec.tfc_padding}; it is 0 (off) to {TFC_MTU} (the MTU) bytes")
    if spec.encap is not None:
        for port in (spec.encap.source_port, spec.encap.destination_port):
            if not 1 <= port <= 65535:
                raise ValueError(f"encapsulation port is {port}; it is 1 to 65535")
    end = hard_limit(spec.proposal)
    if not 1 <= spec.sequence < end:
        raise ValueError(f"sequence is {spec.sequence}; it is 1 to {end - 1}")
    if spec.sequence_limit is not None and not 1 <= spec.sequence_limit <= end:
        raise ValueError(f"sequence_limit is {spec.sequence_limit}; it is 1 to {end}")
    if spec.iv_mask is not None and len(spec.iv_mask) > 16:
        raise ValueError(f"iv_mask has {len(spec.iv_mask)} bytes; it has at most 16")
    if spec.direction is Direction.IN:
        _check_inbound(spec)
    if spec.nat_original is not None:
        if spec.mode is not Mode.TRANSPORT or spec.encap is None or spec.direction is not Direction.IN:
            raise ValueError(
                "nat_original is for inbound SAs in transport mode and UDP (RFC 3948 section 3.1.2)"
            )
        for address in spec.nat_original:
            if address.version != spec.local.version:
                raise ValueError(f"nat_original {address} is not of the SA's family, IPv{spec.local.version}")
    if spec.outer is not None:
        _check_inner(spec)
    if spec.nat_ports is not None:
        _check_nat_ports(spec, spec.nat_ports)


def _check_inner(spec: SaSpec) -> None:
    """What goes into AH: ESP, which has to be whole there, and not in UDP."""
    if spec.protocol is not Protocol.ESP:
        raise ValueError(f"outer is for ESP: a bundle is AH around ESP, and this is {spec.protocol.name}")
    if spec.encap is not None:
        raise ValueError(
            "outer and encap exclude each other: AH protects the very addresses that NAT changes"
        )
    if spec.outer == spec.name:
        raise ValueError("an SA cannot be its own outer")
    if not 0 <= spec.outer_length <= 255:
        raise ValueError(f"outer_length is {spec.outer_length}; it is the bytes of an AH")


def check_bundle(spec: SaSpec, outer: SaSpec) -> None:
    """Raise ValueError unless `outer` can go around the packets of `spec`."""
    for what, got, want in (
        ("protocol", outer.protocol.name, Protocol.AH.name),
        ("mode", outer.mode.value, Mode.TRANSPORT.value),
        ("direction", outer.direction.value, spec.direction.value),
        ("local address", outer.local, spec.local),
        ("remote address", outer.remote, spec.remote),
    ):
        if got != want:
            raise ValueError(f"outer {outer.name!r} has {what} {got}; wanted {want}")


def _check_nat_ports(spec: SaSpec, ports: tuple[int, int]) -> None:
    """Ports change in whole packets whose checksum can be mended, and only where selectors say which these are."""
    if spec.mode is not Mode.TRANSPORT or spec.encap is None or spec.local.version != 4:
        raise ValueError("nat_ports are for SAs in transport mode and UDP over IPv4")
    if not all(1 <= port <= 65535 for port in ports):
        raise ValueError(f"nat_ports are {ports[0]} and {ports[1]}; they are 1 to 65535")
    for selector in spec.selectors:
        if selector.protocol not in (6, 17) or selector.remote_ports != (ports[1], ports[1]):
            raise ValueError(
                f"nat_ports show {ports[1]}, and a selector is not of TCP or UDP and that: {selector}"
            )


def _check_proposal(spec: SaSpec) -> None:
    """Algorithms that exist, in combinations that protect, with keys of their length."""
    proposal = spec.proposal
    if spec.protocol is Protocol.AH:
        _check_ah(spec)
    gmac = proposal.integrity is Integrity.AES_GMAC
    algorithm = Cipher.AES_GMAC if gmac and proposal.cipher is Cipher.NULL else proposal.cipher
    if proposal.key_bits not in _KEY_BITS[algorithm]:
        wanted = " or ".join(map(str, _KEY_BITS[algorithm]))
        raise ValueError(f"{algorithm.name} has keys of {wanted} bits, not {proposal.key_bits}")
    tags = (8, 12, 16) if proposal.cipher in (Cipher.AES_GCM, Cipher.AES_CCM) else (16,)
    if proposal.tag_length not in tags:
        wanted = " or ".join(map(str, tags))
        raise ValueError(f"{proposal.cipher.name} has ICVs of {wanted} bytes, not {proposal.tag_length}")
    if proposal.implicit_iv:
        _check_implicit_iv(spec)
    if gmac and spec.protocol is not Protocol.AH:
        raise ValueError(
            "AES_GMAC is an integrity algorithm of AH; ESP has it as a cipher (RFC 4543 section 5)"
        )
    if proposal.is_aead and proposal.integrity != Integrity.NONE:
        raise ValueError(
            f"{proposal.cipher.name} brings its own integrity; {proposal.integrity.name} is too much"
        )
    if not proposal.is_aead and proposal.integrity == Integrity.NONE:
        # RFC 4303 section 3.2: encryption without integrity is open to active attack; NULL/NULL is nothing.
        raise ValueError(f"{proposal.cipher.name} needs an integrity algorithm")
    got, want = len(spec.encryption_key), proposal.encryption_key_length
    salt = f" ({proposal.salt_length} of them salt)" if proposal.salt_length else ""
    if got != want:
        raise ValueError(
            f"encryption key has {got} bytes; {proposal.cipher.name} wants {want}{'' if gmac else salt}"
        )
    got, want = len(spec.integrity_key), proposal.integrity_key_length
    if got != want:
        raise ValueError(
            f"integrity key has {got} bytes; {proposal.integrity.name} wants {want}{salt if gmac else ''}"
        )


def _check_implicit_iv(spec: SaSpec) -> None:
    """RFC 8750 section 4: the algorithms that have one, and that the number alone is it."""
    proposal = spec.proposal
    if proposal.cipher not in (Cipher.AES_GCM, Cipher.CHACHA20_POLY1305, Cipher.AES_CCM):
        raise ValueError(f"{proposal.cipher.name} has no implicit IV (RFC 8750 section 4)")
    if proposal.tag_length != (8 if proposal.cipher is Cipher.AES_CCM else 16):
        # RFC 8750 section 8 registered ENCR_AES_CCM_8_IIV, ENCR_AES_GCM_16_IIV and ENCR_CHACHA20_POLY1305_IIV.
        raise ValueError(
            f"{proposal.cipher.name} with an ICV of {proposal.tag_length} bytes has no implicit IV "
            "(RFC 8750 section 8 has AES_CCM with 8, AES_GCM and CHACHA20_POLY1305 with 16)"
        )
    if spec.iv_mask is not None and any(spec.iv_mask):
        raise ValueError("an implicit IV is the sequence number; iv_mask must be left out")


def _check_ah(spec: SaSpec) -> None:
    """What AH cannot: hide anything, or go through NAT, which changes what it protects (RFC 3948 section 1)."""
    if spec.proposal.cipher is not Cipher.NULL:
        raise ValueError(f"AH encrypts nothing; {spec.proposal.cipher.name} is too much")
    if spec.encap is not None:
        raise ValueError("AH does not go into UDP: it protects the very addresses that NAT changes; use ESP")


def _check_inbound(spec: SaSpec) -> None:
    """Replay window and selectors."""
    if spec.replay_window != 0 and not 64 <= spec.replay_window <= 4096:
        raise ValueError(f"replay_window is {spec.replay_window}; it is 0 (off) or 64 to 4096")
    if spec.replay_window == 0 and spec.proposal.esn:
        # RFC 4303 appendix A2: the receiver derives the high half from its window.
        raise ValueError("extended sequence numbers need a replay window; replay_window is 0")
    if not spec.selectors:
        raise ValueError(
            "an inbound SA needs selectors: what decrypted packets may be (RFC 4301 section 5.2)"
        )
    for selector in spec.selectors:
        family = selector_family(selector)
        if spec.mode is Mode.TRANSPORT and family != spec.local.version:
            raise ValueError(
                f"selector of IPv{family} for a transport mode SA of IPv{spec.local.version}: {selector}"
            )


def split_address(address: Address) -> tuple[int, int]:
    """(high, low) 64-bit halves in host order; IPv4 in the low 32 bits of low."""
    value = int(address)
    return value >> 64, value & _LOW


def selector_row(selector: SelectorSpec, inbound: bool) -> tuple[int | bytes, ...]:
    """A Selector as packets see it: inbound, the remote side is the source."""
    key = "row in" if inbound else "row out"
    known: tuple[int | bytes, ...] | None = selector.memo.get(key)
    if known is None:
        known = selector.memo[key] = _selector_row(selector, inbound)
    return known


def _selector_row(selector: SelectorSpec, inbound: bool) -> tuple[int | bytes, ...]:
    family = selector_family(selector)
    local = (*split_address(selector.local_first), *split_address(selector.local_last))
    remote = (*split_address(selector.remote_first), *split_address(selector.remote_last))
    if inbound:
        ends = (*remote, *local, *selector.remote_ports, *selector.local_ports)
    else:
        ends = (*local, *remote, *selector.local_ports, *selector.remote_ports)
    return (*ends, family, selector.protocol, b"")


def policy_row(policy: PolicySpec, sa: int) -> tuple[object, ...]:
    """A Policy; `sa` is the outbound SA's index or NO_INDEX."""
    # Which LPM slots repeat it is for ext.policy.lpm_publish to say.
    return (selector_row(policy.selector, inbound=False), sa, 0, int(policy.action), 0, b"")


def adjacency_row(
    spec: AdjacencySpec, family: int, source_mac: bytes, port: int
) -> tuple[bytes, int, int, int, int, bytes]:
    """An Adjacency; with a link header when the next hop has a MAC."""
    header = b""
    if spec.destination_mac:
        if len(spec.destination_mac) != 6 or len(source_mac) != 6:
            raise ValueError(
                f"adjacency on port {spec.port}: MAC addresses have {len(spec.destination_mac)} and"
                f" {len(source_mac)} bytes (next hop and port); both want 6"
            )
        header = spec.destination_mac + source_mac + ETHERTYPES[family]
    return header, len(header), 1, port, min(spec.mtu, 65535), b""


def outer_header(spec: SaSpec) -> bytes:
    """The outer IP header template: lengths, ID, checksum, DF and ECN are the packet path's to fill.

    In transport mode it is never sent: it tells the family, the two ends, and what mends checksums behind NAT.
    """
    protocol = PROTOCOL_UDP if spec.encap is not None else int(spec.protocol)
    traffic_class = (spec.dscp or 0) << 2
    addresses = spec.local.packed + spec.remote.packed
    if spec.local.version == 4:
        header = bytes([0x45, traffic_class, 0, 0, 0, 0, 0, 0, spec.ttl, protocol, 0, 0]) + addresses
    else:
        start = (0x60000000 | traffic_class << 20).to_bytes(4, "big")
        header = start + bytes([0, 0, protocol, spec.ttl]) + addresses
    if spec.nat_original is not None:
        header = header[:MEND_KNOWN] + b"\x01\0" + _negated_sum(spec.nat_original) + header[MEND_SUM + 2 :]
    if spec.nat_ports is not None:
        own, shown = (port.to_bytes(2, "big") for port in spec.nat_ports)
        header = (
            header[:OWN_PORT] + own + header[OWN_PORT + 2 : SHOWN_PORT] + shown + header[SHOWN_PORT + 2 :]
        )
    return header


def _negated_sum(addresses: tuple[Address, Address]) -> bytes:
    """What takes two addresses out of an Internet checksum: the complement of their sum, as on the wire."""
    packed = addresses[0].packed + addresses[1].packed
    total = sum(int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF - total).to_bytes(2, "big")


def header_length(spec: SaSpec) -> int:
    """Bytes of outer IP header that ESP adds; 0 in transport mode, where packets keep their own."""
    if spec.mode is Mode.TRANSPORT:
        return 0
    return 20 if spec.local.version == 4 else 40


def inner_mtu(spec: SaSpec, mtu: int) -> int:
    """The largest inner packet whose outer packet fits `mtu` bytes; 0 when none does."""
    return spec.inner_mtu(mtu)


def sa_flags(spec: SaSpec) -> int:
    """ext.sa.SaFlag of a live SA."""
    flags = SA_LIVE
    flags |= SA_ESN if spec.proposal.esn else 0
    flags |= SA_ENCAP if spec.encap is not None else 0
    flags |= SA_INBOUND if spec.direction is Direction.IN else 0
    flags |= {Df.COPY: SA_DF_COPY, Df.SET: SA_DF_SET, Df.CLEAR: 0}[spec.df]
    flags |= SA_DSCP_COPY if spec.dscp is None else 0
    flags |= SA_MSS_CLAMP if spec.mss_clamp else 0
    return flags


def sequence_row(spec: SaSpec, start: int, limit: int, mtu: int) -> tuple[int | bytes, ...]:
    """A SaSequence that sends from `start` and below `limit`, on a path of `mtu` bytes."""
    mask = spec.iv_mask
    if mask is None:
        # AEADs and CTR: the number itself is the IV (RFC 4106 section 3.1, RFC 3686 section 3.1). CBC: the enciphered
        # block must not be guessed.
        mask = b"" if spec.proposal.salt_length else os.urandom(16)
    oversize = {Fragment.BEFORE: CUT_BEFORE, Fragment.AFTER: CUT_AFTER}[spec.fragment]
    return (
        *(start, limit, mask, hard_limit(spec.proposal)),
        *(min(mtu, 65535), spec.tfc_padding, oversize, 0, spec.tfc_dummies, 0, b""),
    )


def suite(proposal: EspProposal) -> int:
    """ext.crypto.suite_of: what engines are told of an SA's algorithms with each packet."""
    length = proposal.key_bits // 64 - 2 if proposal.key_bits else 0
    last = (16 - proposal.tag_length) // 4 if proposal.is_aead else int(proposal.integrity)
    return int(proposal.cipher) | length << 3 | last << 5


def _salt(spec: SaSpec) -> bytes:
    """SaHot.salt; AES-CCM's is one byte shorter than the others', and engines leave out the first (RFC 4309 4)."""
    return spec.salt.rjust(4, b"\0") if spec.proposal.salt_length else b""


def encap_ports(spec: SaSpec) -> bytes:
    """SaHot.encap_ports: source and destination of packets to the peer, as on the wire; empty without UDP."""
    if spec.encap is None:
        return b""
    return spec.encap.source_port.to_bytes(2, "big") + spec.encap.destination_port.to_bytes(2, "big")


def hot_row(spec: SaSpec, mtu: int, adjacency: int = NO_INDEX) -> tuple[int | bytes, ...]:
    """A SaHot for an outer path MTU of `mtu` bytes."""
    proposal = spec.proposal
    return (
        outer_header(spec),
        encap_ports(spec),
        spec.spi.to_bytes(4, "big"),
        _salt(spec),
        adjacency,
        inner_mtu(spec, mtu),
        header_length(spec),
        sa_flags(spec),
        suite(proposal),
        proposal.iv_length,
        proposal.icv_length,
        spec.alignment,
    )


def plain_row(selector: SelectorSpec) -> tuple[int | bytes, ...] | None:
    """A PlainSelector of decrypted packets, or None for a selector that is not plain."""
    source = _prefix(selector.remote_first, selector.remote_last)
    destination = _prefix(selector.local_first, selector.local_last)
    if source is None or destination is None or {selector.local_ports, selector.remote_ports} != {ANY_PORTS}:
        return None
    first = (*split_address(selector.remote_first), *split_address(selector.local_first))
    return (*first, source, destination, selector.protocol, selector.local_first.version, b"")


def _prefix(first: Address, last: Address) -> int | None:
    """How many of 128 bits all addresses of a range share, or None for a range that is no prefix."""
    size = int(last) - int(first) + 1
    if size & (size - 1) or int(first) & (size - 1):
        return None
    return 129 - size.bit_length()


_NOT_PLAIN = (0, 0, 0, 0, 0, 0, 0, 0, b"")


def inbound_row(spec: SaSpec, first_selector: int) -> tuple[object, ...]:
    """A SaInbound; all zero for outbound SAs."""
    if spec.direction is Direction.OUT:
        return 0, 0, 0, 0, _NOT_PLAIN
    plain = plain_row(spec.selectors[0]) or _NOT_PLAIN
    return (*split_address(spec.local), first_selector, len(spec.selectors), plain)


def key_row(spec: SaSpec, index: int, key_id: int) -> tuple[int | bytes, ...]:
    """A Key as raw as it came; the engine expands it in place afterwards."""
    proposal = spec.proposal
    raw, integrity = spec.raw_keys
    return (
        b"",
        raw,
        integrity,
        key_id,
        index,
        int(proposal.cipher),
        int(proposal.integrity),
        len(raw),
        len(integrity),
        proposal.icv_length,
        b"",
    )
