"""Many initiators in one process: our own endpoint, one connection per tunnel, over real UDP sockets of a namespace.

A thread enters the namespace; its asyncio loop drives the endpoint. So many handshakes are under way at a time; each
that ends makes room for another. Children are negotiated and thrown away: no packet of theirs is ever sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
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
        self._left = iter(connections)
        self._begun: dict[str, float] = {}
        self._each: list[float] = []
        self._wanted = 0
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

    def set_up(self, count: int, *, at_once: int = 4, timeout: float = 600.0) -> Setup:
        """The next `count` connections with their first child, `at_once` under way at a time; LabError if one fails."""
        self._each.clear()
        self._wanted = count
        begun = time.monotonic()
        self._call(lambda: [self._next() for _ in range(min(at_once, count))])
        while len(self._each) < count:
            if self.failures:
                raise LabError(f"{len(self._each)} of {count} tunnels: {self.failures[0]}")
            if time.monotonic() - begun > timeout:
                raise LabError(f"{len(self._each)} of {count} tunnels after {timeout:g} s")
            time.sleep(0.02)
        return Setup(tunnels=count, seconds=time.monotonic() - begun, each=tuple(self._each))

    def _next(self) -> None:
        if self._wanted > 0:
            self._wanted -= 1
            connection = next(self._left)
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
                self._next()
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
