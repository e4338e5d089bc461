"""All drivers behind two functions: what control prepares once per port, and what each worker opens.

    control   prepare(spec, ...) -> PreparedPort: steering program, TUN device; owns what must outlive a worker
    worker    open_ports([(spec, info, fds), ...], index, workers, pool) -> PortHandles, in the same order

The drivers' own modules are imported when one of their ports is, so a gateway of TUN ports needs no libxdp.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from ipaddress import ip_address
from typing import Any

from dataplane.model import Address, Network, PortSpec, Role
from dataplane.ports.errors import PortError
from ext.packet import Pool, PortHandle

DRIVERS = ("xdp", "packet", "tun", "udp", "raw", "memory")
REASSEMBLING = ("udp", "raw")  # their packets may come to the kernel in pieces
#: Frames per port: what its rings can hold in both directions, and what a worker has in hand.
RING_FRAMES = 4096
JUMBO_FRAMES = 2048  # instead, of frames larger than a page: their memory is pinned
PAGE = 4096
SOCKET_FRAMES = 1024
HELPER_FRAMES = 256
SPARE_FRAMES = 512
FRAME_OVERHEAD = 256 + 14 + 64  # headroom, link header, and ESP's trailer behind a packet of full size

#: Outer packets come from the kernel's sockets reassembled, whatever the MTU: so long at least
#: (docs/adr/0067-the-kernel-reassembles.md).
REASSEMBLED_MOST = 7800

_ROLE_NUMBERS = {Role.PROTECTED: 0, Role.UNPROTECTED: 1}
_LINK_IP = 1


@dataclass(kw_only=True)
class PreparedPort:
    """Control's share of a port: alive from before the first worker until after the last."""

    spec: PortSpec
    mode: str = ""  # of the steering program
    fds: dict[str, int] = field(default_factory=dict)  # lent to every worker
    set_remotes: Callable[[Iterable[Network]], None] = lambda networks: None
    set_locals: Callable[[Iterable[Address]], None] = lambda addresses: None
    close: Callable[[], None] = lambda: None
    # As `close`, but what is steered stays dropped until the next start.
    leave: Callable[[], None] | None = None


def prepare(
    spec: PortSpec, *, workers: int, addresses: Iterable[Address] = (), remotes: Iterable[Network] = ()
) -> PreparedPort:
    """Do what must be done once per port. PortError or OSError say what is wrong and what mends it."""
    if spec.driver not in DRIVERS:
        raise PortError(f"{spec.name}: driver {spec.driver!r}; there are {', '.join(DRIVERS)}")
    if spec.driver == "xdp":
        return _prepare_xdp(spec, workers, addresses, remotes)
    if spec.driver == "packet":
        return _prepare_packet(spec, addresses, remotes)
    if spec.driver == "tun":
        return _prepare_tun(spec)
    return PreparedPort(spec=spec)


def _prepare_xdp(
    spec: PortSpec, workers: int, addresses: Iterable[Address], remotes: Iterable[Network]
) -> PreparedPort:
    from dataplane.ports import xdp

    xdp.check_interface(spec, workers)
    steering = xdp.attach(spec, addresses=addresses, remotes=remotes)
    return PreparedPort(
        spec=spec,
        mode=steering.mode,
        fds={"xsks": steering.xsks_fd},
        set_remotes=steering.set_remotes,
        set_locals=lambda more: steering.set_locals([*spec.addresses, *more]),
        close=steering.close,
        leave=steering.leave,
    )


def _prepare_packet(spec: PortSpec, addresses: Iterable[Address], remotes: Iterable[Network]) -> PreparedPort:
    """The same program twice: as the sockets' filter, and at tc's ingress so that the kernel leaves it to us."""
    from dataplane.ports import xdp
    from ext.steering import Steering

    with ExitStack() as undo:
        steering = Steering(str(xdp.STEER_OBJECT), spec.interface, _ROLE_NUMBERS[spec.role])
        undo.callback(steering.close)
        steering.set_locals([*spec.addresses, *addresses])
        steering.set_remotes(remotes)
        steering.set_encap_ports([spec.encap_port])
        steering.attach_tc()
        filter_fd = steering.socket_filter_fd()
        undo.pop_all()

    def end(steering_end: Callable[[], None]) -> None:
        os.close(filter_fd)
        steering_end()

    return PreparedPort(
        spec=spec,
        mode="tc",
        fds={"filter": filter_fd},
        set_remotes=steering.set_remotes,
        set_locals=lambda more: steering.set_locals([*spec.addresses, *more]),
        close=lambda: end(steering.close),
        leave=lambda: end(steering.leave),
    )


