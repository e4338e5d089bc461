"""AF_XDP sockets on a veth pair: what arrives, what leaves, what a dead socket leaves behind, and where frames are.

far0 (packet socket or AF_XDP) <=======> near0 (AF_XDP, native or generic, 1 queue)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from ext import portbench, porttool
from ext.packet import Pool
from ext.steering import Steering
from ext.xsk import Umem, XskPort
from tests.ext.veth_wire import FAR_MAC, NEAR_MAC, OBJECT, Wire, frames_of, process, wait_for, wire

pytestmark = pytest.mark.root

MODES = ["native", "generic"]
TO_NEAR = bytes(Ether(dst=NEAR_MAC, src=FAR_MAC) / IP(src="10.1.0.2", dst="10.2.0.2") / UDP(sport=1, dport=2))
TO_FAR = bytes(Ether(dst=FAR_MAC, src=NEAR_MAC) / IP(src="10.2.0.2", dst="10.1.0.2") / UDP(sport=2, dport=1))
XDP_HEADROOM = 256
AF_XDP = 44
BUSY_POLL_OPTIONS = (69, 46)  # SO_PREFER_BUSY_POLL, SO_BUSY_POLL


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """One wire with one queue for all tests here, far0 at an MTU that native XDP allows."""
    with wire(tmp_path_factory.mktemp("wire"), queues=1) as made:
        yield made


@contextlib.contextmanager
def steered(pair: Wire, mode: str, end: str = "near", *, jumbo: bool = False) -> Iterator[Steering]:
    """One end with the program attached: everything to 10.0.0.0/8 belongs to the socket."""
    space = getattr(pair, end)
    steering = space.call(lambda: Steering(OBJECT, f"{end}0", 0, jumbo=jumbo))
    try:
        steering.set_remotes(["10.0.0.0/8"])
        space.call(lambda: steering.attach_xdp(mode))
        yield steering
    finally:
        pair.opened.close()
        space.call(steering.close)


def open_port(pair: Wire, steering: Steering, umem: Umem, end: str = "near", **options: float) -> XskPort:
    """A socket on the only queue of one end; closed with its steering at the latest."""
    port = getattr(pair, end).call(
        lambda: XskPort(
            umem,
            end,
            f"{end}0",
            0,
            steering.xsks_fd,
            role=0,
            mtu=1500,
            xdp_mode=steering.mode,
            **{"ring": 256, **options},
        )
    )
    pair.opened.callback(port.close)
    return port


def whole(pool: Pool, *ports: XskPort) -> bool:
    """Nothing is on its way out any more, and every frame of the pool is free or waits for a packet."""
    for port in ports:
        assert porttool.receive(port) == []
    if any(port.frames_sending for port in ports):
        return False
    assert pool.free_count + sum(port.frames_filled for port in ports) == pool.frame_count
    return True


def frame(template: bytes, length: int, number: int = 0) -> bytes:
    """A frame of `length` bytes with a number at its end."""
    return template + bytes(length - len(template) - 4) + number.to_bytes(4, "big")


@pytest.mark.parametrize("mode", MODES)
def test_frames_come_and_go_unchanged(pair: Wire, mode: str) -> None:
    """Frames of every size, more than one batch, both ways; counters agree and no frame is lost."""
    pool = Pool(1024)
    lengths = [46, 60, 64, 65, 511, 1000, 1513, 1514] * 20
    inbound = [frame(TO_NEAR, length, number) for number, length in enumerate(lengths)]
    outbound = [frame(TO_FAR, length, number) for number, length in enumerate(lengths)]
    with steered(pair, mode) as steering, pair.packet_socket(pair.far, "far0") as tap:
        port = open_port(pair, steering, Umem(pool))
        assert port.mode == f"{mode}/copy"
        assert porttool.receive(port) == []
        pair.send(*inbound)
        assert [data for data, _ in porttool.receive_all(port, at_least=len(inbound))] == inbound
        for start in range(0, len(outbound), 40):
            assert porttool.transmit(port, outbound[start : start + 40]) == 40
        assert wait_for(lambda: whole(pool, port))
        assert frames_of(tap) == outbound
        counters = port.counters
        ip_bytes = sum(lengths) - 14 * len(lengths)
        assert (counters["rx_packets"], counters["rx_bytes"]) == (160, ip_bytes)
        assert (counters["tx_packets"], counters["tx_bytes"]) == (160, ip_bytes)
        assert counters["tx_full"] == 0
        # 40 descriptors: one call when 32 are there, one for the rest.
        assert counters["tx_syscalls"] == 2 * 4
        assert set(port.statistics().values()) == {0}
        port.close()


def test_busy_polling_drives_the_queue(pair: Wire) -> None:
    """The socket has the options, a look at an empty ring calls the kernel, packets come; without it, none calls."""
    with steered(pair, "native") as steering:
        pool = Pool(512)
        for microseconds, calls in ((0, 0), (20, 5)):
            port = open_port(pair, steering, Umem(pool), busy_poll=microseconds)
            with socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=os.dup(port.fd)) as ours:
                options = [ours.getsockopt(socket.SOL_SOCKET, option) for option in BUSY_POLL_OPTIONS]
            assert options[0] == (microseconds > 0)
            assert options[1] == microseconds or microseconds == 0
            porttool.receive(port)
            before = port.counters["rx_syscalls"]
            for _ in range(5):
                assert porttool.receive(port) == []
            assert port.counters["rx_syscalls"] - before == calls
            pair.send(TO_NEAR)
            assert [data for data, _ in porttool.receive_all(port)] == [TO_NEAR]
            port.close()
            pool = Pool(512)  # a closed port keeps its frames


@contextlib.contextmanager
def with_mtu(pair: Wire, mtu: int) -> Iterator[None]:
    """Both ends at an MTU, and as before afterwards."""
    for size in (mtu, 1500):
        for space, interface in ((pair.near, "near0"), (pair.far, "far0")):
            space.ip(f"link set {interface} mtu {size}")
        if size == mtu:
            yield


@pytest.mark.parametrize("mode", MODES)
def test_jumbo_frames_come_and_go_unchanged(pair: Wire, mode: str) -> None:
    """Frames of one, two and three buffers, mixed and at the very edges, both ways; no frame of the pool is lost."""
    pool = Pool(1024, 16384)
    edges = [3839, 3840, 3841, 3842, 7679, 7680, 7681, 8914, 9013, 9014]
    lengths = [60, 1514, *edges, 61] * 12
    inbound = [pattern(TO_NEAR, length, number) for number, length in enumerate(lengths)]
    outbound = [pattern(TO_FAR, length, number) for number, length in enumerate(lengths)]
    with (
        with_mtu(pair, 9000),
        steered(pair, mode, jumbo=True) as steering,
        pair.packet_socket(pair.far, "far0") as tap,
    ):
        port = open_port(pair, steering, Umem(pool))
        porttool.receive(port)
        for start in range(0, len(inbound), 39):
            pair.send(*inbound[start : start + 39])
            received = porttool.receive_all(port, at_least=39)
            assert [data for data, _ in received] == inbound[start : start + 39]
        for start in range(0, len(outbound), 39):
            sent = outbound[start : start + 39]
            assert porttool.transmit(port, sent) == 39
            assert wait_for(lambda: whole(pool, port))
            assert frames_of(tap) == sent
        counters = port.counters
        ip_bytes = sum(lengths) - 14 * len(lengths)
        assert (counters["rx_packets"], counters["rx_bytes"]) == (len(lengths), ip_bytes)
        assert (counters["tx_packets"], counters["tx_bytes"]) == (len(lengths), ip_bytes)
        assert set(port.statistics().values()) == {0}


def test_a_full_ring_takes_whole_jumbo_packets_only(pair: Wire) -> None:
    """Of 64 packets of three descriptors a ring of 128 has room for 42; the others are refused, none is cut."""
    pool = Pool(1024, 16384)
    sent = [pattern(TO_FAR, 9014, number) for number in range(64)]
    with (
        with_mtu(pair, 9000),
        steered(pair, "native", jumbo=True) as steering,
        pair.packet_socket(pair.far, "far0") as tap,
    ):
        port = open_port(pair, steering, Umem(pool), ring=128)
        assert porttool.transmit(port, sent) == 128 // 3
        assert port.counters["tx_full"] == 1
        assert wait_for(lambda: whole(pool, port))
        assert frames_of(tap) == sent[: 128 // 3]


@pytest.mark.parametrize("length", [16200, 40000])
def test_what_no_frame_holds_is_cut(pair: Wire, length: int) -> None:
    """Of a packet that is longer than a frame the rest is gone, and what the frame holds is not disturbed by it."""
    pool = Pool(256, 16384)
    with with_mtu(pair, 60000), steered(pair, "native", jumbo=True) as steering:
        port = open_port(pair, steering, Umem(pool))
        porttool.receive(port)
        long, short = pattern(TO_NEAR, length), pattern(TO_NEAR, 100)
        pair.send(short, long, short)
        received = [data for data, _ in porttool.receive_all(port, at_least=3)]
        assert received == [short, long[: 16384 - XDP_HEADROOM], short]
        assert wait_for(lambda: whole(pool, port))


def pattern(template: bytes, length: int, number: int = 0) -> bytes:
    """As `frame`, with bytes that tell their place."""
    body = bytes((place * 7 + (place >> 8) + number) & 255 for place in range(length - len(template)))
    return template + body


@pytest.mark.parametrize("mode", MODES)
def test_poll_wakes_when_something_comes(pair: Wire, mode: str) -> None:
    """An armed port sleeps until a frame arrives, and is not armed while one waits."""
    with steered(pair, mode) as steering:
        port = open_port(pair, steering, Umem(Pool(512)))
        porttool.receive(port)
        started = time.monotonic()
        assert not porttool.wait(port, 0.05)
        assert time.monotonic() - started > 0.04
        timer = threading.Timer(0.02, lambda: pair.send(TO_NEAR))
        timer.start()
        assert porttool.wait(port, 2)
        timer.join()
        assert porttool.wait(port, 0)
        assert len(porttool.receive(port)) == 1
        port.close()


def test_sending_into_a_full_ring(pair: Wire) -> None:
    """With the link down nothing leaves: the ring fills, the rest is refused, and nothing spins or is lost."""
    pool = Pool(512)
    with steered(pair, "native") as steering:
        port = open_port(pair, steering, Umem(pool), ring=64, fill=64)
        porttool.receive(port)
        pair.near.ip("link set near0 down")
        try:
            assert porttool.transmit(port, [TO_FAR] * 40) == 40
            assert porttool.transmit(port, [TO_FAR] * 40) == 24
            assert porttool.transmit(port, [TO_FAR] * 40) == 0
            assert port.counters["tx_full"] == 2
            assert not porttool.wait(port, 0.01)  # armed: it would sleep
            assert pool.free_count == 512 - 64 - 64
        finally:
            pair.near.ip("link set near0 up")
        assert wait_for(lambda: whole(pool, port))
        port.close()


def test_without_carrier_packets_are_dropped_and_counted(pair: Wire) -> None:
    """The device drops what it cannot send; every frame comes back and every packet is counted as an error."""
    pool = Pool(512)
    with steered(pair, "native") as steering:
        port = open_port(pair, steering, Umem(pool))
        pair.far.ip("link set far0 down")
        try:
            assert porttool.transmit(port, [TO_FAR] * 50) == 50
            assert wait_for(lambda: whole(pool, port))
            assert port.counters["tx_errors"] == 50
        finally:
            pair.far.ip("link set far0 up")
            pair.sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # "network is down" is told once


def test_packets_are_copied_out_of_the_kernels_frames(pair: Wire) -> None:
    """In copy mode those frames are the kernel's again before anybody has written to the packets; without free frames
    to copy to, packets are worked on where they lie.
    """
    sent = [frame(TO_NEAR, 60 + 7 * number, number) for number in range(100)]
    with steered(pair, "native") as steering:
        for frames, copied in ((256, 64), (128 + 63, 0)):
            pool = Pool(frames)
            port = open_port(pair, steering, Umem(pool), ring=128, fill=128)
            assert porttool.receive(port) == []
            pair.send(*sent)
            first = porttool.receive(port)
            assert port.frames_filled == 64 + copied
            assert [data for data, _ in first + porttool.receive_all(port, at_least=36)] == sent
            assert wait_for(partial(whole, pool, port))
            port.close()


def test_empty_pool_recovers(pair: Wire) -> None:
    """A port that finds no free frame receives nothing, and again once there are some."""
    pool = Pool(64)
    with steered(pair, "native") as steering:
        port = open_port(pair, steering, Umem(pool), ring=64, fill=64)
        porttool.receive(port)
        assert (pool.free_count, port.frames_filled) == (0, 64)
        assert porttool.transmit(port, [TO_FAR]) == 0
        for _ in range(3):
            pair.send(*[frame(TO_NEAR, 100, number) for number in range(100)])
            received = porttool.receive_all(port, at_least=64)
            assert [data for data, _ in received[:64]] == [
                frame(TO_NEAR, 100, number) for number in range(64)
            ]
            while porttool.receive(port):
                pass
        assert port.statistics()["rx_no_frame"] == port.lost == 3 * 36
        assert whole(pool, port)
        port.close()


def test_large_frames(pair: Wire) -> None:
    """Frames of 4096 bytes carry what 2048 cannot; what is too long is dropped and counted."""
    for end, interface in ((pair.near, "near0"), (pair.far, "far0")):
        end.ip(f"link set {interface} mtu 3500")
    try:
        with steered(pair, "native") as steering:
            for size, fits in ((2048, 2048 - XDP_HEADROOM), (4096, 3514)):
                pool = Pool(256, size)
                port = open_port(pair, steering, Umem(pool), ring=64)
                porttool.receive(port)
                pair.send(frame(TO_NEAR, fits), frame(TO_NEAR, 3514), TO_NEAR)
                expected = [length for length in (fits, 3514, len(TO_NEAR)) if length <= fits]
                received = porttool.receive_all(port, at_least=len(expected))
                assert [len(data) for data, _ in received] == expected
                assert port.statistics()["rx_dropped"] == port.lost == 3 - len(expected)
                assert porttool.transmit(port, [frame(TO_FAR, fits)]) == 1
                assert wait_for(lambda port=port, pool=pool: whole(pool, port))
                port.close()
    finally:
        for end, interface in ((pair.near, "near0"), (pair.far, "far0")):
            end.ip(f"link set {interface} mtu 1500")


@pytest.mark.parametrize("mode", MODES)
def test_frames_are_conserved_between_ports(pair: Wire, mode: str, tmp_path: Path) -> None:
    """Two ports on one UMEM forward for others under load: after the traffic every frame is accounted for.

    far0 ==generate==> near0 ==forward==> side0 ==> side1 (dropped there)
    """
    pool, source = Pool(2048), Pool(1024)
    pair.near.ip("link add side0 type veth peer side1", "link set side0 up", "link set side1 up")
    side = pair.near.call(lambda: Steering(OBJECT, "side0", 0))
    try:
        pair.near.call(lambda: side.attach_xdp(mode))
        with steered(pair, mode) as near_steering, steered(pair, mode, "far") as far_steering:
            umem = Umem(pool)
            near = open_port(pair, near_steering, umem)
            out = pair.near.call(
                lambda: XskPort(
                    umem, "side", "side0", 0, side.xsks_fd, role=1, mtu=1500, xdp_mode=mode, ring=256
                )
            )
            far = open_port(pair, far_steering, Umem(source), "far")
            results = run_together(
                lambda: portbench.generate(far, TO_NEAR, 200, 0.2),
                lambda: portbench.forward(near, out, 0.3),
            )
            (generated, _), (forwarded, _) = results
            assert forwarded > 100
            lost = near.statistics()["rx_dropped"] + near.statistics()["rx_ring_full"]
            assert forwarded == near.counters["rx_packets"] == out.counters["tx_packets"] == generated - lost
            assert wait_for(lambda: whole(pool, near, out))
            assert wait_for(lambda: whole(source, far))
            for port in (near, out, far):
                port.close()
    finally:
        pair.near.call(side.close)
        pair.near.ip("link del side0")


def run_together(*functions: Callable[[], tuple[int, int]]) -> list[tuple[int, int]]:
    """Run each in a thread of its own; results in order."""
    results: list[tuple[int, int]] = [(0, 0)] * len(functions)

    def run(index: int) -> None:
        results[index] = functions[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("mode", MODES)
def test_queue_of_a_killed_process_is_back_at_once(pair: Wire, mode: str) -> None:
    """A process is dead, the next takes its queue within 100 ms; in between its traffic goes nowhere."""
    seconds = []
    with steered(pair, mode) as steering, pair.packet_socket(pair.near, "near0") as tap:
        for _ in range(3):
            with process(pair.near, lambda: open_port_here(steering)) as pid:
                with pytest.raises(
                    OSError, match=r"near0 queue 0: .*Device or resource busy.*another AF_XDP socket"
                ):
                    open_port(pair, steering, Umem(Pool(512)), retry=0.01)
                pair.send(TO_NEAR)
                os.kill(pid, signal.SIGKILL)
                # What a process like this one takes to be torn down is not the socket's affair.
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                died = time.monotonic()
                port = open_port(pair, steering, Umem(Pool(512)))
                porttool.receive(port)
                pair.send(TO_NEAR)
                assert len(porttool.receive_all(port)) == 1
                seconds.append(time.monotonic() - died)
                port.close()
        assert min(seconds) < 0.1, seconds  # the best of three: a shared machine may be busy elsewhere
        dropped = steering.counts()["no_socket"]
        pair.send(TO_NEAR)
        assert wait_for(lambda: steering.counts()["no_socket"] == dropped + 1)
        assert frames_of(tap) == []


def open_port_here(steering: Steering) -> XskPort:
    """A socket on near0, by a process that is in the namespace already."""
    return XskPort(
        Umem(Pool(512)), "near", "near0", 0, steering.xsks_fd, role=0, mtu=1500, xdp_mode=steering.mode
    )


def test_closed_port_does_nothing(pair: Wire) -> None:
    """Every verb of a closed port is harmless, and closing twice is, too."""
    pool = Pool(512)
    with steered(pair, "native") as steering:
        port = open_port(pair, steering, Umem(pool))
        port.close()
        port.close()
        assert porttool.receive(port) == []
        assert porttool.transmit(port, [TO_FAR]) == 0
        assert port.fd == -1
        assert pool.free_count == 512
        with pytest.raises(ValueError, match="closed"):
            port.statistics()


def test_wrong_arguments(pair: Wire) -> None:
    """Errors name the argument, what it was and what it may be, or what was tried where."""
    with pytest.raises(ValueError, match="zero_copy is 'maybe'"):
        Umem(Pool(16), "maybe")
    with steered(pair, "native") as steering:
        for options, message in (
            ({"ring": 100}, "ring is 100"),
            ({"fill": 300}, "fill is 300; it must be between 1 and"),
        ):
            with pytest.raises(ValueError, match=message):
                open_port(pair, steering, Umem(Pool(512)), **options)
        with pytest.raises(OSError, match="near0 queue 0: zero-copy: Operation not supported"):
            open_port(pair, steering, Umem(Pool(512), "on"))
        with pytest.raises(OSError, match=r"near0 queue 7: zero-copy: .*; copy: Invalid argument"):
            pair.near.call(
                lambda: XskPort(Umem(Pool(512)), "near", "near0", 7, steering.xsks_fd, role=0, mtu=1500)
            )
        # Nothing of the failures stays: the queue is free.
        open_port(pair, steering, Umem(Pool(512)), retry=0.0).close()
    with steered(pair, "generic") as steering:
        with pytest.raises(OSError, match="zero-copy wants native XDP"):
            open_port(pair, steering, Umem(Pool(512), "on"))
