"""Every ESP suite that we have, by the names that others give it, and SA pairs over every mix of families."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from dataplane.model import Address, Cipher, Direction, Encap, EspProposal, Integrity, SaSpec
from tests.gateway import ANY4, ANY6
from tests.packets import ip_address

_CRYPT = {
    Cipher.NULL: "NULL",
    Cipher.AES_CBC: "AES-CBC",
    Cipher.AES_GCM: "AES-GCM",
    Cipher.CHACHA20_POLY1305: "CHACHA20-POLY1305",
    Cipher.AES_CTR: "AES-CTR",
    Cipher.AES_CCM: "AES-CCM",
    Cipher.AES_GMAC: "AES-NULL-GMAC",
}
_AUTH = {
    Integrity.NONE: None,
    Integrity.HMAC_SHA2_256: "SHA2-256-128",
    Integrity.HMAC_SHA2_384: "SHA2-384-192",
    Integrity.HMAC_SHA2_512: "SHA2-512-256",
    Integrity.HMAC_SHA1: "HMAC-SHA1-96",
    Integrity.AES_XCBC: "AES-XCBC-96",  # the registered name: scapy has no such algorithm
    Integrity.AES_CMAC: "AES-CMAC-96",
    Integrity.AES_GMAC: "AES-GMAC",  # of AH, which scapy has not: tests bring it
}
HMACS = (Integrity.HMAC_SHA2_256, Integrity.HMAC_SHA2_384, Integrity.HMAC_SHA2_512, Integrity.HMAC_SHA1)
SUITES = [
    *(EspProposal(cipher=Cipher.AES_GCM, key_bits=bits) for bits in (128, 192, 256)),
    EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256),
    *(
        EspProposal(cipher=Cipher.AES_CBC, key_bits=bits, integrity=integrity)
        for bits in (128, 192, 256)
        for integrity in HMACS
    ),
    *(EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=integrity) for integrity in HMACS),
]
# What RFC 8221 has beside these: every cipher, key and ICV, every integrity algorithm with each kind of cipher.
MORE_SUITES = [
    *(
        EspProposal(cipher=Cipher.AES_GCM, key_bits=bits, tag_length=tag)
        for bits in (128, 256)
        for tag in (12, 8)
    ),
    *(EspProposal(cipher=Cipher.AES_CCM, key_bits=bits) for bits in (128, 192, 256)),
    *(
        EspProposal(cipher=Cipher.AES_CCM, key_bits=bits, tag_length=tag)
        for bits, tag in ((128, 8), (192, 8), (256, 12))
    ),
    *(EspProposal(cipher=Cipher.AES_GMAC, key_bits=bits) for bits in (128, 192, 256)),
    *(
        EspProposal(cipher=Cipher.AES_CTR, key_bits=bits, integrity=integrity)
        for bits, integrity in (
            (128, Integrity.HMAC_SHA2_256),
            (192, Integrity.HMAC_SHA2_384),
            (256, Integrity.HMAC_SHA2_512),
            (128, Integrity.HMAC_SHA1),
            (128, Integrity.AES_CMAC),
            (256, Integrity.AES_XCBC),
        )
    ),
    *(
        EspProposal(cipher=cipher, key_bits=bits, integrity=integrity)
        for cipher, bits in ((Cipher.AES_CBC, 128), (Cipher.AES_CBC, 256), (Cipher.NULL, 0))
        for integrity in (Integrity.AES_XCBC, Integrity.AES_CMAC)
    ),
]
# RFC 8750, of which neither scapy nor tshark nor strongSwan nor Linux knows.
IMPLICIT_IVS = [
    *(EspProposal(cipher=Cipher.AES_GCM, key_bits=bits, implicit_iv=True) for bits in (128, 192, 256)),
    *(
        EspProposal(cipher=Cipher.AES_CCM, key_bits=bits, tag_length=8, implicit_iv=True)
        for bits in (128, 192, 256)
    ),
    EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256, implicit_iv=True),
]
ALL_SUITES = [*SUITES, *MORE_SUITES, *IMPLICIT_IVS]
# Of AH alone (RFC 4543 section 4).
AH_GMACS = [
    EspProposal(cipher=Cipher.NULL, key_bits=bits, integrity=Integrity.AES_GMAC) for bits in (128, 192, 256)
]
NULL_SHA256 = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_256)
OUTER = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8:f::1"), ip_address("2001:db8:f::2")),
}
SPI_OUT, SPI_IN = 0xC0000001, 0xD0000001


@dataclass(frozen=True, kw_only=True)
class Names:
    """scapy's names of a suite."""

    crypt: str
    auth: str | None


def scapy_names(proposal: EspProposal) -> Names:
    """What scapy calls it."""
    return Names(crypt=_CRYPT[proposal.cipher], auth=_AUTH[proposal.integrity])


def in_scapy(proposal: EspProposal) -> bool:
    """Whether scapy has all of it: no XCBC, and of GCM whole tags only."""
    if proposal.integrity is Integrity.AES_XCBC or proposal.implicit_iv:
        return False
    return proposal.cipher is not Cipher.AES_GCM or proposal.tag_length == 16


def suite_id(proposal: EspProposal) -> str:
    """A short name for reports: aes_gcm128, aes_cbc256-sha2-512-256, ..."""
    bits = str(proposal.key_bits or "")
    hash_ = "" if proposal.is_aead else "-" + (_AUTH[proposal.integrity] or "").lower()
    if proposal.tag_length != 16 or proposal.cipher is Cipher.AES_CCM:
        hash_ = f"-{proposal.tag_length}"
    iv = "-iiv" if proposal.implicit_iv else ""
    return proposal.cipher.name.lower() + bits + hash_ + iv + ("-esn" if proposal.esn else "")


def outbound_sa(
    proposal: EspProposal, *, family: int = 4, encap: bool = False, seed: int = 1, **rest: Any
) -> SaSpec:
    """An outbound SA "out" with keys that depend on `seed` alone."""
    chance = random.Random(seed)
    local, remote = OUTER[family]
    spec = SaSpec(
        name="out",
        direction=Direction.OUT,
        spi=SPI_OUT,
        local=local,
        remote=remote,
        proposal=proposal,
        encryption_key=chance.randbytes(proposal.encryption_key_length),
        integrity_key=chance.randbytes(proposal.integrity_key_length),
        encap=Encap() if encap else None,
        negotiated=True,
    )
    return replace(spec, **rest)


def inbound_sa(
    proposal: EspProposal, *, family: int = 4, encap: bool = False, seed: int = 1, **rest: Any
) -> SaSpec:
    """An inbound SA "in": the peer's packets come from OUTER's second address, with keys of their own SPI."""
    spec = outbound_sa(proposal, family=family, encap=encap, seed=seed)
    changes = {"name": "in", "direction": Direction.IN, "spi": SPI_IN, "selectors": (ANY4, ANY6), **rest}
    return replace(spec, **changes)


def mirror(spec: SaSpec, **rest: Any) -> SaSpec:
    """The inbound SA that opens what outbound `spec` sends, as if this gateway were its own peer."""
    ends: dict[str, Address] = {"local": spec.remote, "remote": spec.local}
    changes = {"name": "in", "direction": Direction.IN, "selectors": (ANY4, ANY6), **ends, **rest}
    return replace(spec, **changes)
