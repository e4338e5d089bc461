"""The ports' interfaces, as the netlink mirror tells of them: gone, back, up, down, renamed, another MAC or MTU.

What the dataplane can follow, it is told; an interface that is back needs its ports opened anew, and so a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from control.net.mirror import Link
from dataplane.api import DataPlane, DataPlaneError
from dataplane.model import PortSpec

log = logging.getLogger("esplanade")


class PortLinks:
    """The interface of each port that has one."""

    def __init__(
        self,
        specs: Iterable[PortSpec],
        dataplane: DataPlane,
        *,
        restart: Callable[[], None],
        tell_again: Callable[[], None],
    ) -> None:
        """`restart` has the gateway start again; `tell_again` has the mirror tell everything anew."""
        self._specs = {spec.name: spec for spec in specs}
        self._dataplane = dataplane
        self._restart = restart
        self._tell_again = tell_again
        self._links: dict[str, Link | None] = {}  # by port, as last told
        self._macs: dict[str, bytes] = {}  # of ports whose MAC changed since the start

    def of(self, port: str) -> Link | None:
        """A port's interface; None where it is gone, or was never told of."""
        return self._links.get(port)

    def changed(self, port: str, link: Link | None) -> None:
        """A port's interface changed: say what that means."""
        spec = self._specs[port]
        known, before = port in self._links, self._links.get(port)
        self._links[port] = link
        if link is None:
            log.error("port %s: interface %s is gone; nothing passes until it is back", port, spec.interface)
            return
        if known and before is None:
            # Its sockets and programs went with the old one: everything is opened anew.
            log.warning("port %s: interface %s is back; starting again", port, link.name)
            self._restart()
            return
        if link.up != (before is None or before.up):
            level, word = (logging.INFO, "up") if link.up else (logging.WARNING, "down")
            log.log(level, "port %s: interface %s is %s", port, link.name, word)
        if before is not None and before.name != link.name:
            log.warning("port %s: interface %s is called %s now", port, before.name, link.name)
        if spec.mac and link.mac != self._macs.get(port, spec.mac):
            self._change_mac(port, link)
        if link.mtu > spec.mtu:
            log.warning(
                "port %s: the MTU of %s is %d now; frames are made for %d. Restart the gateway to use it",
                port,
                link.name,
                link.mtu,
                spec.mtu,
            )

    def _change_mac(self, port: str, link: Link) -> None:
        """The interface sends from another address now; so must we."""
        log.warning("port %s: the MAC address of %s is %s now", port, link.name, link.mac.hex(":") or "none")
        try:
            self._dataplane.set_port_mac(port, link.mac)
        except DataPlaneError as error:
            log.error("%s", error)
            return
        self._macs[port] = link.mac
        self._tell_again()
