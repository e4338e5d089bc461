"""AH by hand, on hashlib: the peer of the tests, who can also do what no peer should.

peer = Peer(inbound SA of ours)
peer.packet(inner)                          # a good packet of a tunnel, outer header and all
peer.packet(inner, number=7, next_header=6, words=9)

What the ICV covers is written from RFC 4302 section 3.3.3 alone, header by header, on a copy of the packet.
"""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dataplane.model import Integrity, SaSpec
from ext.crypto import JobSpec
from tests.ext.crypto_jobs import mac_of
from tests.packets import AH, checksum, ip

HASHES = {
    Integrity.HMAC_SHA2_256: "sha256",
    Integrity.HMAC_SHA2_384: "sha384",
    Integrity.HMAC_SHA2_512: "sha512",
    Integrity.HMAC_SHA1: "sha1",
}
#: Appendix A1: options that arrive as they were sent, End of List and No Operation apart.
IMMUTABLE = {130, 133, 134, 148, 149}
HOP_BY_HOP, ROUTING, DESTINATION = 0, 43, 60


def ah_offset(packet: bytes) -> int:
    """Where the AH begins."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    following, at = packet[6], 40
    while following != AH:
        assert following in (HOP_BY_HOP, ROUTING, DESTINATION), following
        following, at = packet[at], at + 8 * (packet[at + 1] + 1)
    return at


def field_length(spec: SaSpec) -> int:
    """Bytes of the ICV field without padding: of AES-GMAC an IV and a tag (RFC 4543 section 4)."""
    return spec.proposal.iv_length + spec.proposal.icv_length


def covered(packet: bytes, icv_length: int, high: bytes = b"", iv: bytes = b"") -> bytes:
    """What the ICV of a whole packet is computed over; `high` is the number's high half, with ESN, `iv` AES-GMAC's."""
    at = ah_offset(packet)
    if packet[0] >> 4 == 4:
        head = _ipv4_as_sent(packet[:at])
    else:
        head = _ipv6_as_arriving(packet[:at])
    icv = iv + bytes(icv_length - len(iv))
    return head + packet[at : at + 12] + icv + packet[at + 12 + icv_length :] + high


def _ipv4_as_sent(head: bytes) -> bytes:
    destination, options, rest = head[16:20], b"", head[20:]
    while rest:
        kind = rest[0]
        size = len(rest) if kind == 0 else 1 if kind == 1 else rest[1]
        option, rest = rest[:size], rest[size:]
        if kind in (131, 137) and option[2] <= size - 3:
            destination = option[-4:]
        options += option if kind in {0, 1} | IMMUTABLE else bytes(size)
    # TOS; flags, fragment offset and TTL; checksum.
    return (
        head[:1] + b"\0" + head[2:6] + bytes(3) + head[9:10] + b"\0\0" + head[12:16] + destination + options
    )


def _ipv6_as_arriving(head: bytes) -> bytes:
    """Without traffic class, flow label, hop limit and data of options that may change; a route at its end."""
    destination, extensions, following, at = head[24:40], b"", head[6], 40
    while at < len(head):
        size = 8 * (head[at + 1] + 1)
        extension = head[at : at + size]
        if following == ROUTING:
            left, hops = extension[3], [extension[n : n + 16] for n in range(8, size, 16)]
            for number in range(len(hops) - left, len(hops)):  # RFC 2460 section 4.4, hop by hop
                hops[number], destination = destination, hops[number]
            extension = extension[:3] + b"\0" + extension[4:8] + b"".join(hops)
        else:
            extension = extension[:2] + _without_data(extension[2:])
        extensions += extension
        following, at = head[at], at + size
    return b"\x60\0\0\0" + head[4:7] + b"\0" + head[8:24] + destination + extensions


def _without_data(options: bytes) -> bytes:
    done = b""
    while options:
        size = 1 if options[0] == 0 else 2 + options[1]
        option, options = options[:size], options[size:]
        done += option[:2] + bytes(size - 2) if option[0] & 0x20 and option[0] else option
    return done


def icv_of(spec: SaSpec, packet: bytes, number: int) -> bytes:
    """The ICV that a packet of this SA must have, whatever it has; AES-GMAC's with the IV that the packet has."""
    proposal = spec.proposal
    high = struct.pack(">I", number >> 32) if proposal.esn else b""
    if proposal.integrity is Integrity.AES_GMAC:
        iv = packet[ah_offset(packet) + 12 :][:8]
        data = covered(packet, field_length(spec), high, iv)
        return iv + AESGCM(spec.integrity_key[:-4]).encrypt(spec.integrity_key[-4:] + iv, b"", data)
    data = covered(packet, field_length(spec), high)
    if proposal.integrity in HASHES:
        return hmac.digest(spec.integrity_key, data, HASHES[proposal.integrity])[: proposal.icv_length]
    job = JobSpec(cipher=0, integrity=int(proposal.integrity), integrity_key=spec.integrity_key)
    return mac_of(job, data)[: proposal.icv_length]


