"""`esplanade pcap`: captures through the real kernels, against scapy's own ESP."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap, wrpcap

from control import cli

KEYS = {"ab": "8f1c5e0d7b2a49639ad4c17e2b60f3581d5ae247", "ba": "27d9b04c6ef8451aa3075c9be1d2486f90c3f7b1"}


def config(path: Path, *, site: str, encap: bool = False) -> Path:
    """The configuration of site "a" or "b" of one tunnel."""
    here, there = ("1", "2") if site == "a" else ("2", "1")
    out, inbound = ("ab", "ba") if site == "a" else ("ba", "ab")
    text = """
        [[port]]
        name = "lan"
        role = "protected"
        driver = "packet"
        interface = "eth1"
        [[port]]
        name = "wan"
        role = "unprotected"
        driver = "packet"
        interface = "eth0"
    """
    for name, direction, spi in (
        (out, "out", 0x1001 if out == "ab" else 0x1002),
        (inbound, "in", 0x1001 if inbound == "ab" else 0x1002),
    ):
        text += f"""
        [[sa]]
        name = "{name}"
        direction = "{direction}"
        spi = {spi}
        local = "192.0.2.{here}"
        remote = "192.0.2.{there}"
        proposal = "aes128gcm16"
        encryption_key = "{KEYS[name]}"
        encap = {str(encap).lower()}
        """
    text += f"""
        [[policy]]
        name = "p"
        local = ["10.{here}.0.0/16", "2001:db8:{here}::/48"]
        remote = ["10.{there}.0.0/16", "2001:db8:{there}::/48"]
        out = "{out}"
        in = "{inbound}"
        [[policy]]
        name = "web"
        action = "bypass"
        protocol = "tcp"
        remote_port = 80
    """
    path.write_text(text)
    path.chmod(0o600)
    return path


ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
INNER: list[Packet] = [
    IP(src="10.1.0.5", dst="10.2.0.9") / UDP(sport=5, dport=6) / Raw(b"x" * 100),
    IP(src="10.1.0.5", dst="10.2.0.9") / ICMP() / Raw(b"y" * 1300),
    IPv6(src="2001:db8:1::5", dst="2001:db8:2::9") / UDP(sport=5, dport=6) / Raw(b"z" * 9000),
]


def strip_ttl(packet: Packet) -> bytes:
    """The packet with TTL 0: gateways count it down."""
    packet = packet.copy()
    if IP in packet:
        packet[IP].ttl, packet[IP].chksum = 0, 0
    else:
        packet[IPv6].hlim = 0
    return bytes(packet)


@pytest.mark.parametrize("encap", [False, True])
def test_there_and_back(tmp_path: Path, encap: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Encrypt an Ethernet capture at A, look at it with scapy, decrypt it at B: the same packets at the same times."""
    frames = [ETHER / packet for packet in INNER]
    for number, frame in enumerate(frames):
        frame.time = 1_700_000_000 + number / 8
    wrpcap(str(tmp_path / "clear.pcap"), frames)
    a, b = (
        config(tmp_path / "a.toml", site="a", encap=encap),
        config(tmp_path / "b.toml", site="b", encap=encap),
    )
    assert (
        cli.main(["pcap", "--config", str(a), str(tmp_path / "clear.pcap"), str(tmp_path / "esp.pcap")]) == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("3 packets read, 3 written to ") and "3  encrypt: pass" in shown
    sealed = rdpcap(str(tmp_path / "esp.pcap"))
    key = bytes.fromhex(KEYS["ab"])
    scapy_sa = SecurityAssociation(
        ESP,
        spi=0x1001,
        crypt_algo="AES-GCM",
        crypt_key=key,
        tunnel_header=IP(src="192.0.2.1", dst="192.0.2.2"),
    )
    for packet, inner, frame in zip(sealed, INNER, frames, strict=True):
        assert float(packet.time) == float(frame.time)
        assert (packet[IP].src, packet[IP].dst, UDP in packet) == ("192.0.2.1", "192.0.2.2", encap)
        if not encap:
            opened = scapy_sa.decrypt(IP(bytes(packet)))
            assert strip_ttl(opened) == strip_ttl(type(inner)(bytes(inner)))
    assert (
        cli.main(["pcap", "--config", str(b), str(tmp_path / "esp.pcap"), str(tmp_path / "back.pcap")]) == 0
    )
    assert "3  decrypt: pass" in capsys.readouterr().out
    back = rdpcap(str(tmp_path / "back.pcap"))
    assert [strip_ttl(packet) for packet in back] == [
        strip_ttl(type(packet)(bytes(packet))) for packet in INNER
    ]
    assert [float(packet.time) for packet in back] == [float(frame.time) for frame in frames]


def test_every_drop_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = config(tmp_path / "a.toml", site="a"), config(tmp_path / "b.toml", site="b")
    clear = [
        ETHER / INNER[0],
        ETHER / ARP(),
        ETHER / IP(src="10.1.0.5", dst="10.9.0.9") / UDP(),
        ETHER / IP(src="10.1.0.5", dst="10.9.0.9") / TCP(dport=80),
    ]
    wrpcap(str(tmp_path / "clear.pcap"), clear)
    assert (
        cli.main(["pcap", "--config", str(a), str(tmp_path / "clear.pcap"), str(tmp_path / "esp.pcap")]) == 0
    )
    shown = capsys.readouterr().out
    for verdict in ("encrypt: pass", "encrypt: not_ip", "encrypt: no_policy", "encrypt: bypassed"):
        assert f"1  {verdict}" in shown
    good = bytes(rdpcap(str(tmp_path / "esp.pcap"))[0])
    wrong = bytearray(good)
    wrong[-1] ^= 1
    unknown = bytearray(good)
    unknown[20:24] = b"\0\0\x77\x77"
    wrpcap(str(tmp_path / "bad.pcap"), [IP(good), IP(good), IP(bytes(wrong)), IP(bytes(unknown))])
    assert (
        cli.main(
            ["pcap", "-c", str(b), "--direction", "in", str(tmp_path / "bad.pcap"), str(tmp_path / "o.pcap")]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("4 packets read, 1 written to ")
    # The damaged copy has the number of the first one: the replay check comes before the cipher.
    for line in ("1  decrypt: pass", "2  decrypt: replay", "1  decrypt: no_sa"):
        assert line in shown


def test_a_damaged_packet_fails_its_integrity_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = config(tmp_path / "a.toml", site="a"), config(tmp_path / "b.toml", site="b")
    wrpcap(str(tmp_path / "clear.pcap"), [ETHER / INNER[0]])
    assert cli.main(["pcap", "-c", str(a), str(tmp_path / "clear.pcap"), str(tmp_path / "esp.pcap")]) == 0
    damaged = bytearray(bytes(rdpcap(str(tmp_path / "esp.pcap"))[0]))
    damaged[60] ^= 0x80
    wrpcap(str(tmp_path / "bad.pcap"), [IP(bytes(damaged))])
    assert cli.main(["pcap", "-c", str(b), str(tmp_path / "bad.pcap"), str(tmp_path / "o.pcap")]) == 0
    assert "1  decrypt: integrity" in capsys.readouterr().out


def test_cut_packets_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytes(ETHER / INNER[0])
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    (tmp_path / "cut.pcap").write_bytes(header + struct.pack("<IIII", 1, 2, 60, len(data)) + data[:60])
    path = config(tmp_path / "a.toml", site="a")
    assert cli.main(["pcap", "-c", str(path), str(tmp_path / "cut.pcap"), str(tmp_path / "o.pcap")]) == 0
    assert "1  encrypt: cut_short" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "ends before"),
        (b"no capture at all", "no capture file"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 147), "link type 147"),
    ],
)
def test_bad_files_say_why_and_leave_no_output(
    tmp_path: Path, content: bytes | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "in.pcap").write_bytes(content)
    path = config(tmp_path / "a.toml", site="a")
    assert cli.main(["pcap", "-c", str(path), str(tmp_path / "in.pcap"), str(tmp_path / "out.pcap")]) == 1
    assert complaint in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir() if "out" in entry.name) == []


