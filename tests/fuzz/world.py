"""Gateways for the fuzzer: a tunnel for every suite, outer family, encapsulation and numbering, on ports in memory.

Tunnel n's outbound SA and the inbound SA that opens it lie in one gateway, which is its own peer. A second inbound SA
of its own SPI and keys, n's `forge`, belongs to the fuzzer: it seals whatever it likes with that. The last tunnels are
bundles, AH around ESP.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from ipaddress import ip_network
from itertools import product

from dataplane.model import Action, Cipher, Df, EspProposal, Mode, PolicySpec, Protocol, SaSpec, SelectorSpec
from dataplane.tables import Limits
from ext.crypto import EngineHandle
from tests.ah import Peer
from tests.exchange.suites import HMACS, IMPLICIT_IVS, MORE_SUITES, SUITES, mirror, outbound_sa
from tests.ext.crypto_jobs import esp_packet
from tests.gateway import Gateway
from tests.packets import AH, ESP, UDP, checksum, ip, udp, udp_packet

LIMITS = Limits(
    max_sas=1024,
    max_policies=1024,
    max_selectors=8192,
    max_adjacencies=64,
    max_routes=64,
    max_prefixes=16384,
    max_candidates=131072,
)
DISCARDED, BYPASSED, WITHOUT_SA = (
    250,
    251,
    252,
)  # third byte, or fourth group, of destinations with such policies

BUNDLES = 4  # tunnels, the last ones, that have AH around them

AH_SUITES = [EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=integrity) for integrity in HMACS]
#: IPv4 options and IPv6 extension headers (with the first one's type) that may stand before an AH.
OPTIONS = [
    b"\x01" * 8,
    b"\x94\x04\0\0",
    b"\x44\x0c\x05\0" + bytes(8),
    b"\x83\x07\x08\x0a\0\0\1\0",
    b"\x07\x27\x04" + bytes(37),
]
EXTENSIONS = [
    (0, bytes([AH, 0, 0x3E, 4]) + b"seen"),
    (60, bytes([AH, 0, 0x1E, 4]) + b"kept"),
    (43, bytes([AH, 2, 0, 0]) + bytes(20)),
    (0, bytes([60, 0, 1, 4]) + bytes(4) + bytes([43, 0, 1, 4]) + bytes(4) + bytes([AH, 0, 9, 0]) + bytes(4)),
]


def networks(tunnel: int) -> tuple[SelectorSpec, SelectorSpec]:
    """Tunnel `tunnel`'s traffic, seen from its sender."""
    return (
        SelectorSpec.from_networks(ip_network("10.1.0.0/16"), ip_network(f"10.2.{tunnel}.0/24")),
        SelectorSpec.from_networks(ip_network("2001:db8:1::/48"), ip_network(f"2001:db8:2:{tunnel:x}::/64")),
    )


