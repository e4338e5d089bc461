"""Our IKE endpoint over real sockets in a namespace, with ESP by hand: IKE proven without the daemon around it.

1 a thread enters the namespace and runs an asyncio loop 2 control.net.udp's sockets feed the Endpoint, its timers
are the loop's 3 events become ESP: `tests.esp` seals and opens, a TUN device is the protected side. What a packet
goes out by is the newest child that may send and whose selectors fit; what comes in is opened by its SPI.

Slow (a packet at a time in Python) and unchecked (no replay window, no inbound policy): it carries pings. The daemon
with the real dataplane is `daemon.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, TypeVar

from control.admin.events import describe
from control.ike.endpoint import Endpoint
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    ChildOutboundReady,
    ChildSa,
    Event,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
    PathChanged,
    PeerPath,
    VirtualAddressesAssigned,
)
from control.ike.settings import Connection, EndpointSettings, TrafficSelector
from control.lab.space import NETNS_DIRECTORY, Space, enter_namespace
from control.net.udp import UdpSockets, source_address
from dataplane.model import Direction, SaSpec
from tests.esp import seal, strip, trailer_for, unseal
from tests.peers.peer import ChildState, IkeState, Peer, PeerRefused

T = TypeVar("T")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
DEVICE = "esp0"
OVERLAP_SECONDS = 2.0  # a replaced child's inbound SA stays that long


class _Sockets(UdpSockets):
    """IKE's sockets, with what is ESP handed on."""

    esp: Callable[[bytes, PeerPath], None]

    def _take(self, bound: Any, data: bytes, ancillary: Any, name: Any) -> None:
        if bound.marker and len(data) > 8 and data[:4] != bytes(4):
            self.esp(data, name)
        else:
            super()._take(bound, data, ancillary, name)

    def send_esp(self, path: PeerPath, data: bytes) -> None:
        """ESP in UDP along a path; what the kernel refuses is lost."""
        bound = self._for(path)
        if bound is not None:
            with contextlib.suppress(OSError):
                bound.sock.sendto(data, (str(path.remote), path.remote_port))


class _Child:
    """A child SA at work."""

    def __init__(self, sa: ChildSa, *, sends: bool) -> None:
        self.sa = sa
        self.path = sa.path
        self.sends = sends
        self.number = 0
        self.packets_in = self.packets_out = 0
        common = {"proposal": sa.suite, "local": sa.path.local, "remote": sa.path.remote}
        self.inbound = SaSpec(
            name="in", direction=Direction.IN, spi=sa.spi_in,
            encryption_key=sa.encryption_key_in, integrity_key=sa.integrity_key_in, **common,
        )  # fmt: skip
        self.outbound = SaSpec(
            name="out", direction=Direction.OUT, spi=sa.spi_out,
            encryption_key=sa.encryption_key_out, integrity_key=sa.integrity_key_out, **common,
        )  # fmt: skip

    def fits(self, packet: bytes) -> bool:
        """Whether an outbound packet's addresses are within the selectors."""
        width = 4 if packet[0] >> 4 == 4 else 16
        at = 12 if width == 4 else 8
        source, destination = packet[at : at + width], packet[at + width : at + 2 * width]
        return _within(source, self.sa.local_selectors) and _within(destination, self.sa.remote_selectors)


