"""A flood of IKE_SA_INIT requests from spoofed addresses: `python -m tests.peers.flood TARGET RATE SECONDS`, as root.

Every request is one that a responder would answer: a whole proposal, a key exchange value and a nonce; source
address, SPI and public value differ each time. The sources are in 198.18.0.0/15 (RFC 2544): the target needs a route
for its answers. Prints how many were sent, and in how many seconds.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address

from control.ike.numbers import Exchange, Group, Protocol
from control.ike.proposal import parse_proposal
from control.ike.wire import Header, KePayload, NoncePayload, SaPayload, build_message

SOURCES = int(ip_address("198.18.0.0"))
SOURCE_COUNT = 1 << 17
PROPOSAL = "aes128gcm16-prfsha256-x25519"
BURST_SECONDS = 0.005


def requests(target: str) -> Iterator[bytes]:
    """IPv4 packets without end."""
    dice = random.Random(7)
    offer = parse_proposal(Protocol.IKE, PROPOSAL).to_wire(1)
    public = bytes(32)
    header = Header(
        initiator_spi=b"initspi0", exchange=Exchange.IKE_SA_INIT, initiator=True, response=False, message_id=0
    )
    message = build_message(
        header,
        [
            SaPayload(proposals=(offer,)),
            KePayload(group=Group.CURVE25519, public=public),
            NoncePayload(data=bytes(32)),
        ],
    )
    at = message.index(public)
    before, after = message[8:at], message[at + len(public) :]
    length = len(message)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 28 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
    # No UDP checksum: IPv4 lets a sender leave it out (RFC 768).
    udp = ip_address(target).packed + struct.pack(">HHHH", 500, 500, 8 + length, 0)
    while True:
        source = struct.pack(">I", SOURCES + dice.randrange(SOURCE_COUNT))
        yield b"".join((ip, source, udp, dice.randbytes(8), before, dice.randbytes(32), after))


def flood(target: str, rate: float, seconds: float) -> tuple[int, float]:
    """Send `rate` requests a second for `seconds`; (requests sent, seconds taken)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        packets, sent, begun = requests(target), 0, time.monotonic()
        while (past := time.monotonic() - begun) < seconds:
            for _ in range(int(past * rate) - sent):
                sock.sendto(next(packets), (target, 0))
                sent += 1
            time.sleep(BURST_SECONDS)
        return sent, time.monotonic() - begun


if __name__ == "__main__":
    count, took = flood(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
    print(count, f"{took:.2f}")
