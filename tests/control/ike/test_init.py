"""IKE_SA_INIT: cookies, other groups, both at once, limits, choice of a connection, repeated requests."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from control.ike.endpoint import Endpoint
from control.ike.events import Datagram, PeerPath
from control.ike.identity import Identity
from control.ike.numbers import Exchange, NotifyType, PayloadType
from control.ike.settings import Auth, AuthSettings, EndpointSettings, Retransmission
from control.ike.v2.cookies import Cookies, scan
from control.ike.wire.message import find_notify, parse_message
from control.ike.wire.payloads import KePayload, NotifyPayload
from tests.control.ike.pair import (
    ADDRESS_A,
    ADDRESS_B,
    Pair,
    Wire,
    child,
    connection_a,
    connection_b,
    ike,
    mirror,
    psk,
)

ALWAYS = EndpointSettings(cookie_threshold=0)
PATH = PeerPath(local=ADDRESS_B, local_port=500, remote=ADDRESS_A, remote_port=500)


def inits(pair: Pair) -> list[tuple[bool, list[str]]]:
    """IKE_SA_INIT messages: (is it a response, names of its notifications)."""
    found = []
    for datagram in pair.carried:
        message = parse_message(datagram.data)
        if message.header.exchange == Exchange.IKE_SA_INIT:
            names = [each.name for each in message.payloads if hasattr(each, "name")]
            found.append((message.header.response, names))
    return found


def test_cookie() -> None:
    """Under load the responder demands a cookie first; nothing is kept until it comes."""
    pair = Pair(settings_b=ALWAYS)
    pair.initiate()
    pair.step(2000.0)
    assert not pair.b.ikes and pair.b.endpoint.counters["cookies"] == 1
    pair.run()
    pair.check_children()
    assert [names[0] for _, names in inits(pair)[1:3]] == ["COOKIE", "COOKIE"]
    assert len(pair.carried) == 6


def test_other_group() -> None:
    """The responder wants a group that the initiator did not guess."""
    pair = Pair(
        a=connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ecp256")),
        b=connection_b(proposals=ike("aes128gcm16-prfsha256-ecp256")),
    ).up()
    pair.check_children()
    assert inits(pair)[1] == (True, ["INVALID_KE_PAYLOAD"])
    assert not pair.b.failures
    assert pair.a.established[0].suite_name == "aes128gcm16-prfsha256-ecp256"


def test_cookie_and_other_group() -> None:
    """Both at once (RFC 7296 section 2.6.1): the cookie goes along with the other group."""
    pair = Pair(
        a=connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ecp256")),
        b=connection_b(proposals=ike("aes128gcm16-prfsha256-ecp256")),
        settings_b=ALWAYS,
    ).up()
    pair.check_children()
    requests = [parse_message(each.data) for each in pair.carried if each.data[18:20] == b"\x22\x08"]
    assert len(requests) == 3
    assert find_notify(requests[2].payloads, NotifyType.COOKIE)
    groups = [next(each.group for each in one.payloads if isinstance(each, KePayload)) for one in requests]
    assert groups == [31, 31, 19]


@pytest.mark.parametrize("seed", range(4))
def test_other_group_is_asked_for_twice(seed: int) -> None:
    """The first request, or its answer, comes twice: the second answer is no refusal of the group it asks for."""
    pair = Pair(
        a=connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ecp256")),
        b=connection_b(proposals=ike("aes128gcm16-prfsha256-ecp256")),
        wire=Wire(repeat=1.0, delay=(0.01, 0.2)),
        seed=seed,
    ).up()
    pair.check_children()
    assert not pair.a.failures


def test_a_request_in_clear_does_not_end_an_attempt() -> None:
    """Who sees our first request go by cannot have us give up by asking something himself."""
    pair = Pair()
    pair.initiate()
    request = pair.carried[0].data
    forged = request[:19] + b"\x00" + request[20:]  # an IKE_SA_INIT request, as by the responder
    path = replace(PATH, local=ADDRESS_A, remote=ADDRESS_B)
    pair.a.endpoint.receive_datagram(forged, path, pair.now)
    pair.collect()
    assert len(pair.carried) == 1 and not pair.a.failures
    pair.run()
    assert pair.a.established


def test_group_that_was_not_proposed() -> None:
    """A peer (or someone between) cannot talk us into another group."""
    pair = Pair(wire=Wire(translate=_say(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x0e")))
    pair.initiate()
    pair.run()
    assert pair.a.failures == [
        "the peer wants a key exchange by MODP_2048; we proposed CURVE25519; give both sides a common key exchange"
    ]


def test_cookies_for_ever() -> None:
    """A responder that asks for cookies again and again is given up."""
    pair = Pair(wire=Wire(translate=_say(NotifyType.COOKIE, b"cookie")))
    pair.initiate()
    pair.run()
    assert pair.a.failures == ["the peer asks for a cookie again and again; see the peer's log"]
    assert pair.a.sent == 7


def _say(kind: NotifyType, data: bytes) -> Callable[[Datagram], Datagram]:
    """Answer each IKE_SA_INIT request of A by a notification in B's place."""

    def translate(datagram: Datagram) -> Datagram:
        back = replace(
            datagram.path,
            local=datagram.path.remote,
            remote=datagram.path.local,
        )
        header = datagram.data[:8] + bytes(8) + bytes([41, 0x20, 34, 0x20]) + bytes(4)
        body = (
            bytes([0, 0])
            + (8 + len(data)).to_bytes(2, "big")
            + bytes(2)
            + int(kind).to_bytes(2, "big")
            + data
        )
        return Datagram(path=back, data=header + (28 + len(body)).to_bytes(4, "big") + body)

    return translate


