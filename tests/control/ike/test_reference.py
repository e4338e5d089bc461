"""What two strongSwans said to each other (tests/peers/record.py), taken apart by our codec, keys and AUTH.

Their shared secret is where ours begin: everything after it, from SKEYSEED to the keys of ESP, must come out as in
their log, every message must open, parse and build again to the same bytes, and both AUTH payloads must verify.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from control.crypto.auth import psk_auth, verify
from control.crypto.keys import IkeKeys, child_keys, ike_keys, signed_octets, skeyseed, skeyseed_rekey
from control.crypto.prf import prf
from control.crypto.sk import Protection
from control.ike.numbers import Exchange, Protocol
from control.ike.proposal import Proposal, Suite, parse_proposal, select
from control.ike.wire import (
    AuthPayload,
    CertPayload,
    IdPayload,
    KePayload,
    Message,
    NoncePayload,
    Payload,
    SaPayload,
    build_message,
    build_payload_chain,
    need,
    parse_message,
    parse_payload_chain,
)
from dataplane.model import Direction, SaSpec
from tests.esp import strip, unseal

RECORD = json.loads((Path(__file__).parents[2] / "vectors" / "strongswan_ike.json").read_text())


class Replay:
    """One recorded handshake; `walk` decodes it from the first datagram to the last and checks as it goes."""

    def __init__(self, handshake: dict[str, Any]) -> None:
        self.handshake = handshake
        self.secrets = self._sets("shared", "d")
        self.children = self._sets("encryption_i", "encryption_i")
        self.keys: dict[tuple[bytes, bytes], tuple[Suite, IkeKeys]] = {}
        self.first: dict[bool, Message] = {}  # IKE_SA_INIT by "is the response"
        self.requests: dict[tuple[bytes, int, bool], list[Payload]] = {}
        self.exchanges: list[str] = []
        self.authenticated = 0
        self.esp: dict[int, tuple[Any, bytes, bytes]] = {}
        self.pings = 0

    def _sets(self, first: str, needed: str) -> Iterator[dict[str, bytes]]:
        """The log's secrets in order, a new set at each `first`."""
        sets: list[dict[str, bytes]] = []
        for entry in self.handshake["secrets"]:
            ((name, value),) = entry.items()
            if name == first or not sets:
                sets.append({})
            sets[-1][name] = bytes.fromhex(value)
        return iter([each for each in sets if needed in each])

    def walk(self) -> None:
        """Everything in order."""
        for datagram in self.handshake["datagrams"]:
            data = bytes.fromhex(datagram["data"])
            if datagram["kind"] == "esp":
                self._open_esp(data, left=datagram["from"] == "left")
            else:
                self._take(data)

    # --- IKE -----------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        message = parse_message(data)
        header = message.header
        if header.exchange == Exchange.IKE_SA_INIT:
            payloads = list(message.payloads)
            assert build_message(header, payloads) == data
            self.first[header.response] = message
        else:
            payloads = self._open(message)
        self.exchanges.append(Exchange(header.exchange).name)
        key = (header.initiator_spi, header.message_id, header.initiator != header.response)
        if not header.response:
            self.requests[key] = payloads
            if header.exchange == Exchange.IKE_AUTH:
                self._check_auth(payloads, initiator=True)
            return
        request = self.requests[key]
        if header.exchange == Exchange.IKE_SA_INIT:
            self._derive(request, payloads, header.initiator_spi, header.responder_spi)
        elif header.exchange == Exchange.IKE_AUTH:
            self._check_auth(payloads, initiator=False)
            nonces = [need(self.first[side].payloads, NoncePayload).data for side in (False, True)]
            self._child(request, payloads, *nonces)
        elif header.exchange == Exchange.CREATE_CHILD_SA:
            offered = need(request, SaPayload).proposals[0]
            if offered.protocol == Protocol.IKE:
                self._derive(
                    request, payloads, offered.spi, need(payloads, SaPayload).proposals[0].spi,
                    old=self.keys[header.initiator_spi, header.responder_spi],
                )  # fmt: skip

    def _open(self, message: Message) -> list[Payload]:
        header, encrypted = message.header, message.encrypted
        assert encrypted is not None
        suite, keys = self.keys[header.initiator_spi, header.responder_spi]
        encryption, integrity = (keys.ei, keys.ai) if header.initiator else (keys.er, keys.ar)
        plain = _protection(suite).opener(encryption, integrity).open(message.aad, encrypted.body)
        payloads = list(parse_payload_chain(encrypted.first, plain))
        assert build_payload_chain(payloads) == (encrypted.first, plain)
        return payloads

    def _derive(
        self,
        request: list[Payload],
        response: list[Payload],
        spi_i: bytes,
        spi_r: bytes,
        old: tuple[Suite, IkeKeys] | None = None,
    ) -> None:
        suite = _chosen(request, response, self._proposal("ike", Protocol.IKE))
        assert need(request, KePayload).group == need(response, KePayload).group == suite.group
        told = next(self.secrets)
        nonces = need(request, NoncePayload).data, need(response, NoncePayload).data
        if old is None:
            seed = skeyseed(prf(suite.prf), *nonces, told["shared"])
        else:
            seed = skeyseed_rekey(prf(old[0].prf), old[1].d, [told["shared"]], *nonces)
        keys = ike_keys(prf(suite.prf), _protection(suite), seed, *nonces, spi_i, spi_r)
        for name in ("d", "ai", "ar", "ei", "er", "pi", "pr"):
            assert getattr(keys, name) == told.get(name, b""), name
        self.keys[spi_i, spi_r] = suite, keys

    def _check_auth(self, payloads: list[Payload], *, initiator: bool) -> None:
        ((suite, keys),) = self.keys.values()
        mine, others = self.first[not initiator], self.first[initiator]
        identity, auth = need(payloads, IdPayload, initiator=initiator), need(payloads, AuthPayload)
        _, body = build_payload_chain([identity])
        octets = signed_octets(
            prf(suite.prf), mine.data, need(others.payloads, NoncePayload).data,
            keys.pi if initiator else keys.pr, body[4:],
        )  # fmt: skip
        if self.handshake["auth"] == "psk":
            assert auth.data == psk_auth(prf(suite.prf), self.handshake["secret"].encode(), octets)
        else:
            certificate = bytes.fromhex(self.handshake["certificates"][0 if initiator else 1])
            assert need(payloads, CertPayload).data == certificate
            verify(
                x509.load_der_x509_certificate(certificate).public_key(),
                auth.method,
                auth.data,
                octets,
                (2, 3, 4, 5),
            )
        self.authenticated += 1

    # --- ESP -----------------------------------------------------------------------------------------

    def _child(self, request: list[Payload], response: list[Payload], nonce_i: bytes, nonce_r: bytes) -> None:
        ((suite, keys),) = self.keys.values()
        chosen = _chosen(request, response, self._proposal("esp", Protocol.ESP).without_key_exchanges)
        esp = chosen.to_esp()
        told = next(self.children)
        made = child_keys(
            prf(suite.prf), keys.d, nonce_i, nonce_r, esp.encryption_key_length, esp.integrity_key_length
        )
        for name in ("encryption_i", "encryption_r", "integrity_i", "integrity_r"):
            assert getattr(made, name) == told.get(name, b""), name
        spi_i, spi_r = (
            int.from_bytes(need(each, SaPayload).proposals[0].spi, "big") for each in (request, response)
        )
        self.esp[spi_r] = esp, made.encryption_i, made.integrity_i
        self.esp[spi_i] = esp, made.encryption_r, made.integrity_r

    def _open_esp(self, data: bytes, *, left: bool) -> None:
        spi, number = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        if spi not in self.esp:
            return  # of the rekeyed child, whose shared secret the log does not tell
        esp, encryption, integrity = self.esp[spi]
        spec = SaSpec(
            name="reference", direction=Direction.IN, spi=spi, local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"), proposal=esp, encryption_key=encryption, integrity_key=integrity,
        )  # fmt: skip
        inner, next_header = strip(unseal(spec, data, number))
        assert next_header == 4
        assert inner[12:16] == (b"\x0a\x01\x00\x01" if left else b"\x0a\x02\x00\x01")
        self.pings += 1

    def _proposal(self, name: str, protocol: Protocol) -> Proposal:
        return parse_proposal(protocol, self.handshake[name])


def _chosen(request: list[Payload], response: list[Payload], configured: Proposal) -> Suite:
    """What the responder chose, which our own choice must be, too."""
    offered = need(request, SaPayload).proposals
    (answer,) = need(response, SaPayload).proposals
    suite, number = select(offered, [configured])
    assert number == answer.number
    assert {*suite.transforms} == {*answer.transforms}
    return suite


def _protection(suite: Suite) -> Protection:
    return Protection(suite.encr, suite.key_bits, suite.integ)


@pytest.mark.parametrize("handshake", RECORD["handshakes"], ids=lambda each: f"{each['auth']}-{each['ike']}")
def test_recorded_handshake(handshake: dict[str, Any]) -> None:
    """From the first octet to the last."""
    replay = Replay(handshake)
    replay.walk()
    assert replay.exchanges[:4] == ["IKE_SA_INIT"] * 2 + ["IKE_AUTH"] * 2
    assert replay.exchanges.count("CREATE_CHILD_SA") == 4
    assert replay.authenticated == 2
    assert len(replay.keys) == 2
    assert replay.pings >= 12
