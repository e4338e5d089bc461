"""A wire that loses, doubles and reorders: frames between two interfaces of one namespace, moved by a thread.

1 a frame is read at one interface 2 the dice say: lost, late, twice 3 what is due is written at the other. ARP
and neighbour discovery pass unharmed: they are the laboratory's, not the peers'. The dice are seeded; which frame
meets which throw depends on timing, so a run cannot be repeated exactly.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from control.lab.space import Space

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
VNET = 10  # bytes of struct virtio_net_hdr before each frame: half-made checksums and super-frames pass as they are
_NEIGHBOURS = range(133, 138)  # ICMPv6 types of discovery, RFC 4861


class Relay:
    """Joins `near` and `far` of a namespace while its `with` block lasts.

    `loss` and `double` are probabilities; `jitter` is the longest delay in seconds, drawn anew for each frame, so that
    frames overtake each other. `drop`, if given, sees each frame (Ethernet header first) and which interface it came
    from; a frame for which it returns True is lost.
    """

    def __init__(
        self,
        space: Space,
        *,
        loss: float = 0.0,
        double: float = 0.0,
        jitter: float = 0.0,
        seed: int = 1,
        drop: Callable[[bytes, str], bool] | None = None,
    ) -> None:
        """Open both interfaces; nothing moves before `with`."""
        self.loss, self.double, self.jitter = loss, double, jitter
        self.drop = drop
        self.counts: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._ends = {name: space.call(lambda name=name: _open(name)) for name in ("near", "far")}
        self._later: list[tuple[float, int, str, bytes]] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and close both interfaces."""
        self._wake.close()
        self._thread.join()
        for end in (*self._ends.values(), self._woken):
            end.close()

    def _run(self) -> None:
        by_descriptor = {end.fileno(): name for name, end in self._ends.items()}
        poll = select.poll()
        for descriptor in (*by_descriptor, self._woken.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            wait = None if not self._later else max(0.0, self._later[0][0] - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._woken.fileno():
                    return
                self._receive(by_descriptor[descriptor])
            while self._later and self._later[0][0] <= time.monotonic():
                _, _, name, frame = heapq.heappop(self._later)
                self._ends[name].send(frame)

    def _receive(self, name: str) -> None:
        frame = self._ends[name].recv(1 << 17)
        other = "far" if name == "near" else "near"
        self.counts["seen"] += 1
        if _is_housekeeping(frame[VNET:]):
            self._ends[other].send(frame)
            return
        if (self.drop is not None and self.drop(frame[VNET:], name)) or self._dice.random() < self.loss:
            self.counts["lost"] += 1
            return
        copies = 2 if self._dice.random() < self.double else 1
        self.counts["doubled"] += copies - 1
        for _ in range(copies):
            due = time.monotonic() + self._dice.random() * self.jitter
            heapq.heappush(self._later, (due, self.counts["seen"] * 2 + copies, other, frame))


def _open(name: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    end.bind((name, ETH_P_ALL))
    return end


def _is_housekeeping(frame: bytes) -> bool:
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == 0x86DD:
        return frame[20] == 58 and frame[54] in _NEIGHBOURS
    return ethertype != 0x0800
