"""The engines against each other, against `cryptography`, and against damage."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine import open_engine
from dataplane.model import Cipher, Integrity
from ext.crypto import EngineHandle, JobSpec
from tests.ext.crypto_jobs import ENGINES, SUITES, Suite, expected, payload, random_job, sealed

BATCH = 64
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> EngineHandle:
    """Each engine of this machine."""
    return ENGINES[request.param]


@settings(deadline=None, max_examples=250)
@given(seed=SEEDS, count=st.integers(1, BATCH))
def test_engines_agree_on_mixed_lists(seed: int, count: int) -> None:
    """Lists of any mixture: byte-identical to `cryptography`, so to each other, and opened by each other."""
    chance = random.Random(seed)
    jobs = [random_job(chance) for _ in range(count)]
    wanted = [expected(job) for job in jobs]
    for engine in ENGINES.values():
        results = engine.run("seal", jobs)
        assert [(result.text, result.icv) for result in results] == wanted
        assert all(result.ok for result in results)
    opening = [replace(job, text=text, icv=icv) for job, (text, icv) in zip(jobs, wanted, strict=True)]
    for engine in ENGINES.values():
        for job, result in zip(jobs, engine.run("open", opening), strict=True):
            assert result.ok and payload(job, result.text) == payload(job, job.text)


@settings(deadline=None, max_examples=250)
@given(seed=SEEDS)
def test_flipped_bits_are_refused_and_disturb_no_other(seed: int) -> None:
    """One bit of text, ICV, AAD, nonce or header; the other jobs of the list come out as ever."""
    chance = random.Random(seed)
    jobs = [random_job(chance, longest=300) for _ in range(chance.randint(1, BATCH))]
    opening = [
        replace(job, text=text, icv=icv) for job, (text, icv) in zip(jobs, map(expected, jobs), strict=True)
    ]
    damaged = {
        place
        for place, job in enumerate(jobs)
        if chance.random() < 0.5 and (job.integrity or Cipher(job.cipher).is_aead)
    }
    opening = [flip(chance, job) if place in damaged else job for place, job in enumerate(opening)]
    for engine in ENGINES.values():
        for place, result in enumerate(engine.run("open", opening)):
            assert result.ok == (place not in damaged), opening[place]
            assert place in damaged or payload(jobs[place], result.text) == payload(
                jobs[place], jobs[place].text
            )


def covered(job: JobSpec) -> list[str]:
    """The fields of a job that its ICV covers, besides nonce and ICV."""
    if job.cipher == Cipher.AES_GMAC:
        # Without ESN it reads SPI, number and IV from the packet, with it the longer number from `aad`.
        return ["text", "header"] if len(job.aad) == 8 else ["text", "aad"]
    return ["text", "aad"] if Cipher(job.cipher).is_aead else ["text", "aad", "header"]


def flip(chance: random.Random, job: JobSpec) -> JobSpec:
    """The job with one bit of what is authenticated changed."""
    names = [*covered(job), "icv"]
    if Cipher(job.cipher).is_aead or job.integrity == Integrity.AES_GMAC:
        names.append("nonce")
    name = chance.choice([name for name in names if getattr(job, name)])
    content = bytearray(getattr(job, name))
    # The first byte of the nonce is not AES-CCM's.
    content[chance.randrange(name == "nonce", len(content))] ^= 1 << chance.randrange(8)
    return replace(job, **{name: bytes(content)})


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_bit_of_a_packet_counts(engine: EngineHandle, suite: Suite) -> None:
    """Each single bit of a short packet in turn, in lists of one suite: no flip gets through."""
    chance = random.Random(1)
    if not suite.cipher.is_aead and suite.integrity is Integrity.NONE:
        return  # nothing is authenticated
    job = replace(random_job(chance, suite=suite), text=chance.randbytes(32))
    while len(job.aad) not in (4, 12):
        job = replace(random_job(chance, suite=suite), text=chance.randbytes(32))
    text, icv = expected(job)
    good = replace(job, text=text, icv=icv)
    flipped = []
    for name in (*covered(good), "icv"):
        content = getattr(good, name)
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            flipped.append(replace(good, **{name: bytes(changed)}))
    assert not any(result.ok for result in engine.run("open", flipped))
    assert engine.run("open", [good])[0].ok


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_length(engine: EngineHandle, suite: Suite) -> None:
    """Text of 0 to 272 bytes and around the sizes that packets have, one suite at a time."""
    chance = random.Random(2)
    lengths = [*range(273), 1408, 1419, 1420, 1424, 1472, 4096, 8999, 9000]
    if suite[0] is Cipher.AES_CBC:
        lengths = [length for length in lengths if length and length % 16 == 0]
    jobs = [replace(random_job(chance, suite=suite), text=chance.randbytes(length)) for length in lengths]
    results = engine.run("seal", jobs)
    assert [(result.text, result.icv) for result in results] == [expected(job) for job in jobs]
    opened = engine.run("open", [sealed(job, result) for job, result in zip(jobs, results, strict=True)])
    assert all(result.ok for result in opened)


@pytest.mark.parametrize("name", [name for name in ENGINES if name == "ipsec-mb"])
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_both_ways_of_gcm(name: str, bits: int) -> None:
    """The library's calls and our own code, lists of mixed lengths: the same bytes, the same refusals."""
    engine = open_engine(name)
    chance = random.Random(bits)
    suite = Suite(Cipher.AES_GCM, bits // 8)
    jobs = [replace(random_job(chance, suite=suite), text=chance.randbytes(length)) for length in range(700)]
    chance.shuffle(jobs)
    found = []
    for library in (True, False):
        engine.use_library_gcm(library)
        results = [result for at in range(0, 700, 50) for result in engine.run("seal", jobs[at : at + 50])]
        good = [sealed(job, result) for job, result in zip(jobs, results, strict=True)]
        mixed = [flip(chance, job) if at % 3 == 0 else job for at, job in enumerate(good)]
        opened = [result for at in range(0, 700, 50) for result in engine.run("open", mixed[at : at + 50])]
        assert [result.ok for result in opened] == [at % 3 != 0 for at in range(700)]
        assert all(result.text == job.text for result, job in zip(opened, jobs, strict=True) if result.ok)
        found.append([(result.text, result.icv) for result in results])
    assert found[0] == found[1] == [expected(job) for job in jobs]
    if {"avx2", "vaes", "vpclmulqdq"} <= set(engine.features()["cpu"]):
        assert engine.features()["aes_gcm"] == "vaes"


@pytest.mark.parametrize("name", [name for name in ENGINES if name == "ipsec-mb"])
@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("protocol", ["esp", "ah"])
def test_both_ways_of_gmac(name: str, bits: int, protocol: str) -> None:
    """The library's calls and our own code, with and without ESN, every length: the same ICVs, the same refusals."""
    engine = open_engine(name)
    chance = random.Random(bits)
    suite = Suite(Cipher.AES_GMAC, bits // 8)
    if protocol == "ah":
        suite = Suite(Cipher.NULL, bits // 8, Integrity.AES_GMAC)
    lengths = [*range(640), 1408, 1424, 1499, 8999, 9000] * 2
    jobs = [replace(random_job(chance, suite=suite), text=chance.randbytes(length)) for length in lengths]
    assert {len(job.aad) for job in jobs} == ({8, 12} if protocol == "esp" else {0, 4})
    wanted = [expected(job)[1] for job in jobs]
    for library in (True, False):
        engine.use_library_gcm(library)
        results = [each for at in range(0, len(jobs), 50) for each in engine.run("seal", jobs[at : at + 50])]
        assert [result.icv for result in results] == wanted
        assert all(result.text == job.text for result, job in zip(results, jobs, strict=True))
        good = [sealed(job, result) for job, result in zip(jobs, results, strict=True)]
        mixed = [flip(chance, job) if at % 3 == 0 else job for at, job in enumerate(good)]
        opened = [each for at in range(0, len(jobs), 50) for each in engine.run("open", mixed[at : at + 50])]
        assert [result.ok for result in opened] == [at % 3 != 0 for at in range(len(jobs))]
    if {"avx2", "vaes", "vpclmulqdq"} <= set(engine.features()["cpu"]):
        assert engine.features()["aes_gmac"] == "vaes"


@pytest.mark.parametrize("name", [name for name in ENGINES if name == "ipsec-mb"])
@pytest.mark.parametrize("integrity", [Integrity.HMAC_SHA2_256, Integrity.HMAC_SHA1])
def test_both_ways_of_hashing(name: str, integrity: Integrity) -> None:
    """SHA instructions and vectors, lists of mixed lengths and counts: whichever a trial would pick, the same ICVs."""
    engine = open_engine(name)
    chance = random.Random(int(integrity))
    suite = Suite(Cipher.NULL, 0, integrity)
    jobs = [replace(random_job(chance, suite=suite), text=chance.randbytes(length)) for length in range(700)]
    chance.shuffle(jobs)
    for sha_ni in (False, True):
        if not engine.use_sha_ni(sha_ni):
            assert "sha_ni" not in engine.features()["cpu"]
            continue
        assert engine.features()["sha256"] == ("sse, SHA-NI" if sha_ni else "as architecture")
        for count in (1, 7, 50, 64):
            results = [
                each for at in range(0, 700, count) for each in engine.run("seal", jobs[at : at + count])
            ]
            assert [result.icv for result in results] == [expected(job)[1] for job in jobs]


@pytest.mark.parametrize("length", [0, 8, 15, 17, 24])
def test_cbc_text_of_wrong_length_is_refused(engine: EngineHandle, length: int) -> None:
    """Not the IV and whole blocks: not touched, not ok, and its neighbours are unharmed."""
    good = random_job(random.Random(3), suite=Suite(Cipher.AES_CBC, 16, Integrity.HMAC_SHA2_256))
    bad = replace(good, text=bytes(length), icv=bytes(16))
    for direction in ("seal", "open"):
        job = good if direction == "seal" else replace(good, text=expected(good)[0], icv=expected(good)[1])
        results = engine.run(direction, [job, bad, job])
        assert [result.ok for result in results] == [True, False, True]
        assert results[1].text == bad.text


def test_text_beyond_the_limit_is_refused(engine: EngineHandle) -> None:
    """65,000 bytes pass, one more does not (GCM has no such limit in one engine, and no packet is so long)."""
    for suite in (
        Suite(Cipher.NULL, 0, Integrity.HMAC_SHA2_512),
        Suite(Cipher.CHACHA20_POLY1305, 32),
        *(Suite(Cipher.AES_CCM, length) for length in (16, 24)),
        Suite(Cipher.AES_CTR, 32, Integrity.AES_XCBC),
    ):
        job = random_job(random.Random(4), suite=suite)
        most, over = (replace(job, text=bytes(length)) for length in (65000, 65001))
        assert [result.ok for result in engine.run("seal", [over, most])] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"cipher": Cipher.AES_GCM, "key": bytes(15)},
        {"cipher": Cipher.AES_GCM, "key": bytes(16), "icv_length": 4},
        {"cipher": Cipher.AES_GCM, "key": bytes(16), "integrity": 1, "integrity_key": bytes(32)},
        {"cipher": Cipher.CHACHA20_POLY1305, "key": bytes(16)},
        {"cipher": Cipher.AES_CBC, "key": bytes(0)},
        {"cipher": Cipher.AES_CBC, "key": bytes(16), "integrity": 1},
        {
            "cipher": Cipher.AES_CBC,
            "key": bytes(16),
            "integrity": 1,
            "integrity_key": bytes(32),
            "icv_length": 12,
        },
        {"cipher": Cipher.NULL, "key": bytes(16), "integrity": 1, "integrity_key": bytes(32)},
        {"cipher": Cipher.NULL, "integrity": 4, "integrity_key": bytes(20), "icv_length": 16},
        {"cipher": Cipher.NULL, "integrity": 5, "integrity_key": bytes(32), "icv_length": 48},
        {"cipher": 7, "key": bytes(16)},
    ],
)
def test_impossible_keys_are_refused(engine: EngineHandle, changes: dict[str, object]) -> None:
    """By ValueError with the numbers, and never with the key."""
    spec = JobSpec(**{"text": bytes(16), **changes})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{engine.name} cannot do cipher"):
        engine.run("seal", [spec])


