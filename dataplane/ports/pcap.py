"""Capture files for offline work: read classic pcap and pcapng, write classic pcap, and run one through memory ports.

    read_capture    file -> Records, in order; both byte orders, microseconds and nanoseconds
    CaptureWriter   packets -> classic pcap with nanoseconds
    run_through     Records -> injected one by one -> the loop's step -> what came out, with its cause's time

pcapng: section headers, interface descriptions (if_tsresol, if_tsoffset), enhanced and simple packet blocks; other
blocks are stepped over. Link types: Ethernet and raw IP (and its IPv4-only and IPv6-only kinds).
Not handled: compressed files, the obsolete packet block of pcapng, capture options such as comments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from ext.memory import MemoryPort

ETHERNET = 1
RAW = 101
RAW_KINDS = (RAW, 12, 14, 228, 229)  # LINKTYPE_RAW, DLT_RAW of two systems, LINKTYPE_IPV4, LINKTYPE_IPV6
LENGTH_MAX = 1 << 18  # bytes: no record of a sane file is longer

MICROSECONDS, NANOSECONDS, SECTION = 0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A
BYTE_ORDER = 0x1A2B3C4D
INTERFACE, SIMPLE, ENHANCED = 1, 3, 6
OPTION_TSRESOL, OPTION_TSOFFSET = 9, 14


class CaptureError(ValueError):
    """A capture file that cannot be read; the text says where and why."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One captured packet."""

    time: int  # nanoseconds since 1970
    link: int  # ETHERNET or RAW
    length: int  # bytes on the wire; more than len(data) when the capture was cut short
    data: bytes = field(repr=False)


class _Source:
    """A stream with its place, so that errors can name it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.offset = 0

    def read(self, size: int, what: str) -> bytes:
        """Exactly `size` bytes, or none at the end of the file."""
        data = self.stream.read(size)
        if data and len(data) < size:
            raise CaptureError(f"file ends inside {what} at byte {self.offset}: {len(data)} of {size} bytes")
        self.offset += len(data)
        return data

    def need(self, size: int, what: str) -> bytes:
        """As `read`, but the end of the file is an error, too."""
        data = self.read(size, what)
        if len(data) < size:
            raise CaptureError(f"file ends before {what} at byte {self.offset}")
        return data


def read_capture(stream: BinaryIO) -> Iterator[Record]:
    """Every packet of a pcap or pcapng file. CaptureError for anything else, when it is met."""
    source = _Source(stream)
    magic = source.need(4, "the file's magic number")
    for order in "<>":
        (number,) = struct.unpack(order + "I", magic)
        if number == SECTION:  # a palindrome: the byte order comes later
            return _read_pcapng(source)
        if number in (MICROSECONDS, NANOSECONDS):
            return _read_pcap(source, order, 1 if number == NANOSECONDS else 1000)
    raise CaptureError(f"no capture file: it begins with {magic.hex()}; pcap and pcapng are known")


def _link(number: int, source: _Source) -> int:
    """ETHERNET or RAW for a link type of the file."""
    if number == ETHERNET:
        return ETHERNET
    if number in RAW_KINDS:
        return RAW
    raise CaptureError(f"link type {number} at byte {source.offset}; Ethernet (1) and raw IP (101) are known")


def _check_length(length: int, source: _Source) -> int:
    if length > LENGTH_MAX:
        raise CaptureError(f"record of {length} bytes at byte {source.offset}; {LENGTH_MAX} is the most")
    return length


def _read_pcap(source: _Source, order: str, unit: int) -> Iterator[Record]:
    header = source.need(20, "the file header")
    major, _, _, _, _, network = struct.unpack(order + "HHiIII", header)
    if major != 2:
        raise CaptureError(f"pcap version {major}; 2 is known")
    link = _link(network & 0x0FFFFFFF, source)
    while head := source.read(16, "a record header"):
        seconds, fraction, size, length = struct.unpack(order + "IIII", head)
        data = source.need(_check_length(size, source), "a record") if size else b""
        yield Record(time=seconds * 10**9 + fraction * unit, link=link, length=length, data=data)


@dataclass(frozen=True, kw_only=True)
class _Interface:
    """What a pcapng interface description says; a link type that we do not know matters only to its packets."""

    link: int
    snap: int  # bytes kept of each packet; 0: all
    units: int  # per second
    offset: int  # seconds added to each time


def _read_pcapng(source: _Source) -> Iterator[Record]:
    interfaces: list[_Interface] = []
    order = "<"
    kind_bytes = struct.pack("<I", SECTION)
    while kind_bytes:
        (kind,) = struct.unpack(order + "I", kind_bytes)
        if kind == SECTION:
            order, body = _read_section(source)
            interfaces = []
        else:
            body = _read_body(source, order, source.need(4, "a block's length"))
        if kind == INTERFACE:
            interfaces.append(_read_interface(body, order, source))
        elif kind in (ENHANCED, SIMPLE):
            yield _read_packet(kind, body, order, interfaces, source)
        kind_bytes = source.read(4, "a block's type")


def _read_section(source: _Source) -> tuple[str, bytes]:
    """The rest of a section header block, whose byte order is known only after its length."""
    length = source.need(4, "a section's length")
    magic = source.need(4, "a section's byte order")
    for order in "<>":
        if struct.unpack(order + "I", magic)[0] == BYTE_ORDER:
            return order, _read_body(source, order, length, magic)
    raise CaptureError(f"section with byte order magic {magic.hex()} at byte {source.offset}")


def _read_body(source: _Source, order: str, length_bytes: bytes, begun: bytes = b"") -> bytes:
    """What lies between a block's two lengths; `begun` has been read already."""
    (length,) = struct.unpack(order + "I", length_bytes)
    if length < 12 + len(begun) or length % 4:
        raise CaptureError(f"block of {length} bytes at byte {source.offset}")
    body = (
        begun + source.need(_check_length(length, source) - 12 - len(begun), "a block")
        if length > 12
        else b""
    )
    (again,) = struct.unpack(order + "I", source.need(4, "a block's second length"))
    if again != length:
        raise CaptureError(f"block of {length} bytes says {again} at its end, byte {source.offset}")
    return body


