"""What both engines show to Python: key expansion into a table, and a test door. Never the packet path.

`run` seals or opens jobs described by JobSpec, in lists of up to BATCH_MAX that may mix ciphers and keys, exactly
as the ESP passes do: header, text and ICV lie behind one another, in a buffer with not one byte to spare (so that
a sanitizer finds every overrun).
"""

from dataclasses import dataclass, field, replace

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ext.clock cimport now_ns
from ext.secret cimport explicit_bzero

cdef extern from *:
    """
    #include <stdlib.h>
    #define ASSERT_SIZE(size, want) _Static_assert((size) == (want), #size " is not " #want)
    """
    void assert_size "ASSERT_SIZE"(size_t size, size_t want) noexcept nogil
    int posix_memalign(void **area, size_t alignment, size_t size) noexcept nogil


cdef void _assert_sizes() noexcept nogil:
    assert_size(sizeof(Key), 1152)
    assert_size(sizeof(Job), 64)


_assert_sizes()

# Ids of keys that no table holds: far above those that control counts up.
cdef uint64_t _next_id = <uint64_t>1 << 63


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One packet for `EngineHandle.run`; algorithms are the numbers of ext.crypto.

    `header` is what HMAC covers before the text (the ESP header). `text` of CBC begins with 16 bytes of IV: to seal,
    the block that becomes the IV once enciphered. `aad` is at most 12 bytes; for HMAC it is empty or the 4 bytes of
    the sequence number's high half. `icv` is what arrived, to open. `index` and `id` are the SA's (Key); None stands
    for an SA of its own.
    """

    cipher: int
    integrity: int = 0
    key: bytes = field(default=b"", repr=False)
    integrity_key: bytes = field(default=b"", repr=False)
    nonce: bytes = bytes(12)
    aad: bytes = b""
    header: bytes = b""
    text: bytes = b""
    icv: bytes = b""
    icv_length: int | None = None
    index: int | None = None
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of a JobSpec: `ok` as in Job, text and ICV as they lie in the packet afterwards."""

    ok: bool
    text: bytes
    icv: bytes


cdef class EngineHandle:
    """Base of both engines; not usable by itself."""

    def expand_at(self, size_t address) -> None:
        """Expand the key of the Key structure at this address (64-byte aligned) for this engine.

        Raises ValueError for a combination of cipher, integrity and lengths that the engine cannot do.
        """
        cdef Key *key = <Key *>address
        cdef int result
        with nogil:
            result = self.c.expand(&self.c, key)
        if result != 0:
            raise ValueError(
                f"{self.name} cannot do cipher {key.cipher} with {8 * key.encryption_length}-bit key, integrity "
                f"{key.integrity} with {8 * key.integrity_length}-bit key and an ICV of {key.icv_length} bytes"
            )

    def forget(self, uint32_t index) -> None:
        """Drop and wipe whatever this process keeps of the SA's key outside the tables."""
        with nogil:
            self.c.forget(&self.c, index)

    def key_lines(self, bint opening) -> list:
        """By cipher number: which 64-byte lines of Key a short packet makes the engine read, as a bit mask."""
        return [self.c.key_lines[opening][cipher] for cipher in range(<int>CIPHERS)]

    def run(self, str direction, jobs) -> list:
        """Seal or open the JobSpecs (direction "seal" or "open"); returns a JobResult for each.

        Raises ValueError for a JobSpec that no packet could be, or that the engine cannot do.
        """
        if direction not in ("seal", "open"):
            raise ValueError(f"direction is {direction!r}; it is 'seal' or 'open'")
        results = []
        for first in range(0, len(jobs), BATCH_MAX):
            results += _run_list(self, direction == "open", jobs[first : first + BATCH_MAX])
        return results

    def timed(self, str direction, spec, uint32_t packets=64000, int repeats=5, uint32_t stride=2048) -> float:
        """Nanoseconds per packet of seal or open over full lists of one JobSpec: the best of `repeats` runs.

        Compare with `bare`: 64 buffers `stride` bytes apart, text at the same place, ICV valid when opening.
        """
        cdef Timed timed
        cdef uint64_t best = 0xFFFFFFFFFFFFFFFF
        cdef uint64_t took
        cdef uint32_t rounds = packets // BATCH_MAX + 1
        if len(spec.header) + len(spec.text) + 160 > stride or len(spec.header) > 64:
            raise ValueError(f"{len(spec.text)} bytes of text do not fit buffers {stride} bytes apart")
        memset(&timed, 0, sizeof(Timed))
        try:
            _lay_timed(self, &timed, spec, direction == "open", stride)
            for _ in range(max(1, repeats)):
                with nogil:
                    took = _timed(&self.c, &timed, rounds)
                if took < best:
                    best = took
            if not timed.jobs.jobs[BATCH_MAX - 1].ok:
                raise RuntimeError(f"{self.name} refused its own packet")
        finally:
            if timed.key != NULL:
                explicit_bzero(timed.key, sizeof(Key))
            free(timed.key)
            free(timed.jobs)
            free(timed.buffers)
            free(timed.fresh)
        return <double>best / <double>(<uint64_t>rounds * BATCH_MAX)


