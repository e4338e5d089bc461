"""Pings, datagrams of every size and streams to an echo and back, for many pairs of addresses at a time.

Whoever sends calls `pings`, `datagrams` or `streams` with its flows; the other side has an `Echo` at all their targets.
Everything sent comes back and is compared byte for byte: one call proves both directions. The flows take turns, so that
packets of different SAs follow each other.

The guest's agent loads this file by itself, so it needs nothing but the standard library. Both sides take one thread
for all datagrams and read until nothing is left: in the emulated guest every wake-up is dear.
"""

from __future__ import annotations

import contextlib
import random
import select
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

PORT = 7  # echo (RFC 862)
BUFFER = 4 << 20  # bytes; a full window of the largest datagrams fits
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}  # RFC 792, RFC 4443
PING_BYTES = 56

# Source address, target address, seed of the contents, bytes of its largest datagram.
Flow = Sequence[Any]


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


def _waiting(sock: socket.socket, largest: int = 1 << 16) -> Iterator[tuple[bytes, Any]]:
    """What has come for a socket that does not block, until nothing more has; an ICMP error ends it, too."""
    with contextlib.suppress(OSError):
        while True:
            yield sock.recvfrom(largest)


class Echo:
    """Sends back what comes to some addresses by UDP and TCP; a thread, and one per connection, until `close`."""

    def __init__(self, addresses: Sequence[str], port: int = PORT) -> None:
        """Open the sockets; they answer from now on."""
        self._selector = selectors.EpollSelector()
        for address in addresses:
            udp, tcp = (_bound(address, kind, port) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
            udp.setblocking(False)
            tcp.listen(8)
            self._selector.register(udp, selectors.EVENT_READ, self._return_datagrams)
            self._selector.register(tcp, selectors.EVENT_READ, self._accept)
        self._stay, self._leave = socket.socketpair()
        self._selector.register(self._stay, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    @staticmethod
    def _return_datagrams(sock: socket.socket) -> None:
        for content, sender in _waiting(sock):
            # What cannot be sent is missed by the sender, who counts.
            with contextlib.suppress(OSError):
                sock.sendto(content, sender)

    def _accept(self, sock: socket.socket) -> None:
        connection, _ = sock.accept()
        threading.Thread(target=self._return_stream, args=(connection,), daemon=True).start()

    @staticmethod
    def _return_stream(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)

    def close(self) -> None:
        """End it."""
        self._leave.close()
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # all are sockets
        self._selector.close()


def pings(flows: Sequence[Flow], count: int, patience: float = 20.0) -> list[int]:
    """Send `count` ICMP echo requests per flow, one round after another; how many of each flow went unanswered.

    A round ends when all answers are here, or nothing has come for `patience` seconds.
    """
    lost = [0] * len(flows)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(_ping_socket(source, target)) for source, target, *_ in flows]
        numbers = {sock: number for number, sock in enumerate(socks)}
        for sequence in range(1, count + 1):
            for number, sock in enumerate(socks):
                sock.send(_echo_request(sock, number, sequence))
            missing = set(range(len(flows)))
            while missing:
                ready = select.select(socks, [], [], patience)[0]
                if not ready:
                    break
                for sock in ready:
                    for packet, _ in _waiting(sock):
                        if _is_answer(sock, packet, numbers[sock], sequence):
                            missing.discard(numbers[sock])
            for number in missing:
                lost[number] += 1
    return lost


def _ping_socket(source: str, target: str) -> socket.socket:
    """A raw socket for ICMP between two addresses; it sees what others get there, too."""
    family = _family(source)
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setblocking(False)
    sock.bind((source, 0))
    sock.connect((target, 0))
    return sock


def _version(sock: socket.socket) -> int:
    return 6 if sock.family == socket.AF_INET6 else 4


def _echo_request(sock: socket.socket, number: int, sequence: int) -> bytes:
    """The message; of ICMPv6 the kernel makes the checksum (RFC 3542 section 3.1)."""
    kind = ECHO_REQUEST[_version(sock)]
    body = struct.pack("!HH", number, sequence) + bytes(range(PING_BYTES))
    total = sum(struct.unpack(f"!{len(body) // 2}H", body)) + (kind << 8)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, 0, ~(total + (total >> 16)) & 0xFFFF) + body


def _is_answer(sock: socket.socket, packet: bytes, number: int, sequence: int) -> bool:
    """Whether this is the whole answer to that request; IPv4 sockets give the IP header, too."""
    if _version(sock) == 4:
        packet = packet[4 * (packet[0] & 15) :]
    expected = struct.pack("!HH", number, sequence) + bytes(range(PING_BYTES))
    return packet[0] == ECHO_REPLY[_version(sock)] and packet[4:] == expected


def payloads(count: int, largest: int, seed: int) -> list[bytes]:
    """Random contents of random sizes from 0 to `largest` bytes, both ends of the range among them."""
    chance = random.Random(seed)
    sizes = [0, 1, largest, *(chance.randint(0, largest) for _ in range(count - 3))]
    chance.shuffle(sizes)
    return [chance.randbytes(size) for size in sizes]


