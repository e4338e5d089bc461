"""Batches of one worker opened by another: same verdicts, same order, no frame lost, whoever dies or is stopped."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dataplane.layout import BUNDLE_OUTER
from dataplane.model import Mode, Protocol
from ext.deal import Team, team_size
from tests import ah
from tests.esp import Peer
from tests.exchange.suites import AH_GMACS, NULL_SHA256, SPI_IN, SUITES, inbound_sa, suite_id
from tests.ext.dealers import FRAME_SIZE, FRAMES, Dealers, in_threads
from tests.packets import AH, CLIENT4, ESP, SERVER4, ip, udp_packet

COUNT = 6000
SECONDS = 20.0  # for a loaded machine


def inner(number: int) -> bytes:
    """A packet towards the protected side with a number inside; sizes differ."""
    return udp_packet(4, number.to_bytes(8, "big") * (1 + number % 90), source=SERVER4, destination=CLIENT4)


def number_of(packet: bytes) -> int:
    """What `inner` put in."""
    return int.from_bytes(packet[28:36], "big")


def wait(condition: Callable[[], bool], what: str) -> None:
    """Until it holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not after {SECONDS} s: {what}"
        time.sleep(0.001)


def carry_until_helped(
    workers: Dealers, threads: list[threading.Thread], carry: Callable[[int], None]
) -> None:
    """Carry COUNT packets after the other until the helper has opened some; then end the loops.

    On a busy machine the helper may sleep while all of them pass.
    """
    try:
        for turn in range(50):
            carry(turn * COUNT)
            if workers.count(1, "helped"):
                break
    finally:
        workers.stop()
        for thread in threads:
            thread.join()
    assert workers.count(1, "helped") > 0


KINDS = [
    (SUITES[0], Protocol.ESP),
    (SUITES[4], Protocol.ESP),
    (replace(NULL_SHA256, esn=True), Protocol.AH),
    (AH_GMACS[0], Protocol.AH),
]


@pytest.fixture(params=[(*kind, engine) for kind in KINDS for engine in ("ipsec-mb", "openssl")],
                ids=lambda kind: f"{kind[2]}-{kind[1].name.lower()}-{suite_id(kind[0])}")  # fmt: skip
def dealers(request: pytest.FixtureRequest) -> Iterator[Dealers]:
    """Two workers with AES-GCM, with AES-CBC and HMAC, or with AH."""
    made = Dealers(request.param[2], request.param[0], protocol=request.param[1])
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Dealers]:
    """Two workers, AES-GCM."""
    made = Dealers("auto", SUITES[0])
    yield made
    made.close()


def test_order_and_verdicts(dealers: Dealers) -> None:
    """One worker receives all, both open: packets leave in the order in which they came, bad ones by their names."""
    peer = ah.Peer(dealers.theirs) if dealers.theirs.protocol is Protocol.AH else Peer(dealers.theirs)
    chosen = random.Random(1)
    loop, lan, wan, team = dealers.worker(0)
    helper, *_ = dealers.worker(1)
    threads = in_threads([helper, loop])

    def carry(first: int) -> None:
        """COUNT packets, copies and bad ones among them."""
        wires = [peer.packet(inner(at)) for at in range(first, first + COUNT)]
        arriving: list[bytes] = []
        for at, wire in enumerate(wires):
            arriving.append(wire)
            if at % 50 == 0:
                arriving.append(wire)  # a copy, mostly in the same batch
            if at % 70 == 0:
                arriving.append(wires[chosen.randrange(max(0, at - 300), at + 1)])
            if at % 90 == 0:
                arriving.append(wire[:-1] + bytes([wire[-1] ^ 1]))
        before, dealt = dealers.verdicts(), dealers.count(0, "dealt")
        wan.inject(arriving)
        wait(lambda: sum((dealers.verdicts() - before).values()) == len(arriving), "all have their verdict")
        wait(lambda: lan.transmitted[0] == first + COUNT, "all have been sent")
        assert [number_of(packet) for packet in lan.collect()] == list(range(first, first + COUNT))
        verdicts = dealers.verdicts() - before
        bad = len(range(0, COUNT, 90))
        assert verdicts["pass"] == COUNT
        # The bad copy of a packet whose good one was let in already is a replay: the window is looked at first.
        assert verdicts["integrity"] + verdicts["replay"] == len(arriving) - COUNT
        assert verdicts["replay"] >= len(arriving) - COUNT - bad
        assert dealers.tables.replay_top(dealers.inward) == first + COUNT
        assert dealers.count(0, "dealt") - dealt > COUNT // 64 // 2

    carry_until_helped(dealers, threads, carry)
    assert team.pool.free_count == FRAMES
    assert dealers.count(0, "helped") == 0


