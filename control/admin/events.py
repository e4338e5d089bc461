"""Each IKE event as one line of text, as a flat JSON object, and with the level that it is logged at.

No key is in either: `KeysExported` says only that keys left, and which table they are for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar

from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    ChildOutboundReady,
    ChildSa,
    ChildWanted,
    Closed,
    Event,
    Failure,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
    KeysExported,
    Noted,
    PathChanged,
    PeerPath,
    VirtualAddressesAssigned,
)
from control.ike.settings import TrafficSelector

E = TypeVar("E", bound=Event)

_PLAIN = (Closed.LOCAL, Closed.PEER, Closed.REPLACED)  # ends that nobody needs to look after
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_PORT_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}


def describe(event: Event) -> str:
    """One line of text, without time and level."""
    name = event.connection or "unknown connection"
    kind = type(event)
    text = _TEXTS[kind](event) if kind in _TEXTS else kind.__name__
    return f"{name}[{event.ike}]: {text}"


def level(event: Event) -> int:
    """The level of `logging`: failures are warnings, what keeps a tunnel going is info."""
    if isinstance(event, Noted):
        return _LEVELS.get(event.level, logging.INFO)
    if isinstance(event, IkeFailed | ChildFailed):
        return logging.WARNING
    if isinstance(event, IkeClosed | ChildClosed):
        return logging.INFO if event.why in _PLAIN else logging.WARNING
    return logging.DEBUG if isinstance(event, ChildOutboundReady) else logging.INFO


def as_dict(event: Event) -> dict[str, Any]:
    """The event of JSON's types only: `event`, `text` and each of its fields."""
    document: dict[str, Any] = {"event": snake(type(event).__name__), "text": describe(event)}
    hidden = isinstance(event, KeysExported)
    for each in fields(event):
        if each.name != "text" and not (hidden and each.name == "line"):
            document[each.name] = _plain(getattr(event, each.name))
    return document


def format_path(path: PeerPath) -> str:
    """`192.0.2.1:500 - [2001:db8::2]:4500`."""
    return (
        f"{format_endpoint(path.local_text, path.local_port)} - "
        f"{format_endpoint(path.remote_text, path.remote_port)}"
    )


