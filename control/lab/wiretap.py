"""What is on the cable between the gateways: counted by class, or recorded packet by packet.

1 packet sockets on both bridge ports of the lab's `wire` namespace (`Lab(tapped=True)`), incoming side
only, so that every packet is met once, as it leaves its gateway. 2 A classic BPF program sorts: ESP
(protocol 50, or UDP port 4500), AH (51), housekeeping (ARP, neighbour discovery, multicast listener reports,
ports 500 and 4500 that are not open yet), and clear text: all the rest. 3 `WireTap` lets the kernel count;
`EspRecorder` reads each packet and takes SPI and sequence number.

Counts are of frames as the wire shows them: a UDP super-frame (USO) that virtual links pass on whole counts
as one; the recorder takes it apart.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from ctypes import addressof, create_string_buffer
from types import TracebackType
from typing import Self

from control.lab.space import LabError, Space
from control.lab.topology import Lab
from control.net.kernel import SO_RCVBUFFORCE

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_ATTACH_FILTER = 26
GSO_UDP_L4 = 5  # virtio_net_hdr.gso_type
IKE_PORT, ENCAP_PORT = 500, 4500

# Classic BPF: (opcode, operand, label if true, label if false); "" falls through. Offsets count from the
# link header.
LDW, LDH, LDB, LDXB_MSH, LDW_X, LDH_X = 0x20, 0x28, 0x30, 0xB1, 0x40, 0x48
JEQ, JGE, JGT, JSET, RET = 0x15, 0x35, 0x25, 0x45, 0x06
Instruction = tuple[int, int, str, str]
CLASSIFY: dict[str, list[Instruction]] = {
    "start": [
        (LDH, 12, "", ""),
        (JEQ, 0x0800, "ipv4", ""),
        (JEQ, 0x86DD, "ipv6", ""),
        (JEQ, 0x0806, "housekeeping", "clear"),
    ],
    "ipv4": [
        (LDB, 23, "", ""),
        (JEQ, 50, "esp", ""),
        (JEQ, 51, "ah", ""),
        (JEQ, 17, "udp4", ""),
        (JEQ, 1, "icmp4", "clear"),
    ],
    # Port unreachable about a datagram for port 500 or 4500: IKE came before the peer listened.
    "icmp4": [
        (LDH, 34, "", ""),
        (JEQ, 0x0303, "", "clear"),
        (LDB, 51, "", ""),
        (JEQ, 17, "", "clear"),
        (LDH, 64, "", ""),
        (JEQ, IKE_PORT, "housekeeping", ""),
        (JEQ, ENCAP_PORT, "housekeeping", "clear"),
    ],
    "udp4": [
        (LDH, 20, "", ""),
        (JSET, 0x1FFF, "clear", ""),  # a later fragment shows no ports: nothing vouches for it
        (LDXB_MSH, 14, "", ""),
        (LDH_X, 14, "", ""),
        (JEQ, ENCAP_PORT, "marker4", ""),
        (JEQ, IKE_PORT, "ike", ""),
        (LDH_X, 16, "", ""),
        (JEQ, ENCAP_PORT, "marker4", ""),
        (JEQ, IKE_PORT, "ike", "clear"),
    ],
    # Four zero bytes, where ESP has its SPI (RFC 3948 section 2.2). A NAT keepalive is too short and counts nowhere.
    "marker4": [(LDW_X, 22, "", ""), (JEQ, 0, "ike", "esp")],
    "ipv6": [
        (LDB, 20, "", ""),
        (JEQ, 50, "esp", ""),
        (JEQ, 51, "ah", ""),
        (JEQ, 17, "udp6", ""),
        (JEQ, 58, "icmp6", ""),
        (JEQ, 0, "hop-by-hop", "clear"),
    ],
    "udp6": [
        (LDH, 54, "", ""),
        (JEQ, ENCAP_PORT, "marker6", ""),
        (JEQ, IKE_PORT, "ike", ""),
        (LDH, 56, "", ""),
        (JEQ, ENCAP_PORT, "marker6", ""),
        (JEQ, IKE_PORT, "ike", "clear"),
    ],
    "marker6": [(LDW, 62, "", ""), (JEQ, 0, "ike", "esp")],
    # Router and neighbour discovery, RFC 4861.
    "icmp6": [
        (LDH, 54, "", ""),
        (JEQ, 0x0104, "refused6", ""),
        (LDB, 54, "", ""),
        (JGE, 133, "", "clear"),
        (JGT, 137, "clear", "housekeeping"),
    ],
    "refused6": [
        (LDB, 68, "", ""),
        (JEQ, 17, "", "clear"),
        (LDH, 104, "", ""),
        (JEQ, IKE_PORT, "housekeeping", ""),
        (JEQ, ENCAP_PORT, "housekeeping", "clear"),
    ],
    # Multicast listener reports carry a router alert and go to ff02::16.
    "hop-by-hop": [(LDH, 38, "", ""), (JEQ, 0xFF02, "housekeeping", "clear")],
}
CLASSES = ("esp", "ah", "ike", "housekeeping", "clear")


def build_filter(accept: str) -> bytes:
    """Assemble CLASSIFY as struct sock_filter[]; packets of class `accept` pass whole, others not at all."""
    flat = [instruction for block in CLASSIFY.values() for instruction in block]
    flat += [(RET, 0xFFFF if name == accept else 0, "", "") for name in CLASSES]
    labels, position = {}, 0
    for name, block in CLASSIFY.items():
        labels[name] = position
        position += len(block)
    labels.update({name: position + offset for offset, name in enumerate(CLASSES)})
    code = b""
    for here, (opcode, operand, true, false) in enumerate(flat):
        jumps = [labels[label] - here - 1 if label else 0 for label in (true, false)]
        code += struct.pack("=HBBI", opcode, *jumps, operand)
    return code


def open_tap(space: Space, interface: str, accept: str, *, buffer: int, vnet: bool = False) -> socket.socket:
    """A packet socket for the incoming packets of class `accept`; `buffer` bytes of receive buffer.

    With `vnet` each packet is preceded by a struct virtio_net_hdr, which tells how super-frames divide.
    """

    def make() -> socket.socket:
        # Protocol 0 receives nothing yet: no packet slips in before the filter is there.
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        code = build_filter(accept)
        held = create_string_buffer(code, len(code))
        tap.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, addressof(held))
        )
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if vnet:
            tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        tap.bind((interface, ETH_P_ALL))
        return tap

    return space.call(make)


def tap_statistics(tap: socket.socket) -> tuple[int, int]:
    """(packets that passed the filter, of them dropped for want of buffer) since the last call."""
    return struct.unpack("=II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))


class WireTap:
    """Counts what passes between the gateways of a tapped lab, from its making until `close`."""

    def __init__(self, lab: Lab) -> None:
        """Begin to count."""
        wire = _wire(lab)
        # The kernel counts packets also when the buffer is full, and then drops them before it copies
        # anything: the smallest buffer makes the cheapest counter. What is in clear is kept to be shown.
        self._taps = {
            name: [open_tap(wire, port, name, buffer=1 << 20 if name == "clear" else 0) for port in PORTS]
            for name in CLASSES
        }
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Already counting."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the sockets."""
        self.close()

    def counts(self) -> dict[str, int]:
        """Packets so far by class: "esp", "ah", "ike", "housekeeping", "clear"."""
        for name, taps in self._taps.items():
            for tap in taps:
                self._counts[name] += tap_statistics(tap)[0]
        return {name: self._counts[name] for name in CLASSES}

    def clear_samples(self, limit: int = 5) -> list[str]:
        """Some of the clear-text packets, as text for an error message; each is shown once."""
        samples: list[str] = []
        for tap in self._taps["clear"]:
            while len(samples) < limit:
                try:
                    samples.append(describe(tap.recv(128, socket.MSG_DONTWAIT)))
                except BlockingIOError:
                    break
        return samples

    def close(self) -> None:
        """Close the sockets; the counts stay."""
        self.counts()
        for taps in self._taps.values():
            for tap in taps:
                tap.close()
        self._taps = {}


