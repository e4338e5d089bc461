"""ESP and AH algorithms of SAs whose keys are written by hand: `aes128gcm16`, `aes256-sha256-esn`, `null-sha512`.

The words are those of control.ike.keywords, joined by `-` in any order, but one of a kind and no key exchange.
"""

from __future__ import annotations

from control.ike.keywords import AH_INTEGRITY, transform_of
from control.ike.numbers import KEY_EXCHANGES, Protocol, TransformType
from control.ike.proposal import Suite, is_aead
from control.ike.wire.proposal import Transform
from dataplane.model import Cipher, EspProposal, Integrity
from dataplane.model import Protocol as SaProtocol

_TWICE: dict[int, str] = {
    TransformType.ENCR: "which names two ciphers; want exactly one",
    TransformType.INTEG: "which names two integrity algorithms; want at most one",
    TransformType.ESN: "which says esn or noesn twice",
}
EXAMPLES = "aes128gcm16, chacha20poly1305 or aes256-sha256-esn"
AH_EXAMPLES = "sha256 or sha512-esn"


def parse_proposal(text: str) -> EspProposal:
    """The suite that `text` names; raises ValueError that completes "got 'text', ..."."""
    chosen: dict[int, Transform] = {}
    for word in text.strip().lower().rstrip("!").split("-"):
        transform = transform_of(Protocol.ESP, word)
        if transform.type in KEY_EXCHANGES:
            raise ValueError(
                f"but {word!r} belongs to a key exchange, and these keys are written by hand; want it left out"
            )
        if transform.type in chosen:
            if "null" in text.strip().lower().split("-"):
                # RFC 8221 section 4: encryption must be authenticated.
                raise ValueError(
                    "whose null takes the place of integrity, which there must be; want -sha256 there"
                )
            raise ValueError(_TWICE[transform.type])
        chosen[transform.type] = transform
    cipher = chosen.get(TransformType.ENCR)
    if cipher is None:
        raise ValueError(f"which names no cipher; want something like {EXAMPLES}")
    if is_aead(cipher) and TransformType.INTEG in chosen:
        raise ValueError("whose cipher brings its own integrity; want it without the -sha... part")
    if not is_aead(cipher) and TransformType.INTEG not in chosen:
        raise ValueError("which has no integrity; want it followed by -sha256, -sha384 or -sha512")
    return Suite(protocol=Protocol.ESP, transforms=tuple(chosen.values())).to_esp()


def parse_ah_proposal(text: str) -> EspProposal:
    """The algorithms of AH: `sha256`, `sha512-esn`; raises ValueError that completes "got 'text', ..."."""
    chosen: dict[int, Transform] = {}
    for word in text.strip().lower().rstrip("!").split("-"):
        transform = AH_INTEGRITY.get(word) or transform_of(Protocol.ESP, word)
        if transform.type == TransformType.ENCR:
            raise ValueError(
                f"but {word!r} is a cipher, and AH encrypts nothing; want one like {AH_EXAMPLES}"
            )
        if transform.type not in _TWICE:
            raise ValueError(
                f"but {word!r} belongs to IKE, and these keys are written by hand; want it left out"
            )
        if transform.type in chosen:
            raise ValueError(_TWICE[transform.type])
        chosen[transform.type] = transform
    if TransformType.INTEG not in chosen:
        raise ValueError(f"which names no integrity algorithm; want one like {AH_EXAMPLES}")
    return Suite(protocol=Protocol.AH, transforms=tuple(chosen.values())).to_esp()


def format_proposal(proposal: EspProposal, protocol: SaProtocol = SaProtocol.ESP) -> str:
    """The shortest keyword text of a suite; `parse_proposal` reads it back. AH has no cipher to name."""
    bits, tag = proposal.key_bits, proposal.tag_length
    words = {
        Cipher.NULL: "null",
        Cipher.AES_CBC: f"aes{bits}",
        Cipher.AES_CTR: f"aes{bits}ctr",
        Cipher.AES_GCM: f"aes{bits}gcm{tag}",
        Cipher.CHACHA20_POLY1305: "chacha20poly1305",
        Cipher.AES_CCM: f"aes{bits}ccm{tag}",
        Cipher.AES_GMAC: f"aes{bits}gmac",
    }[proposal.cipher]
    if proposal.implicit_iv:
        words += "iiv"
    if proposal.integrity is Integrity.AES_GMAC:
        words += f"-aes{bits}gmac"
    elif proposal.integrity is not Integrity.NONE:
        name = proposal.integrity.name.lower().replace("sha2_", "sha").removeprefix("hmac_")
        words += f"-{name.replace('aes_', 'aes')}"
    if protocol is SaProtocol.AH:
        words = words.removeprefix("null-")
    return words + ("-esn" if proposal.esn else "")
