"""Routes of our own in the kernel: changed many at a time, in one system call, marked as ours.

A rtnetlink request per change, all in one datagram, one acknowledgement each; the kernel has done it all when the
call returns. Our mark is the routes' protocol: who mirrors the table knows them by it (`ip route show proto 229`), and
so does the next run, which finds the blackholes of one that was killed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from dataplane.model import Address, Network

PROTOCOL = 229  # between RTPROT_STATIC's kin and those that daemons have registered (linux/rtnetlink.h)
WORST_METRIC = 0xFFFFFFFF
BATCH = 64  # changes of one datagram: requests and acknowledgements fit the socket's buffers

_NEW, _DELETE, _GET = 24, 25, 26  # RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE
_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _DUMP, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x300, 0x400
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK: a dump gives what it is asked for alone
_UNIVERSE, _LINK, _UNICAST, _BLACKHOLE = 0, 253, 1, 6
_DESTINATION, _INTERFACE, _METRIC, _SOURCE = 1, 4, 6, 7  # RTA_*
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
MAIN = 254  # the main table
_FLAGS = {"add": _CREATE | _EXCLUSIVE, "replace": _CREATE | _REPLACE, "del": 0}


@dataclass(frozen=True, kw_only=True)
class RouteChange:
    """One change. `interface` is the index of the device it leads into; None: a blackhole with the worst metric."""

    verb: str  # add, replace, del
    network: Network
    interface: int | None = None
    source: Address | None = None  # address that packets of this host leave with
    table: int = MAIN  # of routes, 1 to 255


class RouteSocket:
    """A rtnetlink socket. OSError when the kernel refuses one."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def change(self, changes: Sequence[RouteChange]) -> list[OSError | None]:
        """Do the changes in their order; the result of each."""
        results: list[OSError | None] = []
        for at in range(0, len(changes), BATCH):
            results += self._change(changes[at : at + BATCH])
        return results

    def _change(self, changes: Sequence[RouteChange]) -> list[OSError | None]:
        first = self._sequence + 1
        self._sequence += len(changes)
        self._socket.send(b"".join(_request(change, first + at) for at, change in enumerate(changes)))
        results: list[OSError | None] = [None] * len(changes)
        waiting = len(changes)
        while waiting:
            answers, at = self._socket.recv(1 << 16), 0
            while at < len(answers):
                length, kind, _, sequence, _ = _HEADER.unpack_from(answers, at)
                if kind == _ERROR and sequence >= first:
                    (number,) = struct.unpack_from("=i", answers, at + _HEADER.size)
                    results[sequence - first] = OSError(-number, os.strerror(-number)) if number else None
                    waiting -= 1
                at += (length + 3) & ~3
        return results

    def left_behind(self) -> list[Network]:
        """Networks of the main table with a blackhole of ours and no route of ours: the run that made them was killed.

        A run that lives has a device's route in front of each of its blackholes.
        """
        blackholes: dict[Network, None] = {}
        routes: set[Network] = set()
        for network, kind in self._ours():
            if kind == _BLACKHOLE:
                blackholes[network] = None
            else:
                routes.add(network)
        return [network for network in blackholes if network not in routes]

    def _ours(self) -> Iterator[tuple[Network, int]]:
        """Networks and types of our routes in the main table."""
        with suppress(OSError):  # an old kernel gives all routes: they are looked through below in any case
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
        for family in (socket.AF_INET, socket.AF_INET6):
            self._sequence += 1
            length = _HEADER.size + _ROUTE.size
            self._socket.send(
                _HEADER.pack(length, _GET, _REQUEST | _DUMP, self._sequence, 0)
                + _ROUTE.pack(family, 0, 0, 0, MAIN, PROTOCOL, 0, 0, 0)
            )
            yield from self._dumped(family)

    def _dumped(self, family: int) -> Iterator[tuple[Network, int]]:
        while True:
            answers, at = self._socket.recv(1 << 17), 0
            while at < len(answers):
                length, kind, _, _, _ = _HEADER.unpack_from(answers, at)
                if kind in (_DONE, _ERROR):
                    return
                message = answers[at : at + length]
                at += (length + 3) & ~3
                _, bits, _, _, table, protocol, _, route, _ = _ROUTE.unpack_from(message, _HEADER.size)
                if kind != _NEW or table != MAIN or protocol != PROTOCOL:
                    continue
                any_address = "0.0.0.0" if family == socket.AF_INET else "::"
                yield ip_network(f"{read_own(message).get('dst', any_address)}/{bits}"), route


def is_ours(message: bytes) -> bool:
    """True where a datagram of the kernel's route events begins with one of our routes."""
    return len(message) >= 28 and message[4:6] in _EVENTS and message[21] == PROTOCOL


def is_our_blackhole(message: bytes) -> bool:
    """True where it is a blackhole of ours: what stays when the device has gone."""
    return is_ours(message) and message[23] == _BLACKHOLE


def read_own(message: bytes) -> dict[str, Any]:
    """An event of one of our routes as the mirror takes it: what pyroute2 would make of it, at a tenth of its price."""
    length, kind, flags, _, _ = _HEADER.unpack_from(message)
    family, bits, _, tos, table, _, _, route, route_flags = _ROUTE.unpack_from(message, _HEADER.size)
    found: dict[str, Any] = {
        "event": "RTM_NEWROUTE" if kind == _NEW else "RTM_DELROUTE",
        "header": {"flags": flags},
        "family": family,
        "dst_len": bits,
        "tos": tos,
        "table": table,
        "type": route,
        "flags": route_flags,
    }
    at = _HEADER.size + _ROUTE.size
    while at + 4 <= length:
        size, attribute = struct.unpack_from("=HH", message, at)
        if size < 4:
            break
        if attribute == _DESTINATION:
            found["dst"] = socket.inet_ntop(family, message[at + 4 : at + size])
        elif attribute in _NUMBERS:
            (found[_NUMBERS[attribute]],) = struct.unpack_from("=I", message, at + 4)
        at += (size + 3) & ~3
    return found


_NUMBERS = {_INTERFACE: "oif", _METRIC: "priority"}
_EVENTS = (struct.pack("=H", _NEW), struct.pack("=H", _DELETE))


def _request(change: RouteChange, sequence: int) -> bytes:
    network = change.network
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    blackhole = change.interface is None
    attributes = _attribute(_DESTINATION, network.network_address.packed)
    if change.interface is not None:
        attributes += _attribute(_INTERFACE, struct.pack("=I", change.interface))
    else:
        attributes += _attribute(_METRIC, struct.pack("=I", WORST_METRIC))
    if change.source is not None:
        attributes += _attribute(_SOURCE, change.source.packed)
    # IPv6 knows no scopes; IPv4's device routes lead to hosts on the link, as the kernel sees it.
    scope = _LINK if network.version == 4 and not blackhole else _UNIVERSE
    what = _BLACKHOLE if blackhole else _UNICAST
    route = _ROUTE.pack(family, network.prefixlen, 0, 0, change.table, PROTOCOL, scope, what, 0)
    kind = _DELETE if change.verb == "del" else _NEW
    flags = _REQUEST | _ACK | _FLAGS[change.verb]
    length = _HEADER.size + len(route) + len(attributes)
    return _HEADER.pack(length, kind, flags, sequence, 0) + route + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
