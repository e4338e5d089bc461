"""One agreement to be proven with the kernel's IPsec, in the words of both sides.

A `Case` is a pair of SAs on keys written by hand, with addresses, SPIs and keys that follow from its number: all
cases of a run can stand side by side in one gateway. `tables` says it in our configuration's words, `states` and
`policies` in those of `ip xfrm`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from control.config import parse_proposal
from control.lab.gateway import toml_table
from tests.conformance import BUNDLE, LINUX

# Outer addresses by family: ours, the kernel's.
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8:f::1", "2001:db8:f::2")}
# Where the protected hosts' addresses begin: ours, the kernel's.
INNER = {4: ("10.1.0.0", "10.2.0.0"), 6: ("2001:db8:1::", "2001:db8:2::")}
# And where those of hosts in transport mode do, which are both the inner and the outer ones.
HOSTS = {4: ("10.3.0.0", "10.4.0.0"), 6: ("2001:db8:3::", "2001:db8:4::")}
PREFIX_LENGTH = {4: 16, 6: 64}
HOST_LENGTH = {4: 32, 6: 128}
ENCAP_PORT = 4500
# Extended sequence numbers begin so short of 2**32 that every test crosses it (RFC 4303 appendix A).
ESN_START = 2**32 - 300

# Our keywords -> the kernel's algorithm and its ICV in bits. The kernel has no implicit IVs (RFC 8750).
_BITS = (128, 192, 256)
_TAGS = (16, 12, 8)
AEADS = {
    **{f"aes{bits}gcm{tag}": ("rfc4106(gcm(aes))", 8 * tag) for bits in _BITS for tag in _TAGS},
    "chacha20poly1305": ("rfc7539esp(chacha20,poly1305)", 128),
    **{f"aes{bits}ccm{tag}": ("rfc4309(ccm(aes))", 8 * tag) for bits in _BITS for tag in _TAGS},
    **{f"aes{bits}gmac": ("rfc4543(gcm(aes))", 128) for bits in _BITS},
}
CIPHERS = {
    **{f"aes{bits}": "cbc(aes)" for bits in _BITS},
    **{f"aes{bits}ctr": "rfc3686(ctr(aes))" for bits in _BITS},
    "null": "ecb(cipher_null)",
}
INTEGRITIES = {
    "sha256": ("hmac(sha256)", 128),
    "sha384": ("hmac(sha384)", 192),
    "sha512": ("hmac(sha512)", 256),
    "aescmac": ("cmac(aes)", 96),
    "aesxcbc": ("xcbc(aes)", 96),
    "sha1": ("hmac(sha1)", 96),
}
SUITES = (*AEADS, *(f"{cipher}-{integrity}" for cipher in CIPHERS for integrity in INTEGRITIES))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that a pair of SAs can differ in."""

    suite: str  # our keywords, without esn
    outer: int = 4  # family of the tunnel's ends
    inner: int = 4  # family of what goes through it
    protocol: str = "esp"
    mode: str = "tunnel"
    esn: bool = False
    encap: bool = False
    driver: str = "packet"  # of our ports
    jumbo: bool = True  # whether the links take packets of 9000 bytes, or of 1500
    around: str = ""  # of an SA bundle, AH around ESP: the algorithm of the AH

    @property
    def world(self) -> tuple[str, str, bool]:
        """What the gateway must be like: mode, driver and whether links are jumbo."""
        return self.mode, self.driver, self.jumbo

    @property
    def agreement(self) -> dict[str, object]:
        """What it is about, for the table of conformance."""
        names = ("protocol", "mode", "suite", "mix", "esn", "encap")
        found = {"peer": LINUX, **{name: getattr(self, name) for name in names}}
        if self.around:
            found |= {"protocol": BUNDLE, "suite": f"{self.suite} in {self.around}"}
        return found

    @property
    def mix(self) -> str:
        """The families, inner in outer; in transport mode there is but one."""
        if self.mode == "transport":
            return f"IPv{self.outer}"
        return f"{self.inner}in{self.outer}"

    def __str__(self) -> str:
        """The test's name."""
        words = [
            self.protocol,
            self.mode,
            self.mix,
            self.suite,
            *([f"ah-{self.around}"] if self.around else []),
        ]
        words += ["esn"] * self.esn + ["udp"] * self.encap + ["1500"] * (not self.jumbo)
        return "-".join([*words, *([self.driver] if self.driver != "packet" else [])])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case under a number that no other case of the run has."""

    case: Case
    number: int

    @property
    def name(self) -> str:
        """What its SAs and its policy are called, followed by -out and -in."""
        return f"case{self.number}"

    @property
    def spi_out(self) -> int:
        """Of the SA that we send by."""
        return 0x10000 + 2 * self.number

    @property
    def spi_in(self) -> int:
        """Of the SA that the kernel sends by."""
        return self.spi_out + 1

    @property
    def spis(self) -> tuple[int, ...]:
        """Of all its SAs: out and in, and in a bundle those around them."""
        return (self.spi_out, self.spi_in, *((self._around, self._around + 1) if self.case.around else ()))

    @property
    def _around(self) -> int:
        """The SPI of the AH around what we send; the other is one more."""
        return 0x20000 + 2 * self.number

    @property
    def local(self) -> str:
        """Our protected host's address; in transport mode ours."""
        return self._ends[0]

    @property
    def remote(self) -> str:
        """The kernel's."""
        return self._ends[1]

    @property
    def _ends(self) -> tuple[str, str]:
        networks = HOSTS if self.case.mode == "transport" else INNER
        ours, theirs = (str(ip_address(first) + 1 + self.number) for first in networks[self.case.inner])
        return ours, theirs

    @property
    def _outer(self) -> tuple[str, str]:
        """Between which addresses the SAs are."""
        return self._ends if self.case.mode == "transport" else OUTER[self.case.outer]

    @property
    def keys(self) -> dict[str, tuple[bytes, bytes]]:
        """By direction, seen from us: encryption (with its salt) and integrity key."""
        # AH has the keys of ESP without a cipher.
        proposal = parse_proposal(("null-" if self.case.protocol == "ah" else "") + self.case.suite)
        chance = random.Random(self.number)
        return {
            direction: (
                chance.randbytes(proposal.encryption_key_length),
                chance.randbytes(proposal.integrity_key_length),
            )
            for direction in ("out", "in")
        }

    @property
    def _around_keys(self) -> dict[str, bytes]:
        """Of the AH in a bundle, by direction."""
        length = parse_proposal(f"null-{self.case.around}").integrity_key_length
        chance = random.Random(-1 - self.number)
        return {direction: chance.randbytes(length) for direction in ("out", "in")}

    @property
    def _keywords(self) -> str:
        return self.case.suite + ("-esn" if self.case.esn else "")

    @property
    def first(self) -> int:
        """The first sequence number of both directions."""
        return ESN_START if self.case.esn else 1

    # --- ours ----------------------------------------------------------------------------------------

    def tables(self) -> str:
        """Our SAs and the policy, as configuration."""
        ours, theirs = self._outer
        text = ""
        for direction, spi in (("out", self.spi_out), ("in", self.spi_in)):
            encryption, integrity = self.keys[direction]
            values = {
                "name": f"{self.name}-{direction}",
                "direction": direction,
                **({} if self.case.protocol == "esp" else {"protocol": self.case.protocol}),
                "mode": self.case.mode,
                "spi": spi,
                "local": ours,
                "remote": theirs,
                "proposal": self._keywords,
                "encap": self.case.encap,
                "sequence": self.first,
            }
            values |= {"encryption_key": encryption.hex()} if encryption else {}
            values |= {"integrity_key": integrity.hex()} if integrity else {}
            if self.case.around:
                values |= {"outer": f"{self.name}-ah-{direction}"}
                text += self._table_around(direction)
            text += toml_table("[sa]", values)
        policy = {"name": self.name, "local": self.local, "remote": self.remote}
        return text + toml_table("[policy]", policy | {"out": f"{self.name}-out", "in": f"{self.name}-in"})

    def _table_around(self, direction: str) -> str:
        """The AH of a bundle."""
        ours, theirs = self._outer
        values = {
            "name": f"{self.name}-ah-{direction}",
            "direction": direction,
            "protocol": "ah",
            "mode": "transport",
            "spi": self._around + (direction == "in"),
            "local": ours,
            "remote": theirs,
            "proposal": self.case.around + ("-esn" if self.case.esn else ""),
            "sequence": self.first,
            "integrity_key": self._around_keys[direction].hex(),
        }
        return toml_table("[sa]", values)

    # --- the kernel's --------------------------------------------------------------------------------

    def states(self) -> list[str]:
        """Its SAs, as `ip` commands."""
        ours, theirs = self._outer
        sides = (("out", ours, theirs, self.spi_out), ("in", theirs, ours, self.spi_in))
        around = [
            f"xfrm state add src {source} dst {target} proto ah spi {self._around + (direction == 'in'):#x} "
            f"mode transport {self._flags_around} {self._numbers(inbound=direction == 'out')} "
            f"{_ah_algorithm(self.case.around, self._around_keys[direction])}"
            for direction, source, target, _ in sides
            if self.case.around
        ]
        return around + [
            f"xfrm state add src {source} dst {target} proto {self.case.protocol} spi {spi:#x} "
            f"mode {self.case.mode} {self._flags} {self._numbers(inbound=direction == 'out')} "
            f"{self._algorithms(direction)} {self._encap}"
            for direction, source, target, spi in sides
        ]

    @property
    def _flags(self) -> str:
        """Tunnels may carry the other family; AH over IPv4 is to be as long as RFC 4302 section 3.3.3.2.1 says."""
        flags = ["af-unspec"] * (self.case.mode == "tunnel")
        flags += ["align4"] * (self.case.protocol == "ah" and self.case.outer == 4)
        flags += ["esn"] * self.case.esn
        return "flag " + " ".join(flags) if flags else ""

    @property
    def _flags_around(self) -> str:
        """Of the AH in a bundle."""
        flags = ["align4"] * (self.case.outer == 4) + ["esn"] * self.case.esn
        return "flag " + " ".join(flags) if flags else ""

    def _numbers(self, *, inbound: bool) -> str:
        """Replay window, and the last number had or sent."""
        last = self.first - 1
        if not self.case.esn:
            return "replay-window 32"
        seen = f"replay-seq {last & 0xFFFFFFFF:#x} replay-seq-hi {last >> 32:#x}"
        sent = f"replay-oseq {last & 0xFFFFFFFF:#x} replay-oseq-hi {last >> 32:#x}"
        return f"replay-window 1024 {seen if inbound else sent}"

    def _algorithms(self, direction: str) -> str:
        encryption, integrity = (f'"0x{key.hex()}"' if key else '""' for key in self.keys[direction])
        if self.case.protocol == "ah":
            return _ah_algorithm(self.case.suite, self.keys[direction][1])
        if self.case.suite in AEADS:
            name, bits = AEADS[self.case.suite]
            return f'aead "{name}" {encryption} {bits}'
        cipher, _, hash_name = self.case.suite.partition("-")
        name, bits = INTEGRITIES[hash_name]
        return f'enc "{CIPHERS[cipher]}" {encryption} auth-trunc "{name}" {integrity} {bits}'

    @property
    def _encap(self) -> str:
        if not self.case.encap:
            return ""
        return f"encap espinudp {ENCAP_PORT} {ENCAP_PORT} {'::' if self.case.outer == 6 else '0.0.0.0'}"

    def policies(self) -> list[str]:
        """Its policies, as `ip` commands."""
        ours, theirs = self._outer
        length = HOST_LENGTH[self.case.inner]
        here, there = f"{self.local}/{length}", f"{self.remote}/{length}"
        tail = f"proto {self.case.protocol} mode {self.case.mode}"
        out, back = f"src {theirs} dst {ours}", f"src {ours} dst {theirs}"
        # The first template is what is done first.
        around = "proto ah mode transport"
        more_out = f" tmpl {out} spi {self._around + 1:#x} {around}" if self.case.around else ""
        more_back = f" tmpl {back} {around}" if self.case.around else ""
        return [
            f"xfrm policy add src {there} dst {here} dir out tmpl {out} spi {self.spi_in:#x} {tail}{more_out}",
            f"xfrm policy add src {here} dst {there} dir in tmpl {back} {tail}{more_back}",
        ]


def _ah_algorithm(keyword: str, key: bytes) -> str:
    """AH's algorithm in the words of `ip xfrm`."""
    name, bits = INTEGRITIES[keyword]
    return f'auth-trunc "{name}" "0x{key.hex()}" {bits}'


def numbered(cases: Sequence[Case]) -> dict[Case, Pair]:
    """Each case with a number of its own."""
    return {case: Pair(case=case, number=number) for number, case in enumerate(dict.fromkeys(cases))}
