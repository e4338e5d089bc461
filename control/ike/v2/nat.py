"""NAT detection and the float to port 4500 (RFC 7296 section 2.23)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1

from control.ike.events import PeerPath
from dataplane.model import Address

PLAIN, MARKED = 500, 4500  # UDP ports of IKE, and of IKE and ESP behind NAT


def detection_hash(spi_i: bytes, spi_r: bytes, address: Address, port: int) -> bytes:
    """SHA-1(SPIi | SPIr | IP | port): the data of the two NAT_DETECTION notifications. SPIs as in the header."""
    return sha1(spi_i + spi_r + address.packed + port.to_bytes(2, "big"), usedforsecurity=False).digest()


def detections(
    spi_i: bytes, spi_r: bytes, path: PeerPath, *, force: bool, random: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    """What to send as NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP.

    With `force` the source is no one's, so that the peer takes us for hidden and encapsulates ESP in UDP.
    """
    source = random(20) if force else detection_hash(spi_i, spi_r, path.local, path.local_port)
    return source, detection_hash(spi_i, spi_r, path.remote, path.remote_port)


def found(
    spi_i: bytes, spi_r: bytes, path: PeerPath, sources: list[bytes], destinations: list[bytes]
) -> tuple[bool, bool]:
    """(we are behind a NAT, the peer is), from the peer's notifications as they came over `path`."""
    ours = detection_hash(spi_i, spi_r, path.local, path.local_port)
    theirs = detection_hash(spi_i, spi_r, path.remote, path.remote_port)
    local = bool(destinations) and ours not in destinations
    remote = bool(sources) and theirs not in sources
    return local, remote


def floated(path: PeerPath, ports: tuple[int, int]) -> PeerPath:
    """The path with both ports moved from 500 to 4500; ours are `ports`.

    The peer has those of the RFC, or the same as we have. Any other is the user's choice, and both stay.
    """
    plain, marked = ports
    theirs = {plain: marked, PLAIN: MARKED}
    if path.local_port != plain or path.remote_port not in theirs:
        return path
    return replace(path, local_port=marked, remote_port=theirs[path.remote_port])
