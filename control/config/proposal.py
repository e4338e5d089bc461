"""ESP algorithm suites by strongSwan's keywords: `aes128gcm16`, `aes256-sha256-esn`, `null-sha512`.

Words are joined by `-` in any order. What strongSwan knows and Esplanade does not offer is refused by
name, so that nobody hunts for a spelling mistake that is none.
"""

from __future__ import annotations

from control.config.problems import nearest, show
from dataplane.model import Cipher, EspProposal, Integrity

_CIPHERS: dict[str, tuple[Cipher, int]] = {
    **{f"aes{bits}": (Cipher.AES_CBC, bits) for bits in (128, 192, 256)},
    **{f"aes{bits}gcm{icv}": (Cipher.AES_GCM, bits) for bits in (128, 192, 256) for icv in (16, 128)},
    "aes": (Cipher.AES_CBC, 128),
    "chacha20poly1305": (Cipher.CHACHA20_POLY1305, 256),
    "null": (Cipher.NULL, 0),
}
_INTEGRITY: dict[str, Integrity] = {
    "sha256": Integrity.HMAC_SHA2_256,
    "sha2_256": Integrity.HMAC_SHA2_256,
    "sha256_128": Integrity.HMAC_SHA2_256,
    "sha384": Integrity.HMAC_SHA2_384,
    "sha2_384": Integrity.HMAC_SHA2_384,
    "sha384_192": Integrity.HMAC_SHA2_384,
    "sha512": Integrity.HMAC_SHA2_512,
    "sha2_512": Integrity.HMAC_SHA2_512,
    "sha512_256": Integrity.HMAC_SHA2_512,
}
_SEQUENCE = {"esn": True, "noesn": False}

# Known to strongSwan, not offered here; the reason is shown.
_OTHERS: dict[str, str] = {
    **dict.fromkeys(
        ("3des", "des", "blowfish", "cast128", "rc5", "idea"), "is broken or obsolete (RFC 8221)"
    ),
    **dict.fromkeys(("md5", "md5_128", "sha1", "sha", "sha1_160"), "is not offered; use sha256 (RFC 8221)"),
    **dict.fromkeys(("sha256_96", "aesxcbc", "aescmac"), "is not offered; use sha256"),
    **{
        f"aes{bits}gcm{icv}": "has a truncated ICV, which is not offered; use the form that ends in gcm16"
        for bits in (128, 192, 256)
        for icv in (8, 12, 64, 96)
    },
    **{
        f"aes{bits}ccm{icv}": f"is not offered; use aes{bits}gcm16"
        for bits in (128, 192, 256)
        for icv in (8, 12, 16, 64, 96, 128)
    },
    **{
        f"aes{bits}{mode}": f"is not offered; use aes{bits}gcm16"
        for bits in (128, 192, 256)
        for mode in ("ctr", "gmac")
    },
    **{f"camellia{bits}": f"is not offered; use aes{bits}" for bits in (128, 192, 256)},
}
_KEY_EXCHANGE = (
    "modp",
    "ecp",
    "x25519",
    "curve25519",
    "x448",
    "curve448",
    "ke1_",
    "ke2_",
    "ke3_",
    "mlkem",
    "prf",
)

EXAMPLES = "aes128gcm16, chacha20poly1305 or aes256-sha256-esn"


def parse_proposal(text: str) -> EspProposal:
    """The suite that `text` names; raises ValueError that completes "got 'text', ..."."""
    cipher: tuple[Cipher, int] | None = None
    integrity: Integrity | None = None
    esn: bool | None = None
    for word in text.strip().lower().rstrip("!").split("-"):
        if word in _CIPHERS:
            if cipher is not None:
                raise ValueError("which names two ciphers; want exactly one")
            cipher = _CIPHERS[word]
        elif word in _INTEGRITY:
            if integrity is not None:
                raise ValueError("which names two integrity algorithms; want at most one")
            integrity = _INTEGRITY[word]
        elif word in _SEQUENCE:
            if esn is not None:
                raise ValueError("which says esn or noesn twice")
            esn = _SEQUENCE[word]
        else:
            raise ValueError(_unknown(word))
    if cipher is None:
        raise ValueError(f"which names no cipher; want something like {EXAMPLES}")
    proposal = EspProposal(
        cipher=cipher[0], key_bits=cipher[1], integrity=integrity or Integrity.NONE, esn=bool(esn)
    )
    if proposal.is_aead and integrity is not None:
        raise ValueError("whose cipher brings its own integrity; want it without the -sha... part")
    if not proposal.is_aead and integrity is None:
        raise ValueError("which has no integrity; want it followed by -sha256, -sha384 or -sha512")
    return proposal


def format_proposal(proposal: EspProposal) -> str:
    """The shortest keyword text of a suite; `parse_proposal` reads it back."""
    words = {
        Cipher.NULL: "null",
        Cipher.AES_CBC: f"aes{proposal.key_bits}",
        Cipher.AES_GCM: f"aes{proposal.key_bits}gcm16",
        Cipher.CHACHA20_POLY1305: "chacha20poly1305",
    }[proposal.cipher]
    if proposal.integrity is not Integrity.NONE:
        words += f"-{proposal.integrity.name.lower().replace('hmac_sha2_', 'sha')}"
    return words + ("-esn" if proposal.esn else "")


def _unknown(word: str) -> str:
    """Why a word is not accepted."""
    shown = show(word)
    if word in _OTHERS:
        return f"but {word} {_OTHERS[word]}"
    if word.startswith(_KEY_EXCHANGE):
        return f"but {shown} belongs to a key exchange, and these keys are written by hand; want it left out"
    if not word:
        return f"which has an empty word; want something like {EXAMPLES}"
    return f"of which {shown} is unknown{nearest(word, [*_CIPHERS, *_INTEGRITY, *_SEQUENCE])}; want e.g. {EXAMPLES}"
