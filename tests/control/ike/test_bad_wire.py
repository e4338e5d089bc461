"""Half an hour of rekeying by both sides over a wire that loses, repeats and reorders: no packet is lost for it."""

from __future__ import annotations

import pytest

from control.ike.events import ChildClosed, ChildEstablished, ChildOutboundReady
from control.ike.settings import Lifetime, Retransmission
from tests.control.ike.pair import Pair, Side, child, connection_a, connection_b
from tests.control.ike.planes import Packet, Plane

NAMES = ("net", "two")
LATENCY = 1.0  # seconds that a packet may be on its way


class Traffic:
    """A packet by each child and each side at every step, and what becomes of it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.planes = {(side.name, name): Plane() for side in pair.sides for name in NAMES}
        self.child_names: dict[tuple[str, int], str] = {}
        self.told = {side.name: 0 for side in pair.sides}
        self.sent: dict[tuple[str, str], tuple[float, Packet]] = {}

    def step(self) -> None:
        """Events first, then packets."""
        for side in self.pair.sides:
            for event in side.log[self.told[side.name] :]:
                assert "internal error" not in str(event)
                if isinstance(event, ChildEstablished):
                    self.child_names[side.name, event.child.id] = event.child.settings.name
                    self.planes[side.name, event.child.settings.name].apply(event, self.pair.now)
                elif isinstance(event, ChildOutboundReady | ChildClosed):
                    name = self.child_names[side.name, event.child]
                    self.planes[side.name, name].apply(event, self.pair.now)
            self.told[side.name] = len(side.log)
        for side in self.pair.sides:
            for name in NAMES:
                self._exchange(side, name)

    def _exchange(self, side: Side, name: str) -> None:
        now, other = self.pair.now, self.planes[self.pair.other(side).name, name]
        at, earlier = self.sent.get((side.name, name), (0.0, None))
        if earlier is not None and now - at <= LATENCY:
            assert other.accepts(earlier, now), f"a packet on its way from {side.name} is lost"
        packet = self.planes[side.name, name].packet()
        assert packet is not None and other.accepts(packet, now), f"a packet of {side.name} is lost"
        self.sent[side.name, name] = now, packet


@pytest.mark.parametrize("jitter", [20.0, 0.001], ids=["jitter", "at once"])
def test_rekeying_over_a_bad_wire(jitter: float) -> None:
    """Without jitter both begin at nearly the same time, every time."""
    children = (
        child("net", lifetime=Lifetime(rekey=60.0, life=180.0, random=jitter)),
        child("two", "10.5.0.0/16", "10.6.0.0/16", lifetime=Lifetime(rekey=45.0, life=150.0, random=jitter)),
    )
    rest = {
        "children": children,
        "rekey_time": 100.0,
        "over_time": 200.0,
        "random_time": jitter,
        "retransmission": Retransmission(timeout=1.0, base=1.5, tries=8),
    }
    pair = Pair(a=connection_a(**rest), b=connection_b(**rest)).up()
    pair.initiate("two")
    pair.run()
    pair.wire.loss, pair.wire.repeat, pair.wire.delay = 0.15, 0.1, (0.01, 1.5)
    traffic = Traffic(pair)
    until = pair.now + 1800.0
    while pair.now < until and pair.step(until):
        traffic.step()
    pair.wire.loss = pair.wire.repeat = 0.0
    pair.run(15.0)
    while any(each.state != "installed" for sa in pair.a.endpoint.snapshot() for each in sa.children):
        pair.run(5.0)
    pair.check_children(2)
    assert [len(side.ikes) for side in pair.sides] == [1, 1]
    assert not pair.a.closed and not pair.b.closed
    assert len(pair.a.rekeyed) > 10 and len(pair.a.of(ChildEstablished)) > 60
