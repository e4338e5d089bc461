"""A veth pair in two namespaces of its own: `near0`, where steering is tried, and `far0`, where frames come from.

Frames are sent and tapped by packet sockets. The tap on near0 sees what XDP let pass to the kernel: a frame
that was redirected or dropped is gone before the kernel hands it to any packet socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from control.lab.space import Space, free_tag, make_spaces

T = TypeVar("T")

NEAR_MAC = "02:00:00:00:00:01"
FAR_MAC = "02:00:00:00:00:02"
OBJECT = str(Path(__file__).resolve().parents[2] / "ext" / "bpf" / "steer.bpf.o")
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33


class Wire:
    """Both ends of the pair; `near` and `far` are the namespaces."""

    def __init__(self, near: Space, far: Space, queues: int) -> None:
        """Make the pair with `queues` rx and tx queues on either side, both up, silent but for the tests."""
        self.near, self.far = near, far
        self.opened = contextlib.ExitStack()  # what a failed test leaves open
        count = f"numrxqueues {queues} numtxqueues {queues}"
        near.ip(
            f"link add near0 address {NEAR_MAC} {count} type veth peer far0 address {FAR_MAC} {count} netns {far.name}"
        )
        for space, interface in ((near, "near0"), (far, "far0")):
            # No router solicitations, no duplicate address detection, no MLD: nothing that a test did not send.
            space.sysctl(**{f"ipv6__conf__{interface}__disable_ipv6": 1})
            space.ip(f"link set {interface} up")
        self.sender = self.packet_socket(far, "far0")

    @staticmethod
    def packet_socket(space: Space, interface: str) -> socket.socket:
        """A packet socket bound to an interface: sends frames, and sees those that come in."""
        tap = space.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        tap.bind((interface, ETH_P_ALL))
        tap.setblocking(False)
        return tap

    def send(self, *frames: bytes) -> None:
        """Send whole Ethernet frames from far0."""
        for frame in frames:
            self.sender.send(frame)

    def close(self) -> None:
        """Close what is open; the namespaces go with their maker."""
        self.opened.close()
        self.sender.close()


def frames_of(tap: socket.socket, seconds: float = 0.0) -> list[bytes]:
    """Frames that came in by a tap (not those that went out), waiting at most `seconds` for the first."""
    frames = []
    select.select([tap], [], [], seconds)
    while True:
        try:
            frame, address = tap.recvfrom(65536)
        except BlockingIOError:
            return frames
        if address[2] != socket.PACKET_OUTGOING:
            frames.append(frame)


@contextlib.contextmanager
def wire(directory: Path, queues: int = 2) -> Iterator[Wire]:
    """A Wire, and nothing left of it afterwards."""
    tag = free_tag()
    near, far = make_spaces([f"esp-{tag}-near", f"esp-{tag}-far"], directory)
    try:
        pair = Wire(near, far, queues)
        try:
            yield pair
        finally:
            pair.close()
    finally:
        near.close()
        far.close()


@contextlib.contextmanager
def process(space: Space, function: Callable[[], Any]) -> Iterator[int]:
    """Run `function` in a process of its own in `space` and keep what it returns alive there; gives its pid.

    The process sleeps until it is killed, at the latest when the block ends.
    """
    ready, done = os.pipe()

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                kept = function()
                os.write(done, b"k" if kept is not None else b"n")
                signal.pause()
            finally:
                os._exit(1)
        return pid

    pid = space.call(fork)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"k", "the process failed"
        yield pid
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def wait_for(condition: Callable[[], T], seconds: float = 1.0) -> T:
    """The first true value of `condition`, or its last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return value
