"""What both sides may agree on while they set up: NAT, fragments, additional keys, PPK, childless, uniqueness."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    Closed,
    Datagram,
    IkeClosed,
    KeysExported,
    PathChanged,
)
from control.ike.identity import Identity
from control.ike.numbers import Exchange, NotifyType, PayloadType
from control.ike.settings import (
    Auth,
    AuthSettings,
    Choice,
    Connection,
    EndpointSettings,
    Retransmission,
    Unique,
)
from control.ike.v2 import codec, negotiate, send
from control.ike.v2.keys import SaKeys
from control.ike.v2.parts import Feature
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import MORE, Outgoing, Result
from control.ike.v2.tasks.dpd import Liveness
from control.pki.settings import PostquantumKey
from control.pki.store import Credentials
from control.sa.children import sa_specs
from tests.control.ike import test_eap
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
from tests.control.ike.test_authentication import B, by_certificates, certificate, pair_of

OUTSIDE = ip_address("198.51.100.7")


class Nat:
    """A is behind it: its packets come from OUTSIDE and another port, and answers find their way back."""

    def __init__(self) -> None:
        self.offset = 10000

    def __call__(self, datagram: Datagram) -> Datagram | None:
        path = datagram.path
        if path.local == ADDRESS_A:
            return replace(
                datagram, path=replace(path, local=OUTSIDE, local_port=path.local_port + self.offset)
            )
        if path.remote == OUTSIDE:
            port = path.remote_port - self.offset
            if port not in (500, 4500):
                return None
            return replace(datagram, path=replace(path, remote=ADDRESS_A, remote_port=port))
        return None


def behind_nat(**rest: Any) -> tuple[Pair, Nat]:
    """A behind a NAT."""
    nat = Nat()
    a = connection_a(**rest)
    pair = Pair(a=a, b=mirror(a, remote_addresses=()), wire=Wire(translate=nat))
    return pair, nat


def test_nat() -> None:
    """Both find it, float to 4500, and encapsulate ESP (RFC 7296 section 2.23)."""
    pair, _ = behind_nat()
    pair.up()
    pair.check_children()
    [a], [b] = pair.a.endpoint.snapshot(), pair.b.endpoint.snapshot()
    assert (a.nat_local, a.nat_remote, b.nat_local, b.nat_remote) == (True, False, False, True)
    assert (a.path.local_port, a.path.remote_port) == (4500, 4500)
    assert (b.path.remote, b.path.remote_port, b.path.local_port) == (OUTSIDE, 14500, 4500)
    assert all(each.encapsulated for side in pair.sides for each in side.children.values())
    [sa] = pair.b.children.values()
    assert sa.path == b.path


def test_no_nat() -> None:
    """Without NAT and without MOBIKE everything stays on port 500."""
    a = connection_a(mobike=False)
    pair = Pair(a=a, b=mirror(a)).up()
    assert {datagram.path.remote_port for datagram in pair.carried} == {500}
    assert not any(each.encapsulated for each in pair.a.children.values())


def test_float_for_mobike() -> None:
    """RFC 4555 section 3.3: with MOBIKE IKE_AUTH goes to 4500 even without NAT."""
    pair = Pair().up()
    assert [datagram.path.remote_port for datagram in pair.carried] == [500, 500, 4500, 4500]
    assert not any(each.encapsulated for each in pair.a.children.values())
    assert pair.a.endpoint.snapshot()[0].mobike


def test_float_from_other_ports() -> None:
    """Ports of our own choice move to ours, those of the peer to the RFC's."""
    for ours, theirs in ((1500, 500), (500, 500), (1500, 1500), (1500, 2500)):
        a = connection_a(local_port=ours, remote_port=theirs)
        pair = Pair(a=a, b=mirror(a), settings_a=EndpointSettings(nat_ports=(ours, 4600))).up()
        moved = {500: (4600, 4500), 1500: (4600, 4600), 2500: (ours, theirs)}[theirs]
        assert {
            (way.path.local_port, way.path.remote_port) for way in pair.carried if way.path.local == ADDRESS_A
        } == {
            (ours, theirs),
            moved,
        }


@pytest.mark.parametrize("who", ["a", "b"])
def test_forced_encapsulation(who: str) -> None:
    """One side wants ESP in UDP: both do it."""
    a, b = connection_a(encap=who == "a"), connection_b(encap=who == "b")
    pair = Pair(a=a, b=b).up()
    assert all(each.encapsulated for side in pair.sides for each in side.children.values())


def test_keepalives() -> None:
    """The one behind the NAT keeps the mapping alive (RFC 3948 section 4)."""
    pair, _ = behind_nat(keepalive=20.0)
    pair.up()
    before = len(pair.carried)
    pair.run(100.0)
    sent = pair.carried[before:]
    assert len(sent) == 5 and all(each.keepalive and each.data == b"\xff" for each in sent)
    assert all(each.path.local == ADDRESS_A for each in sent)


def test_mapping_change_is_followed() -> None:
    """A new port of the NAT: without MOBIKE the responder follows an authenticated message (RFC 7296 section 2.23)."""
    pair, nat = behind_nat(mobike=False, dpd_delay=30.0)
    pair.up()
    nat.offset = 20000
    pair.run(100.0)
    assert pair.b.of(PathChanged)[-1].path.remote_port == 24500
    assert pair.b.endpoint.snapshot()[0].path.remote_port == 24500
    assert pair.a.ikes and pair.b.ikes


# Fragments (RFC 7383)


@pytest.mark.parametrize("seed", range(5))
def test_fragments(seed: int) -> None:
    """A large IKE_AUTH goes in pieces that fit, over a wire that loses, repeats and reorders."""
    connection = by_certificates(fragment_size=576, send_certificate="always")
    pair = pair_of(
        certificate(AuthA, "rsa2048", below=True), certificate(B, "rsa2048", below=True), connection
    )
    pair.wire = Wire(loss=0.1, repeat=0.2, delay=(0.01, 0.5))
    pair.initiate()
    pair.run(170.0)
    pair.check_children()
    cut = [each for each in pair.carried if each.data[16] == PayloadType.SKF]
    assert len(cut) >= 6
    assert max(len(each.data) for each in cut) <= 576 - 32
    assert max(len(each.data) for each in pair.carried if each.data[18] != Exchange.IKE_SA_INIT) <= 576 - 32


AuthA = Identity.parse("a.example")


def test_no_fragments_without_agreement() -> None:
    """A peer that does not say that it supports them gets the message whole."""
    connection = by_certificates(fragment_size=576, send_certificate="always", fragmentation=Choice.NO)
    pair = pair_of(certificate(AuthA, "rsa2048"), certificate(B, "rsa2048"), connection).up()
    assert not [each for each in pair.carried if each.data[16] == PayloadType.SKF]


def test_forged_fragments_are_not_kept() -> None:
    """Each fragment is authenticated by itself."""
    connection = by_certificates(fragment_size=576, send_certificate="always")
    pair = pair_of(certificate(AuthA, "rsa2048"), certificate(B, "rsa2048"), connection)

    def forge(datagram: Datagram) -> Datagram:
        if datagram.data[16] == PayloadType.SKF and pair.random.random() < 0.5:
            changed = bytearray(datagram.data)
            changed[-1] ^= 1
            return replace(datagram, data=bytes(changed))
        return datagram

    pair.wire = Wire(translate=forge)
    pair.initiate()
    pair.run(170.0)
    pair.check_children()


