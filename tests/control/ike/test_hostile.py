"""What the fuzzer of IKE (tests/fuzz/ike.py) has found, what a peer may not make us keep or do, and some fuzz."""

from __future__ import annotations

import contextlib
import cProfile
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from control.crypto.exchange import offer
from control.ike.errors import PeerError
from control.ike.events import Failure, IkeFailed, Noted, PeerPath
from control.ike.identity import Identity
from control.ike.numbers import Exchange, Group, NotifyType, Protocol
from control.ike.proposal import NoProposalChosen, select
from control.ike.settings import Auth, AuthSettings
from control.ike.v2 import send
from control.ike.v2.codec import Reassembly
from control.ike.v2.parts import Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.v2.tasks.create_child import MAX_CHILDREN, KeyedTask
from control.ike.wire import (
    CertRequestPayload,
    DeletePayload,
    Header,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OfferedProposal,
    Payload,
    SaPayload,
    Transform,
    TsPayload,
    WireSelector,
    build_message,
    build_payload_chain,
    build_sealed_prefix,
    parse_message,
)
from control.pki.settings import PostquantumKey, PresharedKey
from control.pki.store import Credentials
from tests.control.ike.pair import (
    ADDRESS_A,
    ADDRESS_B,
    Pair,
    child,
    connection_a,
    connection_b,
    esp,
    ike,
    mirror,
)
from tests.fuzz.ike import Fuzzer
from tests.fuzz.ike_responder import conversation

NETWORKS = (("10.1.0.0", "10.1.255.255"), ("10.2.0.0", "10.2.255.255"))


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
    [sa] = pair.a.endpoint.registry
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
    [sa] = pair.a.endpoint.registry
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


def sealed(pair: Pair, exchange: int, payloads: list[Payload], *, message_id: int) -> None:
    """A sends B a request out of any order, and B takes it."""
    sa = next(each for each in pair.a.endpoint.registry)
    assert sa.keys is not None
    first, plain = build_payload_chain(payloads)
    header = Header(
        initiator_spi=sa.spi_initiator,
        responder_spi=sa.spi_responder,
        exchange=exchange,
        initiator=sa.initiator,
        response=False,
        message_id=message_id,
    )
    prefix = build_sealed_prefix(header, first, sa.keys.protection.sealed_length(len(plain)))
    path = replace(sa.path, local=sa.path.remote, remote=sa.path.local)
    pair.b.endpoint.receive_datagram(prefix + sa.keys.sealer.seal(prefix, plain), path, pair.now)
    pair.b.log.extend(pair.b.endpoint.events())
    assert not any("internal error" in text for text in pair.b.notes)


def test_children_are_counted() -> None:
    """A peer that has proven itself may not have any number of child SAs."""
    pair = Pair().up()
    proposal = esp("aes128gcm16")[0]
    for number in range(300):
        offer = proposal.to_wire(1, (number + 1000).to_bytes(4, "big"))
        both = [WireSelector(first=ip_address(first), last=ip_address(last)) for first, last in NETWORKS]
        payloads: list[Payload] = [
            SaPayload(proposals=(offer,)),
            NoncePayload(data=bytes(32)),
            TsPayload(initiator=True, selectors=(both[0],)),
            TsPayload(initiator=False, selectors=(both[1],)),
        ]
        sealed(pair, Exchange.CREATE_CHILD_SA, payloads, message_id=number + 2)
    assert len(pair.b.children) == MAX_CHILDREN
    assert "child 257 of one IKE SA was asked for; want 256 or fewer" in pair.b.notes[-1]


def test_a_delete_of_everything_is_quick() -> None:
    """A Delete payload has room for 16,000 SPIs: those that are ours are closed, and the others cost nothing."""
    pair = Pair().up()
    [mine] = pair.a.children.values()
    spis = [number.to_bytes(4, "big") for number in range(10_000, 20_000)]
    delete = DeletePayload(protocol=3, spis=(*spis, mine.spi_in.to_bytes(4, "big")))
    begun = time.process_time()
    sealed(pair, Exchange.INFORMATIONAL, [delete], message_id=2)
    assert time.process_time() - begun < 0.5
    assert not pair.b.children