cdef list _run_list(EngineHandle engine, bint opening, specs):
    """One JobList through the engine."""
    cdef JobList *jobs = NULL
    cdef Key *keys = NULL
    cdef uint32_t count = <uint32_t>len(specs)
    cdef uint32_t index
    cdef uint8_t *buffer
    if (posix_memalign(<void **>&jobs, 64, sizeof(JobList))
            or posix_memalign(<void **>&keys, 64, BATCH_MAX * sizeof(Key))):
        free(jobs)
        raise MemoryError("a list of jobs")
    memset(jobs, 0, sizeof(JobList))
    memset(keys, 0, BATCH_MAX * sizeof(Key))
    try:
        for index in range(count):
            _fill_key(&keys[index], specs[index], index)
            engine.expand_at(<size_t>&keys[index])
            jobs.jobs[index].key = &keys[index]
            jobs.jobs[index].suite = suite_of(&keys[index])
            _fill_job(&jobs.jobs[index], specs[index], opening)
        jobs.count = count
        with nogil:
            if opening:
                engine.c.open(&engine.c, jobs)
            else:
                engine.c.seal(&engine.c, jobs)
        return [_result(&jobs.jobs[index]) for index in range(count)]
    finally:
        for index in range(count):
            if specs[index].index is None:
                engine.forget(index)
        for index in range(<uint32_t>BATCH_MAX):
            buffer = jobs.jobs[index].esp
            free(buffer)
        explicit_bzero(keys, BATCH_MAX * sizeof(Key))
        free(keys)
        free(jobs)


cdef object _result(const Job *job):
    """Copy out one job."""
    return JobResult(
        ok=job.ok == 1,
        text=(<const char *>job.text)[:job.text_length],
        icv=(<const char *>job.icv)[:job.key.icv_length],
    )


cdef int _copy(uint8_t *into, size_t room, bytes content, str what) except -1:
    """Copy a field of a JobSpec."""
    if <size_t>len(content) > room:
        raise ValueError(f"{what} of {len(content)} bytes; at most {room} fit")
    memcpy(into, <const char *>content, len(content))
    return 0


cdef int _fill_key(Key *key, spec, uint32_t position) except -1:
    """Key from a JobSpec, not yet expanded."""
    global _next_id
    _copy(key.encryption, 32, spec.key, "key")
    _copy(key.integrity_key, 64, spec.integrity_key, "integrity key")
    key.encryption_length = <uint8_t>len(spec.key)
    key.integrity_length = <uint8_t>len(spec.integrity_key)
    key.cipher = spec.cipher
    key.integrity = spec.integrity
    if spec.icv_length is not None:
        key.icv_length = spec.icv_length
    elif spec.cipher >= CIPHER_AES_GCM:
        key.icv_length = 16
    else:
        key.icv_length = icv_length_of(<uint32_t>spec.integrity)
    key.index = position if spec.index is None else spec.index
    if spec.id is None:
        key.id = _next_id
        _next_id += 1
    else:
        key.id = spec.id
    return 0


