"""Traffic that waits for an SA, as control hears of it: the worker's side is ext/acquire.pyx."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from dataplane.model import Acquire, SelectorSpec
from ext.acquire import take_acquires
from ext.sa import TablesView

ANY_PORTS = (0, 65535)


def take(view: TablesView, policies: Mapping[int, str]) -> list[Acquire]:
    """All that was reported since the last call; `policies` names those of the SPD in use, by index.

    A report about an SPD that has been replaced since then is dropped: the next packet brings a new one.
    """
    found = []
    for index, family, source, destination, protocol, *ports in take_acquires(view):
        if index in policies:
            address = IPv4Address if family == 4 else IPv6Address
            here, there = (ANY_PORTS if port is None else (port, port) for port in ports)
            packet = SelectorSpec(
                local_first=address(source),
                local_last=address(source),
                remote_first=address(destination),
                remote_last=address(destination),
                protocol=protocol,
                local_ports=here,
                remote_ports=there,
            )
            found.append(Acquire(policy=policies[index], packet=packet))
    return found