def test_cookie_belongs_to_nonce_address_and_time() -> None:
    """It is good for the very same attempt, and for two minutes at most."""
    cookies = Cookies(lambda size: bytes(range(size)))
    pair = Pair()
    pair.initiate()
    data = pair.carried[0].data
    cookie = cookies.check(data, ("192.0.2.1", 500), 0.0)
    assert cookie is not None

    def retry(data: bytes = data, sender: tuple[str, int] = ("192.0.2.1", 500), now: float = 1.0) -> bool:
        notify = b"\x21\x00" + (8 + len(cookie)).to_bytes(2, "big") + b"\x00\x00\x40\x06" + cookie
        whole = (
            data[:16]
            + b"\x29"
            + data[17:24]
            + (len(data) + len(notify)).to_bytes(4, "big")
            + notify
            + data[28:]
        )
        return cookies.check(whole, sender, now) is None

    assert retry()
    assert not retry(sender=("192.0.2.9", 500))
    assert not retry(sender=("192.0.2.1", 4500))
    assert not retry(data=bytes([data[0] ^ 1]) + data[1:])
    nonce = scan(data)[1]
    assert len(nonce) == 32 and not retry(data=data.replace(nonce, bytes(32)))
    assert retry(now=61.0)
    assert not retry(now=200.0)


def test_flood_costs_little() -> None:
    """Beyond the threshold spoofed requests get cookies: no memory, no events, and microseconds each."""
    endpoint = Endpoint(EndpointSettings(), [connection_b(remote_addresses=())], psk())
    pair = Pair()
    pair.initiate()
    data = pair.carried[0].data
    for number in range(30):
        assert endpoint.shed((number + 1).to_bytes(8, "big") + data[8:], ("10.0.0.1", number), 0.0) is None
        endpoint.receive_datagram(
            (number + 1).to_bytes(8, "big") + data[8:],
            replace(PATH, remote=ip_address(0x0A000000 + number)),
            0.0,
        )
    assert len(endpoint.snapshot()) == 30
    endpoint.datagrams_to_send()
    tracemalloc.start()
    begin, before = time.process_time(), tracemalloc.get_traced_memory()[0]
    count = 5000
    for number in range(count):
        spi = (number + 1000).to_bytes(8, "big")
        assert endpoint.shed(spi + data[8:], ("10.9.9.9", number), 0.0)
    grown, spent = tracemalloc.get_traced_memory()[0] - before, time.process_time() - begin
    tracemalloc.stop()
    assert len(endpoint.snapshot()) == 30 and not endpoint.events() and not endpoint.datagrams_to_send()
    assert grown < 20_000
    assert spent / count < 0.001, spent


def with_cookie(data: bytes, answer: Datagram) -> bytes:
    """An IKE_SA_INIT request with the cookie that it was answered by."""
    [notify] = parse_message(answer.data).payloads
    assert isinstance(notify, NotifyPayload)
    body = b"\x21\x00" + (8 + len(notify.data)).to_bytes(2, "big") + b"\x00\x00\x40\x06" + notify.data
    return data[:16] + b"\x29" + data[17:24] + (len(data) + len(body)).to_bytes(4, "big") + body + data[28:]


