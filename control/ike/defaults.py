"""The proposals of connections that name none, and what the word "default" stands for.

RFC 8247 (IKE) and RFC 8221 (ESP) say what must, should and must not be there: nothing here is below SHOULD, but for
REMOTE_ACCESS. AEAD ciphers come first; 256-bit keys come before 128-bit ones; a peer without AEAD finds CBC with HMAC
in proposals of their own. ESP's are there once without a key exchange of the child's own and once with one (behind, so
that CPU is not spent unasked): peers configured for forward secrecy refuse to rekey without, and others with.

REMOTE_ACCESS comes behind, for connections that lend addresses. Windows' built-in client offers MODP-1024 and nothing
better unless its registry (NegotiateDH2048_AES256) or its PowerShell cmdlet says so, and for ESP HMAC-SHA1 alone; the
clients of Android offer all of the first ones. As our order decides, whoever can do better never ends there. An
attacker cannot bring that about: AUTH covers the offers (RFC 7296 section 2.15).
"""

from __future__ import annotations

from functools import cache

from control.ike.numbers import Protocol
from control.ike.proposal import Proposal, parse_proposal

_GROUPS = "x25519-ecp256-ecp384-ecp521-x448-modp3072-modp4096-modp2048"
_IKE = (
    f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-prfsha512-{_GROUPS}",
    f"aes256-aes192-aes128-sha384-sha256-sha512-{_GROUPS}",
)
_IKE_REMOTE_ACCESS = (
    "aes256-aes192-aes128-sha1-modp2048",
    "aes256gcm16-aes128gcm16-prfsha384-prfsha256-modp1024",
    "aes256-aes192-aes128-sha384-sha256-modp1024",
    "aes256-aes192-aes128-sha1-modp1024",
)
_ESP = (
    "aes256gcm16-aes128gcm16-chacha20poly1305-esn-noesn",
    "aes256-aes192-aes128-sha256-sha384-sha512-esn-noesn",
    f"aes256gcm16-aes128gcm16-chacha20poly1305-esn-noesn-{_GROUPS}",
    f"aes256-aes192-aes128-sha256-sha384-sha512-esn-noesn-{_GROUPS}",
)
_AH = ("sha256-sha384-sha512-esn-noesn", f"sha256-sha384-sha512-esn-noesn-{_GROUPS}")
_ESP_REMOTE_ACCESS = ("aes256-aes192-aes128-sha1",)


@cache
def default_proposals(protocol: Protocol, *, remote_access: bool = False) -> tuple[Proposal, ...]:
    """The defaults of IKE, ESP or AH, preferred first; with those of old clients last where `remote_access` says so."""
    texts: tuple[str, ...] = {Protocol.IKE: _IKE, Protocol.ESP: _ESP, Protocol.AH: _AH}[protocol]
    if remote_access and protocol != Protocol.AH:
        texts += _IKE_REMOTE_ACCESS if protocol == Protocol.IKE else _ESP_REMOTE_ACCESS
    return tuple(parse_proposal(protocol, text) for text in texts)
