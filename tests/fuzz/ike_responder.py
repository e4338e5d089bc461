"""Whole endpoints under fuzz: what anybody may send first, and conversations in which some messages are changed
by one who has the keys, so that the changes get past the integrity check to whatever reads the payloads.

    first_contact   one endpoint for all inputs; each is a mutated IKE_SA_INIT, at a pace of 20 a second
    conversation    two endpoints do what two gateways do; of the messages on the wire, in either direction, some are
                    opened, changed and sealed again

No endpoint may report an internal error, take long over a datagram, or keep half-open IKE SAs beyond their time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from typing import Any

from control.ike.endpoint import Endpoint
from control.ike.events import Datagram, Event, PeerPath
from control.ike.identity import Identity
from control.ike.numbers import NotifyType
from control.ike.settings import (
    Auth,
    AuthSettings,
    ChildSettings,
    Choice,
    Connection,
    EndpointSettings,
    PoolSettings,
    TrafficSelector,
)
from control.ike.v2.sa import IkeSa
from control.ike.wire import build_payload_chain, build_sealed_prefix, parse_message, parse_payload_chain
from control.pki.make import issue, make_authority
from control.pki.settings import EapSecret, PostquantumKey, PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate
from dataplane.model import Mode
from tests import ike_messages
from tests.control.ike.pair import ADDRESS_A, Pair, Side, Wire, child, connection_a, esp, ike, mirror
from tests.fuzz.ike_mutate import mutate

SLOW = 0.5  # CPU seconds that no datagram may take
_NOISE = [random.Random(number).randbytes(200) for number in range(20)]


class Broken(AssertionError):
    """An endpoint did what it never may."""


def check_events(events: list[Event]) -> None:
    """No bug was met."""
    for event in events:
        text = str(getattr(event, "text", "")) + str(getattr(event, "failure", ""))
        if "internal error" in text:
            raise Broken(text)


def timed(act: Callable[[], object]) -> None:
    """Do it, in bounded time."""
    begun = time.process_time()
    act()
    if (seconds := time.process_time() - begun) > SLOW:
        raise Broken(f"{seconds:.2f} s of CPU for one datagram; want {SLOW} at most")


# ---- what comes first --------------------------------------------------------------------------------------------


class FirstContact:
    """An endpoint that strangers write to."""

    def __init__(self) -> None:
        settings = EndpointSettings(cookie_threshold=20, half_open_limit=100, block_threshold=0)
        connection = connection_a(
            remote_addresses=(), proposals=ike("aes128gcm16-prfsha256-x25519-ecp256", "aes128-sha256-ecp384")
        )
        self.endpoint = Endpoint(settings, [connection], Credentials(), random=random.Random(1).randbytes)
        self.now = 0.0

    def take(self, data: bytes) -> None:
        """One datagram."""
        self.now += 0.05
        chance = random.Random(data)
        path = PeerPath(
            local=ADDRESS_A,
            local_port=chance.choice((500, 4500)),
            remote=ip_address(0x0A000000 + chance.randrange(1000)),
            remote_port=chance.choice((500, 4500, 40000)),
        )
        timed(lambda: self.endpoint.receive_datagram(data, path, self.now))
        while (at := self.endpoint.next_timer()) is not None and at <= self.now:
            self.endpoint.handle_timers(self.now)
        self.endpoint.datagrams_to_send()
        check_events(self.endpoint.events())
        if len(self.endpoint.snapshot()) > 100:
            raise Broken(f"{len(self.endpoint.snapshot())} IKE SAs, of which at most 100 may be half open")


@cache
def _first_contact() -> FirstContact:
    return FirstContact()


def first_contact(data: bytes) -> None:
    """One datagram to the one endpoint of this process."""
    _first_contact().take(data)


def make_first_contact(chance: random.Random) -> bytes:
    """A well-formed IKE_SA_INIT request."""
    suites = ("aes128gcm16-prfsha256-x25519", "aes128-sha256-ecp384", "aes256-sha512-x448-ke1_mlkem768")
    connection = connection_a(proposals=ike(chance.choice(suites), "aes128gcm16-prfsha256-ecp256"))
    endpoint = Endpoint(
        EndpointSettings(),
        [connection],
        Credentials(),
        random=chance.randbytes,
        source_address=lambda remote: ADDRESS_A,
    )
    endpoint.initiate("a-b", "net", 0.0)
    return endpoint.datagrams_to_send()[0].data


# ---- conversations -----------------------------------------------------------------------------------------------


@cache
def _certificates() -> tuple[Authority, LoadedCertificate, LoadedCertificate]:
    root = make_authority("CN=Fuzz CA")
    middle = make_authority("CN=Fuzz intermediate", parent=root)
    authority = Authority(name="ca", certificates=(root.certificate,))
    leaves = []
    for name in ("a.example", "b.example"):
        leaf = issue(middle, f"CN={name}", [Identity.parse(name)])
        leaves.append(
            LoadedCertificate(
                name=name, certificate=leaf.certificate, key=leaf.key, chain=(middle.certificate,)
            )
        )
    return authority, leaves[0], leaves[1]


def _credentials(side: int) -> Credentials:
    authority, *leaves = _certificates()
    return Credentials(
        preshared_keys=(PresharedKey(identities=(), secret=b"a shared secret"),),
        eap_secrets=(EapSecret(identity="carol", secret=b"a password"),),
        postquantum_keys=(PostquantumKey(id="ppk", secret=bytes(32)),),
        certificates=(leaves[side],),
        authorities=(authority,),
    )


_PUBKEY = {
    "local": AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("a.example")),
    "remote": AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("b.example")),
}
_POOL = PoolSettings(
    name="pool",
    ranges=((ip_address("10.9.0.1"), ip_address("10.9.0.9")), (ip_address("fd00::1"), ip_address("fd00::9"))),
    dns=(ip_address("10.2.0.53"), ip_address("fd00::53")),
    domains=("example.org",),
)


def _remote_access(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What A, a client, and B, its server, have else than in a tunnel between two sites."""
    eap = AuthSettings(
        auth=Auth.EAP, eap_methods=(method,), eap_identity="carol", identity=Identity.parse("carol")
    )
    server = AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("b.example"), certificates=("b.example",))
    any_address = (ip_address("0.0.0.0"), ip_address("::"))
    dynamic = child(proposals=esp("aes128gcm16"))
    client: dict[str, Any] = {
        "local": eap,
        "remote": replace(server, certificates=()),
        "virtual_addresses": any_address,
        "children": (replace(dynamic, local=(TrafficSelector(),)),),
    }
    peer: dict[str, Any] = {
        "local": server,
        "remote": replace(eap, eap_identity=None, identity=None),
        "pools": ("pool",),
        "virtual_addresses": (),
    }
    return client, peer


