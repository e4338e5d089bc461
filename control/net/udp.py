"""IKE's sockets on UDP 500 and 4500: 1 receive, strip the non-ESP marker 2 send from the right address 3 hear ICMP.

One socket per family, port and bound address; IP_PKTINFO tells and sets our side's address, so that wildcard sockets
serve every address of a host. On the NAT port IKE begins with four zero bytes (RFC 7296 section 2.23); what begins
otherwise there is ESP, or the keepalive 0xFF of RFC 3948, which proves nothing and is dropped.

Sharing 4500 with the dataplane's `udp` port: control's socket is the first of their SO_REUSEPORT group (it comes from
`DataPlane.open_control_sockets`), and the group's program leaves it what begins with the marker. AF_XDP and packet
ports leave IKE to the kernel. Without a `udp` port the sockets are ours alone: a second IKE daemon gets EADDRINUSE.

Limits: no interface index, so no link-local addresses; a datagram that does not fit the send buffer is lost, and IKE
sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from control.ike.events import Datagram, PeerPath
from control.net.kernel import SO_RCVBUFFORCE
from control.net.limiter import RateLimiter
from dataplane.model import OUTER_MARK, Address

log = logging.getLogger("esplanade.ike.udp")

NON_ESP_MARKER = bytes(4)
KEEPALIVE = b"\xff"
DATAGRAM_MAX = 65535
PATHS = 4096  # of each socket that are remembered
BURST = 64  # datagrams of one socket before the loop looks at anything else
ERRORS_PER_SECOND, ERRORS_AT_ONCE = 100.0, 200.0  # of ICMP that are told
RECEIVE_BUFFER = 4 << 20  # bytes: floods meet cookies, not a full buffer

_IP_PKTINFO = 8
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _PMTUDISC_DONT = 10, 0
_IPV6_MTU_DISCOVER, _PMTUDISC_WANT = 23, 1
_UDP_GRO = 104
_MSG_ERRQUEUE = 0x2000
_ANCILLARY = 512  # bytes of control messages
_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data
_ORIGIN_LOCAL = 1

Receive = Callable[[bytes, PeerPath], None]
# A message and who sent it, as the socket says: the answer.
Shed = Callable[[bytes, tuple[str, int]], bytes | None]
PathError = Callable[[PeerPath, str], None]


class UdpError(Exception):
    """IKE's sockets cannot be opened; the text says which, why and what mends it."""


@dataclass(frozen=True, kw_only=True)
class _Socket:
    """One bound socket; `address` is what it is bound to, unspecified for all."""

    sock: socket.socket
    family: int  # 4 or 6
    address: Address
    port: int
    marker: bool  # IKE begins with the non-ESP marker here
    paths: dict[tuple[bytes, str, int], PeerPath] = field(default_factory=dict)  # of datagrams that have come


@dataclass(kw_only=True)
class UdpCounters:
    """What the sockets met besides IKE."""

    received: int = 0
    sent: int = 0
    send_errors: int = 0
    keepalives: int = 0
    strays: int = 0  # ESP that a worker should have had, or datagrams that are too short


