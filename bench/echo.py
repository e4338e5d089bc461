"""Echo requests through many tunnels: one after the other, each between another pair of addresses.

A raw socket sends, so that every request has the source it needs; another collects the answers, which a thread reads.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from control.lab.space import Space

RATE = 1000.0  # requests per second
BURST_SECONDS = 0.005
PATIENCE_SECONDS = 2.0  # for the last answers
IDENTIFIER = 0xE5C0
SOL_RAW, ICMP_FILTER, ONLY_REPLIES = 255, 1, ~(1 << 0) & 0xFFFFFFFF
SO_RCVBUFFORCE = 33


class Echo:
    """Sends while its `with` block lasts, then waits for what is still on its way; `sent` and `lost` count."""

    def __init__(
        self, space: Space, pairs: Sequence[tuple[IPv4Address, IPv4Address]], rate: float = RATE
    ) -> None:
        """Nothing is sent before `with`; `pairs` are (source, target)."""
        self._pairs, self._rate = pairs, rate
        self._sender = space.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self._receiver = space.call(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        self._receiver.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ONLY_REPLIES))
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self._receiver.settimeout(0.2)
        self.sent = 0
        self._answered: set[int] = set()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=each, name="echo") for each in (self._send, self._receive)]

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - len(self._answered)

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and wait for the last answers."""
        self._stop.set()
        self._threads[0].join()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        self._done.set()
        self._threads[1].join()
        self._sender.close()
        self._receiver.close()

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._stop.is_set():
            for _ in range(int((time.monotonic() - begun) * self._rate) - self.sent):
                source, target = self._pairs[self.sent % len(self._pairs)]
                self._sender.sendto(_request(source, target, self.sent), (str(target), 0))
                self.sent += 1
            time.sleep(BURST_SECONDS)

    def _receive(self) -> None:
        while not self._done.is_set():
            try:
                packet = self._receiver.recv(2048)
            except TimeoutError:
                continue
            icmp = packet[(packet[0] & 15) * 4 :]
            if len(icmp) >= 16 and int.from_bytes(icmp[4:6], "big") == IDENTIFIER:
                self._answered.add(int.from_bytes(icmp[8:16], "big"))


def _request(source: IPv4Address, target: IPv4Address, number: int) -> bytes:
    """An IPv4 packet; the number is the payload, since sequence numbers have 16 bits. The kernel sums the header."""
    icmp = struct.pack(">BBHHHQ", 8, 0, 0, IDENTIFIER, number & 0xFFFF, number)
    total = sum(struct.unpack(f">{len(icmp) // 2}H", icmp))
    total = (total & 0xFFFF) + (total >> 16)
    icmp = icmp[:2] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + icmp[4:]
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0)
    return header + source.packed + target.packed + icmp