OTHER_ADDRESSES = ip_address("198.51.100.1"), ip_address("198.51.100.2")  # where A and B move to
KINDS = ("psk", "psk", "pubkey", "pubkey small", "many exchanges", "ppk", "mschapv2", "tls", "transport")


def _settings(chance: random.Random) -> tuple[Connection, Connection]:
    """A's and B's connection, of some kind."""
    kind = chance.choice(KINDS)
    children: tuple[ChildSettings, ...] = (child(proposals=esp("aes128gcm16-x25519", "aes128-sha256")),)
    if chance.random() < 0.3:
        children = (*children, child("more", "10.3.0.0/16", "10.4.0.0/16"))
    rest: dict[str, Any] = {"children": children, "mobike": chance.random() < 0.7}
    if chance.random() < 0.3:
        rest["dpd_delay"] = 10.0
    other: dict[str, Any] = {}
    if kind.startswith("pubkey"):
        rest |= _PUBKEY
        if kind == "pubkey small":
            rest["fragment_size"] = 576
            rest["fragmentation"] = Choice.YES
    elif kind == "many exchanges":
        rest["proposals"] = ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_ecp256")
        rest["children"] = (child(proposals=esp("aes128gcm16-x25519-ke1_mlkem768")),)
    elif kind == "ppk":
        rest |= {"ppk_id": "ppk", "ppk_required": chance.random() < 0.5}
    elif kind == "transport":
        rest["children"] = (child(local="192.0.2.1/32", remote="192.0.2.2/32", mode=Mode.TRANSPORT),)
    elif kind in ("mschapv2", "tls"):
        client, other = _remote_access(kind)
        rest |= client
    a = connection_a(**rest)
    b = mirror(a, name="b-a")
    return a, replace(b, **other) if other else b