PORTS = ("port-a", "port-b")


def _wire(lab: Lab) -> Space:
    if "wire" not in lab.spaces:
        raise LabError("this lab has no wire to tap: make it with Lab(tapped=True)")
    return lab.spaces["wire"]


def describe(frame: bytes) -> str:
    """One line about a frame: addresses and protocol if it is IP, else its ethertype."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == 0x0800 and len(frame) >= 34:
        ends = [socket.inet_ntop(socket.AF_INET, frame[at : at + 4]) for at in (26, 30)]
        protocol, length = frame[23], struct.unpack_from("!H", frame, 16)[0]
    elif ethertype == 0x86DD and len(frame) >= 54:
        ends = [socket.inet_ntop(socket.AF_INET6, frame[at : at + 16]) for at in (22, 38)]
        protocol, length = frame[20], 40 + struct.unpack_from("!H", frame, 18)[0]
    else:
        return f"ethertype {ethertype:#06x}, {len(frame)} bytes"
    return f"{ends[0]} > {ends[1]} protocol {protocol}, {length} bytes"


class EspRecorder:
    """Records (SPI, sequence number) of every ESP packet between the gateways of a tapped lab.

    For moderate rates (tens of thousands of packets per second): `missed` tells whether it kept up. The
    sequence number is the 32-bit one on the wire; `ivs` holds the 8 bytes behind it (the AEAD IV) as an
    integer.
    """

    def __init__(self, lab: Lab, *, buffer: int = 64 << 20) -> None:
        """Begin to record; `buffer` bytes of kernel memory per direction bridge our scheduling gaps."""
        self._taps = [open_tap(_wire(lab), port, "esp", buffer=buffer, vnet=True) for port in PORTS]
        self._stop = threading.Event()
        self.packets: list[tuple[int, int, int]] = []  # (SPI, sequence number, IV)
        self.missed = 0
        self._threads = [
            threading.Thread(target=self._read, args=(tap,), name="esp recorder") for tap in self._taps
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        """Already recording."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read what is left, then close."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for tap in self._taps:
            self.missed += tap_statistics(tap)[1]
            tap.close()

    def _read(self, tap: socket.socket) -> None:
        tap.settimeout(0.1)
        while True:
            try:
                frame = tap.recv(1 << 17)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            self.packets.extend(split_esp(frame))

    def repeated(self) -> list[tuple[int, int]]:
        """(SPI, IV) pairs seen more than once; must be empty."""
        counts = Counter((spi, iv) for spi, _, iv in self.packets)
        return [pair for pair, count in counts.items() if count > 1]


def split_esp(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """(SPI, sequence number, IV) of each ESP packet in a frame that begins with a struct virtio_net_hdr."""
    gso_type, gso_size = frame[1], struct.unpack_from("=H", frame, 4)[0]
    start = 10 + 14
    if frame[start] >> 4 == 4:
        protocol, payload = frame[start + 9], start + (frame[start] & 15) * 4
    else:
        protocol, payload = frame[start + 6], start + 40
    if protocol == socket.IPPROTO_UDP:
        payload += 8
    step = gso_size if gso_type == GSO_UDP_L4 and gso_size else len(frame)
    for at in range(payload, len(frame) - 15, step):
        spi, sequence, iv = struct.unpack_from("!IIQ", frame, at)
        if spi != 0:  # zero is the non-ESP marker of IKE, RFC 3948 2.2
            yield spi, sequence, iv
