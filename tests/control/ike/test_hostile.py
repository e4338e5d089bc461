"""What the fuzzer of IKE (tests/fuzz/ike.py) has found, and a small helping of its inputs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from control.ike.events import IkeFailed
from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from control.ike.v2.sa import Timer
from control.ike.wire import Header, build_sealed_prefix
from tests.control.ike.pair import Pair, connection_a, connection_b
from tests.fuzz.ike import Fuzzer
from tests.fuzz.ike_responder import conversation


def test_a_helping_of_fuzz() -> None:
    fuzzer = Fuzzer(1, samples=10)
    for number in range(3000):
        fuzzer.run(number)
    assert {target for target, _ in fuzzer.outcomes} >= {"message", "chain", "first contact"}
    for number in range(30):
        conversation(number.to_bytes(8, "big"))


def test_liveness_does_not_spin() -> None:
    """The silence so far, rounded, may stay below `dpd_delay` at the very moment when it is over."""
    heard, delay = 1023.055, 10.0
    assert heard + delay - heard < delay
    pair = Pair(a=connection_a(dpd_delay=delay), b=connection_b()).up()
    pair.run(heard - pair.now)
    [sa] = pair.a.endpoint._by_id.values()
    sa.last_heard = heard
    sa.timers[Timer.DPD] = heard + delay
    pair.a.endpoint.schedule(sa)
    pair.run(30.0, steps=2000)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1


def test_nobody_initiates_to_an_eap_client() -> None:
    """EAP proves an initiator; asked to be a responder, its connection says so instead of failing an assertion."""
    eap = AuthSettings(auth=Auth.EAP, eap_methods=("mschapv2",), identity=Identity.parse("carol"))
    client = connection_a(local=eap, remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("b.example")))
    server = replace(connection_b(), remote=AuthSettings(auth=Auth.PSK))
    pair = Pair(a=client, b=server)
    pair.b.endpoint.initiate("b-a", "net", pair.now)
    pair.run(20.0)
    [failure] = pair.a.of(IkeFailed)
    assert "has local.auth = 'eap', by which we cannot prove ourselves to a peer that initiates" in str(
        failure.failure
    )
    assert not pair.a.ikes and not any("internal error" in text for text in pair.a.notes + pair.a.failures)


def test_malformed_request_of_an_unknown_exchange() -> None:
    """Sealed with the right keys, of exchange type 99, and not to be parsed: answered, and the IKE SA lives on."""
    pair = Pair().up()
    [sa] = pair.a.endpoint._by_id.values()
    assert sa.keys is not None
    plain = b"\0\0\0\xff"
    header = Header(
        initiator_spi=sa.spi_initiator,
        responder_spi=sa.spi_responder,
        exchange=99,
        initiator=True,
        response=False,
        message_id=2,
    )
    prefix = build_sealed_prefix(header, 41, sa.keys.protection.sealed_length(len(plain)))
    path = replace(sa.path, local=sa.path.remote, remote=sa.path.local)
    assert path.remote == ip_address("192.0.2.1")
    pair.b.endpoint.receive_datagram(prefix + sa.keys.sealer.seal(prefix, plain), path, pair.now)
    pair.collect()
    assert not any("internal error" in text for text in pair.b.notes)
    assert len(pair.b.ikes) == 1
