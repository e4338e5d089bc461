"""Which datagrams IKE takes in: 1 a flood of first messages 2 who it is counted for 3 too many: a cookie, or nothing.

One loud peer, or one host with a broken daemon, must not keep the others waiting, and whoever forges a peer's address
must not have that peer taken for loud. So datagrams are counted for what a forger cannot have:

    the IKE SA     that their SPI names: who has not seen its messages cannot name it
    the address    where they name none; first messages beyond the limit are answered by a cookie (RFC 7296 section 2.6)
    the address    once more, for first messages beyond that limit that bring a good cookie: it does receive there

Who sees a peer's messages can still use its share up, as it could keep them from arriving. Spoofed floods come from a
new address each time and pass here; the endpoint demands cookies of all then.
"""

from __future__ import annotations

from control.ike.endpoint import Endpoint
from control.ike.v2.cookies import Sender
from control.net.limiter import RateLimiter

DROP = b""  # the answer that is none


class Door:
    """Stands between the sockets and an endpoint. `refused` counts datagrams that were dropped for being too many."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.refused = 0
        self._endpoint = endpoint
        self._counted = RateLimiter()  # by our SPI or, of strangers, by address
        self._proven = RateLimiter()  # by address

    def answer(self, data: bytes, sender: Sender, now: float) -> bytes | None:
        """The whole answer to a datagram that goes no further, DROP for none; None where the endpoint is to have it."""
        answer = self._endpoint.shed(data, sender, now)
        if answer is not None or self._counted.allow(self._endpoint.spi_of(data) or sender[0], now):
            return answer
        answer = self._endpoint.challenge(data, sender, now)
        if answer is None and not self._proven.allow(sender[0], now):
            answer = DROP
        self.refused += answer == DROP
        return answer
