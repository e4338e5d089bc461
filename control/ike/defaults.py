"""The proposals behind the word "default": what RFC 8247 and RFC 8221 ask for today, strongest first, nothing weak.

IKE    AEAD ciphers, then CBC with SHA-2; X25519, the NIST curves, MODP of at least 2048 bits
ESP    each set once with a key exchange, for forward secrecy of rekeyed children, and once without, since peers that
       are not configured for one refuse it (it is left out in IKE_AUTH, RFC 7296 section 1.2)

Connections that lend addresses also take what the clients built into Windows and Android offer at their best: CBC with
256 bits, SHA-1 as integrity of IKE itself, and MODP-2048.
"""

from __future__ import annotations

from functools import cache

from control.ike.numbers import Protocol
from control.ike.proposal import Proposal, parse_proposal

_GROUPS = "x25519-ecp256-ecp384-ecp521-x448-modp3072-modp4096-modp2048"
_AEAD = "aes256gcm16-aes128gcm16-chacha20poly1305"
_IKE = (
    f"{_AEAD}-prfsha256-prfsha384-prfsha512-{_GROUPS}",
    f"aes256-aes128-sha256-sha384-sha512-{_GROUPS}",
)
_IKE_REMOTE_ACCESS = ("aes256-aes128-sha1-sha256-sha384-prfsha1-prfsha256-prfsha384-ecp384-ecp256-modp2048",)
_ESP = (
    f"{_AEAD}-esn-noesn-{_GROUPS}",
    f"{_AEAD}-esn-noesn",
    f"aes256-aes128-sha256-sha384-sha512-esn-noesn-{_GROUPS}",
    "aes256-aes128-sha256-sha384-sha512-esn-noesn",
)


@cache
def default_proposals(protocol: Protocol, *, remote_access: bool = False) -> tuple[Proposal, ...]:
    """The sets of a protocol, in order of preference."""
    texts: tuple[str, ...] = _IKE if protocol == Protocol.IKE else _ESP
    if remote_access and protocol == Protocol.IKE:
        texts += _IKE_REMOTE_ACCESS
    return tuple(parse_proposal(protocol, text) for text in texts)
