"""Specifications that tests vary: valid as they stand."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from dataplane.model import (
    Action,
    Cipher,
    Direction,
    EspProposal,
    Integrity,
    PolicySpec,
    PortSpec,
    Role,
    SaSpec,
    SelectorSpec,
)

GCM = EspProposal(cipher=Cipher.AES_GCM, key_bits=128)
GCM_ESN = EspProposal(cipher=Cipher.AES_GCM, key_bits=256, esn=True)
CBC = EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA2_512)
CHACHA = EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256)
SHA1 = EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA1)
CCM8 = EspProposal(cipher=Cipher.AES_CCM, key_bits=192, tag_length=8)
GMAC = EspProposal(cipher=Cipher.AES_GMAC, key_bits=256)
CTR = EspProposal(cipher=Cipher.AES_CTR, key_bits=128, integrity=Integrity.AES_CMAC)
IMPLICIT = EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256, implicit_iv=True)
NULL = EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_256)

SELECTOR = SelectorSpec.from_networks(
    IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/24"), protocol=6, remote_ports=(80, 443)
)
SELECTOR6 = SelectorSpec.from_networks(IPv6Network("2001:db8:1::/48"), IPv6Network("2001:db8:2::/64"))


def make_sa(name: str = "a", proposal: EspProposal = GCM, **rest: Any) -> SaSpec:
    """An outbound SA with fresh keys, as IKE would make it."""
    spec = SaSpec(
        name=name,
        direction=Direction.OUT,
        spi=0xC0000001,
        local=IPv4Address("192.0.2.1"),
        remote=IPv4Address("192.0.2.2"),
        proposal=proposal,
        encryption_key=os.urandom(proposal.encryption_key_length),
        integrity_key=os.urandom(proposal.integrity_key_length),
        negotiated=True,
    )
    return replace(spec, **rest)


def make_inbound(name: str = "b", proposal: EspProposal = GCM, **rest: Any) -> SaSpec:
    """An inbound SA."""
    return make_sa(name, proposal, **{"direction": Direction.IN, "selectors": (SELECTOR,), **rest})


def make_v6(spec: SaSpec) -> SaSpec:
    """The same between IPv6 addresses."""
    return replace(spec, local=IPv6Address("2001:db8::1"), remote=IPv6Address("2001:db8::2"))


def make_policy(name: str = "p", sa: str | None = None, **rest: Any) -> PolicySpec:
    """A policy that protects."""
    return replace(PolicySpec(name=name, action=Action.PROTECT, selector=SELECTOR, sa=sa), **rest)


def memory_ports() -> list[PortSpec]:
    """One protected and one unprotected port that need no interface."""
    return [
        PortSpec(name="lan", role=Role.PROTECTED, driver="memory", interface=""),
        PortSpec(name="wan", role=Role.UNPROTECTED, driver="memory", interface=""),
    ]
