"""The xdp driver: AF_XDP sockets fed by the steering program.

    control:  check_interface(spec, workers) -> attach(spec, ...) -> Steering; its sets follow addresses and policies
    worker k: open_ports([(spec, Attachment), ...], k, pool) -> XskPorts, one per interface

Every worker owns the same queue of each interface. An interface must have exactly as many receive queues as
there are workers: with fewer a worker has nothing to open; what arrives on more has no socket and is dropped.

Limits: Ethernet interfaces without VLAN tags; the frame size bounds the MTU (`largest_mtu`). Up to an MTU of 3498
(`PLAIN_MTU`) the steering program takes one buffer per packet, and on veth the kernel holds the peer to what fits it.
Beyond (jumbo, Linux 6.6), and with a generic program, segmentation super-frames of a veth peer's stack arrive, which
are too long: the peer's TSO must be off.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ext
from dataplane.model import Address, Network, PortSpec, Role
from dataplane.ports.errors import PortError
from ext.packet import Pool
from ext.steering import Steering
from ext.xsk import Umem, XskPort

STEER_OBJECT = Path(ext.__file__ or "").parent / "bpf" / "steer.bpf.o"
ROLES = {Role.PROTECTED: 0, Role.UNPROTECTED: 1}  # ext.packet.Role

XDP_HEADROOM = 256  # bytes the kernel leaves free before each packet
ETHERNET_HEADER = 14
TRAILER_ROOM = 64  # bytes for ESP padding, trailer and ICV behind a packet of full size
FRAME_SIZES = (2048, 4096, 8192, 16384)  # beyond a page, a packet is several buffers to the kernel
# Of one buffer, as veth counts: a page less headrooms, link header and the kernel's own record.
PLAIN_MTU = 3498
QUEUES_MAX = 256  # entries of the XSKMAP

SIOCETHTOOL = 0x8946
ETHTOOL_GCHANNELS = 0x3C


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The queues of an interface, as `ethtool -l` shows them."""

    receive: int  # in use
    receive_most: int  # what the driver or the interface's creator allows
    combined: bool  # receive and transmit queues come in pairs


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What a worker must know of the steering program on an interface."""

    xsks_fd: int  # the XSKMAP
    mode: str  # native or generic


def largest_mtu(frame_size: int) -> int:
    """The largest MTU whose packets fit frames of `frame_size` bytes, ESP trailer included."""
    return frame_size - XDP_HEADROOM - ETHERNET_HEADER - TRAILER_ROOM


def frame_size_for(specs: Sequence[PortSpec]) -> int:
    """The smallest frame size that carries the MTU of every port; PortError names a port that none does."""
    for size in FRAME_SIZES:
        if all(spec.mtu <= largest_mtu(size) for spec in specs):
            return size
    spec = max(specs, key=lambda spec: spec.mtu)
    most = largest_mtu(FRAME_SIZES[-1])
    raise PortError(
        f"{spec.name}: {spec.interface} has an MTU of {spec.mtu}; AF_XDP frames carry {most} at most: "
        f"ip link set dev {spec.interface} mtu {most}"
    )


def channels(interface: str) -> Channels:
    """Ask the driver for the interface's queues; one queue where the driver does not say. OSError if there is none."""
    answer = array.array("I", [ETHTOOL_GCHANNELS, *([0] * 8)])
    request = struct.pack("16sP", interface.encode(), answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, SIOCETHTOOL, request)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise OSError(error.errno, f"ask {interface} for its queues: {error.strerror}") from None
            return Channels(receive=1, receive_most=1, combined=False)
    _, most_rx, _, _, most_combined, rx, _, _, combined = answer
    return Channels(
        receive=max(1, rx + combined),
        receive_most=max(1, most_rx, most_combined),
        combined=most_combined > 0,
    )


def check_interface(spec: PortSpec, workers: int) -> None:
    """PortError, with the command that mends it, unless the interface has one receive queue per worker."""
    if workers > QUEUES_MAX:
        raise PortError(f"{spec.name}: {workers} workers; the xdp driver serves {QUEUES_MAX} at most")
    have = channels(spec.interface)
    if have.receive == workers:
        return
    kind = f"combined {workers}" if have.combined else f"rx {workers} tx {workers}"
    mend = f"ethtool -L {spec.interface} {kind}"
    problem = f"{spec.name}: {spec.interface} has {have.receive} receive queues for {workers} workers"
    if have.receive > workers:
        raise PortError(f"{problem}; what arrives on the others would be dropped: {mend}")
    if have.receive_most >= workers:
        raise PortError(f"{problem}: {mend}")
    raise PortError(
        f"{problem}, and can have {have.receive_most} at most: set workers to {have.receive_most} "
        f"(a veth pair gets more when it is made: ip link add {spec.interface} numrxqueues {workers} "
        f"numtxqueues {workers} type veth peer ...)"
    )


def attach(spec: PortSpec, *, addresses: Iterable[Address] = (), remotes: Iterable[Network] = ()) -> Steering:
    """Load the steering program for one port and attach it in the best mode that `spec.xdp_mode` allows.

    `addresses` are all of this host's, beside the port's own; `remotes` is what the SPD protects or discards,
    there before the first packet is. Both change later by the Steering's `set_locals` and `set_remotes`.
    OSError says what was tried.
    """
    with ExitStack() as undo:
        steering = Steering(str(STEER_OBJECT), spec.interface, ROLES[spec.role], jumbo=spec.mtu > PLAIN_MTU)
        undo.callback(steering.close)
        steering.set_locals([*spec.addresses, *addresses])
        steering.set_remotes(remotes)
        steering.set_encap_ports([spec.encap_port])
        steering.attach_xdp(spec.xdp_mode)
        undo.pop_all()
    return steering


def open_ports(
    ports: Sequence[tuple[PortSpec, Attachment]], queue: int, pool: Pool, *, ring: int = 2048
) -> list[XskPort]:
    """Open `queue` of every interface on one UMEM, zero-copy where all of them can, else copy.

    OSError says what was tried on which interface. Needs CAP_NET_RAW and CAP_BPF; nothing does afterwards.
    """
    choices = {spec.zero_copy for spec, _ in ports} - {"auto"}
    if len(choices) > 1:
        names = ", ".join(f"{spec.name} {spec.zero_copy}" for spec, _ in ports)
        raise PortError(f"zero_copy is one choice for all xdp ports, which share their frames; got {names}")
    zero_copy = choices.pop() if choices else "auto"
    try:
        return _open_all(ports, queue, pool, zero_copy, ring)
    except OSError as error:
        # The first may have got zero-copy and a later one, held to it, cannot. No frame has moved yet.
        if zero_copy != "auto" or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return _open_all(ports, queue, pool, "off", ring)


def _open_all(
    ports: Sequence[tuple[PortSpec, Attachment]], queue: int, pool: Pool, zero_copy: str, ring: int
) -> list[XskPort]:
    umem = Umem(pool, zero_copy)
    # Half of the frames wait for packets, the other half is on its way out or in the kernels' hands.
    fill = min(ring, max(1, pool.frame_count // (2 * len(ports))))
    with ExitStack() as undo:
        opened = []
        for spec, attachment in ports:
            port = XskPort(
                umem,
                spec.name,
                spec.interface,
                queue,
                attachment.xsks_fd,
                role=ROLES[spec.role],
                mtu=spec.mtu,
                addresses=spec.addresses,
                xdp_mode=attachment.mode,
                ring=ring,
                fill=fill,
                busy_poll=spec.busy_poll,
            )
            undo.callback(port.close)
            opened.append(port)
        undo.pop_all()
    return opened
