"""Datagrams of every size and streams to an echo and back, the same on both sides of the tunnel.

The guest's agent loads this file by itself, so it needs nothing but the standard library. Everything sent comes back
and is compared byte for byte: one call proves both directions.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections import Counter

PORT = 7  # echo (RFC 862)
BUFFER = 4 << 20  # bytes; a full window of the largest datagrams fits
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _bound(address: str, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    """A socket at an address."""
    sock = socket.socket(_family(address), kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    sock.bind((address, port))
    return sock


class Echo:
    """Sends back what comes to an address by UDP and TCP; two threads until `close`."""

    def __init__(self, address: str, port: int = PORT) -> None:
        """Open both sockets; they answer from now on."""
        self._udp = _bound(address, socket.SOCK_DGRAM, port)
        self._tcp = _bound(address, socket.SOCK_STREAM, port)
        self._tcp.listen(8)
        self._stay, self._leave = socket.socketpair()
        self._threads = [
            threading.Thread(target=serve, daemon=True) for serve in (self._datagrams, self._accept)
        ]
        for thread in self._threads:
            thread.start()

    def _datagrams(self) -> None:
        while self._waits(self._udp):
            # An ICMP error about an answer is told by the next call; the sender counts what is missing.
            with contextlib.suppress(OSError):
                content, sender = self._udp.recvfrom(1 << 16)
                self._udp.sendto(content, sender)

    def _accept(self) -> None:
        while self._waits(self._tcp):
            connection, _ = self._tcp.accept()
            threading.Thread(target=self._return, args=(connection,), daemon=True).start()

    def _waits(self, sock: socket.socket) -> bool:
        """True once there is something to read, False once it is over."""
        return self._stay not in select.select([sock, self._stay], [], [])[0]

    def _return(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)

    def close(self) -> None:
        """End both."""
        self._leave.close()
        for thread in self._threads:
            thread.join(5)
        for sock in (self._udp, self._tcp, self._stay):
            sock.close()


def payloads(count: int, largest: int, seed: int) -> list[bytes]:
    """Random contents of random sizes from 0 to `largest` bytes, both ends of the range among them."""
    chance = random.Random(seed)
    sizes = [0, 1, largest, *(chance.randint(0, largest) for _ in range(count - 3))]
    chance.shuffle(sizes)
    return [chance.randbytes(size) for size in sizes]


def datagrams(
    source: str,
    target: str,
    count: int,
    largest: int,
    seed: int,
    window: int = 16,
    patience: float = 20.0,
    port: int = PORT,
) -> dict[str, int]:
    """Send `count` datagrams to the echo at `target` and await them all: what was sent, came back, is lost or wrong.

    At most `window` are under way. One is lost when nothing at all has come for `patience` seconds.
    """
    waiting: Counter[bytes] = Counter()
    back = wrong = 0
    with _bound(source, socket.SOCK_DGRAM) as sock:
        sock.connect((target, port))
        queue = payloads(count, largest, seed)[::-1]
        last = time.monotonic()
        while queue or waiting.total():
            while queue and waiting.total() < window:
                content = queue.pop()
                sock.send(content)
                waiting[content] += 1
            if not select.select([sock], [], [], 0.5)[0]:
                if time.monotonic() - last > patience:
                    break
                continue
            last = time.monotonic()
            content = sock.recv(1 << 16)
            if waiting[content] > 0:
                waiting[content] -= 1
                back += 1
            else:
                wrong += 1
    return {"sent": count - len(queue), "back": back, "lost": waiting.total() + len(queue), "wrong": wrong}


def stream(source: str, target: str, size: int, seed: int, timeout: float = 30.0, port: int = PORT) -> int:
    """Send `size` random bytes to the echo at `target` by TCP; how many came back as they were."""
    content = random.Random(seed).randbytes(size)
    received = bytearray()
    with _bound(source, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((target, port))
        except OSError:
            return 0

        def send() -> None:
            with contextlib.suppress(OSError):
                sock.sendall(content)
                sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with contextlib.suppress(OSError):
            while piece := sock.recv(1 << 16):
                received += piece
        sender.join(timeout)
    return (
        size if bytes(received) == content else sum(a == b for a, b in zip(received, content, strict=False))
    )
