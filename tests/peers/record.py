"""Records what two strongSwans say to each other, with all their secrets: `python -m tests.peers.record FILE`, as root.

Each handshake: IKE_SA_INIT, IKE_AUTH with a child, a ping, the child rekeyed with PFS, the IKE SA rekeyed, deleted. The
log at level 4 has every shared secret and key; certificates are the lab's. tests/vectors/strongswan_ike.json is one.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

from control.lab.space import wait_until
from tests.peers import wires
from tests.peers.credentials import lab_card
from tests.peers.site import SECRET, Site
from tests.peers.strongswan import Charon, start_all
from tests.peers.traffic import assert_connected
from tests.peers.wires import Wire

SITES = (
    Site(),
    Site(ike="aes256-sha256-ecp256", esp="aes256-sha256-ecp256", auth="ecdsa256"),
    Site(ike="chacha20poly1305-prfsha384-modp2048", esp="chacha20poly1305-x25519", auth="ed25519"),
    Site(ike="aes192-sha1-prfaesxcbc-modp2048", esp="aes256gcm16-modp2048", auth="rsa2048"),
    Site(ike="aes128-sha512-prfaescmac-ecp384", esp="aes128gcm16-ecp384", auth="ecdsa384"),
)
SECRETS = {
    "shared Diffie Hellman secret": "shared",
    "Sk_d secret": "d",
    "Sk_ai secret": "ai",
    "Sk_ar secret": "ar",
    "Sk_ei secret": "ei",
    "Sk_er secret": "er",
    "Sk_pi secret": "pi",
    "Sk_pr secret": "pr",
    "encryption initiator key": "encryption_i",
    "encryption responder key": "encryption_r",
    "integrity initiator key": "integrity_i",
    "integrity responder key": "integrity_r",
}


def record(site: Site) -> dict[str, Any]:
    """One handshake."""
    with wires.direct() as wire:
        options = {"filelog": {"stderr": {"default": 1, "ike": 4, "chd": 4}}}
        left, right = (
            Charon(wire.spaces[side], wire.directory, options=options) for side in ("left", "right")
        )
        start_all(left, right)
        for side, charon in (("left", left), ("right", right)):
            site.load_charon(charon, wire, side)
        capture = wire.directory / "capture"
        tcpdump = wire.left.start(
            ["tcpdump", "-U", "--immediate-mode", "-i", "eth0", "-w", str(capture), "udp"]
        )
        wait_until(lambda: "listening" in tcpdump.log(), timeout=5, what="tcpdump listens")
        left.initiate(child="net")
        assert_connected(wire)
        _rekey(left, right, wire)
        left.terminate(ike="site")
        time.sleep(0.3)
        tcpdump.stop()
        return {
            "ike": site.ike,
            "esp": site.esp,
            "auth": site.auth,
            "secret": SECRET if site.auth == "psk" else "",
            "certificates": []
            if site.auth == "psk"
            else [lab_card(site.identity(side), site.auth).der.hex() for side in ("left", "right")],
            "datagrams": list(_datagrams(capture.read_bytes())),
            "secrets": _secrets(left.log()),
        }


def _rekey(left: Charon, right: Charon, wire: Wire) -> None:
    child, sa = right.child().spi_in, right.sa().spi_initiator
    left.rekey(child="net")
    wait_until(lambda: right.child().spi_in != child, timeout=5, what="another child")
    assert_connected(wire)
    right.rekey(ike="site")
    wait_until(lambda: left.sa().spi_initiator != sa, timeout=5, what="another IKE SA")


def _datagrams(capture: bytes) -> list[dict[str, str]]:
    """UDP payloads of a pcap file: IKE without marker, or ESP; who sent it."""
    found, at = [], 24
    while at < len(capture):
        length = struct.unpack_from("<I", capture, at + 8)[0]
        frame = capture[at + 16 : at + 16 + length]
        at += 16 + length
        ip = frame[14:]
        payload = ip[28 : int.from_bytes(ip[2:4], "big")]
        nat = int.from_bytes(ip[20:22], "big") == 4500
        kind = "ike" if not nat or payload[:4] == bytes(4) else "esp"
        data = payload[4:] if nat and kind == "ike" else payload
        found.append({"from": "left" if ip[15] == 1 else "right", "kind": kind, "data": data.hex()})
    return found


def _secrets(log: str) -> list[dict[str, str]]:
    """What the log tells in its order: {name: hex}."""
    found: list[dict[str, str]] = []
    lines = iter(log.splitlines())
    for line in lines:
        match = re.search(r"\] (?:  )?([A-Za-z_ ]+) => (\d+) bytes", line)
        if match is None or match[1] not in SECRETS:
            continue
        length = int(match[2])
        content = b""
        while len(content) < length:
            dump = next(lines).split("]", 1)[1].split(":", 1)[1][:50]
            content += bytes.fromhex(dump)
        found.append({SECRETS[match[1]]: content.hex()})
    return found


if __name__ == "__main__":
    version = "strongSwan 5.9.8 (Debian 12), kernel-libipsec; tests/peers/record.py"
    result = {"source": version, "handshakes": [record(site) for site in SITES]}
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")
