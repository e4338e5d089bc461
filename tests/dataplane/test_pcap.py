"""Capture files: what scapy and tshark's tools write, we read, and the reverse; damaged files name the place."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapReader, PcapWriter

from dataplane.ports import pcap
from ext import porttool
from ext.memory import MemoryPort
from ext.packet import Pool

PACKETS = [Ether(src="02::1", dst="02::2") / IP(dst="10.0.0.1") / UDP() / bytes(size) for size in (0, 1, 999)]
for number, each in enumerate(PACKETS):
    each.time = 1700000000.25 + number


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_classic_files(tmp_path: Path, nano: bool, endianness: str) -> None:
    """Both units, both byte orders."""
    path = tmp_path / "x.pcap"
    with PcapWriter(str(path), nano=nano, endianness=endianness, linktype=1) as writer:
        for packet in PACKETS:
            writer.write(packet)
    with open(path, "rb") as stream:
        records = list(pcap.read_capture(stream))
    assert [record.data for record in records] == [bytes(packet) for packet in PACKETS]
    assert [record.time for record in records] == [1700000000_250000000 + n * 10**9 for n in range(3)]
    assert {record.link for record in records} == {pcap.ETHERNET}


def test_pcapng(tmp_path: Path) -> None:
    """By scapy's writer, and converted by editcap to nanoseconds."""
    path, other = tmp_path / "x.pcapng", tmp_path / "y.pcapng"
    writer = PcapNgWriter(str(path))
    for packet in PACKETS:
        writer.write(packet)
    writer.close()
    subprocess.run(["editcap", "-F", "nsecpcap", path, tmp_path / "z.pcap"], check=True, capture_output=True)
    subprocess.run(["editcap", "-F", "pcapng", tmp_path / "z.pcap", other], check=True, capture_output=True)
    for each in (path, other):
        with open(each, "rb") as stream:
            records = list(pcap.read_capture(stream))
        assert [record.data for record in records] == [bytes(packet) for packet in PACKETS]
        assert [record.time for record in records] == [1700000000_250000000 + n * 10**9 for n in range(3)]


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A pcapng block."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_by_hand(order: str) -> None:
    """Resolution in powers of two, an offset, a simple packet, an unknown block, a second section."""
    section = block(pcap.SECTION, struct.pack(order + "IHHq", pcap.BYTE_ORDER, 1, 0, -1), order)
    options = struct.pack(order + "HHB3xHHqHH", 9, 1, 0x80 | 10, 14, 8, 100, 0, 0)
    interface = block(pcap.INTERFACE, struct.pack(order + "HHI", 101, 0, 5) + options, order)
    enhanced = block(pcap.ENHANCED, struct.pack(order + "IIIII", 0, 0, 512, 3, 9) + b"abc", order)
    simple = block(pcap.SIMPLE, struct.pack(order + "I", 7) + b"abcdefg", order)
    data = section + interface + block(0xBAD, b"xxxx", order) + enhanced + simple + section
    records = list(pcap.read_capture(io.BytesIO(data)))
    assert [(record.time, record.data, record.length, record.link) for record in records] == [
        (100_500000000, b"abc", 9, pcap.RAW),
        (100_000000000, b"abcde", 7, pcap.RAW),
    ]


def test_what_we_write_others_read(tmp_path: Path) -> None:
    """scapy reads it, and so do we."""
    path = tmp_path / "x.pcap"
    with pcap.CaptureWriter(open(path, "wb"), pcap.ETHERNET) as writer:
        for number, packet in enumerate(PACKETS):
            writer.write(bytes(packet), 1700000000_123456789 + number)
    with PcapReader(str(path)) as reader:
        read = list(reader)
    assert [bytes(packet) for packet in read] == [bytes(packet) for packet in PACKETS]
    assert str(read[0].time) == "1700000000.123456789"
    with open(path, "rb") as stream:
        assert [record.time for record in pcap.read_capture(stream)] == [
            1700000000_123456789 + n for n in range(3)
        ]


def classic(records: bytes, link: int = 1, version: int = 2) -> bytes:
    """A classic little-endian file."""
    return struct.pack("<IHHiIII", pcap.MICROSECONDS, version, 4, 0, 0, 65535, link) + records


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file ends before the file's magic number at byte 0"),
        (b"hello", "no capture file: it begins with 68656c6c"),
        (classic(b"")[:10], "file ends inside the file header at byte 4: 6 of 20"),
        (classic(b"", link=113), "link type 113 at byte 24; Ethernet"),
        (classic(b"", version=3), "pcap version 3; 2 is known"),
        (classic(bytes(7)), "file ends inside a record header at byte 24: 7 of 16"),
        (classic(struct.pack("<IIII", 0, 0, 9, 9) + b"xx"), "file ends inside a record at byte 40: 2 of 9"),
        (classic(struct.pack("<IIII", 0, 0, 1 << 30, 9)), "record of 1073741824 bytes at byte 40"),
        (block(pcap.SECTION, bytes(16)), "section with byte order magic 00000000"),
        (
            block(pcap.SECTION, struct.pack("<IHHq", pcap.BYTE_ORDER, 1, 0, -1)) + block(6, bytes(20)),
            "packet of interface 0 at byte 60; 0 are described",
        ),
        (
            block(pcap.SECTION, struct.pack("<IHHq", pcap.BYTE_ORDER, 1, 0, -1))[:-4] + bytes(4),
            "block of 28 bytes says 0 at its end, byte 28",
        ),
    ],
)
def test_damage_names_its_place(data: bytes, message: str) -> None:
    """Every message says what was wrong and where."""
    with pytest.raises(pcap.CaptureError, match=message):
        list(pcap.read_capture(io.BytesIO(data)))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a"]), st.binary(max_size=200)
)
def test_any_bytes_end_in_records_or_one_error(magic: bytes, rest: bytes) -> None:
    """The reader never raises anything else."""
    try:
        for record in pcap.read_capture(io.BytesIO(magic + rest)):
            assert len(record.data) <= 200
    except pcap.CaptureError:
        pass


def test_run_through_ports() -> None:
    """Records in, packets out with the time of what caused them; wrong records are named."""
    pool = Pool(64)
    source, sink = MemoryPort(pool, "in"), MemoryPort(pool, "out")
    records = [
        pcap.Record(time=number, link=pcap.RAW, length=3, data=b"ab%d" % number) for number in range(5)
    ]
    came = pcap.run_through(
        iter(records), source, [sink], lambda: porttool.forward(source, sink, 1.0, limit=1)
    )
    assert [(time, packet) for _, time, packet in came] == [(number, b"ab%d" % number) for number in range(5)]
    assert pool.free_count == 64
    for wrong, message in (
        (pcap.Record(time=0, link=pcap.ETHERNET, length=1, data=b"a"), "link type 1; port in takes 101"),
        (pcap.Record(time=0, link=pcap.RAW, length=9, data=b"a"), "packet 1 was cut to 1 of 9 bytes"),
    ):
        with pytest.raises(pcap.CaptureError, match=message):
            list(pcap.run_through(iter([wrong]), source, [sink], lambda: None))
