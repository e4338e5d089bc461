"""strongSwan's proposal keywords and the transforms they stand for; of several words for one the first is ours.

Order in a table has no meaning; preference is the order in which a proposal names its words. What strongSwan knows
and Esplanade does not offer is listed with the reason, so that nobody hunts for a spelling mistake that is none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from control.ike.numbers import (
    ADDITIONAL_KEY_EXCHANGES,
    Encr,
    Esn,
    Group,
    Integ,
    PrfId,
    Protocol,
    TransformType,
    name_of,
)
from control.ike.wire.proposal import Transform

_AES = (128, 192, 256)


def _encr(number: Encr, bits: int | None = None) -> Transform:
    return Transform(type=TransformType.ENCR, id=number, key_bits=bits)


# Ciphers of IKE's own SAs (RFC 8247 section 2.1) and of ESP (RFC 8221 section 5).
ENCRYPTION: dict[str, Transform] = {
    **{f"aes{bits}": _encr(Encr.AES_CBC, bits) for bits in _AES},
    "aes": _encr(Encr.AES_CBC, 128),
    **{
        f"aes{bits}{mode}{icv}": _encr(number, bits)
        for bits in _AES
        for mode, icv, number in (
            ("gcm", 16, Encr.AES_GCM_16),
            ("gcm", 12, Encr.AES_GCM_12),
            ("gcm", 8, Encr.AES_GCM_8),
            ("gcm", 128, Encr.AES_GCM_16),
            ("gcm", 96, Encr.AES_GCM_12),
            ("gcm", 64, Encr.AES_GCM_8),
            ("ccm", 16, Encr.AES_CCM_16),
            ("ccm", 12, Encr.AES_CCM_12),
            ("ccm", 8, Encr.AES_CCM_8),
            ("ccm", 128, Encr.AES_CCM_16),
            ("ccm", 96, Encr.AES_CCM_12),
            ("ccm", 64, Encr.AES_CCM_8),
        )
    },
    **{f"aes{bits}gcm": _encr(Encr.AES_GCM_16, bits) for bits in _AES},
    "chacha20poly1305": _encr(Encr.CHACHA20_POLY1305),
    **{f"aes{bits}ccm": _encr(Encr.AES_CCM_16, bits) for bits in _AES},
    **{f"aes{bits}ctr": _encr(Encr.AES_CTR, bits) for bits in _AES},
    "aesctr": _encr(Encr.AES_CTR, 128),
    # Implicit IVs (RFC 8750), for which strongSwan has no words.
    **{f"aes{bits}gcm16iiv": _encr(Encr.AES_GCM_16_IIV, bits) for bits in _AES},
    **{f"aes{bits}ccm8iiv": _encr(Encr.AES_CCM_8_IIV, bits) for bits in _AES},
    "chacha20poly1305iiv": _encr(Encr.CHACHA20_POLY1305_IIV),
    # No encryption: integrity by GMAC (RFC 4543) or by an algorithm named beside it.
    **{f"aes{bits}gmac": _encr(Encr.NULL_AUTH_AES_GMAC, bits) for bits in _AES},
    "null": _encr(Encr.NULL),
}
# Those of ESP alone, with the reason.
_NO_IMPLICIT_IV = "is not for an IKE SA (RFC 8750 section 8); want it without iiv"
_NOT_IKE: dict[str, str] = {
    "null": "but an IKE SA is always encrypted (RFC 7296 section 3.14); want null left out",
    **{
        f"aes{bits}gmac": f"but an IKE SA is always encrypted (RFC 7296 section 3.14); want aes{bits}gcm16"
        for bits in _AES
    },
    **{f"aes{bits}ctr": f"but aes{bits}ctr is offered for ESP alone; use aes{bits}gcm16" for bits in _AES},
    "aesctr": "but aesctr is offered for ESP alone; use aes128gcm16",
    **{word: f"but {word} {_NO_IMPLICIT_IV}" for word in ENCRYPTION if word.endswith("iiv")},
}

_INTEGRITY: dict[str, Integ] = {
    "sha256": Integ.HMAC_SHA2_256_128,
    "sha2_256": Integ.HMAC_SHA2_256_128,
    "sha256_128": Integ.HMAC_SHA2_256_128,
    "sha384": Integ.HMAC_SHA2_384_192,
    "sha2_384": Integ.HMAC_SHA2_384_192,
    "sha384_192": Integ.HMAC_SHA2_384_192,
    "sha512": Integ.HMAC_SHA2_512_256,
    "sha2_512": Integ.HMAC_SHA2_512_256,
    "sha512_256": Integ.HMAC_SHA2_512_256,
    "sha1": Integ.HMAC_SHA1_96,
    "sha": Integ.HMAC_SHA1_96,
    "aesxcbc": Integ.AES_XCBC_96,
    "aescmac": Integ.AES_CMAC_96,
}
INTEGRITY: dict[str, Transform] = {
    word: Transform(type=TransformType.INTEG, id=number) for word, number in _INTEGRITY.items()
}
# AES-GMAC is a cipher of ESP and an integrity algorithm of AH, numbered by length of key (RFC 4543 section 9).
AH_INTEGRITY: dict[str, Transform] = {
    f"aes{bits}gmac": Transform(type=TransformType.INTEG, id=Integ[f"AES_{bits}_GMAC"]) for bits in _AES
}

_PRFS: dict[str, PrfId] = {
    "prfsha256": PrfId.HMAC_SHA2_256,
    "prfsha384": PrfId.HMAC_SHA2_384,
    "prfsha512": PrfId.HMAC_SHA2_512,
    "prfsha1": PrfId.HMAC_SHA1,
    "prfaesxcbc": PrfId.AES128_XCBC,
    "prfaescmac": PrfId.AES128_CMAC,
}
PRFS: dict[str, Transform] = {
    word: Transform(type=TransformType.PRF, id=number) for word, number in _PRFS.items()
}
# The PRF of a proposal that names none is that of its integrity algorithms, as strongSwan has it.
PRF_OF_INTEGRITY: dict[int, PrfId] = {
    Integ.HMAC_SHA2_256_128: PrfId.HMAC_SHA2_256,
    Integ.HMAC_SHA2_384_192: PrfId.HMAC_SHA2_384,
    Integ.HMAC_SHA2_512_256: PrfId.HMAC_SHA2_512,
    Integ.HMAC_SHA1_96: PrfId.HMAC_SHA1,
    Integ.AES_XCBC_96: PrfId.AES128_XCBC,
    Integ.AES_CMAC_96: PrfId.AES128_CMAC,
}

GROUPS: dict[str, Group] = {
    "x25519": Group.CURVE25519,
    "curve25519": Group.CURVE25519,
    "x448": Group.CURVE448,
    "curve448": Group.CURVE448,
    "ecp256": Group.ECP_256,
    "ecp384": Group.ECP_384,
    "ecp521": Group.ECP_521,
    "ecp256bp": Group.BRAINPOOL_P256R1,
    "ecp384bp": Group.BRAINPOOL_P384R1,
    "ecp512bp": Group.BRAINPOOL_P512R1,
    **{f"modp{bits}": Group[f"MODP_{bits}"] for bits in (2048, 3072, 4096, 6144, 8192, 1536, 1024)},
    **{f"mlkem{size}": Group[f"ML_KEM_{size}"] for size in (768, 1024)},
}
ESN: dict[str, Transform] = {
    "noesn": Transform(type=TransformType.ESN, id=Esn.NO_ESN),
    "esn": Transform(type=TransformType.ESN, id=Esn.ESN),
}
KEYWORDS: tuple[str, ...] = (*ENCRYPTION, *INTEGRITY, *PRFS, *GROUPS, *ESN)

# Ids that a peer may offer and we never take: named in refusals only.
_SHOWN_ONLY: dict[tuple[int, int], str] = {
    (TransformType.ENCR, Encr.TRIPLE_DES): "3des",
    (TransformType.ENCR, Encr.DES): "des",
    (TransformType.ENCR, Encr.BLOWFISH): "blowfish",
    (TransformType.ENCR, Encr.CAST): "cast128",
    (TransformType.ENCR, Encr.CAMELLIA_CBC): "camellia",
    (TransformType.ENCR, Encr.CAMELLIA_CTR): "camelliactr",
    (TransformType.INTEG, Integ.HMAC_MD5_96): "md5",
    (TransformType.INTEG, Integ.HMAC_MD5_128): "md5_128",
    (TransformType.INTEG, Integ.HMAC_SHA1_160): "sha1_160",
    (TransformType.PRF, PrfId.HMAC_MD5): "prfmd5",
    (TransformType.KE, Group.MODP_768): "modp768",
    (TransformType.KE, Group.MODP_1024_160): "modp1024s160",
    (TransformType.KE, Group.MODP_2048_224): "modp2048s224",
    (TransformType.KE, Group.MODP_2048_256): "modp2048s256",
    (TransformType.KE, Group.ECP_192): "ecp192",
    (TransformType.KE, Group.ECP_224): "ecp224",
    (TransformType.KE, Group.BRAINPOOL_P224R1): "ecp224bp",
    (TransformType.KE, Group.ML_KEM_512): "mlkem512",
}

# Of every word that strongSwan or a registry has for an algorithm, what is wrong with it and what is there instead.
_BROKEN = "is broken or obsolete (RFC 8221, RFC 8247); use"
_SIZES = ("", "128", "192", "256")
_ICVS = (8, 12, 16, 64, 96, 128)
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("3des", "des", "des_iv64", "des_iv32", "3idea", "idea", "rc5", "cast", "cast128"),
            *(f"blowfish{bits}" for bits in _SIZES),
        ),
        f"{_BROKEN} aes128gcm16 or aes256gcm16",
    ),
    **dict.fromkeys(("md5", "md5_128", "des_mac", "kpdk_md5"), f"{_BROKEN} sha256"),
    **dict.fromkeys(("prfmd5", "prftiger"), f"{_BROKEN} prfsha256"),
    **{
        f"{name}{bits}": f"is not offered; use aes{bits or 256}gcm16"
        for name in ("serpent", "twofish", "aria", "sm4")
        for bits in _SIZES
    },
    "chacha20poly1305compat": "is of an early draft; use chacha20poly1305",
    **dict.fromkeys(("ripemd160", "rmd160", "whirlpool", "sm3"), "is not offered; use sha256"),
    "camelliaxcbc": "is not offered; use aesxcbc",
    "prfcamelliaxcbc": "is not offered; use prfaesxcbc",
    "modpnull": "agrees on no secret; use x25519",
    **dict.fromkeys(
        ("ntru112", "ntru128", "ntru192", "ntru256", "newhope128"), "is not offered; use ke1_mlkem768"
    ),
    "sha1_160": "is not offered; use sha256",
    "sha256_96": "has a wrong truncation of early Linux kernels, which is not offered; use sha256",
    "modp768": "is broken (RFC 8247 section 2.4); use x25519 or modp2048",
    "mlkem512": "is not offered; use mlkem768",
    **dict.fromkeys(
        ("modp1024s160", "modp2048s224", "modp2048s256", "ecp192", "ecp224", "ecp224bp"),
        "is not offered (RFC 8247 section 2.4); use x25519, ecp256 or modp2048",
    ),
    **{f"camellia{bits}": f"is not offered; use aes{bits or 128}" for bits in _SIZES},
    **{f"camellia{bits}ctr": f"is not offered; use aes{bits}ctr" for bits in _AES},
    **{f"camellia{bits}ccm{icv}": f"is not offered; use aes{bits}ccm{icv}" for bits in _AES for icv in _ICVS},
}
_KE_PREFIX = re.compile(r"ke([1-7])_(.+)")


def transform_of(protocol: Protocol, word: str) -> Transform:
    """The transform of one keyword; raises ValueError that completes "got 'text', "."""
    prefix = _KE_PREFIX.fullmatch(word)
    if prefix:
        return _additional(int(prefix[1]), prefix[2])
    if word in REFUSED:
        raise ValueError(f"but {word} {REFUSED[word]}")
    if word in GROUPS:
        return Transform(type=TransformType.KE, id=GROUPS[word])
    if protocol == Protocol.AH and word in AH_INTEGRITY:
        return AH_INTEGRITY[word]
    for table, of in (
        (ENCRYPTION, (Protocol.IKE, Protocol.ESP)),
        (INTEGRITY, tuple(Protocol)),
        (PRFS, (Protocol.IKE,)),
        (ESN, (Protocol.ESP, Protocol.AH)),
    ):
        if word in table:
            if protocol not in of:
                raise ValueError(f"but {word} has no meaning for {protocol.name}; want it left out")
            if protocol == Protocol.IKE and word in _NOT_IKE:
                raise ValueError(_NOT_IKE[word])
            return table[word]
    if not word:
        raise ValueError("which has an empty word; want algorithms joined by single hyphens")
    match = difflib.get_close_matches(word[:64], KEYWORDS, n=1, cutoff=0.6)
    hint = f'; did you mean "{match[0]}"?' if match else ""
    raise ValueError(f"of which {_show(word)} is unknown{hint}")


def _show(word: str) -> str:
    """A word for an error; one this long is no algorithm, but may be a key that strayed."""
    return repr(word) if len(word) < 24 else f"a word of {len(word)} characters"


def _additional(round_: int, word: str) -> Transform:
    """The transform of ke1_... to ke7_... (RFC 9370)."""
    kind = ADDITIONAL_KEY_EXCHANGES[round_ - 1]
    if word == "none":
        return Transform(type=kind, id=Group.NONE)
    if word in GROUPS:
        return Transform(type=kind, id=GROUPS[word])
    if word in REFUSED:
        raise ValueError(f"but {word} {REFUSED[word]}")
    match = difflib.get_close_matches(word[:64], GROUPS, n=1, cutoff=0.6)
    hint = f'; did you mean "ke{round_}_{match[0]}"?' if match else ""
    raise ValueError(f"of which {_show(word)} is no key exchange method{hint}")


def _words() -> dict[tuple[int, int, int | None], str]:
    words: dict[tuple[int, int, int | None], str] = {}
    for table in (ENCRYPTION, INTEGRITY, AH_INTEGRITY, PRFS, ESN):
        for word, transform in table.items():
            words.setdefault((transform.type, transform.id, transform.key_bits), word)
    for word, group in GROUPS.items():
        words.setdefault((TransformType.KE, group, None), word)
    return words


_WORDS = _words()
_REGISTRIES = {
    TransformType.ENCR: Encr,
    TransformType.PRF: PrfId,
    TransformType.INTEG: Integ,
    TransformType.ESN: Esn,
}


def word_of(transform: Transform) -> str:
    """The keyword of a transform, ours or a peer's; for what has none its registered name or number."""
    kind, bits = transform.type, transform.key_bits
    if kind in ADDITIONAL_KEY_EXCHANGES:
        same = Transform(type=TransformType.KE, id=transform.id, key_bits=bits)
        return f"ke{kind - TransformType.ADDKE1 + 1}_{word_of(same)}"
    word = _WORDS.get((kind, transform.id, bits))
    if word is None:
        word = _SHOWN_ONLY.get((kind, transform.id))
        if word is None:
            if transform.id == 0 and kind in (TransformType.KE, TransformType.INTEG):
                word = "none"
            elif kind == TransformType.KE or kind in _REGISTRIES:
                word = (
                    name_of(_REGISTRIES.get(TransformType(kind), Group), transform.id)
                    .lower()
                    .replace(" ", "")
                )
            else:
                word = f"type{kind}:{transform.id}"
        if bits is not None:
            word += f"/{bits}"
    return word + ("/unknown-attribute" if transform.unknown_attribute else "")


def implied_prfs(integrity: Iterable[Transform]) -> tuple[Transform, ...]:
    """The pseudorandom functions that a proposal means which names only its integrity algorithms."""
    ids = (PRF_OF_INTEGRITY.get(transform.id) for transform in integrity)
    return tuple(Transform(type=TransformType.PRF, id=number) for number in ids if number is not None)


def show_transforms(transforms: Sequence[Transform]) -> str:
    """Transforms as keywords, without those that go without saying: noesn, no integrity, PRFs that others imply."""
    by_type: dict[int, list[Transform]] = {}
    for transform in transforms:
        by_type.setdefault(transform.type, []).append(transform)
    hidden: set[int] = set()
    for kind in (TransformType.ESN, TransformType.INTEG):
        if [each.id for each in by_type.get(kind, ())] == [0]:
            hidden.add(kind)
    if tuple(by_type.get(TransformType.PRF, ())) == implied_prfs(by_type.get(TransformType.INTEG, ())):
        hidden.add(TransformType.PRF)
    return "-".join(word_of(transform) for transform in transforms if transform.type not in hidden)
