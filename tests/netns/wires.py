"""Two ports as a wire between two kernels, and TCP over it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from control.lab.space import Space
from ext import porttool
from ext.packet import PortHandle

MakeSpaces = Callable[..., list[Space]]  # the `spaces` fixture


@contextmanager
def relayed(left: PortHandle, right: PortHandle) -> Iterator[None]:
    """Both ports joined back to back by a thread meanwhile."""
    done = threading.Event()

    def relay() -> None:
        while not done.is_set():
            porttool.relay(left, right, 0.02)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def carry_tcp(client: Space, server: Space, target: str, content: bytes, seconds: float = 20) -> bytes:
    """What arrives of `content` when `client` sends it to a server at `target` by TCP."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    received = bytearray()
    listener = server.call(lambda: socket.create_server((target, 5001), family=family))
    listener.settimeout(seconds)

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(seconds)
            while piece := peer.recv(1 << 20):
                received.extend(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener, client.call(lambda: socket.socket(family)) as sender:
        sender.settimeout(seconds)
        sender.connect((target, 5001))
        sender.sendall(content)
        sender.shutdown(socket.SHUT_WR)
        thread.join(seconds)
    return bytes(received)