class _Datagrams:
    """One flow of `datagrams`: what is still to send, what is under way."""

    def __init__(self, flow: Flow, count: int, port: int) -> None:
        source, target, seed, largest = flow
        self.sock = _bound(source, socket.SOCK_DGRAM)
        self.sock.connect((target, port))
        self.sock.setblocking(False)
        self.queue = payloads(count, largest, seed)
        self.waiting: Counter[bytes] = Counter()
        self.sent = self.back = self.wrong = 0

    def send(self) -> bool:
        """Send one more, if there is one."""
        if not self.queue:
            return False
        content = self.queue.pop()
        self.waiting[content] += 1
        self.sent += 1
        # What cannot be sent is lost, and counted so at the end. An ICMP error that came before is told once.
        with contextlib.suppress(OSError):
            self.sock.send(content)
        return True

    def receive(self) -> int:
        """Take what has come back; how many that was."""
        before = self.back
        for content, _ in _waiting(self.sock):
            if self.waiting[content] > 0:
                self.waiting[content] -= 1
                self.back += 1
            else:
                self.wrong += 1
        return self.back - before

    def result(self) -> dict[str, int]:
        """What came of it."""
        lost = self.waiting.total() + len(self.queue)
        return {"sent": self.sent, "back": self.back, "lost": lost, "wrong": self.wrong}


def datagrams(
    flows: Sequence[Flow],
    count: int,
    window: int = 32,
    patience: float = 20.0,
    port: int = PORT,
) -> list[dict[str, int]]:
    """Send `count` datagrams per flow to the echo and await them: how many were sent, came back, are lost or wrong.

    At most `window` are under way, of all flows together. Those are lost when nothing has come for `patience` seconds.
    """
    with contextlib.ExitStack() as stack:
        each = [_Datagrams(flow, count, port) for flow in flows]
        by_sock = {stack.enter_context(one.sock): one for one in each}
        turn = list(each)
        under_way, last = 0, time.monotonic()
        while turn or under_way:
            while turn and under_way < window:
                one = turn.pop(0)
                if one.send():
                    under_way += 1
                    turn.append(one)
            ready = select.select(list(by_sock), [], [], 0.5)[0]
            came = sum(by_sock[sock].receive() for sock in ready)
            under_way -= came
            if came:
                last = time.monotonic()
            elif time.monotonic() - last > patience:
                break
        return [one.result() for one in each]


def behind(source: str, target: str, chain: Sequence[Sequence[Any]], count: int, port: int = PORT) -> int:
    """Send `count` datagrams behind IPv6 extension headers, one after another; how many the echo sends back.

    `chain` has each header's number and its bytes, in hexadecimal, whose first is filled in. A raw socket takes any
    chain, and what it sends from the address that it is bound to goes through IPsec like everything else.
    """
    back = 0
    with (
        _bound(source, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        sock.settimeout(5.0)
        raw.bind((source, 0))  # IPsec's policies are asked with this address, not with the header's
        ends = [socket.inet_pton(socket.AF_INET6, address) for address in (source, target)]
        for number in range(count):
            content = b"%d" % number
            text = struct.pack("!HHHH", sock.getsockname()[1], port, 8 + len(content), 0) + content
            summed = b"".join(ends) + struct.pack("!IBBBB", len(text), 0, 0, 0, socket.IPPROTO_UDP)
            text = text[:6] + struct.pack("!H", _checksum(summed + text) or 0xFFFF) + text[8:]
            following = socket.IPPROTO_UDP
            for kind, header in reversed(chain):
                text = bytes([following]) + bytes.fromhex(header)[1:] + text
                following = kind
            raw.sendto(
                struct.pack("!IHBB", 0x60000000, len(text), following, 64) + b"".join(ends) + text,
                (target, 0),
            )
            try:
                back += sock.recv(100) == content
            except TimeoutError:
                break
    return back


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def streams(flows: Sequence[Flow], size: int, timeout: float = 60.0, port: int = PORT) -> list[int]:
    """Send `size` random bytes per flow to the echo by TCP, all at once; how many of each came back as they were.

    Namespaces are a thread's own: all sockets are made by the calling thread.
    """
    contents = [random.Random(seed).randbytes(size) for _, _, seed, _ in flows]
    received = [bytearray() for _ in flows]
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        threads = []
        for number, (source, target, *_) in enumerate(flows):
            sock = stack.enter_context(_bound(source, socket.SOCK_STREAM))
            # Of all together: a target that is no more would take the whole time for each.
            sock.settimeout(max(deadline - time.monotonic(), 0.1))
            with contextlib.suppress(OSError):
                sock.connect((target, port))
            sock.settimeout(timeout)
            threads += [
                threading.Thread(target=_send_stream, args=(sock, contents[number])),
                threading.Thread(target=_receive_stream, args=(sock, received[number])),
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [
        size if bytes(got) == content else sum(a == b for a, b in zip(got, content, strict=False))
        for got, content in zip(received, contents, strict=True)
    ]


def _send_stream(sock: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)


def _receive_stream(sock: socket.socket, received: bytearray) -> None:
    with contextlib.suppress(OSError):
        while piece := sock.recv(1 << 16):
            received += piece
