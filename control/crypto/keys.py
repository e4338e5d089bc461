"""Key derivation of IKEv2, as pure functions (RFC 7296 sections 2.14, 2.17, 2.18; RFC 8784; RFC 9242; RFC 9370).

    IKE_SA_INIT        seed = skeyseed(prf, ni, nr, secret)           keys = ike_keys(prf, protection, seed, ...)
    IKE_INTERMEDIATE   seed = skeyseed_update(prf, keys.d, secret, ni, nr)     keys = ike_keys(...) anew
    IKE_AUTH           d, pi, pr = mix_ppk(prf, ppk, keys.d, keys.pi, keys.pr)    where both have the PPK
    rekey of the SA    seed = skeyseed_rekey(old prf, old keys.d, secrets, ni, nr)
    child SA           keymat(prf, keys.d, ni, nr, length, secrets)

Nonces are always Ni, Nr: those of the initiator and the responder of the exchange at hand. SPIs are 8 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from control.crypto.prf import Prf
from control.crypto.sk import Protection


@dataclass(frozen=True, kw_only=True)
class IkeKeys:
    """The seven secrets of an IKE SA (RFC 7296 section 2.14); `i` is the original initiator of that SA."""

    d: bytes = field(repr=False)  # from which children's and successors' keys come
    ai: bytes = field(repr=False)  # integrity of what the initiator sends; empty with an AEAD
    ar: bytes = field(repr=False)
    ei: bytes = field(repr=False)  # encryption of what the initiator sends, salt included
    er: bytes = field(repr=False)
    pi: bytes = field(repr=False)  # enters the initiator's AUTH
    pr: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ChildKeys:
    """KEYMAT of a child SA in the order of RFC 7296 section 2.17; `i` is who began the exchange that made it."""

    encryption_i: bytes = field(repr=False)  # initiator to responder, salt included
    integrity_i: bytes = field(repr=False)
    encryption_r: bytes = field(repr=False)
    integrity_r: bytes = field(repr=False)


def skeyseed(prf: Prf, nonce_i: bytes, nonce_r: bytes, secret: bytes) -> bytes:
    """SKEYSEED = prf(Ni | Nr, g^ir) of IKE_SA_INIT."""
    if prf.fixed_key:
        # RFC 7296 section 2.14: such a PRF takes half its key from each nonce.
        half = prf.key_length // 2
        return prf(nonce_i[:half] + nonce_r[:half], secret)
    return prf(nonce_i + nonce_r, secret)


def skeyseed_update(prf: Prf, sk_d: bytes, secret: bytes, nonce_i: bytes, nonce_r: bytes) -> bytes:
    """SKEYSEED(n) after an additional key exchange (RFC 9370 section 2.2.2); nonces are still IKE_SA_INIT's."""
    return prf(sk_d, secret + nonce_i + nonce_r)


def skeyseed_rekey(prf: Prf, sk_d: bytes, secrets: Sequence[bytes], nonce_i: bytes, nonce_r: bytes) -> bytes:
    """SKEYSEED of an IKE SA's successor (RFC 7296 section 2.18): PRF and SK_d are the old SA's.

    `secrets` are SK(0) of the CREATE_CHILD_SA exchange and SK(1)... of IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4).
    """
    return prf(sk_d, secrets[0] + nonce_i + nonce_r + b"".join(secrets[1:]))


def ike_keys(
    prf: Prf,
    protection: Protection,
    seed: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)."""
    lengths = (
        prf.key_length,
        *2 * (protection.integrity_key_length,),
        *2 * (protection.encryption_key_length,),
        *2 * (prf.key_length,),
    )
    material = prf.plus(seed, nonce_i + nonce_r + spi_i + spi_r, sum(lengths))
    d, ai, ar, ei, er, pi, pr = _cut(material, lengths)
    return IkeKeys(d=d, ai=ai, ar=ar, ei=ei, er=er, pi=pi, pr=pr)


def mix_ppk(prf: Prf, ppk: bytes, sk_d: bytes, sk_pi: bytes, sk_pr: bytes) -> tuple[bytes, bytes, bytes]:
    """SK_d, SK_pi and SK_pr after a post-quantum preshared key was mixed in (RFC 8784 section 3); the rest stays."""
    d, pi, pr = (prf.plus(ppk, key, prf.key_length) for key in (sk_d, sk_pi, sk_pr))
    return d, pi, pr


def keymat(
    prf: Prf, sk_d: bytes, nonce_i: bytes, nonce_r: bytes, length: int, secrets: Sequence[bytes] = ()
) -> bytes:
    """KEYMAT of a child SA (RFC 7296 section 2.17, RFC 9370 section 2.2.4), `length` bytes.

    `secrets` are SK(0), SK(1)... of the exchanges that made it; none without PFS and with IKE_AUTH.
    """
    first, rest = b"".join(secrets[:1]), b"".join(secrets[1:])
    return prf.plus(sk_d, first + nonce_i + nonce_r + rest, length)


def child_keys(
    prf: Prf,
    sk_d: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    encryption_length: int,
    integrity_length: int,
    secrets: Sequence[bytes] = (),
) -> ChildKeys:
    """The four keys of a child SA; lengths in bytes, of the encryption key with its salt."""
    lengths = (encryption_length, integrity_length, encryption_length, integrity_length)
    material = keymat(prf, sk_d, nonce_i, nonce_r, sum(lengths), secrets)
    encryption_i, integrity_i, encryption_r, integrity_r = _cut(material, lengths)
    return ChildKeys(
        encryption_i=encryption_i,
        integrity_i=integrity_i,
        encryption_r=encryption_r,
        integrity_r=integrity_r,
    )


def signed_octets(
    prf: Prf, first_message: bytes, peer_nonce: bytes, sk_p: bytes, identity: bytes, intermediate: bytes = b""
) -> bytes:
    """What one side's AUTH covers (RFC 7296 section 2.15): its first message, the other's nonce, its MACed ID.

    `first_message` is that side's own IKE_SA_INIT message as it was sent, from the IKE header on, the last one if it
    was repeated with a cookie or another group. `identity` is its ID payload without generic header. `intermediate`
    is IntAuth of RFC 9242 section 3.3.2, if any IKE_INTERMEDIATE exchange ran: both sides' values and the message ID.
    """
    return first_message + peer_nonce + prf(sk_p, identity) + intermediate


def intermediate_auth(prf: Prf, sk_p: bytes, previous: bytes, header: bytes, payloads: bytes) -> bytes:
    """IntAuth_i or IntAuth_r after one more IKE_INTERMEDIATE message of that side (RFC 9242 section 3.3.2).

    `header` is the message from its IKE header to the SK payload's generic header, as if it had not been fragmented,
    with length fields that count the plaintext in place of IV, ciphertext, padding and ICV; `payloads` is that
    plaintext without padding; `previous` is empty the first time. SK_p is the one in force during that exchange.
    """
    return prf(sk_p, previous + header + payloads)


def _cut(material: bytes, lengths: Sequence[int]) -> list[bytes]:
    parts, at = [], 0
    for length in lengths:
        parts.append(material[at : at + length])
        at += length
    return parts
