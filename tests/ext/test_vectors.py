"""Known answers through both engines: NIST, RFCs and Wycheproof. Sources are named in tests/vectors/*.json."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from dataplane.model import Cipher, Integrity
from ext.crypto import EngineHandle, JobSpec
from tests.ext.crypto_jobs import ENGINES, ICV_LENGTHS, vectors

AEADS = {
    "aes-gcm": Cipher.AES_GCM,
    "chacha20-poly1305": Cipher.CHACHA20_POLY1305,
    "aes-ccm": Cipher.AES_CCM,
}
HMACS = {
    1: Integrity.HMAC_SHA1,
    256: Integrity.HMAC_SHA2_256,
    384: Integrity.HMAC_SHA2_384,
    512: Integrity.HMAC_SHA2_512,
}


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> EngineHandle:
    """Each engine of this machine."""
    return ENGINES[request.param]


def check_aead(engine: EngineHandle, rows: list[dict[str, str]], cipher: Cipher | None = None) -> None:
    """Rows with `text` seal to `ciphertext` and `tag` and open again; rows that are not valid are refused."""
    seal, opening, texts = [], [], []
    for row in rows:
        tag = bytes.fromhex(row["tag"])
        common = {
            "cipher": AEADS[row["cipher"]] if cipher is None else cipher,
            "key": bytes.fromhex(row["key"]),
            "nonce": bytes.fromhex(row.get("nonce") or row["iv"]),
            "aad": bytes.fromhex(row["aad"]),
            "icv_length": len(tag),
        }
        valid = row["text"] is not None and row.get("result", "valid") == "valid"
        texts.append(bytes.fromhex(row["text"]) if valid else None)
        opening.append(JobSpec(text=bytes.fromhex(row["ciphertext"]), icv=tag, **common))
        if valid:
            seal.append((JobSpec(text=texts[-1], **common), bytes.fromhex(row["ciphertext"]), tag))
    for result, (_, ciphertext, tag) in zip(engine.run("seal", [job for job, *_ in seal]), seal, strict=True):
        assert (result.ok, result.text, result.icv) == (True, ciphertext, tag)
    for number, (result, text) in enumerate(zip(engine.run("open", opening), texts, strict=True)):
        assert result.ok == (text is not None), rows[number]
        assert text is None or result.text == text


def test_nist_gcm(engine: EngineHandle) -> None:
    """CAVP: 128, 192 and 256 bits, tags of 16, 12 and 8 bytes, and rows that must fail."""
    rows = vectors("nist_gcm")
    assert len(rows) > 300 and any(row["text"] is None for row in rows)
    check_aead(engine, rows, Cipher.AES_GCM)


def test_aead_of_esp(engine: EngineHandle) -> None:
    """The GCM test set for ESP with and without ESN, RFC 8439 and RFC 7634."""
    check_aead(engine, vectors("esp_aead"))


def test_wycheproof_aead(engine: EngineHandle) -> None:
    """Valid and invalid: changed tags, edge cases of Poly1305 and GHASH, counter overflow."""
    check_aead(engine, vectors("wycheproof_aead"))


def test_wycheproof_ccm(engine: EngineHandle) -> None:
    """AES-CCM with nonces of ESP's length (RFC 4309 section 4), all lengths of key, valid and changed tags."""
    rows = vectors("wycheproof_ccm")
    assert {len(row["key"]) for row in rows} == {32, 48, 64}
    check_aead(engine, rows)


def test_wycheproof_gmac(engine: EngineHandle) -> None:
    """AES-GMAC both as AH has it and as ESP's cipher."""
    rows = [row for row in vectors("wycheproof_gmac") if row["text"]]
    jobs = [
        JobSpec(
            cipher=Cipher.NULL,
            integrity=Integrity.AES_GMAC,
            integrity_key=bytes.fromhex(row["key"]),
            nonce=bytes.fromhex(row["nonce"]),
            text=bytes.fromhex(row["text"]),
            icv=bytes.fromhex(row["tag"]),
        )
        for row in rows
    ]
    assert {len(job.integrity_key) for job in jobs} == {16, 24, 32}
    assert [result.ok for result in engine.run("open", jobs)] == [row["result"] == "valid" for row in rows]
    # The same bytes as SPI, number, IV and text of an ESP packet: the engine reads the first 16 where they lie.
    packets = [
        replace(
            job, cipher=Cipher.AES_GMAC, integrity=0, key=job.integrity_key, integrity_key=b"", aad=bytes(8)
        )
        for job in jobs
    ]
    packets = [replace(job, header=job.text[:16], text=job.text[16:]) for job in packets]
    long = [number for number, job in enumerate(jobs) if len(job.text) >= 16]
    assert len(long) > 50
    results = engine.run("open", [packets[number] for number in long])
    assert [result.ok for result in results] == [rows[number]["result"] == "valid" for number in long]


