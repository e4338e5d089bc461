"""Every suite against packets put together here as the RFCs say, block ciphers and AEADs by `cryptography`.

What scapy lacks is proven here alone: GCM with short ICVs, AES-XCBC-96, and the implicit IVs of RFC 8750.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.model import Cipher, EspProposal, Integrity, SaSpec
from dataplane.records import check_sa
from tests.exchange.suites import ALL_SUITES, IMPLICIT_IVS, inbound_sa, mirror, outbound_sa, suite_id
from tests.ext.crypto_jobs import esp_packet
from tests.gateway import MakeGateway
from tests.packets import ESP, ip4, udp_packet

CROSSING = 2**32 - 5
CASES = [
    *((suite, 1) for suite in ALL_SUITES),
    *((replace(suite, esn=True), CROSSING) for suite in ALL_SUITES),
]
SIZES = (0, 1, 2, 3, 5, 40, 511, 1400)


def esp_of(spec: SaSpec, inner: bytes, number: int, iv: bytes) -> bytes:
    """The ESP packet that carries an IPv4 packet as this number with this IV (empty where it is implicit)."""
    padding = -(len(inner) + 2) % spec.proposal.alignment
    return esp_packet(spec, inner + bytes(range(1, padding + 1)) + bytes((padding, 4)), number, iv)


@pytest.mark.parametrize(
    ("suite", "first"), CASES, ids=[f"{suite_id(suite)}-{first:x}" for suite, first in CASES]
)
def test_agreement(make_gateway: MakeGateway, suite: EspProposal, first: int) -> None:
    """Byte for byte outward, at every alignment; inward with IVs that are not ours; with ESN across 2**32."""
    gateway = make_gateway(mtu=1600)
    ours, theirs = outbound_sa(suite, sequence=first), inbound_sa(suite, sequence=first)
    gateway.add(ours, theirs)
    gateway.protect("out")
    inner = [udp_packet(4, (bytes(range(256)) * 6)[:size]) for size in SIZES]
    sent = gateway.send(inner)
    assert sent.verdicts == {"pass": len(inner)}
    ivs = set()
    for number, (packet, wire) in enumerate(zip(inner, sent.packets, strict=True), first):
        iv = wire[28 : 28 + suite.iv_length]
        ivs.add(iv)
        assert wire[20:] == esp_of(ours, packet, number, iv)
    assert len(ivs) == (len(inner) if suite.iv_length else 1)
    wires = [
        ip4(
            esp_of(theirs, packet, number, bytes((number * 37 + at) & 0xFF for at in range(suite.iv_length))),
            source=theirs.remote,
            destination=theirs.local,
            protocol=ESP,
        )
        for number, packet in enumerate(inner, first)
    ]
    received = gateway.receive(wires)
    assert (received.verdicts, received.packets) == ({"pass": len(inner)}, inner)
    assert gateway.receive(wires[-1:]).drops == {"in": {"replay": 1}}


@pytest.mark.parametrize("suite", IMPLICIT_IVS, ids=suite_id)
def test_implicit_iv_saves_its_bytes(make_gateway: MakeGateway, suite: EspProposal) -> None:
    """RFC 8750: eight bytes less in each packet, and as many more for what is inside."""
    explicit = replace(suite, implicit_iv=False)
    specs = [outbound_sa(each) for each in (suite, explicit)]
    lengths = []
    for spec in specs:
        gateway = make_gateway()
        gateway.add(spec, mirror(spec))
        gateway.protect("out")
        lengths.append(len(gateway.send([udp_packet(4, bytes(100))]).packets[0]))
    assert lengths[0] == lengths[1] - 8
    assert specs[0].inner_mtu(1500) == specs[1].inner_mtu(1500) + 8


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cipher": Cipher.AES_GMAC, "key_bits": 128, "implicit_iv": True}, "AES_GMAC has no implicit IV"),
        ({"cipher": Cipher.AES_CBC, "key_bits": 128, "implicit_iv": True}, "AES_CBC has no implicit IV"),
        (
            {"cipher": Cipher.AES_CCM, "key_bits": 128, "implicit_iv": True},
            "ICV of 16 bytes has no implicit IV",
        ),
        (
            {"cipher": Cipher.AES_GCM, "key_bits": 128, "implicit_iv": True, "tag_length": 8},
            "ICV of 8 bytes has no",
        ),
        ({"cipher": Cipher.AES_GCM, "key_bits": 128, "tag_length": 4}, "ICVs of 8 or 12 or 16 bytes, not 4"),
        ({"cipher": Cipher.CHACHA20_POLY1305, "key_bits": 256, "tag_length": 12}, "ICVs of 16 bytes, not 12"),
        ({"cipher": Cipher.AES_CTR, "key_bits": 128}, "AES_CTR needs an integrity algorithm"),
        ({"cipher": Cipher.AES_CCM, "key_bits": 64}, "keys of 128 or 192 or 256 bits, not 64"),
        (
            {"cipher": Cipher.NULL, "key_bits": 128, "integrity": Integrity.AES_GMAC},
            "an integrity algorithm of AH",
        ),
        (
            {"cipher": Cipher.NULL, "key_bits": 0, "integrity": Integrity.AES_GMAC},
            "keys of 128 or 192 or 256 bits",
        ),
    ],
)
def test_suites_that_cannot_be(changes: dict[str, object], error: str) -> None:
    """Refused by name, before anything reaches a table."""
    proposal = EspProposal(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=error):
        check_sa(outbound_sa(proposal))


def test_an_implicit_iv_cannot_be_masked() -> None:
    """RFC 8750 section 4: it is the number, and the peer makes it from nothing else."""
    with pytest.raises(ValueError, match="iv_mask must be left out"):
        check_sa(outbound_sa(IMPLICIT_IVS[0], iv_mask=b"\1" * 8))