def test_bundles_wait_for_who_received_them(pair: Dealers) -> None:
    """The helper opens nothing of SA bundles: their owner takes off AH and ESP, in order; bare ESP is dropped."""
    around = inbound_sa(NULL_SHA256, name="ah-in", spi=SPI_IN + 2, seed=3)
    around = replace(around, protocol=Protocol.AH, mode=Mode.TRANSPORT, replay_window=4096)
    outer = pair.tables.add_sa(around, start=1, limit=0)
    pair.tables.view.set_bundle(outer, BUNDLE_OUTER)
    pair.tables.view.set_bundle(pair.inward, outer + 1)
    pair.tables.publish_inbound(around.spi, outer)
    peer = Peer(pair.theirs)
    loop, lan, wan, team = pair.worker(0)
    helper, *_ = pair.worker(1)
    threads = in_threads([helper, loop])

    def carry(first: int) -> None:
        """COUNT packets, and some of them as bare ESP, too."""
        arriving: list[bytes] = []
        for at in range(first, first + COUNT):
            esp = peer.packet(inner(at))
            if at % 50 == 0:
                arriving.append(esp)
            body = ah.header(around, at + 1, ESP) + esp[20:]
            whole = ip(4, body, source=around.remote, destination=around.local, protocol=AH)
            arriving.append(ah.sign(around, whole, at + 1))
        before = pair.verdicts()
        wan.inject(arriving)
        wait(lambda: sum((pair.verdicts() - before).values()) == len(arriving), "all have their verdict")
        wait(lambda: lan.transmitted[0] == first + COUNT, "all have been sent")
        assert [number_of(packet) for packet in lan.collect()] == list(range(first, first + COUNT))
        assert pair.verdicts() - before == {"pass": COUNT, "bundle": len(arriving) - COUNT}
        assert pair.tables.replay_top(pair.inward) == pair.tables.replay_top(outer) == first + COUNT

    carry_until_helped(pair, threads, carry)
    assert team.pool.free_count == FRAMES


def test_step_leaves_nothing_under_way(pair: Dealers) -> None:
    """Without a helper the owner opens what it has posted, and a step ends with every packet where it belongs."""
    peer = Peer(pair.theirs)
    loop, lan, wan, team = pair.worker(0)
    wan.inject([peer.packet(inner(at)) for at in range(970)])
    for _ in range(4):
        loop.step(3)
        assert team.pool.free_count == FRAMES
    loop.step(20)
    assert [number_of(packet) for packet in lan.collect()] == list(range(970))
    assert pair.count(0, "dealt") == 15  # the last batch is too small to be worth it
    assert pair.verdicts() == {"pass": 970}


def fork_helper(dealers: Dealers) -> int:
    """Worker 1 in a process of its own, until it is killed; returns its pid once it has entered the tables."""
    pid = os.fork()
    if pid == 0:
        try:
            dealers.worker(1)[0].run()
        finally:
            os._exit(0)
    wait(lambda: dealers.count(1, "pid") == pid, "the helper is there")
    return pid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_helper_that_dies_or_stops(how: signal.Signals) -> None:
    """What it held is lost, by name; the rest goes on in order, and every frame comes back.

    A slow suite and long packets, so that it is hit in the middle of a batch sooner or later; without a replay window
    the same packets serve again.
    """
    pair = Dealers("openssl", SUITES[4], window=0)
    peer = Peer(pair.theirs)
    numbers = list(range(4096))
    wires = [
        peer.packet(udp_packet(4, at.to_bytes(8, "big") * 150, source=SERVER4, destination=CLIENT4))
        for at in numbers
    ]
    loop, lan, wan, team = pair.worker(0)
    helper = fork_helper(pair)
    (thread,) = in_threads([loop])
    chosen = random.Random(2)

    def lost() -> int:
        return pair.verdicts()["worker_lost"]

    def carry(hit: bool) -> None:
        """All packets once, the helper being hit somewhere in between."""
        before = sum(pair.verdicts().values())
        lost_before = lost()
        helped_before = pair.count(1, "helped")
        wan.inject(wires)
        if hit:
            # While it is at work: on a busy machine that may be late, or never while these packets last.
            wait(
                lambda: pair.count(1, "helped") != helped_before or not wan.waiting,
                "it helps, or all is received",
            )
            time.sleep(chosen.random() * 0.001)
            os.kill(helper, how)
            if how == signal.SIGKILL:
                os.waitpid(helper, 0)
                pair.tables.view.worker_gone(1)
        wait(lambda: sum(pair.verdicts().values()) == before + len(wires), "all have their verdict")
        wait(lambda: lan.transmitted[0] == pair.verdicts()["pass"], "all have been sent")
        seen = [number_of(packet) for packet in lan.collect()]
        gone = lost() - lost_before
        assert gone <= 64
        assert seen == sorted(seen)
        assert len(seen) == len(wires) - gone

    try:
        for _ in range(60):
            carry(True)
            if how == signal.SIGSTOP:
                os.kill(helper, signal.SIGCONT)
            else:
                helper = fork_helper(pair)
            if lost():
                break
        assert lost() > 0
        helped = pair.count(1, "helped")
        carry(False)
        wait(lambda: pair.count(1, "helped") > helped or (carry(False) or False), "it helps again")
    finally:
        pair.stop()
        thread.join()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(helper, 0)
    assert team.pool.free_count == FRAMES
    assert set(pair.verdicts()) == {"pass", "worker_lost"}
    pair.close()