class Tamperer:
    """A wire that changes some messages, opening and sealing them with the keys of both ends."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rate = chance.choice((0.2, 0.5, 0.9))
        self.left = chance.choice((1, 2, 5, 20))  # messages still to be changed
        self.skip = chance.choice((0, 1, 2, 3, 4, 4, 4, 5, 6, 8))  # the first ones, that are left alone
        self.changed = 0
        self.pair: Pair | None = None

    def translate(self, datagram: Datagram) -> Datagram | None:
        """What arrives in place of a datagram."""
        if self.skip:
            self.skip -= 1
            return datagram
        if not self.left or self.chance.random() > self.rate:
            return datagram
        self.left -= 1
        self.changed += 1
        return replace(datagram, data=self._change(datagram))

    def _change(self, datagram: Datagram) -> bytes:
        data = datagram.data
        try:
            ends = self._ends(data)
            if ends is not None and self.chance.random() < 0.9:
                return self._reseal(data, *ends)
        except Exception:  # an earlier change has left one side without the message's keys
            pass
        changed = bytearray(mutate(data, self.chance, _NOISE))
        if len(changed) >= 28 and self.chance.random() < 0.8:
            changed[24:28] = len(changed).to_bytes(4, "big")
        return bytes(changed)

    def _ends(self, data: bytes) -> tuple[IkeSa, IkeSa] | None:
        """The IKE SA of whoever sent this, and of whoever gets it."""
        assert self.pair is not None
        found = [
            sa
            for side in self.pair.sides
            for spi in (data[:8], data[8:16])
            if (sa := side.endpoint.registry.by_spi(spi)) is not None
        ]
        from_initiator = bool(data[19] & 8)
        sender = [sa for sa in found if sa.initiator == from_initiator]
        receiver = [sa for sa in found if sa.initiator != from_initiator]
        if not sender or not receiver or sender[0].keys is None or receiver[0].keys is None:
            return None
        return sender[0], receiver[0]

    def _reseal(self, data: bytes, sender: IkeSa, receiver: IkeSa) -> bytes:
        message = parse_message(data)
        assert message.encrypted is not None and sender.keys is not None and receiver.keys is not None
        plain = receiver.keys.opener.open(message.aad, message.encrypted.body)
        first, plain = self._change_payloads(message.encrypted.first, plain)
        header = message.header
        if self.chance.random() < 0.1:
            exchange = self.chance.choice((34, 35, 36, 37, 38, 43, 44, 99))
            header = replace(header, exchange=exchange)
        if self.chance.random() < 0.03:
            header = replace(
                header, message_id=header.message_id + self.chance.choice((-1, 1, 1000)) & 0xFFFFFFFF
            )
        keys = sender.keys
        number, total = message.encrypted.number, message.encrypted.total
        if self.chance.random() < 0.05:
            number, total = self.chance.choice(((1, 1), (1, 2), (2, 2), (1, 65535), (200, 200)))
        length = keys.protection.sealed_length(len(plain))
        prefix = build_sealed_prefix(header, first, length, number=number, total=total)
        return prefix + keys.sealer.seal(prefix, plain)

    def _change_payloads(self, first: int, plain: bytes) -> tuple[int, bytes]:
        """Payloads dropped, doubled, swapped, made up, changed inside, or the whole as bytes."""
        chance = self.chance
        try:
            payloads = list(parse_payload_chain(first, plain))
        except Exception:  # a later fragment
            return first, mutate(plain, chance, _NOISE)
        kind = chance.randrange(10)
        if kind < 5 and payloads:
            return self._change_one(first, plain)
        if kind == 5 and payloads:
            del payloads[chance.randrange(len(payloads))]
        elif kind == 6 and payloads:
            payloads.insert(chance.randrange(len(payloads)), chance.choice(payloads))
        elif kind == 7:
            chance.shuffle(payloads)
        elif kind == 8:
            payloads.insert(chance.randrange(len(payloads) + 1), self._made_up())
        else:
            return first, mutate(plain, chance, _NOISE)
        return build_payload_chain(payloads)

    def _made_up(self) -> Any:
        chance = self.chance
        if chance.random() < 0.5:
            return ike_messages.payload(chance)
        kinds = [each for each in NotifyType if chance.random() < 0.5] or [NotifyType.REKEY_SA]
        return replace(ike_messages.notify(chance), type=int(chance.choice(kinds)))

    def _change_one(self, first: int, plain: bytes) -> tuple[int, bytes]:
        """One payload's body changed, and its length with it, so that the chain stays whole."""
        starts, at = [], 0
        while at + 4 <= len(plain):
            length = int.from_bytes(plain[at + 2 : at + 4], "big")
            starts.append((at, length))
            at += length
        at, length = self.chance.choice(starts)
        body = mutate(plain[at + 4 : at + length], self.chance, _NOISE)
        head = plain[at : at + 2] + (4 + len(body)).to_bytes(2, "big")
        return first, plain[:at] + head + body + plain[at + length :]