cdef int _fill_job(Job *job, spec, bint opening) except -1:
    """Job from a JobSpec, in a buffer of its own that ends right after the ICV."""
    cdef size_t header = len(spec.header)
    cdef size_t length = len(spec.text)
    cdef size_t tail = job.key.icv_length
    cdef void *buffer = NULL
    if opening and <size_t>len(spec.icv) != tail:
        raise ValueError(f"ICV of {len(spec.icv)} bytes; this key's are {tail}")
    _copy(job.nonce, 12, spec.nonce, "nonce")
    _copy(job.aad, 12, spec.aad, "aad")
    if posix_memalign(&buffer, 16, header + length + tail + (1 if header + length + tail == 0 else 0)):
        raise MemoryError("a packet")
    job.esp = <uint8_t *>buffer
    job.text = job.esp + header
    job.icv = job.text + length
    job.aad_length = <uint8_t>len(spec.aad)
    job.text_length = <uint32_t>length
    job.ok = 2      # neither answer: the engine must write one
    memcpy(job.esp, <const char *>(<bytes>spec.header), header)
    memcpy(job.text, <const char *>(<bytes>spec.text), length)
    if opening:
        memcpy(job.icv, <const char *>(<bytes>spec.icv), tail)
    return 0


# Time per packet of a whole list.

cdef struct Timed:
    Key *key
    JobList *jobs
    uint8_t *buffers            # 64 packets
    uint8_t *fresh              # the packet as it was, put back before each list outside of the time taken
    uint32_t length             # from ESP header to ICV, bytes
    uint32_t stride
    bint opening


cdef int _lay_timed(EngineHandle engine, Timed *timed, spec, bint opening, uint32_t stride) except -1:
    """One full list of the same packet, at the places where `bare` has its own."""
    cdef Job *job
    cdef uint32_t slot
    timed.opening = opening
    timed.stride = stride
    if (posix_memalign(<void **>&timed.key, 64, sizeof(Key))
            or posix_memalign(<void **>&timed.jobs, 64, sizeof(JobList))
            or posix_memalign(<void **>&timed.buffers, 4096, <size_t>stride * (BATCH_MAX + 1))
            or posix_memalign(<void **>&timed.fresh, 64, stride)):
        raise MemoryError("a list of jobs")
    memset(timed.key, 0, sizeof(Key))
    memset(timed.jobs, 0, sizeof(JobList))
    if opening:
        sealed = engine.run("seal", [spec])[0]
        spec = replace(spec, text=sealed.text, icv=sealed.icv)
    _fill_key(timed.key, spec, 0)
    engine.expand_at(<size_t>timed.key)
    timed.length = len(spec.header) + len(spec.text) + timed.key.icv_length
    whole = spec.header + spec.text + (spec.icv if opening else bytes(timed.key.icv_length))
    memcpy(timed.fresh, <const char *>(<bytes>whole), timed.length)
    timed.jobs.count = BATCH_MAX
    for slot in range(<uint32_t>BATCH_MAX):
        job = &timed.jobs.jobs[slot]
        job.key = timed.key
        job.suite = suite_of(timed.key)
        _copy(job.nonce, 12, spec.nonce, "nonce")
        _copy(job.aad, 12, spec.aad, "aad")
        job.aad_length = <uint8_t>len(spec.aad)
        job.text = timed.buffers + <size_t>stride * slot + 64
        job.esp = job.text - len(spec.header)
        job.text_length = <uint32_t>len(spec.text)
        job.icv = job.text + job.text_length
    return 0


cdef uint64_t _timed(Engine *engine, Timed *timed, uint32_t rounds) noexcept nogil:
    """Nanoseconds that `rounds` lists took."""
    cdef uint64_t took = 0
    cdef uint64_t started
    cdef uint32_t _turn, slot
    for _turn in range(rounds):
        for slot in range(<uint32_t>BATCH_MAX):
            memcpy(timed.jobs.jobs[slot].esp, timed.fresh, timed.length)
        started = now_ns()
        if timed.opening:
            engine.open(engine, timed.jobs)
        else:
            engine.seal(engine, timed.jobs)
        took += now_ns() - started
    return took