def test_expand_writes_its_own_bytes_only(engine: EngineHandle) -> None:
    """Key.expanded is 1024 bytes at the front of 1152; all behind it stays."""
    room = np.zeros(1152 + 128, np.uint8)
    start = -room.ctypes.data % 64
    key = room[start : start + 1152]
    for suite in SUITES:
        job = random_job(random.Random(5), suite=suite)
        key[:] = 0x77
        key[1024 : 1024 + len(job.key)] = list(job.key)
        key[1056 : 1056 + len(job.integrity_key)] = list(job.integrity_key)
        key[1132:1137] = [
            *(suite.cipher, suite.integrity, len(job.key), len(job.integrity_key), suite.icv_length),
        ]
        before = room.copy()
        engine.expand_at(key.ctypes.data)
        changed = np.flatnonzero(room != before)
        assert changed.size == 0 or (changed.min() >= start and changed.max() < start + 1024)
    with pytest.raises(ValueError):
        ENGINES["ipsec-mb"].expand_at(key.ctypes.data + 8)


def test_an_sa_keeps_its_contexts_until_its_slot_is_reused() -> None:
    """OpenSSL's engine: one set per SA index, made anew for another id, gone after forget."""
    engine = ENGINES["openssl"]
    chance = random.Random(6)
    start = engine.contexts_in_use
    suite = Suite(Cipher.AES_CBC, 16, Integrity.HMAC_SHA2_256)
    first, second = (replace(random_job(chance, suite=suite), index=900, id=id) for id in (1, 2))
    for job in (first, first, second, first):
        for _ in range(2):
            result = engine.run("seal", [job])[0]
            assert (result.text, result.icv) == expected(job)
            assert engine.run("open", [sealed(job, result)])[0].ok
        assert engine.contexts_in_use == start + 1
    engine.forget(900)
    engine.forget(900)
    engine.forget(2**32 - 1)
    assert engine.contexts_in_use == start
    assert not engine.run("seal", [replace(first, index=2**31)])[0].ok