class UdpSockets:
    """All of IKE's sockets. `receive` gets whole IKE messages, `path_error` what the network answered instead."""

    def __init__(
        self,
        receive: Receive,
        path_error: PathError,
        *,
        ports: tuple[int, int] = (500, 4500),
        shed: Shed = lambda data, sender: None,
        received: Callable[[], None] = lambda: None,
        errors: RateLimiter | None = None,
    ) -> None:
        """`ports` are the plain and the NAT-traversal port; nothing is opened yet. `errors` limits those of ICMP.

        `shed` is asked before `receive`: what it gives is sent back at once (b"" is no answer), and that is all.
        `received` is called when `receive` has had all that waited on a socket.
        """
        self.counters = UdpCounters()
        self.ports = ports
        self._receive = receive
        self._shed = shed
        self._received = received
        self._path_error = path_error
        self._errors = errors or RateLimiter(rate=ERRORS_PER_SECOND, burst=ERRORS_AT_ONCE)
        self._sockets: list[_Socket] = []
        self._by_end: dict[tuple[Address, int], _Socket] = {}
        self._senders: dict[tuple[str, int], _Socket] = {}  # by our address, as text, and port

    # ---- open and close

    def open(self, addresses: Sequence[Address] = (), *, shared: Mapping[Address, int] | None = None) -> None:
        """Bind both ports to `addresses`, () for all of the host; UdpError undoes what was opened.

        `shared` are bound sockets of the NAT port that the dataplane lends, by address; they are ours from here on.
        """
        plain, nat = self.ports
        shared = shared or {}
        wanted = list(dict.fromkeys(addresses)) or _wildcards()
        try:
            for address, fd in shared.items():
                self._enter(socket.socket(fileno=fd), address, nat, marker=True)
            for port, marker in ((plain, False), (nat, True)):
                for address in wanted:
                    if marker and (shared.get(address) or shared.get(_unspecified(address))):
                        continue
                    self._enter(_bound(address, port), address, port, marker=marker)
        except OSError as error:
            self.close()
            raise UdpError(_explain(error)) from None
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.add_reader(each.sock.fileno(), self._readable, each)

    def _enter(self, sock: socket.socket, address: Address, port: int, *, marker: bool) -> None:
        """Set a bound socket up and remember it."""
        _prepare(sock, address.version)
        found = _Socket(sock=sock, family=address.version, address=address, port=port, marker=marker)
        self._sockets.append(found)
        self._by_end[address, port] = found
        self._senders.clear()

    def close(self) -> None:
        """Close all sockets."""
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            for each in self._sockets:
                loop.remove_reader(each.sock.fileno())
        for each in self._sockets:
            each.sock.close()
        self._sockets.clear()
        self._by_end.clear()
        self._senders.clear()

    @property
    def ends(self) -> list[tuple[Address, int]]:
        """What is bound: addresses (unspecified for all) and ports."""
        return list(self._by_end)

    # ---- 1 receive

    def _readable(self, bound: _Socket) -> None:
        """Take what waits, up to a burst; what ICMP left in the socket's queue is read when nothing else waits."""
        for number in range(BURST):
            try:
                data, ancillary, _, name = bound.sock.recvmsg(DATAGRAM_MAX, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                if number == 0:  # it was an error that woke us; with datagrams before it, it wakes us again
                    self._drain_errors(bound)
                break
            except OSError:
                # What an ICMP error left on the socket; its text is in the queue.
                self._drain_errors(bound)
                continue
            self._take(bound, data, ancillary, name)
        self._received()

    def _take(
        self, bound: _Socket, data: bytes, ancillary: list[tuple[int, int, bytes]], name: tuple[str, int]
    ) -> None:
        """One datagram: only IKE goes on."""
        if bound.marker:
            if data[:4] != NON_ESP_MARKER:
                if data == KEEPALIVE:
                    self.counters.keepalives += 1
                else:
                    self.counters.strays += 1
                return
            data = data[4:]
        self.counters.received += 1
        answer = self._shed(data, name[:2])
        if answer is not None:
            if answer:
                self._answer(bound, answer, ancillary, name)
            return
        self._receive(data, self._path(bound, ancillary, name))

    def _path(
        self, bound: _Socket, ancillary: list[tuple[int, int, bytes]], name: tuple[str, int]
    ) -> PeerPath:
        """The way that a datagram came; a peer's datagrams share theirs, for making one takes as long as receiving."""
        local = _packed_local(ancillary)
        path = bound.paths.get((local, *name[:2]))
        if path is None:
            path = PeerPath(
                local=ip_address(local) if local else bound.address,
                local_port=bound.port,
                remote=_address(bound.family, name[0]),
                remote_port=name[1],
            )
            if len(bound.paths) >= PATHS:
                bound.paths.clear()
            bound.paths[local, name[0], name[1]] = path
        return path

    def _answer(
        self, bound: _Socket, data: bytes, ancillary: list[tuple[int, int, bytes]], name: tuple[str, int]
    ) -> None:
        """Send `data` back the way a datagram came; lost where that cannot be at once."""
        try:
            bound.sock.sendmsg(
                [NON_ESP_MARKER + data if bound.marker else data], _same_way(ancillary), 0, name
            )
        except OSError:
            self.counters.send_errors += 1
        else:
            self.counters.sent += 1

    # ---- 2 send

    def send(self, datagram: Datagram) -> None:
        """Send one message; what the kernel says against it is a path error. Never blocks, never raises OSError."""
        path = datagram.path
        bound = self._for(path)
        if bound is None:
            self.counters.send_errors += 1
            self._path_error(path, f"no socket is bound to {path.local} port {path.local_port}")
            return
        data = datagram.data
        if bound.marker and not datagram.keepalive:
            data = NON_ESP_MARKER + data
        try:
            bound.sock.sendmsg([data], _source(path.local), 0, (path.remote_text, path.remote_port))
        except (BlockingIOError, InterruptedError):
            self.counters.send_errors += 1
        except OSError as error:
            self._send_failed(bound, path, data, error)
        else:
            self.counters.sent += 1

    def _send_failed(self, bound: _Socket, path: PeerPath, data: bytes, error: OSError) -> None:
        """Either an earlier datagram's ICMP error, which is read and the sending tried once more, or one of this."""
        self._drain_errors(bound)
        if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO):
            try:
                bound.sock.sendmsg([data], _source(path.local), 0, (path.remote_text, path.remote_port))
            except OSError as again:
                error = again
            else:
                self.counters.sent += 1
                return
        self.counters.send_errors += 1
        self._path_error(path, _send_text(path, error))

    def _for(self, path: PeerPath) -> _Socket | None:
        """The socket that sends from this end."""
        end = path.local_text, path.local_port
        found = self._senders.get(end)
        if found is None:
            found = self._by_end.get((path.local, path.local_port)) or self._by_end.get(
                (_unspecified(path.local), path.local_port)
            )
            if found is not None and len(self._senders) < PATHS:
                self._senders[end] = found
        return found

    # ---- 3 errors that ICMP told

    def _drain_errors(self, bound: _Socket) -> None:
        """Tell every queued error; a hint only (RFC 7296 section 2.21): anyone can forge an ICMP message."""
        for _ in range(BURST):
            try:
                _, ancillary, _, name = bound.sock.recvmsg(512, _ANCILLARY, _MSG_ERRQUEUE)
            except OSError:
                return
            if not self._errors.allow("", time.monotonic()):
                continue  # anyone can forge them, at any rate: they are told to every IKE SA
            text = _error_text(ancillary, bound.family)
            if text is not None and name:
                self._path_error(self._path(bound, ancillary, name), text)


