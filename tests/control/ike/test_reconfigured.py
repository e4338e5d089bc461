"""Another configuration for an IKE SA that stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from tests.control.ike.pair import Pair, child, connection_a, connection_b, mirror

BOTH = (child("net"), child("voice", "10.3.0.0/16", "10.4.0.0/16"))


def test_a_child_that_was_configured_later() -> None:
    """The peer may have it on the IKE SA that was there before; without adopting, it may not."""
    pair = Pair(a=connection_a(), b=connection_b()).up()
    new_a = connection_a(children=BOTH)
    pair.b.endpoint.set_connections([mirror(new_a, name="b-a")])
    pair.b.endpoint.adopt([mirror(new_a, name="b-a")])
    pair.a.endpoint.set_connections([new_a])
    pair.initiate("voice", side=pair.b)
    pair.run()
    assert "traffic selectors unacceptable" in pair.b.failures[-1]
    before = pair.a.ikes
    pair.a.endpoint.adopt([new_a])
    pair.initiate("voice", side=pair.b)
    pair.run()
    pair.check_children(2)
    assert pair.a.ikes == before


def test_times_count_from_now_on() -> None:
    pair = Pair(a=connection_a(dpd_delay=0.0)).up()
    pair.a.endpoint.adopt([replace(connection_a(), dpd_delay=10.0)])
    [ike] = pair.a.ikes
    pair.a.endpoint.traffic_seen(ike, pair.now)
    sent = pair.a.sent
    pair.run(15.0)
    assert pair.a.sent == sent + 1  # the peer is asked


@pytest.mark.parametrize("change", ["removed", "another identity", "nothing"])
def test_who_has_begun_gets_in_by_what_is_configured_now(change: str) -> None:
    """The peer's IKE_SA_INIT was answered, its IKE_AUTH comes after the reload: the new configuration counts."""
    other = AuthSettings(auth=Auth.PSK, identity=Identity.parse("c.example"))
    first = connection_b(remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("b.example")))
    guess = replace(first, name="another", remote=other)
    pair = Pair(a=connection_a(), b=(guess, first))
    pair.initiate()
    while not pair.b.ikes:
        assert pair.step(pair.now + 1.0)
    now = {
        "removed": (guess,),
        "another identity": (guess, replace(first, remote=other)),
        "nothing": (guess, first),
    }
    pair.b.endpoint.set_connections(now[change])
    pair.run()
    if change == "nothing":
        assert pair.b.established[0].connection == first.name
    else:
        assert not pair.b.established and not pair.a.established
        assert "the peer is 'a.example' by psk" in pair.b.failures[-1]
