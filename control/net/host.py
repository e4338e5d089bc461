"""This host's own traffic with its peers: policy rules lead it into the TUN device, as wg-quick does it.

    1 what a killed run left behind goes   2 marked packets, which are our own, pass by all that follows
    3 a rule per policy: from this host to its peer, protocol, ports   4 a table of ours: the peer, into the device

For networks behind a peer a route into the device does. In transport mode, and in a tunnel between the two hosts
alone, the peer itself is the destination, and the outer packets go to it as well: every socket that sends them, IKE's
among them, bears OUTER_MARK, and the first rule has the kernel look on behind our rules for these. Packets without a
source address yet are taken too: the kernel chooses the address by the route that it finds.

Behind each route lies a blackhole, as behind the routes of control/net/tun.py: when the gateway is killed, packets
for the peer end there and do not go out in clear. A clean stop removes all; the next start removes what is left.

Limits: one gateway with transport mode in a network namespace. The kernel's rules know no ICMP types, and no port 0
or 65535: such a policy's rule takes the whole protocol, and the SPD sorts out what it is for. What the peer sends in
clear to this host is the kernel's, which takes it: refuse it by a packet filter.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Protocol

from control.net.routes import PROTOCOL, RouteChange, RouteSocket
from dataplane.model import OUTER_MARK, Action, Address, PolicySpec

log = logging.getLogger("esplanade.host")

TABLE = 229  # of routes; the number that marks our routes as ours (control/net/routes.py)
# Priorities: before the main table's 32766, behind the local table's 0.
PASS_BY, LEAD_IN, BEHIND = 4300, 4303, 4309

_NEW, _DELETE, _GET, _ERROR, _DONE = 32, 33, 34, 2, 3  # RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE, NLMSG_*
_REQUEST, _ACK, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_TO_TABLE, _GOTO, _NOTHING = 1, 2, 3  # FR_ACT_*
_FIND_SOURCE = 0x00010000  # FIB_RULE_FIND_SADDR: IPv6 asks the rule also where no source is chosen yet
_DESTINATION, _SOURCE, _TARGET, _PRIORITY, _MARK, _TABLE = 1, 2, 4, 6, 10, 15  # FRA_*
_RULE_PROTOCOL, _IP_PROTOCOL, _SOURCE_PORTS, _DESTINATION_PORTS = 21, 22, 23, 24
_MESSAGE = struct.Struct("=IHHII")
_RULE = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, two spare, action, flags
_PORT_PROTOCOLS = (6, 17, 132, 136)
_ANY = (0, 65535)


class HostError(Exception):
    """The kernel refuses our rules; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One policy rule of ours. Without `target` it leads to our table; `mark` is what a packet must bear."""

    family: int  # 4 or 6
    priority: int
    action: int = _TO_TABLE
    source: Address | None = None
    no_source: bool = False  # packets that have no source address yet
    destination: Address | None = None
    protocol: int = 0
    source_ports: tuple[int, int] = _ANY
    destination_ports: tuple[int, int] = _ANY
    target: int = 0
    mark: int = 0


class Device(Protocol):
    """What this module wants of a TUN device."""

    name: str

    @property
    def index(self) -> int:
        """The interface's number."""


