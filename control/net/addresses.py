"""Addresses that a server lends us: given to an interface of this host while they are ours.

The interface is the gateway's TUN device where there is one, else the loopback device: the address then belongs to the
host, whatever port its packets leave by (the weak host model of Linux).

Each bears our mark (`proto 229`, on Linux 5.18 and later): the next start finds those of a run that was killed by it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from control.net.routes import PROTOCOL
from dataplane.model import Address

log = logging.getLogger("esplanade.ike")

IFA_F_NODAD = 0x02


class HostAddresses:
    """Adds and removes host addresses on one interface."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.addresses: set[Address] = set()  # that are there through us, or cannot be there

    async def add(self, addresses: Sequence[Address]) -> None:
        """They are ours."""
        for address in addresses:
            await self._change("replace", address)

    async def remove(self, addresses: Sequence[Address]) -> None:
        """They are not ours any more."""
        for address in addresses:
            await self._change("del", address)

    async def _change(self, verb: str, address: Address) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        how = {"flags": IFA_F_NODAD} if address.version == 6 and verb != "del" else {}
        try:
            async with AsyncIPRoute() as netlink:
                found = await netlink.link_lookup(ifname=self.interface)
                if not found:
                    raise OSError(errno.ENODEV, "there is no such interface")
                await netlink.addr(
                    verb,
                    index=int(found[0]),
                    address=str(address),
                    prefixlen=address.max_prefixlen,
                    family=family,
                    proto=PROTOCOL,
                    **how,
                )
        except (NetlinkError, OSError) as error:
            if verb != "del":
                log.error(
                    "%s: the address %s that we were lent cannot be added: %s", self.interface, address, error
                )
        if verb == "del":
            self.addresses.discard(address)
        else:
            self.addresses.add(address)


async def remove_lent_before() -> None:
    """Remove addresses of this host that a run which was killed had been lent: nobody lends them now.

    To be called with IKE's sockets open: no other gateway in this namespace has addresses then.
    """
    left: list[str] = []
    try:
        async with AsyncIPRoute() as netlink:
            found = [each async for each in await netlink.addr("dump") if each.get("IFA_PROTO") == PROTOCOL]
            for each in found:
                address, bits = each.get("IFA_LOCAL") or each.get("IFA_ADDRESS"), each["prefixlen"]
                await netlink.addr(
                    "del", index=each["index"], address=address, prefixlen=bits, family=each["family"]
                )
                left.append(f"{address}/{bits}")
    except (NetlinkError, OSError) as error:
        log.error("addresses that an earlier run was lent cannot be removed: %s", error)
    if left:
        log.info("addresses that an earlier run was lent are removed: %s", ", ".join(left[:8]))
