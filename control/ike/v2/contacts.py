"""First contacts of peers: how many have begun and not finished, and what keeps a flood of them cheap (RFC 7296 2.6).

A request beyond the limits is answered by a cookie, which costs no memory, or not at all. What is no one's is counted
and told seldom.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

from control.ike.numbers import Exchange, NotifyType, PayloadType
from control.ike.settings import EndpointSettings
from control.ike.v2.cookies import Cookies, Sender
from control.ike.v2.sa import IkeSa
from control.ike.wire.header import HEADER_LENGTH, NO_SPI

REFUSALS_PER_SECOND = 20.0  # events, and answers in clear, about what is no IKE SA's
MAX_INIT = 16384  # bytes of an IKE_SA_INIT request: it is kept until IKE_AUTH, for strangers as well
VERSION = 0x20  # 2.0, in the header's byte 17
RESPONSE, INITIATOR = 0x20, 0x08  # flags in the header's byte 19
_FIRST_REQUEST = bytes((VERSION, Exchange.IKE_SA_INIT, INITIATOR))
_NOTIFY = struct.Struct(">IBBHBBH")  # the message's length, then a Notify payload before its data

# Of a half-open IKE SA: the initiator's SPI, its address and port, and the hash of its request. Who says something else
# under the same SPI has begun once more, and is counted once more.
InitKey = tuple[bytes, str, int, int]


class Quota:
    """At most so many a second, with some at once."""

    __slots__ = ("_burst", "_last", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._left, self._last = rate, burst, burst, 0.0

    def empty(self, now: float) -> bool:
        """Whether none is left."""
        self._left = min(self._burst, self._left + (now - self._last) * self._rate)
        self._last = now
        return self._left < 1.0

    def take(self, now: float) -> bool:
        """One of them, if any is left."""
        if self.empty(now):
            return False
        self._left -= 1.0
        return True


class Contacts:
    """Half-open IKE SAs of peers, and the limits. `counters` are of datagrams that led nowhere, by reason."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.counters: Counter[str] = Counter()
        self.quota = Quota(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND)
        self._cookies = Cookies(random)
        self._half_open: dict[InitKey, IkeSa] = {}
        self._of_address: Counter[str] = Counter()

    def get(self, key: InitKey) -> IkeSa | None:
        """The half-open IKE SA that this initiator has."""
        return self._half_open.get(key)

    def add(self, key: InitKey, sa: IkeSa) -> None:
        """A peer has begun."""
        self._half_open[key] = sa
        self._of_address[key[1]] += 1
        sa.init_key = key

    def remove(self, sa: IkeSa | None) -> None:
        """It is half open no more."""
        if sa is None or sa.init_key is None:
            return
        if self._half_open.get(sa.init_key) is sa:
            del self._half_open[sa.init_key]
        address = sa.init_key[1]
        self._of_address[address] -= 1
        if self._of_address[address] <= 0:
            del self._of_address[address]
        sa.init_key = None

    def under_load(self, settings: EndpointSettings, now: float) -> bool:
        """Cookies are demanded: too many handshakes have begun, or too many were refused, which costs as much."""
        return len(self._half_open) >= settings.cookie_threshold or self.quota.empty(now)

    def crowded(self, address: str, settings: EndpointSettings) -> bool:
        """Cookies are demanded of one address, for more than half of what it may have is taken.

        Whoever forges its address could have it blocked with a few datagrams else.
        """
        half = settings.block_threshold // 2 + settings.block_threshold % 2
        return settings.block_threshold > 0 and self._of_address[address] >= half

    def cookie(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """The whole answer to an IKE_SA_INIT request that has no good cookie; None where it has one."""
        cookie = self._cookies.check(data, sender, now)
        if cookie is None:
            return None
        self.counters["cookies"] += 1
        return in_clear(data, NotifyType.COOKIE, cookie)

    def shed(self, data: bytes, sender: Sender, settings: EndpointSettings, now: float) -> bytes | None:
        """See `Endpoint.shed`."""
        if (
            not self.under_load(settings, now)
            or len(data) < HEADER_LENGTH
            or data[8:16] != NO_SPI
            or data[17:20] != _FIRST_REQUEST
            or (data[:8], *sender, hash(data)) in self._half_open
        ):
            return None
        return self.cookie(data, sender, now)

    def full(self, address: str, settings: EndpointSettings) -> bool:
        """Whether no more may begin: in all, or of this address."""
        if len(self._half_open) >= settings.half_open_limit:
            self.counters["half_open_limit"] += 1
            return True
        if 0 < settings.block_threshold <= self._of_address[address]:
            self.counters["blocked"] += 1
            return True
        return False


def in_clear(data: bytes, kind: int, content: bytes) -> bytes:
    """A response to the request `data` with one notification, outside of any IKE SA."""
    flags = RESPONSE | (0 if data[19] & INITIATOR else INITIATOR)
    length = 8 + len(content)
    header = data[:16] + bytes((PayloadType.NOTIFY, VERSION, data[18], flags)) + data[20:24]
    return header + _NOTIFY.pack(HEADER_LENGTH + length, 0, 0, length, 0, 0, kind) + content