def _prepare_tun(spec: PortSpec) -> PreparedPort:
    """The device lives as long as control: a worker's death takes only its queue along."""
    from dataplane.ports import tun

    keeper = tun.create_device(spec.interface)
    return PreparedPort(spec=spec, close=lambda: os.close(keeper))


# --- the worker's side -------------------------------------------------------------------------------

Assigned = tuple[PortSpec, str, Mapping[str, int]]  # spec, mode of the steering program, descriptors


def frame_size(specs: Sequence[PortSpec]) -> int:
    """Bytes of the frames that carry every port's packets.

    Where a worker reads ESP from sockets, its frames hold more than any port's MTU: peers may fragment what they have
    enciphered. Frames of `xdp` ports do not, since most of their memory is in use all the time.
    """
    rings = [spec for spec in specs if spec.driver == "xdp"]
    if rings:
        from dataplane.ports import xdp

        return xdp.frame_size_for(specs)
    largest = max(spec.mtu for spec in specs)
    if any(spec.role is Role.UNPROTECTED and spec.driver in REASSEMBLING for spec in specs):
        largest = max(largest, REASSEMBLED_MOST)
    return max(2048, 1 << (largest + FRAME_OVERHEAD - 1).bit_length())


def frame_count(specs: Sequence[PortSpec]) -> int:
    """Frames that a worker needs for these ports."""
    ring = RING_FRAMES if frame_size(specs) <= PAGE else JUMBO_FRAMES
    return SPARE_FRAMES + sum(
        HELPER_FRAMES if spec.helper else ring if spec.driver == "xdp" else SOCKET_FRAMES for spec in specs
    )


def open_ports(assigned: Sequence[Assigned], index: int, workers: int, pool: Pool) -> list[PortHandle]:
    """Open queue `index` of every port; OSError and PortError name the port and what was tried."""
    handles: dict[str, PortHandle] = {}
    rings = [(spec, mode, fds) for spec, mode, fds in assigned if spec.driver == "xdp"]
    if rings:
        from dataplane.ports import xdp

        attached = [(spec, xdp.Attachment(xsks_fd=fds["xsks"], mode=mode)) for spec, mode, fds in rings]
        # All on one UMEM, so they are opened together.
        for port in xdp.open_ports(attached, index, pool):
            handles[port.name] = port
    for spec, _, fds in assigned:
        if spec.driver != "xdp":
            handles[spec.name] = _open_port(spec, index, workers, pool, fds)
    return [handles[spec.name] for spec, _, _ in assigned]


def _open_port(spec: PortSpec, queue: int, workers: int, pool: Pool, fds: Mapping[str, int]) -> PortHandle:
    """One port that needs no other."""
    if spec.driver == "memory":
        from ext.memory import MemoryPort

        return MemoryPort(
            pool, spec.name, _ROLE_NUMBERS[spec.role], _LINK_IP, spec.mtu, spec.addresses, capacity=256
        )
    module = import_module(f"dataplane.ports.{spec.driver}")
    handle: PortHandle = module.open_port(spec, queue=queue, workers=workers, pool=pool, fds=fds)
    return handle


def open_kernel(pool: Pool) -> PortHandle:
    """The raw sockets through which the kernel routes what has no adjacency yet."""
    from dataplane.ports import kernel

    return kernel.open_port(pool)


def preload(drivers: Iterable[str] = DRIVERS) -> None:
    """Import what workers will need, so that each of them does not."""
    for driver in (*drivers, "kernel"):
        with suppress(ImportError):  # a library that is not there matters only to whoever opens such a port
            import_module("ext.memory" if driver == "memory" else f"dataplane.ports.{driver}")


# --- specifications on the channel -------------------------------------------------------------------


def port_to_json(spec: PortSpec) -> dict[str, Any]:
    """A PortSpec as JSON holds it."""
    fields = asdict(spec)
    fields["role"] = spec.role.value
    fields["mac"] = spec.mac.hex()
    fields["addresses"] = [str(address) for address in spec.addresses]
    return fields


def port_from_json(fields: dict[str, Any]) -> PortSpec:
    """The reverse of `port_to_json`."""
    return PortSpec(
        **{
            **fields,
            "role": Role(fields["role"]),
            "mac": bytes.fromhex(fields["mac"]),
            "addresses": tuple(ip_address(address) for address in fields["addresses"]),
        }
    )