def test_what_strangers_make_us_keep() -> None:
    """Of IKE_SA_INIT nothing is kept that is large: no long lists of hashes or authorities, no giant request."""
    hashes = b"".join(number.to_bytes(2, "big") for number in range(5000))
    pair = Pair(a=connection_a())
    pair.initiate()
    request = parse_message(pair.carried[0].data)
    others = [
        each for each in request.payloads if getattr(each, "type", 0) != NotifyType.SIGNATURE_HASH_ALGORITHMS
    ]
    path = replace(pair.carried[0].path, local=ADDRESS_B, remote=ADDRESS_A)
    for extra in (
        NotifyPayload(type=NotifyType.SIGNATURE_HASH_ALGORITHMS, data=hashes),
        CertRequestPayload(encoding=4, authorities=bytes(range(256)) * 50),
    ):
        endpoint = Pair().b.endpoint
        endpoint.receive_datagram(build_message(request.header, [*others, extra]), path, 0.0)
        [sa] = endpoint.registry
        assert len(sa.peer_hashes) < 10
        assert sa.handshake is not None and len(sa.handshake.authorities) <= 512
    giant = NotifyPayload(type=NotifyType.SIGNATURE_HASH_ALGORITHMS, data=bytes(65000))
    endpoint.receive_datagram(build_message(request.header, [*others, giant]), path, 0.0)
    assert len(list(endpoint.registry)) == 1 and endpoint.counters["long"] == 1


def test_a_long_offer_is_not_read_once_per_connection() -> None:
    """A datagram full of algorithms, and hundreds of connections that may be meant: each takes little."""
    kinds = [*range(1, 13)] * 20
    proposals = tuple(
        OfferedProposal(
            number=number,
            protocol=Protocol.IKE,
            transforms=tuple(Transform(type=kind, id=1000 + number + at) for at, kind in enumerate(kinds)),
        )
        for number in range(1, 8)
    )
    header = Header(
        initiator_spi=b"stranger",
        responder_spi=bytes(8),
        exchange=Exchange.IKE_SA_INIT,
        initiator=True,
        response=False,
        message_id=0,
    )
    key = KePayload(group=Group.CURVE25519, public=bytes([9]) + bytes(31))
    data = build_message(header, [SaPayload(proposals=proposals), key, NoncePayload(data=bytes(32))])
    texts = ("aes256gcm16-prfsha384-ecp384", "aes256-sha256-modp2048", "aes128gcm16-prfsha256-x25519")
    some = tuple(
        connection_b(name=f"c{number}", local_addresses=(), remote_addresses=(), proposals=ike(*texts))
        for number in range(300)
    )
    endpoint = Pair(b=some).b.endpoint
    path = PeerPath(local=ADDRESS_B, local_port=500, remote=ADDRESS_A, remote_port=500)
    profile = cProfile.Profile()
    profile.runcall(endpoint.receive_datagram, data, path, 1.0)
    [refused] = [each for each in endpoint.events() if isinstance(each, IkeFailed)]
    assert "no proposal chosen" in refused.failure.text
    # Calls, for time says nothing on a busy machine: half a million when each connection read all of the offer.
    assert sum(each.callcount for each in profile.getstats()) < 150_000


def test_fragments_that_are_too_much_are_not_kept() -> None:
    """A stranger can seal fragments of IKE_AUTH: all that he sends is not more than one message may have."""
    parts = Reassembly(1, 100)
    for number in range(2, 100):
        with contextlib.suppress(PeerError):
            parts.add(number, 0, bytes(60_000), b"")
    assert sum(map(len, parts.parts.values())) == parts.size == 60_000


def test_a_long_cookie2_is_refused() -> None:
    pair = Pair().up()
    sealed(
        pair,
        Exchange.INFORMATIONAL,
        [NotifyPayload(type=NotifyType.COOKIE2, data=bytes(60_000))],
        message_id=2,
    )
    assert any("COOKIE2 of 60000 bytes; want 8 to 64" in text for text in pair.b.notes)


def test_a_refusal_is_put_into_words_when_it_is_read() -> None:
    """With 255 proposals offered that takes milliseconds, which a flood must not cost us."""
    offers = [
        proposal.to_wire(number) for number in range(1, 256) for proposal in ike("aes256-sha512-ecp384")
    ]
    begun = time.process_time()
    for _ in range(100):
        with pytest.raises(NoProposalChosen) as caught:
            select(offers, ike("aes128gcm16-prfsha256-x25519"))
    quick = time.process_time() - begun
    assert caught.value._explain is not None
    assert "and 247 proposals more" in caught.value.text
    assert caught.value._explain is None and caught.value.advice
    assert quick < 1.0