def source_address(remote: Address, port: int = 500) -> Address | None:
    """The address from which the kernel would send to `remote`; None where it has no route."""
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(remote), port))
            return _address(remote.version, sock.getsockname()[0])
    except OSError:
        return None


def _bound(address: Address, port: int) -> socket.socket:
    """A socket of ours alone; OSError names where."""
    sock = socket.socket(
        socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    )
    try:
        if address.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, f"UDP {address} port {port}") from None
    return sock


def _prepare(sock: socket.socket, version: int) -> None:
    """Our side's address with each datagram, ICMP errors in a queue, fragments allowed, room for a burst."""
    sock.setblocking(False)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUTER_MARK)  # see control/net/host.py
    # Workers have it on theirs; here one datagram is one message.
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 0)
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        # A path with a small MTU and no ICMP must not swallow a large IKE_AUTH (RFC 7296 section 2).
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_WANT)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _wildcards() -> list[Address]:
    """All addresses of each family that the kernel has."""
    found: list[Address] = [IPv4Address(0)]
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        found.append(IPv6Address(0))
    except OSError:
        pass
    return found


def _unspecified(address: Address) -> Address:
    return IPv4Address(0) if address.version == 4 else IPv6Address(0)


def _address(version: int, text: str) -> Address:
    return IPv4Address(text) if version == 4 else IPv6Address(text.partition("%")[0])


def _packed_local(ancillary: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Our address that a datagram came to; empty where the kernel does not say."""
    for level, kind, content in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(content) >= 12:
            return content[8:12]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(content) >= 16:
            return content[:16]
    return b""


def _same_way(ancillary: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The control message that answers from the address that a datagram came to; no object is made of it."""
    for level, kind, content in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(content) >= 12:
            return [(level, kind, bytes(4) + content[8:12] + bytes(4))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(content) >= 16:
            return [(level, kind, content[:16] + bytes(4))]
    return []


@lru_cache(maxsize=256)
def _source(local: Address) -> list[tuple[int, int, bytes]]:
    """The control message that makes a datagram leave from `local`."""
    if local.is_unspecified:
        return []
    if local.version == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4s", 0, local.packed, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local.packed + struct.pack("=I", 0))]


_ICMP4 = {0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
          4: "fragmentation needed", 9: "network prohibited", 10: "host prohibited",
          13: "communication prohibited"}  # fmt: skip
_ICMP6 = {0: "no route", 1: "communication prohibited", 3: "address unreachable", 4: "port unreachable"}


def _error_text(ancillary: Sequence[tuple[int, int, bytes]], version: int) -> str | None:
    """What an entry of the error queue says, such as "ICMP port unreachable from 192.0.2.1"."""
    for level, kind, content in ancillary:
        wanted = (socket.IPPROTO_IP, _IP_RECVERR) if version == 4 else (socket.IPPROTO_IPV6, _IPV6_RECVERR)
        if (level, kind) != wanted or len(content) < _ERROR.size:
            continue
        number, origin, icmp_type, code, _, _ = _ERROR.unpack_from(content)
        if origin == _ORIGIN_LOCAL:
            return f"this host says: {os.strerror(number).lower()}"
        unreachable = 3 if version == 4 else 1
        names = _ICMP4 if version == 4 else _ICMP6
        what = names.get(code) if icmp_type == unreachable else None
        if version == 6 and icmp_type == 2:
            what = "packet too big"
        what = what or f"type {icmp_type} code {code}"
        offender = _offender(content[_ERROR.size :])
        return f"ICMP {what}" + (f" from {offender}" if offender is not None else "")
    return None


def _offender(name: bytes) -> Address | None:
    """Who sent the ICMP message, from the socket address behind the error."""
    if len(name) < 8:
        return None
    (family,) = struct.unpack_from("=H", name)
    if family == socket.AF_INET:
        return IPv4Address(name[4:8])
    if family == socket.AF_INET6 and len(name) >= 24:
        return IPv6Address(name[8:24])
    return None


def _send_text(path: PeerPath, error: OSError) -> str:
    """Why a datagram did not leave."""
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EINVAL:
        reason = f"{path.local} is no address of this host, or no route to {path.remote} leads from it"
    return f"sending from {path.local} failed: {reason}"


def _explain(error: OSError) -> str:
    """Why a socket cannot be had, and what to do."""
    where = error.filename or "a UDP socket"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: another IKE daemon runs; stop it (ss -ulpn names it)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this host has no such address; add it to an interface or mend local_addrs"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: {error.strerror}; ports below 1024 need CAP_NET_BIND_SERVICE"
    return f"{where}: {error.strerror}"