class HostTraffic:
    """The rules and the table. `open` removes what is left of an earlier run, whoever needs rules or not."""

    def __init__(self) -> None:
        self._socket: _RuleSocket | None = None
        self._routing: RouteSocket | None = None
        self._rules: set[Rule] = set()
        self._routes: dict[Address, Address] = {}  # peer -> source address
        self._index = 0

    def open(self) -> None:
        """Remove rules and routes that bear our number. OSError when netlink refuses to be asked."""
        self._socket, self._routing = _RuleSocket(), RouteSocket()
        left = self._socket.ours()
        for message in left:
            self._socket.delete(message)
        if left:
            # Every leading rule has its route and blackhole; the device of the route has gone with the run.
            peers = dict.fromkeys(peer for message in left if (peer := _destination_of(message)) is not None)
            self._change([_route("del", peer) for peer in peers])
            log.info("%d rules of an earlier run are removed", len(left))

    def set_policies(
        self,
        policies: Iterable[PolicySpec],
        peers: Collection[Address],
        own: Collection[Address],
        device: Device,
    ) -> None:
        """Lead into `device` what policies protect or discard between this host and a peer; other rules of ours go.

        `peers` are where outer packets go to, `own` this host's addresses. HostError when the kernel refuses.
        """
        assert self._socket is not None, "open() first"
        wanted: dict[Rule, None] = {}
        routes: dict[Address, Address] = {}
        for policy in policies:
            if is_with_peer(policy, peers, own):
                routes.setdefault(policy.selector.remote_first, policy.selector.local_first)
                wanted.update(dict.fromkeys(leading_rules(policy)))
        for family in sorted({rule.family for rule in wanted}):
            wanted[Rule(family=family, priority=BEHIND, action=_NOTHING)] = None
            wanted[Rule(family=family, priority=PASS_BY, action=_GOTO, target=BEHIND, mark=OUTER_MARK)] = None
        if self._index != device.index:
            self._index, self._routes = device.index, {}
        changes: list[RouteChange] = []
        for peer, source in routes.items():
            if self._routes.get(peer) != source:
                changes += [_route("replace", peer), _route("replace", peer, self._index, source)]
        gone = self._routes.keys() - routes.keys()
        # First where packets may go, then that they do; the other way round at the end.
        self._change(changes)
        order = {BEHIND: 0, PASS_BY: 1, LEAD_IN: 2}
        for rule in sorted(wanted.keys() - self._rules, key=lambda rule: order[rule.priority]):
            self._do(_NEW, rule)
        for rule in sorted(self._rules - wanted.keys(), key=lambda rule: -order[rule.priority]):
            self._do(_DELETE, rule)
        for peer in gone:
            self._change([_route("del", peer, self._index, self._routes[peer]), _route("del", peer)])
        self._rules, self._routes = set(wanted), routes

    def close(self, *, leave: bool = False) -> None:
        """Remove everything, unless it is to keep packets from going in clear until the next start."""
        if self._socket is None or self._routing is None:
            return
        if not leave:
            for rule in sorted(self._rules, key=lambda rule: rule.priority != LEAD_IN):
                self._do(_DELETE, rule)
            self._change(
                [
                    change
                    for peer, source in self._routes.items()
                    for change in (_route("del", peer, self._index, source), _route("del", peer))
                ]
            )
        self._socket.close()
        self._routing.close()
        self._socket = self._routing = None
        self._rules, self._routes = set(), {}

    def _do(self, kind: int, rule: Rule) -> None:
        assert self._socket is not None
        error = self._socket.change(kind, rule)
        if error is None or (kind == _DELETE and error.errno == errno.ENOENT):
            return
        if kind == _NEW and error.errno == errno.EEXIST:
            return
        verb = "add" if kind == _NEW else "remove"
        raise HostError(f"cannot {verb} the routing rule {rule}: {error.strerror}")

    def _change(self, changes: list[RouteChange]) -> None:
        assert self._routing is not None
        for change, error in zip(changes, self._routing.change(changes), strict=True):
            gone = error is not None and error.errno in (errno.ESRCH, errno.ENODEV)
            if error is not None and not (change.verb == "del" and gone):
                raise HostError(
                    f"cannot {change.verb} the route to {change.network} in table {TABLE}: {error.strerror}"
                )


def is_with_peer(policy: PolicySpec, peers: Collection[Address], own: Collection[Address]) -> bool:
    """Whether a policy is about traffic of one address of this host with a peer itself."""
    selector = policy.selector
    return (
        policy.action is not Action.BYPASS
        and selector.remote_first in peers
        and selector.local_first in own
        and selector.remote_first == selector.remote_last
        and selector.local_first == selector.local_last
    )


def leading_rules(policy: PolicySpec) -> Iterator[Rule]:
    """The rules that lead a policy's packets into our table: never fewer packets than it protects."""
    selector = policy.selector
    family = selector.family
    source_ports, destination_ports = _ANY, _ANY
    if selector.protocol in _PORT_PROTOCOLS:
        source_ports, destination_ports = _ports(selector.local_ports), _ports(selector.remote_ports)
    for no_source in (False, True) if family == 4 else (False,):
        yield Rule(
            family=family,
            priority=LEAD_IN,
            source=None if no_source else selector.local_first,
            no_source=no_source,
            destination=selector.remote_first,
            protocol=selector.protocol,
            source_ports=source_ports,
            destination_ports=destination_ports,
        )


