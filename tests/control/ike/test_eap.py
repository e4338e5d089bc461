"""EAP in IKE_AUTH: a roadwarrior with password or TLS certificate and a server with a certificate, in one process."""

from __future__ import annotations

import datetime
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from control.eap import mschapv2
from control.eap.method import Progress
from control.ike.defaults import default_proposals
from control.ike.events import Closed, IkeEstablished, VirtualAddressesAssigned
from control.ike.identity import Identity
from control.ike.numbers import Exchange, Protocol
from control.ike.pools import Pools
from control.ike.proposal import Proposal
from control.ike.settings import (
    Auth,
    AuthSettings,
    ChildSettings,
    Connection,
    EndpointSettings,
    PoolSettings,
    TrafficSelector,
    Unique,
)
from control.ike.v2.parts import Timer
from control.pki.make import CLIENT, Issued, issue, make_authority
from control.pki.settings import EapSecret
from control.pki.store import Authority, Credentials, LoadedCertificate
from dataplane.model import Cipher, EspProposal, Integrity
from tests.control.ike.pair import ADDRESS_A, ADDRESS_B, Pair, Wire, esp, ike
from tests.control.ike.test_proposal import CLIENTS, WINDOWS_ESP

NOW = datetime.datetime.now(datetime.UTC)
ROOT, OTHER = make_authority("Root", now=NOW), make_authority("Other", now=NOW)
GATEWAY = issue(ROOT, "gateway", [Identity.parse("vpn.example")], now=NOW)
CAROL = issue(ROOT, "carol", [Identity.parse("carol@example.org")], purposes=CLIENT, now=NOW)
STRANGER = issue(OTHER, "carol", [Identity.parse("carol@example.org")], purposes=CLIENT, now=NOW)
POOL = PoolSettings(name="office", ranges=((ip_address("10.9.0.1"), ip_address("10.9.0.9")),))


def credentials(
    *own: Issued, trusted: tuple[Issued, ...] = (ROOT,), passwords: dict[str, str] | None = None
) -> Credentials:
    """Certificates with keys, trusted CAs, and EAP secrets."""
    return Credentials(
        certificates=[
            LoadedCertificate(
                name=f"own{index}", certificate=each.certificate, key=each.key, chain=each.chain
            )
            for index, each in enumerate(own)
        ],
        authorities=[
            Authority(name=f"ca{index}", certificates=(each.certificate,))
            for index, each in enumerate(trusted)
        ],
        eap_secrets=[
            EapSecret(identity=name, secret=text.encode()) for name, text in (passwords or {}).items()
        ],
        clock=NOW.timestamp,
    )


def client(methods: tuple[str, ...] = ("mschapv2",), **rest: Any) -> Connection:
    """A roadwarrior that wants an address."""
    values: dict[str, Any] = {
        "name": "home",
        "remote_addresses": (ADDRESS_B,),
        "proposals": ike("aes128gcm16-prfsha256-x25519"),
        "local": AuthSettings(
            auth=Auth.EAP, identity=Identity.parse("carol@example.org"), eap_methods=methods
        ),
        "remote": AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("vpn.example")),
        "virtual_addresses": (ip_address("0.0.0.0"),),
        "children": (
            ChildSettings(
                name="net",
                proposals=esp("aes128gcm16"),
                remote=(TrafficSelector(network=ip_network("10.0.0.0/8")),),
            ),
        ),
    }
    return Connection(**{**values, **rest})


def server(methods: tuple[str, ...] = ("mschapv2",), eap_id: str | None = None, **rest: Any) -> Connection:
    """A gateway that lets clients of any IKE identity in, by EAP."""
    values: dict[str, Any] = {
        "name": "rw",
        "local_addresses": (ADDRESS_B,),
        "proposals": ike("aes128gcm16-prfsha256-x25519"),
        "local": AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse("vpn.example")),
        "remote": AuthSettings(auth=Auth.EAP, eap_methods=methods, eap_identity=eap_id),
        "pools": ("office",),
        "children": (
            ChildSettings(
                name="net",
                proposals=esp("aes128gcm16"),
                local=(TrafficSelector(network=ip_network("10.0.0.0/8")),),
            ),
        ),
    }
    return Connection(**{**values, **rest})


