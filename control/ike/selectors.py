"""Traffic selectors: from configuration to the wire, narrowed between both sides, and to the dataplane.

    resolve          configured selectors -> ranges; "dynamic" becomes the addresses of this IKE SA
    with_packet      the initiator of a child that a packet asked for puts that packet's own selectors first
    narrow           responder: what both sides' policies have in common (RFC 7296 section 2.9)
    accept_narrowed  initiator: the peer's answer, which must be within what was asked
    to_settings      for events; control.sa.selectors has the dataplane's pairs

OPAQUE ports are for packets that show none, such as later fragments (RFC 4301 section 7.2): ANY has them in it, ranges
have not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from control.ike.errors import PeerError
from control.ike.numbers import NotifyType
from control.ike.record import record
from control.ike.settings import TrafficSelector
from control.ike.wire.selector import ANY_PORTS, OPAQUE_PORTS, WireSelector
from dataplane.model import Address

MAX_SELECTORS = 32  # of one side after narrowing: a peer may ask for 255 on each side
MAX_PAIRS = 256  # of both sides together: each becomes an entry of the dataplane
_SHOWN = 8  # selectors in a message


PacketSelectors = tuple[WireSelector, WireSelector]  # of a packet that asked for a child: local, remote


class TsUnacceptable(PeerError):
    """Nothing that the peer asks for is allowed; the text has both, `advice` what to change."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(NotifyType.TS_UNACCEPTABLE, text, advice=advice)


@record(frozen=True, kw_only=True)
class Narrowed:
    """What both sides agree on; `cut` where the peer asked for more than that (ADDITIONAL_TS_POSSIBLE's case)."""

    local: tuple[WireSelector, ...]
    remote: tuple[WireSelector, ...]
    cut: bool


def everything(version: int) -> WireSelector:
    """All addresses of a family, any protocol."""
    last = (1 << (32 if version == 4 else 128)) - 1
    return WireSelector(first=ip_address("0.0.0.0" if version == 4 else "::"), last=_address(last, version))


def _address(number: int, version: int) -> Address:
    return ip_address(number.to_bytes(4 if version == 4 else 16, "big"))


def resolve(configured: Iterable[TrafficSelector], dynamic: Sequence[Address]) -> tuple[WireSelector, ...]:
    """Ranges of configured selectors; a dynamic one becomes `dynamic`, the side's own or virtual addresses.

    An address of zero ("any" of a virtual address that is still to be lent) becomes all addresses of its family.
    """
    ranges: list[WireSelector] = []
    for selector in configured:
        if selector.network is not None:
            ends = [(selector.network.network_address, selector.network.broadcast_address)]
        elif selector.first is not None and selector.last is not None:
            ends = [(selector.first, selector.last)]
        else:
            whole = [everything(each.version) for each in dynamic if int(each) == 0]
            ends = [(each.first, each.last) for each in whole]
            ends += [(each, each) for each in dynamic if int(each) != 0]
        ranges += [
            WireSelector(first=first, last=last, protocol=selector.protocol, ports=selector.ports)
            for first, last in ends
        ]
    return tuple(ranges) if len(ranges) == 1 else tuple(dict.fromkeys(ranges))[:255]


def with_packet(selectors: Sequence[WireSelector], packet: WireSelector | None) -> tuple[WireSelector, ...]:
    """`selectors` with those of the packet that asked for the child before them (RFC 7296 section 2.9)."""
    if packet is None or not any(intersect(packet, each) for each in selectors):
        return tuple(selectors)
    return (packet, *(each for each in selectors if each != packet))[:255]


def intersect(one: WireSelector, other: WireSelector) -> WireSelector | None:
    """What is in both, if anything is."""
    if one.first.version != other.first.version:
        return None
    if one.protocol and other.protocol and one.protocol != other.protocol:
        return None
    first = max(int(one.first), int(other.first))
    last = min(int(one.last), int(other.last))
    ports = _common_ports(one.ports, other.ports)
    if first > last or ports is None:
        return None
    version = one.first.version
    return WireSelector(
        first=_address(first, version),
        last=_address(last, version),
        protocol=one.protocol or other.protocol,
        ports=ports,
    )


def _common_ports(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int] | None:
    """The ports in both, if any are; OPAQUE is in ANY and in itself (RFC 4301 section 4.4.1.1)."""
    if OPAQUE_PORTS in (one, other):
        return OPAQUE_PORTS if {one, other} <= {OPAQUE_PORTS, ANY_PORTS} else None
    ports = max(one[0], other[0]), min(one[1], other[1])
    return ports if ports[0] <= ports[1] else None


def contains(outer: WireSelector, inner: WireSelector) -> bool:
    """Whether all of `inner` is in `outer`."""
    return (
        outer.first.version == inner.first.version
        and outer.protocol in (0, inner.protocol)
        and _common_ports(outer.ports, inner.ports) == inner.ports
        and int(outer.first) <= int(inner.first)
        and int(inner.last) <= int(outer.last)
    )


def _common(asked: Sequence[WireSelector], allowed: Sequence[WireSelector]) -> list[WireSelector]:
    """Intersections in the order of what was asked, without those that lie in another."""
    found: list[WireSelector] = []
    for one in asked:
        for other in allowed:
            both = intersect(one, other)
            if both is None or any(contains(each, both) for each in found):
                continue
            found = [each for each in found if not contains(both, each)]
            found.append(both)
            if len(found) == MAX_SELECTORS:
                return found
    return found


