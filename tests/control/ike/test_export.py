"""Exported keys, as Wireshark uses them: tshark reads what the two endpoints said to each other."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from control.ike.events import KeysExported
from control.ike.settings import EndpointSettings
from tests.control.ike.pair import Pair, connection_a, connection_b, ike

RAW_IPV4 = 228  # LINKTYPE_IPV4


def write_capture(path: Path, pair: Pair) -> None:
    """What was carried, as a capture of IPv4 packets; non-ESP marker on port 4500 (RFC 3948 section 2.2)."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, RAW_IPV4))
        for number, datagram in enumerate(pair.carried):
            way = datagram.path
            data = bytes(4) + datagram.data if way.local_port == 4500 else datagram.data
            udp = struct.pack(">HHHH", way.local_port, way.remote_port, 8 + len(data), 0) + data
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0)
            packet = head + way.local.packed + way.remote.packed + udp
            file.write(struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet)


@pytest.mark.parametrize(
    "suite",
    [
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm8-prfsha256-x25519",
        "aes256-sha256-modp2048",
        "aes128-sha384-x25519",
        "aes256-sha512-x25519",
    ],
)
def test_tshark_reads_the_exchange(suite: str, tmp_path: Path) -> None:
    """Identities, of IKE_AUTH and only there, are read out of the SK payloads."""
    allowed = EndpointSettings(export_keys=True)
    settings = {"proposals": ike(suite)}
    pair = Pair(a=connection_a(**settings), b=connection_b(**settings), settings_a=allowed)
    pair.up()
    for table in ("ikev2_decryption_table", "esp_sa"):
        lines = [event.line for event in pair.a.of(KeysExported) if event.table == table]
        assert lines
        (tmp_path / table).write_text("\n".join(lines) + "\n")
    assert not pair.b.of(KeysExported)
    write_capture(tmp_path / "ike.pcap", pair)
    done = subprocess.run(
        ["tshark", "-r", str(tmp_path / "ike.pcap"), "-Y", "isakmp", "-T", "fields"]
        + ["-e", "isakmp.id.data.fqdn", "-e", "isakmp.notify.msgtype"],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert len(shown) == 4, done.stdout + done.stderr
    assert shown[0] == shown[1] == "" and "a.example" in shown[2] and shown[3] == "b.example", shown


def test_nothing_leaves_unasked() -> None:
    assert not Pair(b=connection_b(children=()), a=connection_a(children=())).up(None).a.of(KeysExported)