def test_pipes_and_links_stay_what_they_are(tmp_path: Path) -> None:
    """A pipe (or a device, such as /dev/null) is written to, not replaced; so is the file behind a link."""
    a = config(tmp_path / "a.toml", site="a")
    clear, pipe, link, target = (tmp_path / name for name in ("clear.pcap", "pipe", "link", "target.pcap"))
    wrpcap(str(clear), [ETHER / packet for packet in INNER])
    link.symlink_to(target)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for out in (pipe, link):
            assert cli.main(["pcap", "--config", str(a), str(clear), str(out)]) == 0
        assert pipe.is_fifo()
        assert link.is_symlink()
        assert len(rdpcap(str(target))) == len(INNER)
        assert len(os.read(reader, 1 << 16)) == target.stat().st_size
    finally:
        os.close(reader)


@pytest.mark.parametrize("encap", [False, True])
def test_transport_mode(tmp_path: Path, encap: bool) -> None:
    """Between two hosts: the packets' own headers stay, scapy opens them, and they come back as they went."""
    paths = {}
    for site in "ab":
        path = config(tmp_path / f"{site}.toml", site=site, encap=encap)
        text = path.read_text().replace("proposal =", 'mode = "transport"\n        proposal =')
        here, there = ("1", "2") if site == "a" else ("2", "1")
        text = text.replace(f'["10.{here}.0.0/16", "2001:db8:{here}::/48"]', f'"192.0.2.{here}"')
        path.write_text(text.replace(f'["10.{there}.0.0/16", "2001:db8:{there}::/48"]', f'"192.0.2.{there}"'))
        paths[site] = str(path)
    host = IP(src="192.0.2.1", dst="192.0.2.2", ttl=7, id=99)
    inner = [host / UDP(sport=5, dport=6) / Raw(b"x" * size) for size in (0, 1, 1300, 8900)]
    wrpcap(str(tmp_path / "clear.pcap"), inner)
    clear, esp, back = (str(tmp_path / f"{name}.pcap") for name in ("clear", "esp", "back"))
    assert cli.main(["pcap", "--config", paths["a"], clear, esp]) == 0
    peer = SecurityAssociation(
        ESP,
        spi=0x1001,
        crypt_algo="AES-GCM",
        crypt_key=bytes.fromhex(KEYS["ab"]),
        nat_t_header=UDP(sport=4500, dport=4500) if encap else None,
    )
    for packet, wanted in zip(rdpcap(esp), inner, strict=True):
        assert (packet[IP].ttl, packet[IP].id, UDP in packet) == (7, 99, encap)
        assert bytes(peer.decrypt(IP(bytes(packet)))) == bytes(wanted)
    assert cli.main(["pcap", "--config", paths["b"], esp, back]) == 0
    assert [bytes(packet[IP]) for packet in rdpcap(back)] == [bytes(packet) for packet in inner]