def narrow(
    *,
    asked_local: Sequence[WireSelector],
    asked_remote: Sequence[WireSelector],
    allowed_local: Sequence[WireSelector],
    allowed_remote: Sequence[WireSelector],
    whose: str = "we",
) -> Narrowed:
    """A responder's choice: all of what is asked for and allowed, seen from this side; raises TsUnacceptable.

    What the first selectors of the peer ask for (its packet's) is in it whenever the policy allows that.
    `whose` is who allows, e.g. "child 'net' of connection 'branch'".
    """
    local, remote = _common(asked_local, allowed_local), _common(asked_remote, allowed_remote)
    local, remote = _of_common_family(local, remote)
    local, remote = _limit(local, remote)
    if not local or not remote:
        raise _unacceptable(asked_local, asked_remote, allowed_local, allowed_remote, whose)
    cut = any(not any(contains(each, one) for each in local) for one in asked_local) or any(
        not any(contains(each, one) for each in remote) for one in asked_remote
    )
    return Narrowed(local=tuple(local), remote=tuple(remote), cut=cut)


def _of_common_family(
    local: Sequence[WireSelector], remote: Sequence[WireSelector]
) -> tuple[list[WireSelector], list[WireSelector]]:
    """Only selectors that have a partner of their family and protocol on the other side."""

    def paired(one: WireSelector, others: Iterable[WireSelector]) -> bool:
        return any(_fit(one, other) for other in others)

    return [each for each in local if paired(each, remote)], [each for each in remote if paired(each, local)]


def _fit(local: WireSelector, remote: WireSelector) -> bool:
    """Whether one packet can match both."""
    if local.first.version != remote.first.version:
        return False
    return local.protocol == remote.protocol or 0 in (local.protocol, remote.protocol)


def _limit(
    local: Sequence[WireSelector], remote: Sequence[WireSelector]
) -> tuple[list[WireSelector], list[WireSelector]]:
    """The first ones of each side, so many that their pairs stay within bounds."""
    shown_local, shown_remote = list(local), list(remote)
    while len(shown_local) * len(shown_remote) > MAX_PAIRS:
        (shown_local if len(shown_local) >= len(shown_remote) else shown_remote).pop()
    return shown_local, shown_remote


def accept_narrowed(
    *,
    answered_local: Sequence[WireSelector],
    answered_remote: Sequence[WireSelector],
    asked_local: Sequence[WireSelector],
    asked_remote: Sequence[WireSelector],
) -> Narrowed:
    """An initiator's view of the answer: what is in it and was asked for; raises TsUnacceptable if that is nothing.

    RFC 7296 section 2.9 allows the responder a subset only. Where one answers with more, we keep to what we asked.
    """
    local, remote = _common(answered_local, asked_local), _common(answered_remote, asked_remote)
    local, remote = _limit(*_of_common_family(local, remote))
    if not local or not remote:
        raise TsUnacceptable(
            f"traffic selectors unacceptable: we asked for {show_both(asked_local, asked_remote)}; the peer answered "
            f"{show_both(answered_local, answered_remote)}, which is not in it",
            "the answer must be part of what was asked (RFC 7296 section 2.9); the fault is the peer's",
        )
    cut = any(not any(contains(each, one) for each in local) for one in asked_local) or any(
        not any(contains(each, one) for each in remote) for one in asked_remote
    )
    return Narrowed(local=tuple(local), remote=tuple(remote), cut=cut)


def _unacceptable(
    asked_local: Sequence[WireSelector],
    asked_remote: Sequence[WireSelector],
    allowed_local: Sequence[WireSelector],
    allowed_remote: Sequence[WireSelector],
    whose: str,
) -> TsUnacceptable:
    ours, theirs = _common(asked_local, allowed_local), _common(asked_remote, allowed_remote)
    if not ours and not theirs:
        which = "neither side's addresses are allowed"
    elif not ours:
        which = "our side differs"
    elif not theirs:
        which = "the peer's side differs"
    else:
        which = "what is common has different address families or protocols on the two sides"
    return TsUnacceptable(
        f"traffic selectors unacceptable: the peer asks for {show_both(asked_local, asked_remote)}; "
        f"{whose} {'allow' if whose == 'we' else 'allows'} {show_both(allowed_local, allowed_remote)} "
        f"(ours === the peer's); {which}",
        f"set the peer's local_ts to {show(allowed_remote)} and its remote_ts to {show(allowed_local)}",
    )


def show(selectors: Sequence[WireSelector]) -> str:
    """Selectors in a line, cut where they are many: "10.1.0.0/16, 10.2.0.0/16[tcp/80]"."""
    text = ", ".join(map(str, selectors[:_SHOWN])) or "nothing"
    return text if len(selectors) <= _SHOWN else f"{text} and {len(selectors) - _SHOWN} more"


def show_both(local: Sequence[WireSelector], remote: Sequence[WireSelector]) -> str:
    """Both sides as strongSwan shows them: "10.1.0.0/16 === 10.2.0.0/16"."""
    return f"{show(local)} === {show(remote)}"


def to_settings(selectors: Iterable[WireSelector]) -> tuple[TrafficSelector, ...]:
    """Negotiated selectors as events carry them, with first and last set."""
    return tuple(
        TrafficSelector(first=each.first, last=each.last, protocol=each.protocol, ports=each.ports)
        for each in selectors
    )


def from_settings(selectors: Iterable[TrafficSelector]) -> tuple[WireSelector, ...]:
    """The way back, for the selectors of a child that is rekeyed; they are never dynamic."""
    return resolve(selectors, ())
