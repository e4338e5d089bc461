"""Sequence numbers of manually keyed SAs, reserved on disk ahead of use.

A key written by hand outlives this process, so a restart must never send a number again: with AEAD the number
is the nonce, and a nonce used twice gives the key away (RFC 4106 section 2). One small file per key holds a
high-water mark, the first number that was *not* given to the workers yet:

    reserve    1 file <- mark  2 fsync, rename, fsync of the directory  3 only then SaSequence.limit <- mark
    restart    begins at the mark: numbers between the last one sent and the mark are lost, never repeated
    clean end  the workers are gone: mark <- next, so nothing is lost

A file is named after a fingerprint of the key, not after SPI or salt: whoever changes only those in the
configuration still goes on where the key stood. A file that cannot be read stops its SA with an error; it never
means "begin at 1". One process at a time holds the directory (flock).

Inbound: the replay window's top of manual SAs is kept too, every few seconds and at a clean end. With extended
numbers the receiver needs it to know the high half (RFC 4303 appendix A); with short ones, packets recorded
before a restart stay refused after it. It only ever lags behind, so it never refuses a packet of the peer's.

Not here: SAs keyed by IKE. Their keys die with the process, and so may their numbers.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path

from dataplane.model import Cipher, Direction, Integrity, SaSpec

#: Numbers reserved at a time; renewed when less than half is left.
CHUNK = 2**22
_FORMAT = "esplanade sequence 1"


class ReserveError(Exception):
    """The state directory cannot be trusted or written; says what to do."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a state file says: for an outbound key, the first number that may be sent; inbound, the top."""

    fingerprint: str
    direction: Direction
    number: int
    spi: int  # only for whoever reads the file


def fingerprint(spec: SaSpec) -> str:
    """Names a key without telling it: HMAC-SHA-256 under a fixed label, 128 bits of it, in hex.

    The salt is left out on purpose (see the module's text); the cipher is in. AES-GCM, GMAC (AH's, too), CCM and CTR
    count in the same way and pass for one: under one key, a number of the one is a number of the other, whatever
    integrity algorithm is beside it.
    """
    proposal = spec.proposal
    raw, raw_integrity = spec.raw_keys
    cipher, integrity, material = proposal.cipher.name, proposal.integrity.name, raw + raw_integrity
    if proposal.has_nonce and proposal.cipher is not Cipher.CHACHA20_POLY1305:
        if proposal.integrity is Integrity.AES_GMAC:
            raw = raw_integrity
        cipher, integrity, material = Cipher.AES_GCM.name, Integrity.NONE.name, raw
    label = f"esplanade key fingerprint {cipher} {integrity} {len(raw)}".encode()
    return hmac.new(material, label, hashlib.sha256).hexdigest()[:32]


class Reserve:
    """The state directory, held by this process until `close`.

    Raises ReserveError when it cannot be made, written, or is held by another process.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ReserveError(_cannot_write(directory, error)) from error
        mode = os.fstat(self._directory_fd).st_mode & 0o7777
        if mode & 0o002:
            os.close(self._directory_fd)
            raise ReserveError(
                f"state directory {directory} has mode {mode:04o}: whoever can write there can take sequence numbers"
                f" back, and nonces would repeat; run: chmod 700 {directory}"
            )
        try:
            self._lock_fd = os.open(
                "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory_fd
            )
        except OSError as error:
            os.close(self._directory_fd)
            raise ReserveError(_cannot_write(directory, error)) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ReserveError(
                f"state directory {directory} is in use by another process: two gateways that reserve from it"
                " would send the same sequence numbers; stop the other one or give this one its own directory"
            ) from error

    def close(self) -> None:
        """Let the directory go."""
        for fd in (self._lock_fd, self._directory_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._directory_fd = -1

    def read(self, spec: SaSpec) -> Mark | None:
        """The mark of the spec's key, None when it was never used here. ReserveError for a damaged file."""
        name = _file_name(fingerprint(spec), spec.direction)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReserveError(f"{self.directory / name}: {error.strerror}") from error
        with open(fd, "rb") as file:
            body = file.read(4096)
        try:
            return _parse(body, fingerprint(spec), spec.direction)
        except ValueError as error:
            raise ReserveError(
                f"{self.directory / name}: {error}. It holds the sequence numbers that SA {spec.name!r} has used;"
                " beginning again at 1 would reuse nonces. Restore the file from a backup, or give the SA a new"
                " key on both sides and delete the file"
            ) from error

    def write(self, marks: list[Mark]) -> None:
        """Persist marks: they are on the disk when this returns, whatever happens afterwards.

        Raises ReserveError; then no mark of the list may be used.
        """
        try:
            for mark in marks:
                name = _file_name(mark.fingerprint, mark.direction)
                temporary = f"{name}.new"
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                fd = os.open(temporary, flags, 0o600, dir_fd=self._directory_fd)
                with open(fd, "wb") as file:
                    file.write(_render(mark))
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
            if marks:
                os.fsync(self._directory_fd)
        except OSError as error:
            raise ReserveError(_cannot_write(self.directory, error)) from error


def _cannot_write(directory: Path, error: OSError) -> str:
    return (
        f"state directory {directory}: {error.strerror}. Manually keyed SAs need one that can be written: their"
        " sequence numbers are reserved there, so that no restart repeats a nonce (RFC 4106 section 2)"
    )


def _file_name(name: str, direction: Direction) -> str:
    return f"{direction.value}-{name}.json"


def _check_of(fields: dict[str, object]) -> str:
    """Tells a truncated or edited file from a whole one; not a signature."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _render(mark: Mark) -> bytes:
    fields: dict[str, object] = {
        "format": _FORMAT,
        "direction": mark.direction.value,
        "fingerprint": mark.fingerprint,
        "number": mark.number,
        "spi": f"0x{mark.spi:08x}",
    }
    return json.dumps({**fields, "check": _check_of(fields)}).encode() + b"\n"


def _parse(body: bytes, name: str, direction: Direction) -> Mark:
    """The mark in a state file; ValueError says what is wrong with it."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise ValueError("the file is damaged (truncated, or not JSON)") from error
    if not isinstance(fields, dict):
        raise ValueError("the file is damaged (not an object)")
    check = fields.pop("check", None)
    if check != _check_of(fields):
        raise ValueError("the file is damaged (its check value does not match)")
    if fields.get("format") != _FORMAT:
        raise ValueError(f"the file's format is {fields.get('format')!r}, wanted {_FORMAT!r}")
    if fields.get("fingerprint") != name or fields.get("direction") != direction.value:
        raise ValueError("the file belongs to another key: it was renamed")
    number = fields.get("number")
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"the file's number is {number!r}")
    return Mark(fingerprint=name, direction=direction, number=number, spi=int(str(fields["spi"]), 16))