SERVER_CREDENTIALS = credentials(GATEWAY, passwords={"carol@example.org": "Ar3etTnp"})
PASSWORD = credentials(passwords={"carol@example.org": "Ar3etTnp"})
CERTIFICATE = credentials(CAROL)


def pair(
    a: Connection,
    b: Connection,
    ours: Credentials = PASSWORD,
    theirs: Credentials = SERVER_CREDENTIALS,
    **rest: Any,
) -> Pair:
    """A client and a server."""
    return Pair(a=a, b=b, credentials_a=ours, credentials_b=theirs, pools_b=Pools([POOL]), **rest)


@pytest.mark.parametrize(("method", "ours"), [("mschapv2", PASSWORD), ("tls", CERTIFICATE)])
def test_eap(method: str, ours: Credentials) -> None:
    """Both sides are proven; the server knows the client by its EAP identity, and lends it an address."""
    both = pair(client((method,)), server((method,)), ours).up()
    both.check_children()
    [a], [b] = both.a.established, both.b.established
    assert a.remote_id == "vpn.example"
    assert b.remote_id == "carol@example.org"
    assert b.eap_identity == a.eap_identity == "carol@example.org"
    [lent] = both.a.of(VirtualAddressesAssigned)
    assert lent.addresses == (ip_address("10.9.0.1"),)
    assert both.b.endpoint.pools.status[0].online == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("method", "ours"), [("mschapv2", PASSWORD), ("tls", CERTIFICATE)])
def test_eap_over_a_bad_wire(method: str, ours: Credentials, seed: int) -> None:
    """Lost, repeated and reordered packets: one IKE SA, one child."""
    patient = EndpointSettings(half_open_timeout=600.0)
    both = pair(
        client((method,)),
        server((method,)),
        ours,
        wire=Wire(loss=0.2, repeat=0.3, delay=(0.01, 1.0)),
        seed=seed,
        settings_b=patient,
    )
    both.initiate()
    both.run(600.0)
    assert len(both.a.established) == len(both.b.established) == 1, (both.a.failures, both.b.failures)
    both.check_children()


def test_another_eap_identity() -> None:
    """What the client calls itself in IKE is not what it logs in as, as with Windows, which sends its address."""
    settings = AuthSettings(
        auth=Auth.EAP,
        identity=Identity.from_address(ADDRESS_A),
        eap_identity="CORP\\carol",
        eap_methods=("mschapv2",),
    )
    passwords = credentials(passwords={"CORP\\carol": "x"})
    both = pair(
        client(local=settings), server(), passwords, credentials(GATEWAY, passwords={"carol": "x"})
    ).up()
    assert both.b.established[0].remote_id == str(ADDRESS_A)
    assert both.b.established[0].eap_identity == "carol"  # who has the password, whatever domain is said


def proposing(connection: Connection, ike: tuple[Proposal, ...], esp: tuple[Proposal, ...]) -> Connection:
    """The connection with other proposals, its children's too."""
    children = tuple(replace(each, proposals=esp) for each in connection.children)
    return replace(connection, proposals=ike, children=children)


def test_windows_proposals() -> None:
    """What Windows' client offers as it comes, IKE and ESP, gives a child of a server that names no proposals."""
    windows = [
        tuple(Proposal(protocol=each.protocol, transforms=each.transforms) for each in offers)
        for offers in (CLIENTS["windows"][0], WINDOWS_ESP)
    ]
    defaults = [default_proposals(each, remote_access=True) for each in (Protocol.IKE, Protocol.ESP)]
    both = pair(proposing(client(), *windows), proposing(server(), *defaults)).up()
    both.check_children()
    assert both.b.established[0].suite_name == "aes256-sha256-modp1024"
    [child] = both.b.children.values()
    assert child.suite == EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA1)
    assert (len(child.encryption_key_in), len(child.integrity_key_in)) == (32, 20)


def failures(both: Pair) -> tuple[list[str], list[str]]:
    """What both sides say when it does not come up; nothing stands."""
    both.initiate()
    both.run(200.0)
    assert not both.a.of(IkeEstablished) and not both.b.of(IkeEstablished)
    assert both.a.ikes == both.b.ikes == []
    return both.a.failures, both.b.failures


ADVICE = "compare the EAP secrets or certificates of both sides"


