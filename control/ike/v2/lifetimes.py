"""When SAs are replaced and when they die: 1 the soft time, less a random part 2 the hard time.

Both sides of an SA that was made in one moment would replace it in one moment as well. A random part taken
off the soft time (RFC 7296 section 2.8, "jitter") makes one of them come first nearly always, which saves the work of
a collision. Only times are treated here; bytes and packets are counted where the counters are.
"""

from __future__ import annotations

from collections.abc import Callable

from control.ike.record import record
from control.ike.settings import Connection, Lifetime

Random = Callable[[int], bytes]

NEVER = 0.0  # a time of zero: it does not come
RETRY = (
    15.0,
    30.0,
)  # seconds after which a replacement that was put off is tried again, at least and at most
LIFE_FACTOR = 1.1  # the hard time by default, as a multiple of the soft one
OVER_FACTOR = 0.1  # the grace of an IKE SA by default, as a part of its soft time


@record(frozen=True, kw_only=True)
class Times:
    """Moments in the clock of `now`, seconds; 0 is never."""

    replace_at: float = NEVER  # a new SA is negotiated in place of this one
    expires_at: float = NEVER  # this one is closed, replaced or not


@record(frozen=True, kw_only=True)
class IkeTimes:
    """Moments in the clock of `now`, seconds; 0 is never."""

    rekey_at: float = NEVER
    reauth_at: float = NEVER
    expires_at: float = NEVER


def jitter(random: Random, limit: float) -> float:
    """A number of seconds from 0 up to `limit`, evenly spread."""
    return int.from_bytes(random(4), "big") / 2**32 * limit


def child_times(lifetime: Lifetime, now: float, random: Random) -> Times:
    """When a child SA made `now` is rekeyed and when it expires, by the time alone."""
    life = lifetime.life or lifetime.rekey * LIFE_FACTOR
    spread = lifetime.random or max(life - lifetime.rekey, 0.0)
    return Times(
        replace_at=now + _soft(lifetime.rekey, spread, random) if lifetime.rekey else NEVER,
        expires_at=now + life if life else NEVER,
    )


def ike_times(connection: Connection, now: float, random: Random, reauth_limit: float = 0.0) -> IkeTimes:
    """When an IKE SA made `now` is rekeyed, reauthenticated and closed.

    `reauth_limit` is the lifetime that the peer announced (AUTH_LIFETIME, RFC 4478), seconds; 0 where it did not.
    """
    reauth = connection.reauth_time
    if reauth_limit:
        # RFC 4478 section 3: authentication must be repeated before the time has passed, so a margin is kept.
        announced = reauth_limit * (1 - OVER_FACTOR)
        reauth = min(reauth, announced) if reauth else announced
    over = ike_over_time(connection, reauth)
    spread = connection.random_time or over
    rekey_at = now + _soft(connection.rekey_time, spread, random) if connection.rekey_time else NEVER
    reauth_at = now + _soft(reauth, spread, random) if reauth else NEVER
    first = [time for time in (rekey_at, reauth_at) if time]
    return IkeTimes(rekey_at=rekey_at, reauth_at=reauth_at, expires_at=min(first) + over if first else NEVER)


def ike_over_time(connection: Connection, reauth: float = 0.0) -> float:
    """The grace after an IKE SA's soft times, seconds."""
    longest = max(connection.rekey_time, connection.reauth_time, reauth)
    return connection.over_time or longest * OVER_FACTOR


def retry_at(now: float, random: Random, expires_at: float = NEVER) -> float:
    """When a replacement is tried again that the peer put off (RFC 7296 section 2.25) or that failed.

    Never so late that nothing is left of the SA's life for it.
    """
    delay = RETRY[0] + jitter(random, RETRY[1] - RETRY[0])
    if expires_at:
        delay = min(delay, max((expires_at - now) / 2, 1.0))
    return now + delay


def _soft(time: float, spread: float, random: Random) -> float:
    """A soft time with its random part taken off; at least half of it stays, whatever the settings say."""
    return max(time - jitter(random, min(spread, time)), time / 2)
