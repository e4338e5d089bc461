"""First contacts of peers: how many have begun and not finished, and what keeps a flood of them cheap (RFC 7296 2.6).

A request beyond the limits is answered by a cookie, which costs no memory, or not at all. What is no one's is counted
and told seldom. A handshake that fails counts as half open for a little longer: who fails again and again, guessing
passwords or having us calculate, waits as long as who does not finish.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable

from control.ike.numbers import Exchange, NotifyType, PayloadType
from control.ike.settings import EndpointSettings
from control.ike.v2.cookies import Cookies, Sender
from control.ike.v2.sa import IkeSa
from control.ike.wire.header import HEADER_LENGTH, NO_SPI

REFUSALS_PER_SECOND = 20.0  # events, and answers in clear, about what is no IKE SA's
OTHER_GROUPS_PER_SECOND = 50.0  # answers that want another key exchange, after which cookies are demanded
AFTER_FAILURE = 5.0  # seconds that a failed handshake counts as half open
MAX_FAILURES = 4096  # that are remembered
MAX_INIT = 16384  # bytes of an IKE_SA_INIT request: it is kept until IKE_AUTH, for strangers as well
VERSION = 0x20  # 2.0, in the header's byte 17
RESPONSE, INITIATOR = 0x20, 0x08  # flags in the header's byte 19
# What datagrams that belong to no IKE SA are counted under; docs/operations.md says what each means.
COUNTERS = (
    *("short", "version", "malformed", "foreign_spi", "unknown_spi", "long"),
    *("cookies", "blocked", "half_open_limit", "refused_init"),
)
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
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.quota = Quota(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND)
        self.other_groups = Quota(OTHER_GROUPS_PER_SECOND, OTHER_GROUPS_PER_SECOND)
        self._cookies = Cookies(random)
        self._failed: deque[tuple[float, str]] = deque()  # until when each counts, and of which address
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
        if sa is not None and sa.init_key is not None:
            self._leave(self._forget(sa, sa.init_key))

    def remove_failed(self, sa: IkeSa, settings: EndpointSettings, now: float) -> None:
        """It is gone, and if it was half open until now, its address is charged for it a little longer.

        One whose time ran out has been charged enough.
        """
        if sa.init_key is None:
            return
        address = self._forget(sa, sa.init_key)
        until = min(now + AFTER_FAILURE, sa.created + settings.half_open_timeout)
        self._failed.append((until, address))
        self._forgive(now)

    def _forget(self, sa: IkeSa, key: InitKey) -> str:
        """Its place among the half-open ones; its address, which still counts it."""
        if self._half_open.get(key) is sa:
            del self._half_open[key]
        sa.init_key = None
        return key[1]

    def _leave(self, address: str) -> None:
        self._of_address[address] -= 1
        if self._of_address[address] <= 0:
            del self._of_address[address]

    def _forgive(self, now: float) -> None:
        """Failures that count no more."""
        while self._failed and (self._failed[0][0] <= now or len(self._failed) > MAX_FAILURES):
            self._leave(self._failed.popleft()[1])

    def under_load(self, settings: EndpointSettings, now: float) -> bool:
        """Cookies are demanded: too many handshakes have begun, or too many were refused, which costs as much."""
        few = len(self._half_open) < settings.cookie_threshold
        return not few or self.quota.empty(now) or self.other_groups.empty(now)

    def crowded(self, address: str, settings: EndpointSettings, now: float) -> bool:
        """Cookies are demanded of one address, for more than half of what it may have is taken.

        Whoever forges its address could have it blocked with a few datagrams else.
        """
        self._forgive(now)
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
            or not _begins(data)
            or (data[:8], *sender, hash(data)) in self._half_open
        ):
            return None
        return self.cookie(data, sender, now)

    def challenge(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """See `Endpoint.challenge`. Who is half open is asked as well: anyone can repeat what it has forged itself."""
        return self.cookie(data, sender, now) if _begins(data) else b""

    def full(self, address: str, settings: EndpointSettings) -> bool:
        """Whether no more may begin: in all, or of this address."""
        if len(self._half_open) >= settings.half_open_limit:
            self.counters["half_open_limit"] += 1
            return True
        if 0 < settings.block_threshold <= self._of_address[address]:
            self.counters["blocked"] += 1
            return True
        return False


def _begins(data: bytes) -> bool:
    """Whether these are the bytes of a request of IKE_SA_INIT."""
    return len(data) >= HEADER_LENGTH and data[8:16] == NO_SPI and data[17:20] == _FIRST_REQUEST


def in_clear(data: bytes, kind: int, content: bytes) -> bytes:
    """A response to the request `data` with one notification, outside of any IKE SA."""
    flags = RESPONSE | (0 if data[19] & INITIATOR else INITIATOR)
    length = 8 + len(content)
    header = data[:16] + bytes((PayloadType.NOTIFY, VERSION, data[18], flags)) + data[20:24]
    return header + _NOTIFY.pack(HEADER_LENGTH + length, 0, 0, length, 0, 0, kind) + content