def test_wrong_password() -> None:
    """Both sides name user, method and reason."""
    wrong = credentials(passwords={"carol@example.org": "guess"})
    assert failures(pair(client(), server(), wrong)) == (
        [
            "the server refused EAP-MSCHAPv2 of 'carol@example.org' with error 691: wrong user name or password; "
            + ADVICE
        ],
        [
            "EAP of 'carol@example.org' failed: EAP-MSCHAPv2 of 'carol@example.org' failed: the password is "
            "wrong; " + ADVICE
        ],
    )


def test_no_password() -> None:
    """Neither does the client ask without one, nor does the server let in whom it does not know."""
    a, _ = failures(pair(client(), server(), credentials()))
    assert a == [
        "the server wants the password of 'carol@example.org', and we have none; add an EAP secret for "
        "'carol@example.org', or set local.eap_id to one that there is"
    ]
    _, b = failures(pair(client(), server(), PASSWORD, credentials(GATEWAY)))
    assert "there is no EAP secret for that name" in b[0]


def test_no_common_method() -> None:
    """The client can do one thing, the server wants another."""
    a, b = failures(pair(client(("mschapv2",)), server(("tls",))))
    assert "we can do EAP-MSCHAPV2" in a[0]
    assert "the client 'carol@example.org' can do EAP-MSCHAPV2; we accept EAP-TLS" in b[0]


def test_server_takes_the_clients_method() -> None:
    """The server prefers TLS, the client has a password."""
    pair(client(("mschapv2",)), server(("tls", "mschapv2"))).up()


def test_client_certificate_of_another_ca() -> None:
    """OpenSSL's refusal on the server, its alert on the client."""
    a, b = failures(pair(client(("tls",)), server(("tls",)), credentials(STRANGER)))
    assert "unknown ca" in a[0]
    assert "the client's TLS certificate is refused" in b[0]


def test_certificate_of_another_identity() -> None:
    """A valid certificate does not let its owner in as somebody else."""
    settings = AuthSettings(
        auth=Auth.EAP,
        identity=Identity.parse("carol@example.org"),
        eap_identity="dave@example.org",
        eap_methods=("tls",),
    )
    _, b = failures(pair(client(local=settings), server(("tls",)), CERTIFICATE))
    assert "dave@example.org" in b[0]


def test_unwanted_identity() -> None:
    """remote.eap_id says who may come in."""
    a, b = failures(pair(client(), server(eap_id="*@corp.example")))
    assert "EAP has proven 'carol@example.org'" in b[0]
    assert "connection 'rw' wants '*@corp.example'" in b[0]
    assert a
    pair(client(), server(eap_id="*@example.org")).up()


def test_server_certificate_of_another_ca() -> None:
    """The client believes no password prompt of a server that has not proven itself: EAP does not begin."""
    both = pair(client(), server(), credentials(trusted=(OTHER,), passwords={"carol@example.org": "x"}))
    a, _ = failures(both)
    assert "vpn.example" in a[0]
    auths = [
        each for each in both.carried if each.data[18] == Exchange.IKE_AUTH and each.path.local == ADDRESS_A
    ]
    assert len({each.data for each in auths}) == 1


class Impostor(mschapv2.Server):
    """Says that any password is right."""

    def _check(self, peer_challenge: bytes, got: bytes, name: str) -> Progress:
        self._opcode = mschapv2.SUCCESS
        return Progress(
            data=mschapv2._build(mschapv2.SUCCESS, self._identifier, b"S=" + b"0" * 40 + b" M=ok")
        )