def test_rfc3686(engine: EngineHandle) -> None:
    """AES-CTR, every case of the RFC, both ways."""
    rows = vectors("rfc3686")
    assert len(rows) == 9
    jobs = [
        JobSpec(
            cipher=Cipher.AES_CTR,
            key=bytes.fromhex(row["key"]),
            nonce=bytes.fromhex(row["nonce"]),
            text=bytes.fromhex(row["text"]),
        )
        for row in rows
    ]
    sealed = engine.run("seal", jobs)
    assert [result.text.hex() for result in sealed] == [row["ciphertext"] for row in rows]
    opening = [replace(job, text=result.text) for job, result in zip(jobs, sealed, strict=True)]
    assert [result.text.hex() for result in engine.run("open", opening)] == [row["text"] for row in rows]


def test_aes_macs(engine: EngineHandle) -> None:
    """RFC 3566, RFC 4493 and Wycheproof, truncated to 96 bits: what lies before ESN's four bytes, and with them."""
    rows = [row for row in vectors("aes_mac") if row["text"]]  # ESP's header is there at least
    kinds = {"xcbc": Integrity.AES_XCBC, "cmac": Integrity.AES_CMAC}
    for esn in (0, 4):
        jobs = []
        for row in rows:
            text = bytes.fromhex(row["text"])
            split = max(0, len(text) - esn) if len(text) > esn else len(text)
            jobs.append(
                JobSpec(
                    cipher=Cipher.NULL,
                    integrity=kinds[row["mac"]],
                    integrity_key=bytes.fromhex(row["key"]),
                    header=text[: min(8, split)],
                    text=text[min(8, split) : split],
                    aad=text[split:],
                    icv=bytes.fromhex(row["tag"])[:12],
                )
            )
        valid = [row["result"] == "valid" for row in rows]
        # A changed tag may differ behind its twelfth byte.
        sealed = engine.run("seal", jobs)
        good = [result.icv == job.icv for result, job in zip(sealed, jobs, strict=True)]
        assert all(same for same, fine in zip(good, valid, strict=True) if fine) and good.count(False) > 20
        assert [result.ok for result in engine.run("open", jobs)] == good


@pytest.mark.parametrize("name", ["nist_cbc", "rfc3602"])
def test_cbc(engine: EngineHandle, name: str) -> None:
    """CBC without integrity. Seal gets the block that enciphers to the row's IV: its decryption."""
    rows = vectors(name)
    seal = []
    for row in rows:
        key = bytes.fromhex(row["key"])
        block = BlockCipher(algorithms.AES(key), modes.ECB()).decryptor()
        first = block.update(bytes.fromhex(row["iv"])) + block.finalize()
        seal.append(JobSpec(cipher=Cipher.AES_CBC, key=key, text=first + bytes.fromhex(row["text"])))
    wire = [bytes.fromhex(row["iv"] + row["ciphertext"]) for row in rows]
    assert [result.text for result in engine.run("seal", seal)] == wire
    opening = [
        JobSpec(cipher=Cipher.AES_CBC, key=job.key, text=text) for job, text in zip(seal, wire, strict=True)
    ]
    opened = engine.run("open", opening)
    assert all(result.ok for result in opened)
    assert [result.text[16:].hex() for result in opened] == [row["text"] for row in rows]


def hmac_job(row: dict[str, str]) -> JobSpec:
    """NULL encryption, HMAC over the row's text (the last four bytes of it as if they were ESN's)."""
    text = bytes.fromhex(row["text"])
    split = len(text) - 4 if len(text) > 12 else len(text)
    integrity = HMACS[int(row["hash"])]
    return JobSpec(
        cipher=Cipher.NULL,
        integrity=integrity,
        integrity_key=bytes.fromhex(row["key"]),
        header=text[: min(8, split)],
        text=text[min(8, split) : split],
        aad=text[split:],
        icv=bytes.fromhex(row.get("tag") or row["digest"])[: ICV_LENGTHS[integrity]],
    )


def test_rfc_hmac(engine: EngineHandle) -> None:
    """RFC 2202 (whose case 5 is RFC 2404's truncation), RFC 4231 and RFC 4868, truncated as ESP truncates them."""
    jobs = [hmac_job(row) for row in vectors("rfc_hmac")]
    assert [result.icv for result in engine.run("seal", jobs)] == [job.icv for job in jobs]
    assert all(result.ok for result in engine.run("open", jobs))


def test_wycheproof_hmac(engine: EngineHandle) -> None:
    """Valid and changed tags. Empty messages apart, which libipsec-mb cannot hash: ESP hashes its header at least."""
    rows = [row for row in vectors("wycheproof_hmac") if row["text"]]
    results = engine.run("open", [hmac_job(row) for row in rows])
    assert [result.ok for result in results] == [row["result"] == "valid" for row in rows]
    assert {row["result"] for row in rows} == {"valid", "invalid"}
