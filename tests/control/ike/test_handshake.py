"""Two endpoints set an IKE SA and a child up."""

from __future__ import annotations

import pytest

from control.ike.events import ChildEstablished, IkeEstablished
from control.ike.settings import EndpointSettings
from tests.control.ike.pair import Pair, Wire


def test_psk_tunnel_comes_up() -> None:
    """IKE_SA_INIT and IKE_AUTH: four datagrams, and both sides have the same child."""
    pair = Pair().up()
    assert len(pair.carried) == 4
    pair.check_children()
    [a], [b] = pair.a.established, pair.b.established
    assert (a.local_id, a.remote_id, a.initiator) == ("a.example", "b.example", True)
    assert (b.local_id, b.remote_id, b.initiator) == ("b.example", "a.example", False)
    assert a.suite_name == b.suite_name == "aes128gcm16-prfsha256-x25519"
    kinds = [type(event) for event in pair.a.log if type(event) in (IkeEstablished, ChildEstablished)]
    assert kinds == [IkeEstablished, ChildEstablished]


@pytest.mark.parametrize("seed", range(20))
def test_comes_up_over_a_bad_wire(seed: int) -> None:
    """30% lost, repeated and reordered: one IKE SA, one child, on both sides."""
    patient = EndpointSettings(half_open_timeout=300.0)
    pair = Pair(wire=Wire(loss=0.3, repeat=0.3, delay=(0.01, 2.0)), seed=seed, settings_b=patient)
    pair.initiate()
    pair.run(600.0)
    assert len(pair.a.established) == len(pair.b.established) == 1, (pair.a.log, pair.b.log)
    pair.check_children()