def test_texts_of_peers_stay_on_their_line() -> None:
    """What a peer calls itself, or its key, is in our log and status: no line breaks, no terminal codes, no novels."""
    failure = Failure(code="no_ppk", text="the PPK 'a\n2026 all is well\x1b[2J\u202e'", advice="b\rc")
    assert str(failure) == "the PPK 'a\\n2026 all is well\\x1b[2J\\u202e'; b\\rc"
    assert len(Failure(code="", text="x" * 70_000).text) < 4100
    assert Noted(ike=1, connection="c", level="info", text="a\nb").text == "a\\nb"
    traceback = "internal error: \x07\n  File"
    assert Noted(ike=1, connection="c", level="info", text=traceback).text == "internal error: \\x07\n  File"


def test_a_ppk_identity_of_line_breaks() -> None:
    mine = connection_a(ppk_id="one\ntwo", ppk_required=True)
    secrets = Credentials(
        preshared_keys=(PresharedKey(identities=(), secret=b"a shared secret"),),
        postquantum_keys=(PostquantumKey(id="one\ntwo", secret=bytes(32)),),
    )
    pair = Pair(a=mine, b=connection_b(ppk_id="other", ppk_required=True), credentials_a=secrets)
    pair.initiate()
    pair.run()
    assert "the peer uses the PPK 'one\\ntwo', which is not among ours" in pair.b.failures[0]


@pytest.mark.parametrize("what", ["child", "ike"])
def test_other_groups_are_not_asked_for_without_end(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that wants the one group when it gets the other, and so on, is given up until the next time."""
    groups = "x25519-ecp256"
    connection = connection_a(
        proposals=ike(f"aes128gcm16-prfsha256-{groups}"),
        children=(child(proposals=esp(f"aes128gcm16-{groups}")),),
    )
    pair = Pair(a=connection, b=mirror(connection)).up()

    def contrary(self: KeyedTask, sa: IkeSa, message: Incoming, now: float) -> None:
        other = Group.ECP_256 if message.need(KePayload).group == Group.CURVE25519 else Group.CURVE25519
        raise PeerError(NotifyType.INVALID_KE_PAYLOAD, "", data=other.to_bytes(2, "big"))

    monkeypatch.setattr(KeyedTask, "_request", contrary)
    before = len(pair.carried)
    if what == "child":
        [mine] = pair.a.children
        pair.a.endpoint.rekey_child(mine, pair.now)
    else:
        pair.a.endpoint.rekey_ike(pair.a.ikes[0], pair.now)
    pair.run(10.0)
    assert len(pair.carried) - before == 4
    assert len(pair.a.ikes) == 1


@pytest.mark.parametrize("exchange", [Exchange.IKE_AUTH, Exchange.IKE_INTERMEDIATE])
def test_a_responder_begins_no_part_of_the_handshake(exchange: Exchange) -> None:
    """Keys of an IKE_SA_INIT are anybody's: who answered it may not have our side play the responder after it."""
    proposals = ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768")
    pair = Pair(a=connection_a(proposals=proposals), b=connection_b(proposals=proposals))
    pair.initiate()
    while not pair.b.ikes:
        assert pair.step(pair.now + 1.0)
    pair.wire.drop = lambda number, datagram: datagram.path.local == ADDRESS_A
    pair.run(0.1)
    [theirs] = pair.b.endpoint.registry
    request = Outgoing(exchange)
    if exchange == Exchange.IKE_INTERMEDIATE:
        request.add(KePayload(group=Group.ML_KEM_768, public=offer(Group.ML_KEM_768).public))
    for data in send.seal(theirs, request, 0, response=False):
        pair.a.endpoint.receive_datagram(data, replace_ends(theirs.path), pair.now)
    pair.collect()
    [failed] = pair.a.of(IkeFailed)
    assert f"{exchange.name} requested by the responder" in failed.failure.text
    assert not pair.a.ikes


def replace_ends(path: PeerPath) -> PeerPath:
    """The path as the other side has it."""
    return PeerPath(
        local=path.remote, local_port=path.remote_port, remote=path.local, remote_port=path.local_port
    )
