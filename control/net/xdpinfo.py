"""What a network driver says it can do with XDP (the kernel's `netdev` netlink family, 6.3 and newer).

Only asked by doctor and for error texts: the ports themselves try and take what works.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

NETDEV_CMD_DEV_GET = 1
# include/uapi/linux/netdev.h: enum netdev_xdp_act
_BASIC, _REDIRECT, _ZERO_COPY = 0x1, 0x2, 0x8


class _DeviceMessage(genlmsg):  # type: ignore[misc]
    """NETDEV_A_DEV_*."""

    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "hex"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


@dataclass(frozen=True, kw_only=True)
class XdpFeatures:
    """One interface's XDP features."""

    native: bool  # the driver itself runs the program, and can redirect to sockets
    zero_copy: bool


def xdp_features() -> dict[int, XdpFeatures] | None:
    """Features by interface index; None when the kernel does not tell."""
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _DeviceMessage)
            request = _DeviceMessage()
            request["cmd"], request["version"] = NETDEV_CMD_DEV_GET, 1
            replies = netlink.nlm_request(
                request, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
            )
            found = {}
            for reply in replies:
                bits = int(reply.get("xdp_features") or 0)
                native = bits & (_BASIC | _REDIRECT) == (_BASIC | _REDIRECT)
                found[int(reply.get("ifindex"))] = XdpFeatures(
                    native=native, zero_copy=bool(bits & _ZERO_COPY)
                )
            return found
    except (NetlinkError, OSError):
        return None
