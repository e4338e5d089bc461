"""EAP conversations as fuzz targets: what one end said in a good conversation is changed and said to a fresh other end.

An input is: which end listens (one byte), then its packets, each behind two bytes of length. Our random numbers are
always the same, so an unchanged EAP-MSCHAPv2 conversation succeeds again; a TLS one does not, for OpenSSL has its own.
"""

from __future__ import annotations

import random
import struct
from functools import cache
from ipaddress import ip_address

from control.eap import mschapv2
from control.eap.client import EapClient
from control.eap.server import EapServer
from control.eap.tls import Tls, TlsCredentials
from control.ike import configuration
from control.ike.numbers import CfgType, EapType
from control.ike.wire.configuration import parse_attributes
from control.pki.make import CLIENT, Issued, issue, make_authority
from tests.fuzz.ike_responder import Broken

MAX_PACKETS = 12
_PASSWORD = {"carol": b"a password"}


def _fixed(count: int) -> bytes:
    return b"\x5a" * count


@cache
def _credentials(*, server: bool) -> TlsCredentials:
    root = _root()
    own = issue(root, "end", purposes=()) if server else issue(root, "end", purposes=CLIENT)
    return TlsCredentials(
        private_key=own.key,  # type: ignore[arg-type]
        chain=(own.certificate,),
        trusted=(root.certificate,),
        check=lambda chain: "",
    )


@cache
def _root() -> Issued:
    return make_authority("Root")


def _server(by_tls: bool) -> EapServer:
    if by_tls:
        return EapServer([(EapType.TLS, lambda _: Tls(_credentials(server=True), server=True))])
    return EapServer([(EapType.MSCHAPV2, lambda _: mschapv2.Server(_PASSWORD.get, "gw", _fixed))])


def _client(by_tls: bool) -> EapClient:
    if by_tls:
        return EapClient("carol", [(EapType.TLS, lambda: Tls(_credentials(server=False), server=False))])
    return EapClient("carol", [(EapType.MSCHAPV2, lambda: mschapv2.Client("carol", b"a password", _fixed))])


def make_eap_talk(chance: random.Random) -> bytes:
    """What one end of a good conversation is told."""
    by_tls, to_server = chance.random() < 0.5, chance.random() < 0.5
    server, client = _server(by_tls), _client(by_tls)
    told: list[bytes] = []
    said = server.start()
    while said.packet is not None:
        answer = client.receive(said.packet)
        told.append(answer.packet or b"" if to_server else said.packet)
        if answer.packet is None:
            break
        said = server.receive(answer.packet)
    packets = b"".join(struct.pack(">H", len(packet)) + packet for packet in told)
    return bytes([by_tls << 1 | to_server]) + packets


def eap_talk(data: bytes) -> None:
    """Say the packets to a fresh end, until it refuses one or is done."""
    kind = data[0] if data else 0
    end: EapServer | EapClient = _server(bool(kind & 2)) if kind & 1 else _client(bool(kind & 2))
    if isinstance(end, EapServer):
        end.start()
    at = 1
    for _ in range(MAX_PACKETS):
        if at + 2 > len(data):
            return
        (length,) = struct.unpack_from(">H", data, at)
        step = end.receive(data[at + 2 : at + 2 + length])
        at += 2 + length
        if step.msk and (step.error or not step.finished):
            raise Broken("a key, and no success")
        if step.finished:
            return


def lent(data: bytes) -> None:
    """A client reads what the server lends."""
    kind, attributes = parse_attributes(data)
    if kind == CfgType.REPLY:
        wanted = ip_address("0.0.0.0"), ip_address("::")
        received = configuration.read_reply(attributes, wanted)
        if not received.addresses or len(received.addresses) > configuration.MAX_ADDRESSES:
            raise Broken(f"{len(received.addresses)} addresses")