def sign(spec: SaSpec, packet: bytes, number: int) -> bytes:
    """The packet with its ICV put where it belongs."""
    at = ah_offset(packet) + 12
    if spec.proposal.integrity is Integrity.AES_GMAC:
        packet = packet[:at] + struct.pack(">Q", number) + packet[at + 8 :]
    return packet[:at] + icv_of(spec, packet, number) + packet[at + field_length(spec) :]


def header(
    spec: SaSpec, number: int, next_header: int, *, words: int | None = None, padding: bytes | None = None
) -> bytes:
    """An AH with an ICV of zeros; `words` replaces the length field, `padding` what follows the ICV."""
    length = 12 + field_length(spec)
    if padding is None:
        padding = bytes(-length % (4 if spec.local.version == 4 else 8))
    if words is None:
        words = (length + len(padding)) // 4 - 2
    fields = struct.pack(">BBHII", next_header, words, 0, spec.spi, number & 0xFFFFFFFF)
    return fields + bytes(field_length(spec)) + padding


def open_packet(spec: SaSpec, packet: bytes, number: int) -> tuple[bytes, bytes]:
    """(headers before the AH, what it protects) of a packet of a tunnel; AssertionError when its ICV is wrong."""
    at = ah_offset(packet)
    length = (packet[at + 1] + 2) * 4
    assert length == len(header(spec, 0, 0)), "AH has another length than its ICV needs"
    assert packet[at + 2 : at + 12] == struct.pack(">HII", 0, spec.spi, number & 0xFFFFFFFF)
    assert packet[at + 12 :][: field_length(spec)] == icv_of(spec, packet, number), "ICV is wrong"
    if packet[0] >> 4 == 4:
        assert checksum(packet[:at]) == 0
    inner = packet[at + length :]
    assert packet[at] == (4 if inner[0] >> 4 == 4 else 41)
    return packet[:at], inner


class Peer:
    """Sends to an inbound SA of ours; numbers its packets from SaSpec.sequence."""

    def __init__(self, spec: SaSpec) -> None:
        self.spec = spec
        self.number = spec.sequence

    def packet(
        self,
        inner: bytes,
        *,
        number: int | None = None,
        next_header: int | None = None,
        words: int | None = None,
        padding: bytes | None = None,
        extensions: bytes = b"",
        first: int = AH,
        **outer: object,
    ) -> bytes:
        """A whole outer packet. `extensions` (whose first is of type `first`) go before the AH; `outer` fields,
        IPv4's `options` among them, into the IP header.
        """
        spec = self.spec
        if number is None:
            number, self.number = self.number, self.number + 1
        if next_header is None:
            next_header = 4 if inner[:1] and inner[0] >> 4 == 4 else 41
        body = extensions + header(spec, number, next_header, words=words, padding=padding) + inner
        fields = {"source": spec.remote, "destination": spec.local, "protocol": first, **outer}
        return sign(spec, ip(spec.local.version, body, **fields), number)
