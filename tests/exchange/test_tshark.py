"""tshark, given our keys, finds good ICVs and our inner packets in what we send; every checksum on the way is right.

One capture holds every suite, bare and in UDP, over IPv4 and IPv6. tshark 4.0 has for ESP no ChaCha20-Poly1305, AES-CCM
or GMAC, does not check AES-XCBC and AES-CMAC, and has no extended sequence numbers: test_scapy.py covers these.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from dataplane.model import Cipher, Integrity, SaSpec
from dataplane.ports import pcap
from tests.exchange.suites import MORE_SUITES, SUITES, outbound_sa, suite_id
from tests.gateway import LIMITS, MakeGateway
from tests.packets import tcp_packet, udp_packet

_CRYPT = {
    Cipher.NULL: "NULL",
    Cipher.AES_CBC: "AES-CBC [RFC3602]",
    Cipher.AES_CTR: "AES-CTR [RFC3686]",
    Cipher.AES_GCM: "AES-GCM with {} octet ICV [RFC4106]",
}
_AUTH = {
    Integrity.NONE: "NULL",
    Integrity.HMAC_SHA2_256: "HMAC-SHA-256-128 [RFC4868]",
    Integrity.HMAC_SHA2_384: "HMAC-SHA-384-192 [RFC4868]",
    Integrity.HMAC_SHA2_512: "HMAC-SHA-512-256 [RFC4868]",
    Integrity.HMAC_SHA1: "HMAC-SHA-1-96 [RFC2404]",
}
_FIELDS = {
    "layers": "frame.protocols",
    "sequence": "esp.sequence",
    "good": "esp.icv_good",
    "bad": "esp.icv_bad",
    "sums4": "ip.checksum.status",
    "sums_udp": "udp.checksum.status",
    "sums_tcp": "tcp.checksum.status",
    "source4": "ip.src",
    "source6": "ipv6.src",
    "data": "data.data",
    "payload": "tcp.payload",
}
GOOD, NOT_PRESENT = "1", "3"


def key_entry(spec: SaSpec) -> str:
    """A row of tshark's table of SAs."""

    def text(key: bytes) -> str:
        return f'"0x{key.hex()}"' if key else '""'

    crypt, auth = (
        _CRYPT[spec.proposal.cipher].format(spec.proposal.tag_length),
        _AUTH[spec.proposal.integrity],
    )
    head = f'"IPv{spec.local.version}","{spec.local}","{spec.remote}","0x{spec.spi:08x}"'
    return f'{head},"{crypt}",{text(spec.encryption_key)},"{auth}",{text(spec.integrity_key)}'


def dissect(path: Path, specs: list[SaSpec]) -> list[dict[str, str]]:
    """tshark's fields of every packet of a capture."""
    options = ["esp.enable_encryption_decode:TRUE", "esp.enable_authentication_check:TRUE"]
    options += ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.check_checksum:TRUE"]
    options += [f"uat:esp_sa:{key_entry(spec)}" for spec in specs]
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    for option in options:
        command += ["-o", option]
    for name in _FIELDS.values():
        command += ["-e", name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [dict(zip(_FIELDS, line.split("|"), strict=True)) for line in run.stdout.splitlines()]


def test_tshark(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """Inner packets visible, every ICV and checksum good, RFC 3948 seen as such."""
    specs = [
        outbound_sa(suite, family=family, encap=encap, seed=number, spi=0xC0000100 + number)
        for number, (suite, family, encap) in enumerate(
            (suite, family, encap)
            for suite in (*SUITES, *MORE_SUITES)
            if suite.cipher in _CRYPT and suite.integrity in _AUTH
            for family in (4, 6)
            for encap in (False, True)
        )
    ]
    inner = [
        udp_packet(4, b"hello", tos=0xB8, ttl=17),
        udp_packet(6, b"six" * 100, tos=0x01),
        tcp_packet(4, b"segment", df=True),
    ]
    expected = []
    gateway = make_gateway(limits=replace(LIMITS, max_sas=128))
    with pcap.CaptureWriter(open(tmp_path / "all.pcap", "wb"), pcap.RAW) as writer:
        for spec in specs:
            gateway.add(replace(spec, name=f"{spec.spi:x}"))
            gateway.protect(f"{spec.spi:x}")
            sent = gateway.send(inner)
            assert sent.verdicts == {"pass": len(inner)}
            for number, packet in enumerate(sent.packets):
                writer.write(packet, 10**18)
                expected.append((spec, number))
    seen = dissect(tmp_path / "all.pcap", specs)
    assert len(seen) == len(expected) == 12 * 27
    for fields, (spec, number) in zip(seen, expected, strict=True):
        about = f"{suite_id(spec.proposal)} {spec.local} encap {spec.encap} packet {number}: {fields}"
        assert (fields["good"], fields["bad"]) == ("1", "0"), about
        assert fields["sequence"] == str(number + 1), about
        outer, inside = f"ip{'v6' if spec.local.version == 6 else ''}", ("ip", "ipv6", "ip")[number]
        envelope = "udp:udpencap:esp" if spec.encap else "esp"
        assert (
            fields["layers"] == f"raw:{outer}:{envelope}:{inside}:{('udp:data', 'udp:data', 'tcp')[number]}"
        ), about
        data = fields["payload"] if number == 2 else fields["data"]
        assert bytes.fromhex(data) == (b"hello", b"six" * 100, b"segment")[number], about
        sources = ",".join(filter(None, (fields["source4"], fields["source6"]))).split(",")
        assert set(sources) == {str(spec.local), ("10.1.0.1", "2001:db8:1::1", "10.1.0.1")[number]}, about
        sums = ",".join(filter(None, (fields["sums4"], fields["sums_udp"], fields["sums_tcp"]))).split(",")
        # RFC 3948 section 2.1: over IPv4 the UDP checksum is zero, "not present"; over IPv6 it has to be right.
        missing = 1 if spec.encap and spec.local.version == 4 else 0
        assert sums.count(NOT_PRESENT) == missing, about
        assert set(sums) - {NOT_PRESENT} == {GOOD}, about