def _ports(ports: tuple[int, int]) -> tuple[int, int]:
    """A range that the kernel's rules can have, or any."""
    return ports if ports[0] > 0 and ports[1] < 65535 else _ANY


def _route(
    verb: str, peer: Address, interface: int | None = None, source: Address | None = None
) -> RouteChange:
    return RouteChange(verb=verb, network=ip_network(peer), interface=interface, source=source, table=TABLE)


class _RuleSocket:
    """rtnetlink for rules, one at a time: there are few."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def change(self, kind: int, rule: Rule) -> OSError | None:
        """Add or delete; the kernel's error, or None."""
        flags = _REQUEST | _ACK | (_CREATE | _EXCLUSIVE if kind == _NEW else 0)
        return self._ask(kind, flags, _encode(rule))

    def delete(self, message: bytes) -> None:
        """Delete a rule as a dump has told it."""
        # The dump's body names more than deletion takes for a match, all of it true of this rule.
        self._ask(_DELETE, _REQUEST | _ACK, message)

    def ours(self) -> list[bytes]:
        """The bodies of all rules that bear our number."""
        self._sequence += 1
        head = _MESSAGE.pack(_MESSAGE.size + _RULE.size, _GET, _REQUEST | _DUMP, self._sequence, 0)
        self._socket.send(head + _RULE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
        found: list[bytes] = []
        while True:
            answers, at = self._socket.recv(1 << 16), 0
            while at < len(answers):
                length, kind, _, _, _ = _MESSAGE.unpack_from(answers, at)
                if kind in (_DONE, _ERROR):
                    return found
                body = answers[at + _MESSAGE.size : at + length]
                if _attributes(body).get(_RULE_PROTOCOL) == bytes([PROTOCOL]):
                    found.append(body)
                at += (length + 3) & ~3

    def _ask(self, kind: int, flags: int, body: bytes) -> OSError | None:
        self._sequence += 1
        head = _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(1 << 16)
            _, answered, _, sequence, _ = _MESSAGE.unpack_from(answer)
            if answered == _ERROR and sequence == self._sequence:
                (number,) = struct.unpack_from("=i", answer, _MESSAGE.size)
                return OSError(-number, os.strerror(-number)) if number else None


def _encode(rule: Rule) -> bytes:
    family = socket.AF_INET if rule.family == 4 else socket.AF_INET6
    bits = 32 if rule.family == 4 else 128
    attributes = _attribute(_PRIORITY, struct.pack("=I", rule.priority))
    attributes += _attribute(_RULE_PROTOCOL, bytes([PROTOCOL]))
    if rule.destination is not None:
        attributes += _attribute(_DESTINATION, rule.destination.packed)
    if rule.source is not None or rule.no_source:
        attributes += _attribute(_SOURCE, rule.source.packed if rule.source is not None else bytes(bits // 8))
    if rule.protocol:
        attributes += _attribute(_IP_PROTOCOL, bytes([rule.protocol]))
    for kind, ports in ((_SOURCE_PORTS, rule.source_ports), (_DESTINATION_PORTS, rule.destination_ports)):
        if ports != _ANY:
            attributes += _attribute(kind, struct.pack("=HH", *ports))
    if rule.mark:
        attributes += _attribute(_MARK, struct.pack("=I", rule.mark))
    if rule.target:
        attributes += _attribute(_TARGET, struct.pack("=I", rule.target))
    table = TABLE if rule.action == _TO_TABLE else 0
    flags = _FIND_SOURCE if rule.family == 6 and rule.source is not None else 0
    return (
        _RULE.pack(
            family,
            bits if rule.destination is not None else 0,
            bits if rule.source is not None or rule.no_source else 0,
            0,
            table,
            0,
            0,
            rule.action,
            flags,
        )
        + attributes
    )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(body: bytes) -> dict[int, bytes]:
    """A rule's attributes by their kind."""
    found: dict[int, bytes] = {}
    at = _RULE.size
    while at + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, at)
        if size < 4:
            break
        found[kind] = body[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def _destination_of(body: bytes) -> Address | None:
    """The peer that a rule leads to."""
    packed = _attributes(body).get(_DESTINATION)
    return None if packed is None else ip_network(packed).network_address