def test_server_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good certificate is not enough; the client tells the server that this is the end."""
    monkeypatch.setattr(mschapv2, "Server", Impostor)
    both = pair(client(), server())
    a, b = failures(both)
    assert "does not know the password: its proof is wrong" in a[0]
    assert "AUTHENTICATION_FAILED" in b[0]
    assert both.now < 1000.0 + 201


def test_reauthentication_keeps_the_address() -> None:
    """Make before break: the client asks for what it has, and both IKE SAs have it until the old one is gone."""
    both = pair(client(reauth_time=3000.0, rekey_time=0.0), server(unique=Unique.REPLACE)).up()
    both.run(4000.0)
    lent = [event.addresses for event in both.a.of(VirtualAddressesAssigned)]
    assert len(lent) == 2
    assert lent[0] == lent[1] == (ip_address("10.9.0.1"),)
    assert len(both.a.ikes) == len(both.b.ikes) == 1
    both.check_children()
    assert both.b.endpoint.pools.status[0].online == 1
    both.a.endpoint.terminate_ike(both.a.ikes[0], both.now)
    both.run()
    assert both.b.endpoint.pools.status[0].online == 0


def test_a_client_does_not_live_on_by_rekeying() -> None:
    """It was told when to authenticate anew (RFC 4478) and does not care: new keys do not let it stay."""
    both = pair(client(rekey_time=0.0), server(reauth_time=1000.0, rekey_time=0.0)).up()
    for _ in range(41):
        for sa in both.a.endpoint.registry:
            sa.timers.pop(Timer.REAUTH, None)
            both.a.endpoint.schedule(sa)
            both.a.endpoint.rekey_ike(sa.id, both.now)
        both.run(30.0)
    assert len(both.b.rekeyed) > 30 and both.now < 2250.0
    assert not both.b.ikes
    assert both.b.closed[-1].why is Closed.EXPIRED


@pytest.mark.parametrize(("name", "left"), [("dave", 2), ("carol", 1)])
def test_clients_are_told_apart_by_their_eap_identity(name: str, left: int) -> None:
    """Many call themselves 192.168.1.2 in IKE: one's INITIAL_CONTACT and unique = replace do not concern another."""
    passwords = {"carol": "x", "dave": "y"}
    first, second = (
        pair(
            client(
                local=AuthSettings(
                    auth=Auth.EAP,
                    identity=Identity.parse("192.168.1.2"),
                    eap_identity=user,
                    eap_methods=("mschapv2",),
                )
            ),
            server(unique=Unique.REPLACE),
            credentials(passwords=passwords),
            credentials(GATEWAY, passwords=passwords),
            seed=seed,
        )
        for seed, user in enumerate(("carol", name))
    )
    first.up()
    second.b = first.b  # the same gateway
    second.up()
    second.run(60.0)
    assert len(first.b.ikes) == left


NOTHING = AuthSettings(auth=Auth.NONE, identity=Identity.parse("vpn.example"))


def test_eap_only() -> None:
    """RFC 5998: EAP-TLS proves the server, too, and nobody else does."""
    both = pair(client(("tls",), remote=NOTHING), server(("tls",), local=NOTHING), CERTIFICATE).up()
    assert both.a.established[0].remote_id == "vpn.example"


def test_eap_only_servers_are_not_alike() -> None:
    """A client's own name in EAP is not its servers': what replaces the IKE SA of one leaves that of another alone."""
    names = ("vpn.example", "second.example")
    ends = [
        AuthSettings(auth=Auth.EAP, identity=Identity.parse(name), eap_methods=("tls",)) for name in names
    ]
    second = issue(ROOT, "second", [Identity.parse(names[1])], now=NOW)
    both = Pair(
        a=tuple(
            client(("tls",), name=str(end.identity), remote=end, virtual_addresses=(), unique=Unique.REPLACE)
            for end in ends
        ),
        b=tuple(server(("tls",), name=str(end.identity), local=end) for end in ends),
        credentials_a=CERTIFICATE,
        credentials_b=credentials(GATEWAY, second),
    )
    for name in names:
        both.initiate("net", connection=name)
        both.run()
    both.run(60.0)
    assert [each.remote_id for each in both.a.established] == list(names)
    assert len(both.a.ikes) == len(both.b.ikes) == 2


def test_eap_only_wants_a_safe_method() -> None:
    """RFC 5998 section 4: with a password method who plays the server could guess the password."""
    a, b = failures(pair(client(("mschapv2",), remote=NOTHING), server(("tls",), local=NOTHING), PASSWORD))
    assert "none of the methods (mschapv2) is safe for that" in a[0]
    _, b = failures(pair(client(("tls",), remote=NOTHING), server(("mschapv2",), local=NOTHING), CERTIFICATE))
    assert "none of the methods (mschapv2) is safe for that" in b[0]


def test_eap_only_must_be_asked_for() -> None:
    """A server without certificate tells a client that wants one."""
    _, b = failures(pair(client(("tls",)), server(("tls",), local=NOTHING), CERTIFICATE))
    assert "wants us to prove ourselves by certificate or preshared key before EAP" in b[0]