def _read_interface(body: bytes, order: str, source: _Source) -> _Interface:
    if len(body) < 8:
        raise CaptureError(
            f"interface description of {len(body)} bytes at byte {source.offset}; 8 is the least"
        )
    link, _, snap = struct.unpack_from(order + "HHI", body)
    units, offset = 10**6, 0
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == OPTION_TSRESOL and len(value) == 1:
            units = 2 ** (value[0] & 127) if value[0] & 128 else 10 ** value[0]
        elif code == OPTION_TSOFFSET and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
        at += 4 + (size + 3) // 4 * 4
    return _Interface(link=link, snap=snap, units=units, offset=offset)


def _read_packet(
    kind: int, body: bytes, order: str, interfaces: Sequence[_Interface], source: _Source
) -> Record:
    """An enhanced or a simple packet block; the latter belongs to interface 0 and tells no time."""
    least = 20 if kind == ENHANCED else 4
    if len(body) < least:
        raise CaptureError(f"packet block of {len(body)} bytes at byte {source.offset}; {least} is the least")
    index, ticks = 0, 0
    if kind == ENHANCED:
        index, high, low, size, length = struct.unpack_from(order + "IIIII", body)
        ticks = high << 32 | low
    else:
        (length,) = struct.unpack_from(order + "I", body)
        size = min(length, len(body) - 4)
    if index >= len(interfaces):
        raise CaptureError(
            f"packet of interface {index} at byte {source.offset}; {len(interfaces)} are described"
        )
    interface = interfaces[index]
    if kind == SIMPLE and interface.snap:
        size = min(size, interface.snap)
    if least + size > len(body):
        raise CaptureError(f"packet of {size} bytes in a block of {len(body)} at byte {source.offset}")
    return Record(
        time=ticks * 10**9 // interface.units + interface.offset * 10**9,
        link=_link(interface.link, source),
        length=length,
        data=body[least : least + size],
    )


class CaptureWriter:
    """Write packets to a classic pcap file with nanoseconds; `link` is ETHERNET or RAW. Owns the stream."""

    def __init__(self, stream: BinaryIO, link: int) -> None:
        self.stream = stream
        stream.write(struct.pack("<IHHiIII", NANOSECONDS, 2, 4, 0, 0, LENGTH_MAX, link))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()

    def write(self, data: bytes, time: int) -> None:
        """One packet; `time` in nanoseconds since 1970."""
        seconds, nanoseconds = divmod(time, 10**9)
        self.stream.write(struct.pack("<IIII", seconds, nanoseconds, len(data), len(data)) + data)


def run_through(
    records: Iterator[Record], source: MemoryPort, sinks: Sequence[MemoryPort], step: Callable[[], object]
) -> Iterator[tuple[MemoryPort, int, bytes]]:
    """Inject each record into `source`, let `step` run, and yield (port, time, packet) for what comes out of `sinks`.

    CaptureError for a record of the other link type or cut short by the capture; ValueError for one longer than a
    frame.
    """
    wanted = ETHERNET if source.link == 0 else RAW
    for number, record in enumerate(records, 1):
        if record.link != wanted:
            raise CaptureError(
                f"packet {number} has link type {record.link}; port {source.name} takes {wanted}"
            )
        if record.length > len(record.data):
            raise CaptureError(
                f"packet {number} was cut to {len(record.data)} of {record.length} bytes when it was captured"
            )
        source.inject([record.data])
        step()
        for sink in sinks:
            for packet in sink.collect():
                yield sink, record.time, packet