def conversation(data: bytes) -> int:
    """Two gateways talk, and somebody changes what they say; the number of messages that were changed."""
    chance = random.Random(data)
    tamperer = Tamperer(chance)
    a, b = _settings(chance)
    pools = _pools()
    pair = Pair(
        a=a,
        b=b,
        credentials_a=_credentials(0),
        credentials_b=_credentials(1),
        pools_b=pools,
        wire=Wire(translate=tamperer.translate),
        seed=chance.randrange(1 << 30),
    )
    tamperer.pair = pair
    for side, other in zip(pair.sides, OTHER_ADDRESSES, strict=True):
        side.addresses += (other,)
        _time(side)
    pair.initiate(a.children[0].name)
    pair.run(3.0)
    for _ in range(chance.randrange(2, 9)):
        _act(pair, chance)
        pair.run(chance.choice((0.0, 0.005, 0.015, 3.0)))
    tamperer.left = 0
    pair.run(400.0)  # longer than retransmissions and half-open IKE SAs last
    for side in pair.sides:
        check_events(side.log)
        for each in side.endpoint.snapshot():
            if each.state in ("connecting", "authenticating"):
                raise Broken(f"an IKE SA of {side.name} is {each.state} after 400 s")
    return tamperer.changed


def _pools() -> Any:
    from control.ike.pools import Pools

    return Pools((_POOL,))


def _time(side: Side) -> None:
    """Have each datagram's time measured."""
    receive = side.endpoint.receive_datagram

    def timely(data: bytes, path: PeerPath, now: float) -> None:
        timed(lambda: receive(data, path, now))

    side.endpoint.receive_datagram = timely  # type: ignore[method-assign]


def _act(pair: Pair, chance: random.Random) -> None:
    """What users, timers and traffic make a gateway do."""
    side = chance.choice(pair.sides)
    endpoint, now = side.endpoint, pair.now
    snapshot = endpoint.snapshot()
    if not snapshot:
        pair.initiate(pair.a.endpoint.connections[0].children[0].name)
        return
    ike_id = chance.choice(snapshot).id
    children = list(side.children)
    acts: list[Callable[[], object]] = [
        lambda: endpoint.rekey_ike(ike_id, now),
        lambda: endpoint.terminate_ike(ike_id, now),
        lambda: endpoint.reauthenticate_ike(ike_id, now),
        lambda: endpoint.initiate(
            endpoint.connections[0].name, endpoint.connections[0].children[-1].name, now
        ),
    ]
    if children:
        acts += [
            lambda: endpoint.rekey_child(chance.choice(children), now),
            lambda: endpoint.terminate_child(chance.choice(children), now),
            lambda: endpoint.child_expired(chance.choice(children), chance.random() < 0.5, now),
        ] * 2
    path = chance.choice(snapshot).path
    old, new = chance.sample(side.addresses, 2)
    acts += [
        lambda: endpoint.address_changed(path.local, new if path.local == old else old, now),
        lambda: endpoint.path_error(path, "ICMP host unreachable", now),
        lambda: endpoint.traffic_seen(ike_id, now),
        lambda: endpoint.set_connections([replace(each, dpd_delay=5.0) for each in endpoint.connections]),
    ]
    act = chance.choice(acts)
    try:
        act()
    except ValueError:
        pass  # nobody is to be called, or it is gone
    pair.collect()


def make_conversation(chance: random.Random) -> bytes:
    """A conversation's seed."""
    return chance.randbytes(8)