def test_shed_and_receive_agree() -> None:
    """A cookie that the socket gave out is good on the long way, and the other way round."""
    endpoint = Endpoint(ALWAYS, [connection_b()], psk())
    pair = Pair()
    pair.initiate()
    data = pair.carried[0].data
    endpoint.receive_datagram(data, PATH, 0.0)
    [datagram] = endpoint.datagrams_to_send()
    assert endpoint.shed(data, ("192.0.2.1", 500), 0.0) == datagram.data
    retry = with_cookie(data, datagram)
    assert endpoint.shed(retry, ("192.0.2.1", 500), 0.0) is None
    endpoint.receive_datagram(retry, PATH, 0.0)
    assert len(endpoint.snapshot()) == 1
    assert endpoint.shed(retry, ("192.0.2.1", 500), 0.0) is None  # repeated: it gets the identical response
    assert endpoint.shed(data[:20], ("192.0.2.1", 500), 0.0) is None


def test_half_open_limits() -> None:
    """So many of one address, so many in all; a real peer is let in when the others have timed out."""
    settings = EndpointSettings(cookie_threshold=100, block_threshold=3, half_open_timeout=30.0)
    pair = Pair(settings_b=settings)
    pair.initiate()
    data = pair.carried[0].data
    pair.flying.clear()
    endpoint = pair.b.endpoint
    for number in range(10):
        request = bytes([9, number]) + data[2:]
        endpoint.receive_datagram(request, PATH, pair.now)
        for answer in endpoint.datagrams_to_send():
            if answer.data[16] == PayloadType.NOTIFY:
                endpoint.receive_datagram(with_cookie(request, answer), PATH, pair.now)
    assert len(pair.b.ikes) == 3
    assert endpoint.counters["blocked"] == 7
    pair.b.endpoint.datagrams_to_send()
    pair.run(60.0)
    assert [text.split(";")[0] for text in pair.b.failures[:3]] == 3 * [
        "192.0.2.1 began, but did not finish within 30 s"
    ]
    assert pair.a.established and pair.b.established


def test_who_forges_an_address_does_not_block_it() -> None:
    """A few requests in a peer's name must not keep the peer itself away: beyond some, a cookie shows who is there."""
    pair = Pair()
    pair.initiate()
    data = pair.carried[0].data
    for number in range(50):
        pair.b.endpoint.receive_datagram(bytes([9, number]) + data[2:], PATH, pair.now)
    pair.b.endpoint.datagrams_to_send()
    assert len(pair.b.ikes) == 3 and not pair.b.endpoint.counters["blocked"]
    pair.run()
    assert pair.a.established and pair.b.established


@pytest.mark.parametrize("threshold", [30, 0])
def test_who_fails_again_and_again_waits(threshold: int) -> None:
    """A handshake that fails counts as half open for five seconds more: no one guesses secrets as fast as he can."""
    settings = EndpointSettings(cookie_threshold=threshold)
    pair = Pair(credentials_a=psk(b"a guess"), settings_b=settings)
    for _ in range(5):
        pair.initiate()
        pair.run(0.2)
    assert len(pair.b.failures) == 5 and not pair.b.ikes
    before = pair.now
    pair.initiate()
    pair.run(0.2)
    assert len(pair.b.failures) == 5 and pair.b.endpoint.counters["blocked"] == 1
    pair.run(15.0)  # sent again, twice perhaps
    assert len(pair.b.failures) == 6
    pair.a.endpoint.set_credentials(psk())
    pair.initiate()
    pair.run(0.2)
    assert pair.b.established and pair.now < before + 16.0


def test_many_who_offer_another_group_need_a_cookie() -> None:
    """INVALID_KE_PAYLOAD keeps nothing and is no failure; to read an offer costs time all the same."""
    ours, theirs = (ike(f"aes128gcm16-prfsha256-{groups}") for groups in ("ecp256-x25519", "x25519"))
    pair = Pair(a=connection_a(proposals=ours), b=connection_b(proposals=theirs))
    pair.initiate()
    data = pair.carried[0].data
    pair.flying.clear()
    kinds = []
    for number in range(60):
        pair.b.endpoint.receive_datagram(bytes([9, number]) + data[2:], PATH, pair.now)
        [answer] = pair.b.endpoint.datagrams_to_send()
        kinds.append(parse_message(answer.data).payloads[0].type)  # type: ignore[union-attr]
    assert kinds == [NotifyType.INVALID_KE_PAYLOAD] * 50 + [NotifyType.COOKIE] * 10
    pair.run(20.0)
    assert pair.a.established and pair.b.established