EVERYTHING = (
    SelectorSpec.from_networks(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")),
    SelectorSpec.from_networks(ip_network("2001:db8:1::/48"), ip_network("2001:db8:2::/48")),
)


def answers() -> tuple[SelectorSpec, SelectorSpec]:
    """Traffic to the clients: ICMP errors that answer decrypted packets. Tunnel 0 carries it."""
    return (
        SelectorSpec.from_networks(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")),
        SelectorSpec.from_networks(ip_network("2001:db8::/32"), ip_network("2001:db8:1::/48")),
    )


def turned(selector: SelectorSpec) -> SelectorSpec:
    """The same traffic seen from its receiver."""
    return replace(
        selector,
        local_first=selector.remote_first,
        local_last=selector.remote_last,
        remote_first=selector.local_first,
        remote_last=selector.local_last,
    )


@dataclass(kw_only=True)
class Forge:
    """An inbound SA whose keys the fuzzer holds, and the number it uses next."""

    spec: SaSpec
    tunnel: int
    sequence: int

    def seal(self, plaintext: bytes, chance: random.Random) -> bytes:
        """An outer packet that passes the ICV; trailer and alignment are right most of the time."""
        spec, proposal = self.spec, self.spec.proposal
        if spec.protocol is Protocol.AH:
            return self._authenticate(plaintext, chance)
        text = plaintext + self._trailer(plaintext, chance)
        sequence = self.sequence
        self.sequence += 1
        if proposal.cipher is Cipher.AES_CBC:
            text = text[: len(text) // 16 * 16]
        return self._outer(esp_packet(spec, text, sequence, chance.randbytes(proposal.iv_length)))

    def _authenticate(self, plaintext: bytes, chance: random.Random) -> bytes:
        """AH, perhaps behind options or extension headers, whose ICV is right for what can be followed."""
        number, family = self.sequence, self.spec.local.version
        self.sequence += 1
        lie = chance.randrange(12)
        options, extensions, first = b"", b"", AH
        if lie < 4 and family == 4:
            options = chance.choice(OPTIONS)
        elif lie < 4:
            first, extensions = chance.choice(EXTENSIONS)
        packet = Peer(self.spec).packet(
            plaintext,
            number=number,
            next_header=chance.choice((4, 41, 59, 0, 6, 51, 255)) if lie == 11 else None,
            words=chance.choice((0, 1, 4, 5, 6, 9, 255)) if lie == 10 else None,
            extensions=extensions,
            first=first,
            **({"options": options} if options else {}),
        )
        if lie == 9:  # options that nobody can follow: no ICV is right
            spoilt = bytearray(packet)
            spoilt[0] = spoilt[0] & 0xF0 | chance.choice((6, 7, 9, 15)) if family == 4 else spoilt[0]
            spoilt[10:12] = b"\0\0" if family == 4 else spoilt[10:12]
            if family == 4:
                spoilt[10:12] = checksum(bytes(spoilt[: (spoilt[0] & 15) * 4])).to_bytes(2, "big")
            packet = bytes(spoilt)
        return packet

    def _trailer(self, plaintext: bytes, chance: random.Random) -> bytes:
        """Padding, its length and the next header, with lies."""
        lie = chance.randrange(12)
        align = 1 if lie == 0 else self.spec.proposal.alignment
        padding = -(len(plaintext) + 2) % align + (chance.choice((16, 64, 224)) if lie == 1 else 0)
        filled = bytes(range(1, padding + 1)) if lie != 2 else chance.randbytes(padding)
        says = chance.choice((0, 1, 254, 255)) if lie == 3 else padding
        follows = 4 if plaintext[:1] and plaintext[0] >> 4 == 4 else 41
        if lie >= 10:
            follows = chance.choice((4, 41, 59, 0, 6, 17, 50, 255))
        return filled + bytes([says, follows])

    def _outer(self, esp: bytes) -> bytes:
        spec = self.spec
        protocol = 50
        if spec.encap is not None:
            ports = spec.encap.source_port, spec.encap.destination_port
            esp, protocol = struct.pack(">HHHH", *ports, 8 + len(esp), 0) + esp, 17
        # The peer sends from our `remote`.
        addresses = spec.remote.packed + spec.local.packed
        if spec.local.version == 6:
            return struct.pack(">IHBB", 6 << 28, len(esp), protocol, 64) + addresses + esp
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(esp), 0, 0, 64, protocol, 0) + addresses
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + esp


class World:
    """One gateway with all its tunnels; `name` says which engine and link it has."""

    def __init__(self, engine: EngineHandle, link: int, seed: int) -> None:
        chance = random.Random(seed)
        self.name = f"{engine.name} {'Ethernet' if link == 0 else 'IP'}"
        self.link = link
        self.gateway = Gateway(engine, link=link, limits=LIMITS)
        self.forges: list[Forge] = []
        policies: list[PolicySpec] = []
        for action, number in (
            (Action.DISCARD, DISCARDED),
            (Action.BYPASS, BYPASSED),
            (Action.PROTECT, WITHOUT_SA),
        ):
            policies += _policies(f"{action.name} {number}", action, networks(number), None)
        ways = list(product((False, True), (4, 6), (False, True)))
        kinds = [(Protocol.ESP, suite, *way) for suite in SUITES for way in ways]
        # Of the rest each suite has two ways, one of them with ESN: a tunnel's number is a byte of an address.
        rest = (*MORE_SUITES, *IMPLICIT_IVS)
        kinds += [
            (Protocol.ESP, suite, *ways[(at + half) % 8]) for at, suite in enumerate(rest) for half in (0, 4)
        ]
        kinds += [
            (Protocol.AH, suite, esn, 4 if esn == bool(at % 2) else 6, False)
            for at, suite in enumerate(AH_SUITES)
            for esn in (False, True)
        ]
        kinds += [(Protocol.ESP, suite, False, family, False) for suite in SUITES[:2] for family in (4, 6)]
        for number, (protocol, suite, esn, family, encap) in enumerate(kinds):
            proposal = replace(suite, esn=esn)
            out = outbound_sa(
                *(proposal,),
                family=family,
                encap=encap,
                seed=chance.getrandbits(64),
                name=f"out{number}",
                protocol=protocol,
                spi=0xC0000000 + number,
                df=chance.choice(list(Df)),
                dscp=chance.choice((None, None, 0, 46)),
                ttl=chance.choice((1, 64, 255)),
                mss_clamp=chance.random() < 0.5,
            )
            # The first of each numbering comes to an end, or crosses into the next 2**32.
            out = replace(out, **_numbers(number, esn))
            bundle: dict[str, object] = {}
            if number >= len(kinds) - BUNDLES:
                # AH goes around it, and has the number that is seen. What is forged comes without: it ends as `bundle`.
                around = outbound_sa(
                    AH_SUITES[number % len(AH_SUITES)],
                    family=family,
                    seed=chance.getrandbits(64),
                    name=f"around{number}",
                    protocol=Protocol.AH,
                    mode=Mode.TRANSPORT,
                    spi=out.spi,
                )
                out = replace(out, spi=0xD0000000 + number, outer=around.name, outer_length=around.ah_length)
                between = SelectorSpec.from_networks(ip_network(around.remote), ip_network(around.local))
                within = mirror(around, name=f"within{number}", selectors=(between,))
                self.gateway.add(around)
                self.gateway.add(within)
                bundle = {"outer": within.name}
            window = chance.choice((64, 1024, 4096) if esn else (0, 64, 1024, 4096))
            # Tunnel 0 carries answers and the web traffic of others, too.
            selectors = (*networks(0), *answers(), *EVERYTHING) if number == 0 else networks(number)
            opened = {"selectors": tuple(map(turned, selectors)), "replay_window": window, **bundle}
            into = mirror(out, name=f"in{number}", sequence=max(1, out.sequence - 100), **opened)
            other = outbound_sa(
                proposal, family=family, encap=encap, seed=chance.getrandbits(64), protocol=protocol
            )
            forged = mirror(other, name=f"forge{number}", spi=0xF0000000 + number, **opened)
            self.gateway.add(out, adjacency=number % 8 != 7)
            self.gateway.add(into, forged)
            self.forges.append(Forge(spec=forged, tunnel=number, sequence=1))
            if number % 5 == 0:
                web = replace(networks(number)[0], protocol=6, remote_ports=(80, 443))
                policies.append(
                    PolicySpec(name=f"web{number}", action=Action.PROTECT, selector=web, sa="out0")
                )
            policies += _policies(f"tunnel {number}", Action.PROTECT, networks(number), out.name)
        policies += _policies("answers", Action.PROTECT, answers(), "out0")
        self.gateway.set_policies(policies)
        self.tunnels = len(kinds)

    def oddities(self) -> list[bytes]:
        """Outer packets that are no ESP, or as little of it as there can be: keepalives, IKE's marker, stumps.

        And what should have come through a tunnel, in clear.
        """
        packets = []
        for forge in self.forges[:8]:
            spec = forge.spec
            for body in (
                b"\xff",
                b"\xfe",
                b"\xff\xff",
                bytes(4),
                bytes(28),
                spec.spi.to_bytes(4, "big"),
                bytes(8),
            ):
                ends = {"source": spec.remote, "destination": spec.local}
                family = spec.local.version
                packets.append(
                    ip(family, udp(body, ports=(4500, 4500), none=True, **ends), protocol=UDP, **ends)
                )
                packets.append(ip(family, body, protocol=ESP, **ends))
        for tunnel in range(4):
            packets.append(udp_packet(4, b"clear", source=f"10.2.{tunnel}.1", destination="10.1.0.1"))
            far = f"2001:db8:2:{tunnel:x}::1"
            packets.append(udp_packet(6, b"clear", source=far, destination="2001:db8:1::1"))
        return packets

    def close(self) -> None:
        """Let everything go."""
        self.gateway.close()


def _policies(
    name: str, action: Action, selectors: tuple[SelectorSpec, ...], sa: str | None
) -> list[PolicySpec]:
    return [
        PolicySpec(name=f"{name} {place}", action=action, selector=selector, sa=sa)
        for place, selector in enumerate(selectors)
    ]


def _numbers(tunnel: int, esn: bool) -> dict[str, int]:
    """Where an outbound SA's numbers begin and end."""
    if tunnel % 16 == 1 or tunnel % 16 == 2:
        return {"sequence": 2**32 - 200}
    if tunnel % 16 == 3:
        return {"sequence": 2**64 - 300 if esn else 2**32 - 300}
    return {"sequence_limit": 400} if tunnel % 16 == 4 else {}