def format_endpoint(address: object, port: int) -> str:
    """An address with its port, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def format_selector(selector: TrafficSelector) -> str:
    """A traffic selector as swanctl writes it: `10.1.0.0/24[tcp/80]`, `dynamic`."""
    if selector.network is not None:
        text = str(selector.network)
    elif selector.first is None or selector.last is None:
        text = "dynamic"
    elif selector.first == selector.last:
        text = f"{selector.first}/{selector.first.max_prefixlen}"
    else:
        text = _range(selector)
    if selector.protocol == 0 and selector.ports == (0, 65535):
        return text
    protocol = _PORT_PROTOCOLS.get(selector.protocol, str(selector.protocol)) if selector.protocol else "any"
    first, last = selector.ports
    if (first, last) == (0, 65535):
        return f"{text}[{protocol}]"
    ports = "opaque" if first > last else str(first) if first == last else f"{first}-{last}"
    return f"{text}[{protocol}/{ports}]"


def format_selectors(selectors: Iterable[TrafficSelector]) -> str:
    """Several of them, by commas."""
    return ", ".join(format_selector(selector) for selector in selectors)


def _range(selector: TrafficSelector) -> str:
    """first-last, or the prefix that it is."""
    assert selector.first is not None and selector.last is not None
    first, last = int(selector.first), int(selector.last)
    size = last - first + 1
    if size & (size - 1) == 0 and first % size == 0:
        return f"{selector.first}/{selector.first.max_prefixlen - size.bit_length() + 1}"
    return f"{selector.first}-{selector.last}"


def _ike_established(event: IkeEstablished) -> str:
    ours = "initiator" if event.initiator else "responder"
    eap = f" as '{event.eap_identity}'" if event.eap_identity else ""
    return (
        f"IKE SA established with '{event.remote_id}'{eap}, we are '{event.local_id}' ({ours}), "
        f"{format_path(event.path)}, {event.suite_name}"
    )


def _ike_closed(event: IkeClosed) -> str:
    return f"IKE SA gone: {event.why.value}{_because(event.failure)}"


def _ike_failed(event: IkeFailed) -> str:
    return f"no IKE SA over {format_path(event.path)}: {event.failure}"


def _child_established(event: ChildEstablished) -> str:
    child = event.child
    instead = f", instead of {{{event.replaces}}}" if event.replaces is not None else ""
    udp = " in UDP" if child.encapsulated else ""
    return (
        f"child {child.settings.name}{{{child.id}}} established, {child.mode.value}{udp}, {child.suite_name}, "
        f"SPIs {child.spi_in:08x} in {child.spi_out:08x} out, "
        f"{format_selectors(child.local_selectors)} === {format_selectors(child.remote_selectors)}{instead}"
    )


def _child_closed(event: ChildClosed) -> str:
    instead = f" by {{{event.replaced_by}}}" if event.replaced_by is not None else ""
    return f"child {event.name}{{{event.child}}} gone: {event.why.value}{instead}{_because(event.failure)}"


def _addresses(event: VirtualAddressesAssigned) -> str:
    dns = f", DNS {', '.join(map(str, event.dns))}" if event.dns else ""
    domains = f" for {', '.join(event.domains)}" if event.domains else ""
    behind = f", networks {', '.join(map(str, event.networks))}" if event.networks else ""
    return f"the peer lent us {', '.join(map(str, event.addresses))}{dns}{domains}{behind}"


def _path_changed(event: PathChanged) -> str:
    udp = ", ESP in UDP" if event.encapsulated else ""
    return f"path is {format_path(event.path)} now{udp}"


def _because(failure: Failure | None) -> str:
    return f": {failure}" if failure is not None else ""


def _text(kind: type[E], make: Callable[[E], str]) -> tuple[type[Event], Callable[[Any], str]]:
    """One row of the table, with its function held against its event."""
    return kind, make


_TEXTS: dict[type[Event], Callable[[Any], str]] = dict(
    (
        _text(IkeEstablished, _ike_established),
        _text(IkeRekeyed, lambda event: f"IKE SA rekeyed, goes on as [{event.new}], {event.suite_name}"),
        _text(IkeClosed, _ike_closed),
        _text(IkeFailed, _ike_failed),
        _text(ChildEstablished, _child_established),
        _text(ChildOutboundReady, lambda event: f"child {{{event.child}}} is sent through from now on"),
        _text(ChildClosed, _child_closed),
        _text(ChildFailed, lambda event: f"no child {event.name or 'SA'}: {event.failure}"),
        _text(ChildWanted, lambda event: f"child {event.name} comes back when it can: {event.reason}"),
        _text(PathChanged, _path_changed),
        _text(VirtualAddressesAssigned, _addresses),
        _text(KeysExported, lambda event: f"keys exported for {event.table}"),
        _text(Noted, lambda event: event.text),
    )
)


def _plain(value: object) -> Any:
    """A field's value of JSON's types; a child without its keys."""
    if isinstance(value, ChildSa):
        return {
            "id": value.id,
            "name": value.settings.name,
            "mode": value.mode.value,
            "suite": value.suite_name,
            "spi_in": f"{value.spi_in:08x}",
            "spi_out": f"{value.spi_out:08x}",
            "local_ts": [format_selector(selector) for selector in value.local_selectors],
            "remote_ts": [format_selector(selector) for selector in value.remote_selectors],
            "encapsulated": value.encapsulated,
        }
    if isinstance(value, PeerPath):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Failure):
        return {"code": value.code, "text": value.text, "advice": value.advice}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def snake(name: str) -> str:
    """IkeEstablished -> ike_established."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