def test_other_requests_under_one_spi_are_counted() -> None:
    """Each costs a key exchange and is kept for a while, whichever SPI it says it has."""
    settings = EndpointSettings(block_threshold=0, half_open_limit=8)
    pair = Pair(settings_b=settings)
    pair.initiate()
    data = pair.carried[0].data
    nonce = scan(data)[1]
    for number in range(40):
        pair.b.endpoint.receive_datagram(data.replace(nonce, bytes([number]) + nonce[1:]), PATH, pair.now)
    assert len(pair.b.ikes) == 8
    assert pair.b.endpoint.counters["half_open_limit"] == 32
    pair.run(60.0)
    assert not pair.b.ikes or pair.b.established


def test_repeated_init_gets_the_identical_response() -> None:
    """RFC 7296 section 2.1."""
    pair = Pair()
    pair.initiate()
    request = pair.carried[0].data
    endpoint = pair.b.endpoint
    endpoint.receive_datagram(request, PATH, 0.0)
    endpoint.receive_datagram(request, PATH, 1.0)
    first, second = endpoint.datagrams_to_send()
    assert first == second
    assert len(endpoint.snapshot()) == 1


def test_no_connection_for_the_addresses() -> None:
    """Both sides are told; nothing is kept."""
    b = connection_b(remote_addresses=(ADDRESS_B,), local_addresses=(ip_address("192.0.2.77"),))
    pair = Pair(b=b)
    pair.initiate()
    pair.run()
    assert pair.b.failures == [
        "no connection is configured for 192.0.2.2 (us) and 192.0.2.1 (the peer); check local_addrs and remote_addrs "
        "of the connections"
    ]
    assert pair.a.failures[0].startswith("the peer accepts none of our IKE proposals: we offer")
    assert not pair.b.ikes and not pair.a.ikes


def test_refusals_are_not_without_end() -> None:
    """A flood of what is refused makes few events and answers; beyond them a cookie is demanded, which costs little."""
    b = connection_b(proposals=ike("aes256gcm16-prfsha512-ecp384"))
    pair = Pair(b=b)
    pair.initiate()
    data = pair.carried[0].data
    for number in range(500):
        pair.b.endpoint.receive_datagram((number + 1).to_bytes(8, "big") + data[8:], PATH, 0.0)
    assert len(pair.b.endpoint.events()) <= 20
    answers = [parse_message(each.data) for each in pair.b.endpoint.datagrams_to_send()]
    cookies = [each for each in answers if find_notify(each.payloads, NotifyType.COOKIE)]
    assert len(answers) - len(cookies) <= 20
    assert pair.b.endpoint.counters["refused_init"] <= 20
    assert all(len(each.data) < len(data) / 3 for each in cookies)


def named(name: str, **rest: object) -> object:
    """B's connection under a name."""
    return replace(connection_b(), name=name, **rest)  # type: ignore[arg-type]


def test_choice_by_address() -> None:
    """The most specific address wins, whatever the order."""
    anyone = replace(connection_b(), name="any", remote_addresses=())
    net = replace(connection_b(), name="net", remote_addresses=(ip_network("192.0.2.0/24"),))
    exact = replace(connection_b(), name="exact")
    for order in ((anyone, net, exact), (exact, net, anyone)):
        assert Pair(b=order).up().b.established[0].connection == "exact"
    assert Pair(b=(anyone, net)).up().b.established[0].connection == "net"


def test_choice_by_proposal() -> None:
    """Of several that fit the addresses the first with a common proposal."""
    other = replace(connection_b(), name="other", proposals=ike("aes256-sha512-modp2048"))
    assert Pair(b=(other, connection_b())).up().b.established[0].connection == "b-a"


def test_switch_by_identity() -> None:
    """After IKE_AUTH the identities tell which connection is meant."""
    remote = AuthSettings(auth=Auth.PSK, identity=Identity.parse("z.example"))
    other = replace(connection_b(), name="other", remote=remote)
    assert Pair(b=(other, connection_b())).up().b.established[0].connection == "b-a"


def test_switch_by_the_identity_that_is_asked_for() -> None:
    """IDr says which of our identities is meant."""
    local = AuthSettings(auth=Auth.PSK, identity=Identity.parse("y.example"))
    other = replace(connection_b(), name="other", local=local)
    assert Pair(b=(other, connection_b())).up().b.established[0].connection == "b-a"