class Node(Peer):
    """Our endpoint in a namespace. `routes` lead into its TUN device once it runs."""

    def __init__(
        self,
        space: Space,
        *,
        connections: list[Connection],
        credentials: Any,
        pools: Any = None,
        settings: EndpointSettings | None = None,
        routes: list[str] | None = None,
    ) -> None:
        """Nothing runs before `start`."""
        self.space = space
        self.events: list[Event] = []
        self.children: dict[int, _Child] = {}
        self._connections, self._credentials = connections, credentials
        self._pools, self._settings = pools, settings or EndpointSettings()
        self._routes = routes or []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []

    # --- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open sockets and device."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=self.space.name)
        self._thread.start()
        ready.result(20)
        if self._routes:
            self.space.ip(*(f"route replace {route} dev {DEVICE}" for route in self._routes))

    def _run(self, ready: Future[None]) -> None:
        enter_namespace(NETNS_DIRECTORY / self.space.name)
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            raise

    async def _serve(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._pump_due = False
        self.endpoint = Endpoint(
            self._settings, self._connections, self._credentials, self._pools, source_address=source_address
        )
        self._sockets = _Sockets(self._receive, self._path_error)
        self._sockets.esp = self._open_esp
        self._sockets.open()
        self._tun = _open_tun(DEVICE)
        self.space.ip(f"link set {DEVICE} mtu 1400 up")
        self._loop.add_reader(self._tun, self._read_tun)
        ready.set_result(None)
        try:
            await self._over.wait()
        finally:
            self._loop.remove_reader(self._tun)
            os.close(self._tun)
            self._sockets.close()

    def stop(self) -> None:
        """Delete all IKE SAs, wait for the answers, end."""
        if self._thread is None:
            return
        with contextlib.suppress(PeerRefused):
            for snapshot in self._ask(lambda: self.endpoint.snapshot()):
                self._do(lambda now, id=snapshot.id: self.endpoint.terminate_ike(id, now))
            self._wait(lambda: not self._ask(lambda: self.endpoint.snapshot()), 3.0, "everything is deleted")
        self.kill()

    def kill(self) -> None:
        """End without a word to the peers."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
            self._thread = None

    # --- the loop ------------------------------------------------------------------------------------

    def _receive(self, data: bytes, path: PeerPath) -> None:
        self.endpoint.receive_datagram(data, path, self._loop.time())
        self._pump_soon()

    def _path_error(self, path: PeerPath, text: str) -> None:
        self.endpoint.path_error(path, text, self._loop.time())
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
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
            case ChildEstablished():
                self.children[event.child.id] = _Child(event.child, sends=event.outbound)
            case ChildOutboundReady():
                self.children[event.child].sends = True
            case ChildClosed():
                child = self.children.get(event.child)
                if child is not None:
                    child.sends = False
                    overlap = OVERLAP_SECONDS if event.replaced_by is not None else 0.0
                    self._loop.call_later(overlap, self.children.pop, event.child, None)
            case PathChanged():
                for child in self.children.values():
                    if child.sa.ike == event.ike:
                        child.path = event.path
            case VirtualAddressesAssigned():
                self.space.ip(*(f"address replace {address} dev {DEVICE}" for address in event.addresses))
        with self._changed:
            self.events.append(event)
            self._lines.append(f"{time.strftime('%H:%M:%S')} {type(event).__name__}: {describe(event)}")
            self._changed.notify_all()

    # --- packets -------------------------------------------------------------------------------------

    def _read_tun(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self._tun, 1 << 16)
                able = [child for child in self.children.values() if child.sends and child.fits(packet)]
                if not able:
                    continue
                child = able[-1]
                child.number += 1
                child.packets_out += 1
                spec = child.outbound
                header = 4 if packet[0] >> 4 == 4 else 41
                text = packet + trailer_for(packet, spec.proposal.alignment, header)
                self._sockets.send_esp(
                    child.path, seal(spec, child.number, text, os.urandom(spec.proposal.iv_length))
                )

    def _open_esp(self, data: bytes, _name: object) -> None:
        spi, number = struct.unpack_from("!II", data)
        for child in self.children.values():
            if child.sa.spi_in == spi:
                packet, header = strip(unseal(child.inbound, data, number))
                if header in (4, 41):  # not the dummy of RFC 4303 section 2.6
                    child.packets_in += 1
                    os.write(self._tun, packet)

    # --- what it can be told -------------------------------------------------------------------------

    def _ask(self, function: Callable[[], T]) -> T:
        """The result of `function`, called on the loop's thread."""
        result: Future[T] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)
            self._pump_soon()

        self._loop.call_soon_threadsafe(call)
        return result.result(20)

    def _do(self, function: Callable[[float], T]) -> T:
        return self._ask(lambda: function(self._loop.time()))

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            with self._changed:
                self._changed.wait(0.05)
            if time.monotonic() > deadline:
                raise PeerRefused(f"{what}: not within {timeout:g} s\n{self.log(30)}")

    def _since(self, start: int, *kinds: type[Event]) -> list[Event]:
        return [event for event in self.events[start:] if isinstance(event, kinds)]

    def initiate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Bring up; see Peer."""
        start, lines = len(self.events), len(self._lines)
        connection = ike or next(
            one.name for one in self._connections if any(each.name == child for each in one.children)
        )
        self._do(lambda now: self.endpoint.initiate(connection, child, now))
        goal = ChildEstablished if child else IkeEstablished
        bad = (IkeFailed, ChildFailed, IkeClosed)
        self._wait(lambda: bool(self._since(start, goal, *bad)), timeout, f"{connection} is up")
        said = "\n".join(self._lines[lines:])
        if not self._since(start, goal):
            raise PeerRefused(said)
        return said

    def terminate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Delete; see Peer."""
        lines = len(self._lines)
        if ike is not None:
            act, gone = self.endpoint.terminate_ike, lambda: {one.id for one in self.endpoint.snapshot()}
        else:
            act, gone = (
                self.endpoint.terminate_child,
                lambda: {each.sa.id for one in self.endpoint.snapshot() for each in one.children},
            )

        def begin(now: float) -> set[int]:
            found = self._at_work(child, ike)
            for id in found:
                act(id, now)
            return set(found)

        found = self._do(begin)
        if not found:
            raise PeerRefused(f"nothing to terminate by the name {ike or child}")
        self._wait(lambda: not found & self._ask(gone), timeout, "deleted")
        return "\n".join(self._lines[lines:])

    def rekey(self, *, child: str | None = None, ike: str | None = None, reauth: bool = False) -> None:
        """Begin to rekey; see Peer."""
        act = self.endpoint.rekey_child if ike is None else self.endpoint.rekey_ike

        def begin(now: float) -> bool:
            found = self._at_work(child, ike)
            if found:
                act(found[-1], now)
            return bool(found)

        if not self._do(begin):
            raise PeerRefused(f"nothing to rekey by the name {ike or child}")

    def _at_work(self, child: str | None, ike: str | None) -> list[int]:
        """Ids of the IKE SAs or children of a name, on the loop's thread: true until it does something else."""
        self._pump()
        if ike is None:
            return [
                one.sa.id for one in self.children.values() if one.sa.settings.name == child and one.sends
            ]
        # One that was replaced may linger: charon forgets it before it knows that we got its last answer.
        return [
            one.id for one in self.endpoint.snapshot() if one.connection == ike and one.state == "established"
        ]

    def address_changed(self, old: str, new: str) -> None:
        """Tell the endpoint that an address of ours has gone and another took its place."""
        self._do(lambda now: self.endpoint.address_changed(ip_address(old), ip_address(new), now))

    # --- what it knows -------------------------------------------------------------------------------

    def log(self, lines: int | None = None) -> str:
        """Its events, or the last."""
        return "\n".join(self._lines if lines is None else self._lines[-lines:])

    def sas(self) -> list[IkeState]:
        """Its IKE SAs with their children."""
        return [self._state(one) for one in self._ask(lambda: self.endpoint.snapshot())]

    def _state(self, one: Any) -> IkeState:
        children = []
        for each in one.children:
            at_work = self.children.get(each.sa.id)
            children.append(
                ChildState(
                    name=each.sa.settings.name,
                    state=each.state.upper(),
                    spi_in=each.sa.spi_in,
                    spi_out=each.sa.spi_out,
                    packets_in=at_work.packets_in if at_work else 0,
                    packets_out=at_work.packets_out if at_work else 0,
                    local=tuple(map(_text, each.sa.local_selectors)),
                    remote=tuple(map(_text, each.sa.remote_selectors)),
                    encapsulated=each.sa.encapsulated,
                )
            )
        return IkeState(
            name=one.connection,
            state=one.state.upper(),
            initiator=one.initiator,
            spi_initiator=int.from_bytes(one.spi_initiator, "big"),
            spi_responder=int.from_bytes(one.spi_responder, "big"),
            local=f"{one.path.local}:{one.path.local_port}",
            remote=f"{one.path.remote}:{one.path.remote_port}",
            local_id=one.local_id,
            remote_id=one.remote_id,
            virtual=tuple(map(str, (*one.virtual_local, *one.virtual_remote))),
            children=tuple(children),
        )


def established(events: list[Event]) -> list[IkeEstablished | IkeRekeyed]:
    """Events that tell of a working IKE SA."""
    return [event for event in events if isinstance(event, IkeEstablished | IkeRekeyed)]


def _within(address: bytes, selectors: tuple[TrafficSelector, ...]) -> bool:
    return any(
        one.first is not None
        and one.last is not None
        and len(one.first.packed) == len(address)
        and one.first.packed <= address <= one.last.packed
        for one in selectors
    )


def _text(selector: TrafficSelector) -> str:
    return f"{selector.first}-{selector.last}"


def _open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun
