"""Many initiators in one process: our own endpoint, one connection per tunnel, over real UDP sockets of a namespace.

A thread enters the namespace; its asyncio loop drives the endpoint. So many handshakes are under way at a time; each
that ends makes room for another. Children are negotiated and thrown away: no packet of theirs is ever sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from control.ike.endpoint import Endpoint
from control.ike.events import ChildEstablished, ChildFailed, Event, IkeClosed, IkeFailed, PeerPath
from control.ike.settings import Connection, EndpointSettings
from control.lab.space import NETNS_DIRECTORY, LabError, Space, enter_namespace
from control.net.udp import UdpSockets, source_address
from control.pki.store import Credentials

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What setting tunnels up came to: how many, in how many seconds, each one's seconds, in order of their ends."""

    tunnels: int
    seconds: float
    each: tuple[float, ...]


class Farm:
    """Initiates `connections` to wherever they lead. A context manager."""

    def __init__(self, space: Space, connections: Sequence[Connection], credentials: Credentials) -> None:
        """Nothing runs before `with`."""
        self._space, self._connections, self._credentials = space, connections, credentials
        self._thread: threading.Thread | None = None
        self._begun: dict[str, float] = {}
        self._each: list[float] = []
        self.failures: list[str] = []

    def __enter__(self) -> Farm:
        """Open the sockets."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="farm")
        self._thread.start()
        ready.result(20)
        return self

    def __exit__(self, *_: object) -> None:
        """End, without a word to the peers."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
            self._thread = None

    def set_up(self, *, at_once: int = 8, timeout: float = 600.0) -> Setup:
        """Every connection with its first child, `at_once` under way at a time. LabError with the first failure."""
        self._each.clear()
        begun = time.monotonic()
        waiting = iter(self._connections)
        self._call(lambda: [self._next(waiting) for _ in range(at_once)])
        while len(self._each) < len(self._connections):
            if self.failures:
                raise LabError(f"{len(self._each)} of {len(self._connections)} tunnels: {self.failures[0]}")
            if time.monotonic() - begun > timeout:
                raise LabError(f"{len(self._each)} of {len(self._connections)} tunnels after {timeout:g} s")
            time.sleep(0.02)
        return Setup(tunnels=len(self._each), seconds=time.monotonic() - begun, each=tuple(self._each))

    def _next(self, waiting: Iterator[Connection]) -> None:
        connection = next(waiting, None)
        if connection is not None:
            self._waiting = waiting
            self._begun[connection.name] = time.monotonic()
            self.endpoint.initiate(connection, connection.children[0], self._loop.time())

    # --- the loop ------------------------------------------------------------------------------------

    def _run(self, ready: Future[None]) -> None:
        enter_namespace(NETNS_DIRECTORY / self._space.name)
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        settings = EndpointSettings(initial_contact=False)
        self.endpoint = Endpoint(
            settings, self._connections, self._credentials, source_address=source_address
        )
        sockets = UdpSockets(self._receive, lambda path, text: self.failures.append(f"{path.remote}: {text}"))
        sockets.open()
        self._sockets = sockets
        ready.set_result(None)
        try:
            await self._over.wait()
        finally:
            sockets.close()

    def _receive(self, data: bytes, path: PeerPath) -> None:
        self.endpoint.receive_datagram(data, path, self._loop.time())
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._due = False
        for event in self.endpoint.events():
            self._handle(event)
        for datagram in self.endpoint.datagrams_to_send():
            self._sockets.send(datagram)
        if self._timer is not None:
            self._timer.cancel()
        due = self.endpoint.next_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self.endpoint.handle_timers(self._loop.time())
        self._pump()

    def _handle(self, event: Event) -> None:
        match event:
            case ChildEstablished() if event.connection in self._begun:
                self._each.append(time.monotonic() - self._begun.pop(event.connection))
                self._next(self._waiting)
            case IkeFailed() | ChildFailed() | IkeClosed():
                self.failures.append(str(event))

    def _call(self, function: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)
            self._soon()

        self._loop.call_soon_threadsafe(call)
        return result.result(60)