@pytest.mark.parametrize("offered", ["x25519", "x25519-ke1_mlkem768-ke1_none"])
def test_a_demanded_additional_key_exchange_cannot_be_left_out(offered: str) -> None:
    """Another connection of the same addresses may do without; the peer's own one is not got into that way."""
    strict = connection_b(proposals=ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768"))
    other = AuthSettings(auth=Auth.PSK, identity=Identity.parse("other.example"))
    lax = replace(connection_b(), name="lax", remote=other)
    pair = Pair(a=connection_a(proposals=ike(f"aes128gcm16-prfsha256-{offered}")), b=(lax, strict))
    pair.initiate()
    pair.run()
    assert not pair.b.established and not pair.a.established


def test_switch_keeps_to_the_proposals() -> None:
    """A connection whose proposals do not have the suite that was chosen is not switched to."""
    a = connection_a()
    strict = mirror(a, name="strict", proposals=ike("aes256gcm16-prfsha512-ecp384"))
    wrong = mirror(a, name="wrong", remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("z.example")))
    pair = Pair(a=a, b=(strict, wrong))
    pair.initiate()
    pair.run()
    assert not pair.b.established
    assert "connection 'wrong' wants 'z.example'" in pair.b.failures[0]


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_each_message_lost_once(which: int) -> None:
    """Any one datagram lost: it is repeated, and nothing comes about twice."""
    pair = Pair(wire=Wire(drop=lambda number, datagram: number == which)).up()
    pair.run(30.0)
    pair.check_children()
    assert len(pair.a.established) == len(pair.b.established) == 1


def test_silent_peer() -> None:
    """Sent six times in 165 seconds (swanctl's defaults), then given up."""
    pair = Pair(wire=Wire(loss=1.0))
    pair.initiate()
    pair.a.endpoint.path_error(
        PeerPath(local=ADDRESS_A, local_port=500, remote=ADDRESS_B, remote_port=500),
        "connection refused (ICMP port unreachable)",
        pair.now,
    )
    pair.run(200.0)
    assert pair.a.sent == 6
    [text] = pair.a.failures
    assert text.startswith("no answer from 192.0.2.2:500, sent 6 times in 165 s from 192.0.2.1:500")
    assert "connection refused (ICMP port unreachable)" in text


def test_attempts_keep_nothing_of_those_before() -> None:
    """Each asks for a child, whose SPI is reserved until the attempt is over."""
    how = Retransmission(timeout=1.0, tries=2)
    pair = Pair(a=connection_a(keying_tries=0, retransmission=how))
    pair.wire.drop = lambda number, datagram: datagram.data[18] == Exchange.IKE_AUTH
    pair.initiate()
    pair.run(60.0)
    assert len([text for text in pair.a.notes if "attempt" in text]) > 3
    assert len(pair.a.endpoint.registry.child_spis) <= 1
    pair.a.endpoint.terminate_ike(pair.a.ikes[0], pair.now)
    assert not pair.a.endpoint.registry.child_spis


def test_keying_tries() -> None:
    """Attempts of an initiation: each with a new SPI."""
    pair = Pair(a=connection_a(keying_tries=3, children=(child(),)), wire=Wire(loss=1.0))
    pair.initiate()
    pair.run(600.0)
    assert len({datagram.data[:8] for datagram in pair.carried}) == 3
    assert len(pair.a.failures) == 1


@pytest.mark.parametrize("tries", [0, 3])
def test_an_attempt_without_a_way_is_made_all_the_same(tries: int) -> None:
    """The route is gone when the next attempt is due: attempts go on, and end by their number alone."""
    pair = Pair(a=connection_a(keying_tries=tries, local_addresses=()), wire=Wire(loss=1.0))
    pair.initiate()
    pair.run(100.0)
    pair.a.addresses = ()
    pair.run(600.0)
    assert len({datagram.data[:8] for datagram in pair.carried}) == (tries or 5)
    assert len(pair.a.failures) == (1 if tries else 0) and not any(
        "internal" in each for each in pair.a.notes
    )
    if not tries:
        pair.a.addresses, pair.wire.loss = (ADDRESS_A,), 0.0
        pair.run(200.0)
        pair.check_children()


def test_timers_of_many_leave_room_for_datagrams() -> None:
    """One call does a part of what is due, and says that there is more."""
    pair = Pair(
        a=tuple(replace(connection_a(), name=f"a{number}") for number in range(100)), wire=Wire(loss=1.0)
    )
    for number in range(100):
        pair.initiate(connection=f"a{number}")
    pair.now = pair.a.endpoint.next_timer() or 0.0
    before = pair.a.sent
    pair.a.endpoint.handle_timers(pair.now)
    pair.collect()
    assert 0 < pair.a.sent - before < 100
    assert pair.a.endpoint.next_timer() == pair.now
    while (pair.a.endpoint.next_timer() or 2000.0) <= pair.now:
        pair.a.endpoint.handle_timers(pair.now)
    pair.collect()
    assert pair.a.sent - before == 100
