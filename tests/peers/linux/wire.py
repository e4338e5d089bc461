"""A namespace and the guest as two peers on a cable, in the words of `tests.peers.wires`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from control.lab.space import PREFIX, free_tag, make_spaces
from control.lab.topology import SignalsRaise
from tests.peers.linux.guest import Guest
from tests.peers.wires import INSIDE, Wire, two_behind_one

OUTSIDE = {"left": {4: "192.0.2.1", 6: "2001:db8::1"}, "right": {4: "192.0.2.2", 6: "2001:db8::2"}}
LENGTH = {4: 24, 6: 64}
MTU = 1500


@contextlib.contextmanager
def to_guest(guest: Guest) -> Iterator[Wire]:
    """A cable from a namespace, left, to the guest, right; `spaces["right"]` is the guest's wire and runs nothing."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(SignalsRaise())
        tag = free_tag()
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{tag}-peer-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        (left,) = make_spaces([f"{PREFIX}-{tag}-left"], directory)
        stack.callback(left.close)
        left.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__default__router_solicitations=0)
        stack.enter_context(guest.attached(left, "eth0"))
        addresses = {
            side: [
                *(f"{OUTSIDE[side][version]}/{LENGTH[version]} dev eth0" for version in (4, 6)),
                *(f"{INSIDE[side][version][0]}/{LENGTH[version]} dev lo" for version in (4, 6)),
            ]
            for side in INSIDE
        }
        left.ip(
            f"link set eth0 mtu {MTU} up",
            "link set lo up",
            *(f"address add {each}" for each in addresses["left"]),
        )
        guest.ip(
            f"link set eth0 mtu {MTU}",
            *(f"address replace {each}{' nodad' if ':' in each else ''}" for each in addresses["right"]),
        )
        stack.callback(guest.ip, *(f"address delete {each}" for each in addresses["right"]))
        yield Wire(
            spaces={"left": left, "right": guest.space},
            directory=directory,
            outside={side: dict(each) for side, each in OUTSIDE.items()},
        )


@contextlib.contextmanager
def behind_nat(guest: Guest) -> Iterator[Wire]:
    """As `wires.two_behind_one`, with the guest in the place of left."""
    with two_behind_one(left=False) as wire, guest.attached(wire.middle, "near"):
        wire.middle.ip("address add 10.0.0.1/24 dev near", f"link set near mtu {MTU} up")
        guest.ip(
            f"link set eth0 mtu {MTU}",
            "address replace 10.0.0.2/24 dev eth0",
            "route replace default via 10.0.0.1",
        )
        wire.spaces["left"], wire.outside["left"] = guest.space, {4: "10.0.0.2"}
        try:
            yield wire
        finally:
            guest.ip("route delete default via 10.0.0.1", "address delete 10.0.0.2/24 dev eth0")