MS = 1_000_000


class Load:
    """A worker's rounds by a clock of our own: windows of 2 ms, 100 rounds each."""

    def __init__(self) -> None:
        pair = self.pair = Dealers("auto", SUITES[0], always=False)
        self.loop, _, _, self.team = pair.worker(0)
        self.now = time.monotonic_ns() + 10 * MS
        self.team.judge(1, False, 0, 0, self.now)  # from here on, windows begin where ours do

    def window(self, *, packets: int = 6400, idle: float = 0.0, helped: float = 0.0) -> bool:
        """One window with such shares of it idle and helped; whether the next one deals."""
        full = packets >= 6400
        for at in range(1, 101):
            self.now += 2 * MS // 100
            last = at == 100
            dealing = self.team.judge(
                packets // 100, full, int(idle * 2 * MS) * last, int(helped * 2 * MS) * last, self.now
            )
        return dealing


def test_dealing_starts_and_stops_with_the_load() -> None:
    """Full batches on a busy core start it; work that one core can do stops it, not a single quiet window."""
    load = Load()
    assert not load.window(packets=3200, idle=0.5)
    assert not load.window(idle=0.2)  # full batches, but time to spare
    assert not load.window(packets=3200)  # busy, but no batch is full
    assert load.window()
    assert load.window(packets=9600, helped=0.5)
    assert load.window(packets=9600, idle=0.3, helped=0.5)
    assert not load.window(packets=3200, idle=0.5, helped=0.2)
    assert load.window()
    load.pair.close()


def test_dealing_that_does_not_pay_pauses() -> None:
    """No more packets than alone: given up after four windows, tried again after 64 ms, then 128."""
    load = Load()
    for pause in (64, 128, 256):
        assert load.window()
        assert [load.window(packets=6600, helped=0.9) for _ in range(4)] == [True, True, True, False]
        tries = 0
        while not load.window():
            tries += 1
        assert pause / 2 - 2 <= tries + 1 <= pause / 2 + 2
        assert all(load.window(packets=9600, helped=0.9) for _ in range(8))
        load.window(packets=100, idle=0.9)
    assert load.window()
    # It pays now: the pause is short again.
    assert all(load.window(packets=9600, helped=0.9) for _ in range(17))
    assert [load.window(helped=0.9) for _ in range(4)] == [True, True, True, False]
    assert [load.window() for _ in range(34)][-1]
    load.pair.close()


def test_who_has_nothing_to_help_with_sleeps(pair: Dealers) -> None:
    """Less than a hundredth of a core while idle; batches that wait wake it."""
    peer = Peer(pair.theirs)
    wires = [peer.packet(inner(at)) for at in range(COUNT)]
    loop, lan, wan, _ = pair.worker(0)
    helper = fork_helper(pair)
    try:
        before = os.times()
        with open(f"/proc/{helper}/schedstat", encoding="ascii") as schedstat:
            ran = int(schedstat.read().split()[0])
            time.sleep(1.0)
            schedstat.seek(0)
            ran = int(schedstat.read().split()[0]) - ran
        assert ran < 0.01 * 1e9 * (os.times().elapsed - before.elapsed)
        for at in range(0, COUNT, 1000):
            wan.inject(wires[at : at + 1000])
            while wan.waiting:
                loop.step(50)
        assert len(lan.collect()) == COUNT
        wait(lambda: pair.count(1, "helped") > 0, "it was woken and has helped")
    finally:
        pair.stop()
        os.waitpid(helper, 0)


def test_wrong_arguments(pair: Dealers) -> None:
    """Memory of another size, and a worker that the team has not."""
    size = team_size(2, FRAMES, FRAME_SIZE)
    with pytest.raises(ValueError, match=f"memory is {size} bytes; 2 workers with 99 frames"):
        Team(pair.fd, 0, 2, pair.wake_fds, frame_count=99, frame_size=FRAME_SIZE)
    with pytest.raises(ValueError, match="worker 2 of 2 with 2 wake-up descriptors"):
        Team(pair.fd, 2, 2, pair.wake_fds, frame_count=FRAMES, frame_size=FRAME_SIZE)
