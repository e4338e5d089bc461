"""Cookies against floods of IKE_SA_INIT (RFC 7296 section 2.6): 1 count 2 demand 3 check, without any memory of a peer.

A cookie is a keyed hash of what a retry must repeat: nonce, SPI, address and port. The secret changes by time; the one
before it is good until the next change. The check reads the bytes of a datagram and makes no object of it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2s

Sender = tuple[str, int]  # address, as sockets have it, and port

_ROTATE = 60.0  # seconds
_HEADER, _NOTIFY, _NONCE = 28, 41, 40
_COOKIE = 16390
_LENGTH = 17  # of our cookies: which secret, and 16 bytes of hash
_PAYLOADS = 32  # that are looked at


class Cookies:
    """The secrets of a gateway's cookies."""

    __slots__ = ("_changed", "_number", "_random", "_secrets")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._secrets = [random(32), random(32)]
        self._number = 0
        self._changed: float | None = None

    def check(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """None when the IKE_SA_INIT request `data` of `sender` brings a good cookie, else the cookie to demand.

        Bytes that are no such request get a cookie as well: whoever repeats them with it has an address at least.
        """
        self._rotate(now)
        got, nonce = scan(data)
        if got is not None and len(got) == _LENGTH:
            age = (self._number - got[0]) & 0xFF
            if age < 2 and hmac.compare_digest(got, self._cookie(got[0], age, data, nonce, sender)):
                return None
        return self._cookie(self._number, 0, data, nonce, sender)

    def _cookie(self, number: int, age: int, data: bytes, nonce: bytes, sender: Sender) -> bytes:
        where = f"{sender[0]} {sender[1]} ".encode()
        mac = blake2s(data[:8] + where + nonce, digest_size=16, key=self._secrets[age])
        return bytes((number,)) + mac.digest()

    def _rotate(self, now: float) -> None:
        if self._changed is None:
            self._changed = now
        elif now - self._changed >= _ROTATE:
            stale = now - self._changed >= 2 * _ROTATE
            self._secrets = [self._random(32), self._random(32) if stale else self._secrets[0]]
            self._number = (self._number + 1) & 0xFF
            self._changed = now


def scan(data: bytes) -> tuple[bytes | None, bytes]:
    """The COOKIE notification (None without one) and the nonce (empty without one) of an unparsed IKE_SA_INIT."""
    kind, offset, end = data[16], _HEADER, len(data)
    cookie: bytes | None = None
    for _ in range(_PAYLOADS):
        if kind == 0 or offset + 4 > end:
            break
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < 4 or offset + length > end:
            break
        if kind == _NONCE:
            return cookie, data[offset + 4 : offset + length]
        if (
            kind == _NOTIFY
            and length >= 8
            and int.from_bytes(data[offset + 6 : offset + 8], "big") == _COOKIE
        ):
            cookie = data[offset + 8 + data[offset + 5] : offset + length]
        kind, offset = data[offset], offset + length
    return cookie, b""