@pytest.mark.parametrize("exchange", [Exchange.IKE_INTERMEDIATE, Exchange.IKE_AUTH])
@pytest.mark.parametrize(("size", "again"), [(1280, 150), (1280, 400), (576, 200), (576, None)])
def test_a_request_in_other_pieces(
    exchange: Exchange, size: int, again: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response is lost, and the peer tries other fragments: their first one, and it alone, has it sent again."""
    sealed: list[tuple[IkeSa, Outgoing, int, SaKeys | None]] = []
    seal = send.seal

    def spy(sa: IkeSa, message: Outgoing, message_id: int, *, response: bool) -> list[bytes]:
        if not response and message.exchange == exchange:
            sealed.append((sa, message, message_id, sa.keys))
        return seal(sa, message, message_id, response=response)

    monkeypatch.setattr(send, "seal", spy)
    rest = {"fragment_size": size, "retransmission": Retransmission(timeout=1000.0)}
    a = connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768"), **rest)
    lost = Wire(drop=lambda number, each: each.path.local == ADDRESS_B and each.data[18] == exchange)
    pair = Pair(a=a, b=mirror(a), wire=lost)
    pair.initiate()
    pair.run(1.0)
    [(sa, message, number, keys)] = sealed
    header = send.header_of(sa, exchange, number, response=False)
    pieces = codec.seal(message, header, keys, limit=again)
    sent = pair.b.sent

    def arrive(data: bytes) -> int:
        before = pair.b.sent
        pair._arrive(Datagram(path=sa.path, data=data))
        pair.collect()
        return pair.b.sent - before

    assert [arrive(each[:-1] + bytes((each[-1] ^ 1,))) for each in pieces] == [0] * len(pieces)
    assert not any(arrive(each) for each in pieces[1:])
    pair.wire.drop = lambda number, datagram: False
    assert arrive(pieces[0]) > 0 and pair.b.sent > sent
    pair.run()
    pair.check_children()


# Additional key exchanges (RFC 9242, RFC 9370)


@pytest.mark.parametrize(
    "proposal",
    [
        "aes128gcm16-prfsha256-x25519-ke1_mlkem768",
        "aes256-sha384-ecp384-ke1_mlkem1024",
        "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_ecp256-ke3_x448",
        "chacha20poly1305-prfsha512-x25519-ke2_mlkem768",
    ],
)
def test_additional_key_exchanges(proposal: str) -> None:
    """One IKE_INTERMEDIATE for each; their content enters AUTH on both sides."""
    a = connection_a(proposals=ike(proposal))
    pair = Pair(a=a, b=mirror(a)).up()
    pair.check_children()
    count = proposal.count("-ke")
    ran = [each for each in pair.carried if each.data[18] == Exchange.IKE_INTERMEDIATE]
    assert len({each.data[20:24] for each in ran}) == count
    assert pair.a.established[0].suite_name == pair.b.established[0].suite_name == proposal


@pytest.mark.parametrize("seed", range(5))
def test_additional_key_exchanges_in_fragments_over_a_bad_wire(seed: int) -> None:
    """ML-KEM does not fit 576 bytes; lost and repeated pieces change nothing."""
    a = connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ke1_mlkem1024"), fragment_size=576)
    patient = EndpointSettings(half_open_timeout=600.0)
    pair = Pair(
        a=a, b=mirror(a), wire=Wire(loss=0.1, repeat=0.2, delay=(0.01, 0.5)), seed=seed, settings_b=patient
    )
    pair.initiate()
    pair.run(300.0)
    pair.check_children()


def test_optional_additional_key_exchange() -> None:
    """`none` among the alternatives: a peer without ML-KEM comes up without IKE_INTERMEDIATE."""
    a = connection_a(proposals=ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none"))
    pair = Pair(a=a, b=connection_b()).up()
    assert not [each for each in pair.carried if each.data[18] == Exchange.IKE_INTERMEDIATE]


# Post-quantum preshared keys (RFC 8784)


def with_ppk(*keys: tuple[str, bytes]) -> Credentials:
    """The preshared key, and PPKs."""
    return Credentials(
        preshared_keys=psk().preshared_keys,
        postquantum_keys=[PostquantumKey(id=id, secret=secret) for id, secret in keys],
    )


def ppk_pair(ours: Credentials, theirs: Credentials, *, required: tuple[bool, bool] = (False, False)) -> Pair:
    """Both connections name the PPK."""
    a = connection_a(ppk_id="quantum", ppk_required=required[0])
    b = mirror(a, ppk_required=required[1])
    return Pair(a=a, b=b, credentials_a=ours, credentials_b=theirs)


QUANTUM = with_ppk(("quantum", b"0123456789abcdef0123456789abcdef"))


@pytest.mark.parametrize("required", [(False, False), (True, True)])
def test_ppk(required: tuple[bool, bool]) -> None:
    """Mixed in on both sides: the children's keys agree, and differ from those without."""
    pair = ppk_pair(QUANTUM, QUANTUM, required=required).up()
    pair.check_children()
    [sa] = pair.a.endpoint.registry
    assert sa.features & Feature.PPK


def test_ppk_that_one_side_lacks() -> None:
    """It is left out where neither requires it."""
    ppk_pair(QUANTUM, with_ppk()).up().check_children()
    ppk_pair(with_ppk(), QUANTUM).up().check_children()


def test_ppk_that_differs() -> None:
    """The same name, another secret."""
    other = with_ppk(("quantum", b"fedcba9876543210fedcba9876543210"))
    pair = ppk_pair(QUANTUM, other)
    pair.initiate()
    pair.run()
    assert not pair.a.established and "preshared key of 'a.example' is not the one" in pair.b.failures[0]


def test_ppk_required() -> None:
    """Both sides say who has none."""
    pair = ppk_pair(QUANTUM, with_ppk(), required=(False, True))
    pair.initiate()
    pair.run()
    assert pair.b.failures == [
        "the peer uses the PPK 'quantum', which is not among ours; connection 'a-b' requires 'quantum'; configure the "
        "same PPK on both sides"
    ]
    a = connection_a(ppk_id="quantum", ppk_required=True)
    pair = Pair(a=a, b=connection_b(), credentials_a=QUANTUM)
    pair.initiate()
    pair.run(60.0)
    assert pair.a.failures == [
        "connection 'a-b' requires a PPK; the peer does not support any (RFC 8784); configure the same PPK on the peer"
    ]


def test_a_required_ppk_is_the_connections_own() -> None:
    """That we have the peer's PPK, too, for somebody else, is not enough."""
    both = with_ppk(
        ("quantum", b"0123456789abcdef0123456789abcdef"), ("other", b"fedcba9876543210fedcba9876543210")
    )
    b = mirror(connection_a(ppk_id="quantum"), ppk_required=True)
    pair = Pair(a=connection_a(ppk_id="other"), b=b, credentials_a=both, credentials_b=both)
    pair.initiate()
    pair.run()
    assert pair.b.failures == [
        "the peer uses the PPK 'other'; connection 'a-b' requires 'quantum'; configure the same PPK on both sides"
    ]


# Without a child (RFC 6023)


def test_childless() -> None:
    """An IKE SA alone."""
    pair = Pair().up(None)
    assert not pair.a.children and len(pair.a.ikes) == len(pair.b.ikes) == 1


def test_childless_first() -> None:
    """The child comes by an exchange of its own, with a key exchange of its own."""
    a = connection_a(childless=Choice.FORCE)
    pair = Pair(a=a, b=mirror(a, childless=Choice.YES)).up()
    pair.check_children()
    assert [each.data[18] for each in pair.carried].count(Exchange.CREATE_CHILD_SA) == 2


def test_childless_refused() -> None:
    """The peer does not support it."""
    pair = Pair(b=replace(connection_b(), childless=Choice.NO))
    pair.initiate(None)
    pair.run(60.0)
    assert "the peer does not support that (RFC 6023)" in pair.a.failures[0]


# Uniqueness


def twice(unique: Unique, *, initial_contact: bool = False) -> Pair:
    """A forgets its first IKE SA (a restart) and begins anew."""
    a = connection_a(unique=unique)
    settings = EndpointSettings(initial_contact=initial_contact)
    pair = Pair(a=a, b=mirror(a), settings_a=settings).up()
    fresh = Pair(a=a, settings_a=settings, seed=2)
    pair.a.endpoint = fresh.a.endpoint
    pair.a.log.clear()
    pair.initiate()
    pair.run(30.0)
    return pair


def test_unique_no() -> None:
    """Both stay."""
    assert len(twice(Unique.NO).b.ikes) == 2


def test_unique_replace() -> None:
    """The older one is deleted; a peer that does not know it any more makes no difference."""
    pair = twice(Unique.REPLACE)
    pair.run(200.0)
    assert len(pair.b.ikes) == 1
    pair.check_children()


def test_unique_keep() -> None:
    """The newer one is refused, and both sides are told."""
    pair = twice(Unique.KEEP)
    assert len(pair.b.ikes) == 1 and not pair.a.established
    assert pair.b.failures == [
        "'a.example' has IKE SA 1 already, and connection 'a-b' keeps that (unique = keep); close it first, or set "
        "unique to replace"
    ]
    assert "the peer refuses our authentication" in pair.a.failures[0]


@pytest.mark.parametrize(("unique", "left"), [(Unique.NO, 1), (Unique.KEEP, 1), (Unique.NEVER, 2)])
def test_initial_contact(unique: Unique, left: int) -> None:
    """A peer that has restarted: what it had is closed at once, unless the policy is `never`."""
    pair = twice(unique, initial_contact=True)
    assert len(pair.b.ikes) == left
    if left == 1:
        assert [event.why for event in pair.b.of(IkeClosed)] == [Closed.PEER]
        pair.check_children()


# Reauthentication


def reauthenticating(**rest: Any) -> Connection:
    """New authentication each 100 seconds."""
    return connection_a(
        reauth_time=100.0,
        rekey_time=0.0,
        over_time=50.0,
        random_time=1.0,
        children=(child(), child("other", "10.3.0.0/16", "10.4.0.0/16")),
        **rest,
    )


@pytest.mark.parametrize("unique", [Unique.NO, Unique.REPLACE])
def test_reauthentication(unique: Unique) -> None:
    """A new IKE SA with all children is there before the old one goes: no moment without a working pair."""
    a = reauthenticating(unique=unique)
    pair = Pair(a=a, b=mirror(a, reauth_time=0.0)).up()
    pair.initiate("other")
    pair.run(1.0)
    pair.check_children(2)
    for _ in range(1400):
        pair.run(0.1)
        names = {each.settings.name for each in pair.a.sending.values()}
        assert names == {"net", "other"}
        for ours in pair.a.sending.values():
            mirrors = [each for each in pair.b.sending.values() if each.spi_in == ours.spi_out]
            closed = {event.child for event in pair.a.of(ChildClosed)}
            assert mirrors or ours.id in closed or pair.flying
    assert len(pair.a.established) == 2
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    pair.check_children(2)
    assert [event.why for event in pair.a.of(IkeClosed)] == [Closed.REPLACED]
    old = pair.a.of(ChildClosed)
    assert len(old) == 2 and all(event.replaced_by is not None for event in old)
    assert pair.a.of(ChildEstablished)[2].replaces == pair.a.of(ChildEstablished)[0].child.id


def test_auth_lifetime() -> None:
    """A responder's time for new authentication is the initiator's as well (RFC 4478)."""
    a = connection_a(rekey_time=0.0)
    pair = Pair(a=a, b=mirror(a, reauth_time=100.0, over_time=10.0)).up()
    pair.run(120.0)
    assert len(pair.a.established) == 2
    assert all(event.initiator for event in pair.a.established)


class Announcing(Liveness):
    """A responder whose policy has changed."""

    limit = 100

    def build(self, sa: IkeSa, message: Outgoing, now: float) -> Result:
        """AUTH_LIFETIME, on its own."""
        message.notify(NotifyType.AUTH_LIFETIME, self.limit.to_bytes(4, "big"))
        return MORE


@pytest.mark.parametrize("who", ["a", "b"])
def test_auth_lifetime_while_the_ike_sa_lives(who: str) -> None:
    """The original responder may say it at any time (RFC 4478 section 3); from the initiator it means nothing."""
    a = connection_a(rekey_time=0.0)
    pair = Pair(a=a, b=mirror(a)).up()
    (sa,) = (pair.a if who == "a" else pair.b).endpoint.registry
    for limit in (100, 1000):  # the later one does not put it off
        task = Announcing()
        task.limit = limit
        sa.queue(task, pair.now)
        sa.host.schedule(sa)
        pair.run(1.0)
    pair.run(98.0)
    assert len(pair.a.established) == (2 if who == "b" else 1)
    pair.run(30.0)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    pair.check_children()


# Export of keys


def test_keys_leave_only_where_that_is_allowed() -> None:
    """Lines for Wireshark: of the IKE SA, and of both directions of the child."""
    assert not Pair().up().a.of(KeysExported)
    pair = Pair(settings_a=EndpointSettings(export_keys=True)).up()
    lines = pair.a.of(KeysExported)
    assert [each.table for each in lines] == ["ikev2_decryption_table", "esp_sa", "esp_sa"]
    assert "hunter" not in repr(lines) and all(each.line not in repr(each) for each in lines)


def test_psk_side_by_auth_settings() -> None:
    """The identity of a side without one is its address."""
    a = connection_a(local=AuthSettings(auth=Auth.PSK), remote=AuthSettings(auth=Auth.PSK))
    pair = Pair(a=a, b=mirror(a)).up()
    assert pair.b.established[0].remote_id == str(ADDRESS_A)


@pytest.mark.parametrize(("second", "left"), [("carol", 1), ("dave", 2)])
def test_clients_are_told_apart_by_their_eap_identity(second: str, left: int) -> None:
    """Behind NATs many clients have the same IKE identity, their private address."""

    def client(name: str) -> Connection:
        settings = AuthSettings(
            auth=Auth.EAP,
            identity=Identity.parse("10.0.0.2"),
            eap_identity=name,
            eap_methods=("mschapv2",),
        )
        return test_eap.client(local=settings)

    passwords = {"carol": "x", "dave": "y"}
    server = test_eap.server(unique=Unique.REPLACE)
    pair = test_eap.pair(
        client("carol"),
        server,
        test_eap.credentials(passwords=passwords),
        test_eap.credentials(test_eap.GATEWAY, passwords=passwords),
    ).up()
    fresh = Pair(a=client(second), credentials_a=test_eap.credentials(passwords=passwords), seed=2)
    pair.a.endpoint = fresh.a.endpoint
    pair.initiate()
    pair.run(300.0)
    assert len(pair.b.ikes) == left


@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_a_peer_that_takes_no_padding(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7296 section 1.3.1: who sends ESP_TFC_PADDING_NOT_SUPPORTED gets packets without."""
    name = "add_request" if who == "initiator" else "add_answer"
    before = getattr(negotiate, name)

    def refusing(message: Outgoing, agreed: Any) -> None:
        message.notify(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED)
        before(message, agreed)

    monkeypatch.setattr(negotiate, name, refusing)
    a = connection_a(children=(child(tfc_padding=1000),))
    pair = Pair(a=a, b=mirror(a)).up()
    (ours,), (theirs,) = pair.a.children.values(), pair.b.children.values()
    assert (ours.tfc, theirs.tfc) == ((True, False) if who == "initiator" else (False, True))
    for each in (ours, theirs):
        _, outbound = sa_specs(each, each.path, each.encapsulated, ())
        assert outbound.tfc_padding == (1000 if each.tfc else 0)