def test_lists_of_every_length(engine: EngineHandle) -> None:
    """1 to 64 jobs, and none: multi-buffer lanes are filled, half-filled and flushed."""
    chance = random.Random(7)
    jobs = [random_job(chance, longest=200) for _ in range(BATCH)]
    wanted = [expected(job) for job in jobs]
    assert engine.run("seal", []) == []
    for count in range(1, BATCH + 1):
        assert [(result.text, result.icv) for result in engine.run("seal", jobs[:count])] == wanted[:count]


def test_direction_is_checked(engine: EngineHandle) -> None:
    """A misspelt direction is an error."""
    with pytest.raises(ValueError, match="'decrypt'"):
        engine.run("decrypt", [])
    with pytest.raises(ValueError, match="'decrypt'"):
        engine.bare(Cipher.AES_GCM, Integrity.NONE, 128, 64, 64, "decrypt")


@pytest.mark.parametrize(
    "suite",
    [
        SUITES[0],
        SUITES[3],
        SUITES[5],
        *(Suite(Cipher.AES_CCM, length) for length in (16, 24)),
        Suite(Cipher.AES_GMAC, 32),
        Suite(Cipher.AES_CTR, 16, Integrity.AES_XCBC),
        Suite(Cipher.NULL, 0, Integrity.AES_CMAC),
        Suite(Cipher.NULL, 16, Integrity.AES_GMAC),
    ],
    ids=lambda suite: suite.name,
)
def test_times_are_plausible(engine: EngineHandle, suite: Suite) -> None:
    """`bare` and `timed` give nanoseconds per packet: not less for 1424 bytes than for 64, less than a millisecond."""
    cipher, key_length, integrity, _ = suite
    spec = replace(random_job(random.Random(8), suite=suite), aad=bytes(8 if cipher.is_aead else 0))
    for direction in ("seal", "open"):
        small, large = (
            engine.bare(cipher, integrity, 8 * key_length, size, 1000, direction, 12) for size in (64, 1424)
        )
        # Hashing alone takes libcrypto's GMAC little longer for the one than for the other.
        assert 1 < small < 1.3 * large < 1e6
        assert 1 < engine.timed(direction, replace(spec, text=bytes(1424)), 1000, 2) < 1e6
    with pytest.raises(ValueError, match="do not fit"):
        engine.bare(cipher, integrity, 8 * key_length, 2048, 64)
    with pytest.raises(ValueError, match="do not fit"):
        engine.timed("seal", replace(spec, text=bytes(2048)))
    with pytest.raises(ValueError, match="cannot do"):
        engine.bare(cipher, integrity, 64, 64, 64)


def test_features_name_library_and_cpu(engine: EngineHandle) -> None:
    """What `status` and `doctor` print."""
    features = engine.features()
    assert features["engine"] == engine.name
    assert str(features["library"]).split()[0] in ("libipsec-mb", "OpenSSL")
    assert engine.name != "ipsec-mb" or "aes" in features["cpu"]


def test_key_lines(engine: EngineHandle) -> None:
    """The lines worth prefetching: for AES-GCM its round keys, and what libcrypto needs to know of every key."""
    for opening in (False, True):
        lines = engine.key_lines(opening)
        if engine.name == "openssl":
            assert all(mask >> 17 == 1 for mask in lines)
        else:
            assert lines[Cipher.AES_GCM] & 0xF == 0xF
            assert lines[Cipher.AES_GCM].bit_count() < 10


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_the_bare_call_is_that_of_its_key_length(bits: int) -> None:
    """What benches compare with: each key length has its own code, and none is read past the table of them."""
    for direction in ("seal", "open"):
        assert ENGINES["ipsec-mb"].bare(Cipher.AES_GCM, 0, bits, 64, 64, direction, 1) > 0
