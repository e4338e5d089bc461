"""Both sides act at once: every order in which messages arrive can be tried, and each may be lost once.

    crossing = Crossing(acts, choose=..., lose={3}); crossing.run()

Acts are done, and messages delivered, in the order that `choose` says; only when nothing is in flight the clock goes
on to the next timer. After each step a packet is sent by either side, and the one sent before that step arrives: both
must find their SA (`tests.control.ike.planes`). `orders` enumerates all orders of a scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from control.ike.events import ChildEstablished, Datagram, Event, PeerPath
from control.ike.numbers import Exchange, name_of
from control.ike.wire.header import parse_header
from tests.control.ike.pair import Pair, Side
from tests.control.ike.planes import Packet, Plane

Act = Callable[[Pair], None]
LATENCY = 1.0  # seconds that a packet may be on its way
QUIET = 400.0  # seconds after which all is over: retransmissions, what was put off, what was kept in case


class Crossing:
    """One run of a scenario."""

    def __init__(
        self,
        pair: Pair,
        acts: Sequence[Act],
        *,
        choose: Callable[[int], int],
        lose: frozenset[int] = frozenset(),
        lossless: bool = True,
    ) -> None:
        """`choose(n)` gives one of n things to do; `lose` are numbers of messages, from 0, that do not arrive."""
        self.pair = pair
        self.acts = list(acts)
        self.choose = choose
        self.lose = lose
        self.lossless = lossless
        self.flying: list[Datagram] = []
        self.sent = 0
        self.steps: list[str] = []
        self.planes = {side.name: Plane() for side in pair.sides}
        self._told = {side.name: 0 for side in pair.sides}
        self._packets: dict[str, tuple[float, Packet]] = {}
        self._take()

    def run(self) -> Crossing:
        """Until nothing more happens."""
        until = self.pair.now + QUIET
        while True:
            choices = len(self.flying) + len(self.acts)
            if choices:
                which = self.choose(choices)
                if which < len(self.flying):
                    self._deliver(self.flying.pop(which))
                else:
                    self.acts.pop(which - len(self.flying))(self.pair)
            elif not self._wait(until):
                return self
            self._take()

    def _wait(self, until: float) -> bool:
        times = [at for side in self.pair.sides if (at := side.endpoint.next_timer()) is not None]
        if not times or min(times) > until:
            self.pair.now = until
            return False
        self.pair.now = max(self.pair.now, min(times))
        for side in self.pair.sides:
            at = side.endpoint.next_timer()
            if at is not None and at <= self.pair.now:
                side.endpoint.handle_timers(self.pair.now)
        return True

    def _deliver(self, datagram: Datagram) -> None:
        path = datagram.path
        back = PeerPath(
            local=path.remote, local_port=path.remote_port, remote=path.local, remote_port=path.local_port
        )
        side = next((side for side in self.pair.sides if path.remote in side.addresses), None)
        if side is None:
            return  # nobody is there any more
        header, _ = parse_header(datagram.data)
        kind = "response" if header.response else "request"
        kind = f"{name_of(Exchange, header.exchange)} {header.message_id} {kind}"
        self.steps.append(f"{self.pair.now:9.2f} {side.name} <- {kind} of {header.initiator_spi.hex()[:4]}")
        side.endpoint.receive_datagram(datagram.data, back, self.pair.now)

    def _take(self) -> None:
        """Events reach the dataplanes, messages the wire."""
        now = self.pair.now
        for side in self.pair.sides:
            side.log.extend(side.endpoint.events())
            plane = self.planes[side.name]
            for event in side.log[self._told[side.name] :]:
                assert "internal error" not in str(event), event
                self.steps.append(f"{now:9.2f} {side.name} {_show(event)}")
                plane.apply(event, now)
            self._told[side.name] = len(side.log)
            for datagram in side.endpoint.datagrams_to_send():
                if self.sent not in self.lose:
                    self.flying.append(datagram)
                self.sent += 1
        if self.lossless:
            self._exchange_packets()

    def _exchange_packets(self) -> None:
        """A packet of before this step arrives now, and one that is sent now would arrive at once."""
        now = self.pair.now
        for side in self.pair.sides:
            plane, other = self.planes[side.name], self.planes[self.pair.other(side).name]
            sent = self._packets.get(side.name)
            if sent is not None and now - sent[0] <= LATENCY:
                assert other.accepts(sent[1], now), self.lost(side, "a packet on its way")
            packet = plane.packet()
            if packet is None:
                assert not plane.closed, self.lost(side, "a packet without outbound SA")
                continue
            assert other.accepts(packet, now), self.lost(side, "a packet")
            self._packets[side.name] = now, packet

    def lost(self, side: Side, what: str) -> str:
        """What happened, for a failed test."""
        return "\n".join([f"{what} of {side.name} is lost", *self.steps])

    def check(self, children: int = 1, ikes: int = 1) -> None:
        """What remains: pairs of children that fit, and IKE SAs."""
        story = "\n".join(self.steps)
        a, b = self.planes["a"], self.planes["b"]
        assert len(a.known) == len(b.known) == children, (a.pairs(), b.pairs(), story)
        assert a.pairs() == {(out, into) for into, out in b.pairs()}, story
        assert [len(side.ikes) for side in self.pair.sides] == [ikes, ikes], story
        if ikes:
            states = [side.endpoint.snapshot()[0] for side in self.pair.sides]
            assert [state.state for state in states] == ["established", "established"], story
            assert states[0].spi_initiator == states[1].spi_initiator, story
            assert all(child.state == "installed" for state in states for child in state.children), story
            assert all(len(state.children) == children for state in states), story
        if children:
            self.pair.check_children(children)
        for side in self.pair.sides:
            spis = set(side.endpoint.registry.child_spis)
            assert spis == {child.spi_in for child in side.children.values()}, (spis, story)


def _show(event: Event) -> str:
    if isinstance(event, ChildEstablished):
        child = event.child
        return (
            f"ChildEstablished {child.id} {child.spi_in:08x}/{child.spi_out:08x} outbound={event.outbound} "
            f"replaces={event.replaces}"
        )
    return str(event)


def orders(run: Callable[[Callable[[int], int]], None], limit: int = 100_000) -> Iterator[int]:
    """Call `run` once for each sequence of choices there is; gives the number of the run after each."""
    path: list[tuple[int, int]] = []  # (chosen, of how many)
    for number in range(limit):
        position = 0

        def choose(count: int) -> int:
            nonlocal position
            if position == len(path):
                path.append((0, count))
            chosen, expected = path[position]
            assert expected == count, "a run is not the same twice"
            position += 1
            return chosen

        run(choose)
        yield number
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return
        path[-1] = path[-1][0] + 1, path[-1][1]
