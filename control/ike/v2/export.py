"""Keys in the form in which Wireshark reads them: ikev2_decryption_table and esp_sa, one CSV line each."""

from __future__ import annotations

from control.crypto.keys import IkeKeys
from control.ike.events import ChildSa
from control.ike.numbers import Encr, Integ
from control.ike.proposal import Suite
from dataplane.model import Cipher, EspProposal, Integrity

_IKE_INTEGRITY = {
    Integ.NONE: "NONE [RFC4306]",
    Integ.HMAC_SHA1_96: "HMAC_SHA1_96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC_SHA2_256_128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC_SHA2_384_192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC_SHA2_512_256 [RFC4868]",
}
_ESP_INTEGRITY = {
    Integrity.NONE: "NULL",
    Integrity.HMAC_SHA2_256: "HMAC-SHA-256-128 [RFC4868]",
    Integrity.HMAC_SHA2_384: "HMAC-SHA-384-192 [RFC4868]",
    Integrity.HMAC_SHA2_512: "HMAC-SHA-512-256 [RFC4868]",
    Integrity.HMAC_SHA1: "HMAC-SHA-1-96 [RFC2404]",
    **dict.fromkeys((Integrity.AES_XCBC, Integrity.AES_CMAC), "ANY 96 bit authentication [no checking]"),
}


def ike_line(spi_i: bytes, spi_r: bytes, suite: Suite, keys: IkeKeys) -> str:
    """A line of ikev2_decryption_table: SPIs, SK_ei, SK_er, cipher, SK_ai, SK_ar, integrity."""
    encryption = {
        Encr.AES_CBC: f"AES-CBC-{suite.key_bits} [RFC3602]",
        Encr.AES_GCM_8: f"AES-GCM-{suite.key_bits} with 8 octet ICV [RFC5282]",
        Encr.AES_GCM_12: f"AES-GCM-{suite.key_bits} with 12 octet ICV [RFC5282]",
        Encr.AES_GCM_16: f"AES-GCM-{suite.key_bits} with 16 octet ICV [RFC5282]",
        Encr.CHACHA20_POLY1305: "ChaCha20-Poly1305 [RFC7634]",
    }.get(Encr(suite.encr), Encr(suite.encr).name)
    integrity = _IKE_INTEGRITY.get(Integ(suite.integ), Integ(suite.integ).name)
    return (
        f'{spi_i.hex()},{spi_r.hex()},{keys.ei.hex()},{keys.er.hex()},"{encryption}",'
        f'{keys.ai.hex()},{keys.ar.hex()},"{integrity}"'
    )


def esp_lines(child: ChildSa) -> tuple[str, ...]:
    """Two lines of esp_sa, inbound and outbound: family, addresses, SPI, cipher and key, integrity and key.

    None for AES-CCM, AES-GMAC and implicit IVs, which Wireshark lacks: a line that it cannot read costs it the rest.
    """
    path, suite = child.path, child.suite
    cipher = _esp_cipher(suite)
    if cipher is None:
        return ()
    family = f"IPv{path.local.version}"

    def line(source: object, destination: object, spi: int, key: bytes, mac: bytes) -> str:
        return (
            f'"{family}","{source}","{destination}","0x{spi:08x}","{cipher}","0x{key.hex()}",'
            f'"{_ESP_INTEGRITY[suite.integrity]}","{"0x" + mac.hex() if mac else ""}"'
        )

    return (
        line(path.remote, path.local, child.spi_in, child.encryption_key_in, child.integrity_key_in),
        line(path.local, path.remote, child.spi_out, child.encryption_key_out, child.integrity_key_out),
    )


def _esp_cipher(suite: EspProposal) -> str | None:
    if suite.implicit_iv:
        return None
    return {
        Cipher.NULL: "NULL",
        Cipher.AES_CBC: "AES-CBC [RFC3602]",
        Cipher.AES_CTR: "AES-CTR [RFC3686]",
        Cipher.AES_GCM: f"AES-GCM with {suite.tag_length} octet ICV [RFC4106]",
        Cipher.CHACHA20_POLY1305: "ChaCha20 with Poly1305 [RFC7634]",
    }.get(suite.cipher)
