"""Who is who: preshared keys, certificates, identities, and what both sides say when it does not fit."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import cache
from ipaddress import ip_address

import pytest

from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings, Connection
from control.pki.make import Issued, issue, make_authority
from control.pki.settings import PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.control.ike.pair import Pair, connection_a, mirror, psk

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
A, B = Identity.parse("a.example"), Identity.parse("b.example")


@cache
def root(name: str = "Root") -> Issued:
    """A CA."""
    return make_authority(f"C=DE, CN={name}", now=NOW)


@cache
def middle() -> Issued:
    """A CA below it."""
    return make_authority("C=DE, CN=Middle", parent=root(), now=NOW)


@cache
def certificate(identity: Identity, key: str = "ecdsa", *, below: bool = False) -> Issued:
    """One end's certificate."""
    return issue(middle() if below else root(), "end", [identity], key=key, now=NOW)


def store(own: Issued | None = None, *, trusted: tuple[Issued, ...] = (), days: float = 1.0) -> Credentials:
    """Credentials with a certificate of ours; the clock is some days after they were made."""
    loaded = []
    if own is not None:
        loaded.append(
            LoadedCertificate(name="own", certificate=own.certificate, key=own.key, chain=own.chain)
        )
    authorities = [
        Authority(name=f"ca{index}", certificates=(each.certificate,)) for index, each in enumerate(trusted)
    ]
    clock = (NOW + datetime.timedelta(days=days)).timestamp
    return Credentials(certificates=loaded, authorities=authorities, clock=clock)


def pubkey(identity: Identity | None, **rest: object) -> AuthSettings:
    """One side by certificate."""
    return AuthSettings(auth=Auth.PUBKEY, identity=identity, **rest)  # type: ignore[arg-type]


def by_certificates(**rest: object) -> Connection:
    """A's connection, both sides by certificate."""
    return connection_a(**{"local": pubkey(A), "remote": pubkey(B), **rest})


def pair_of(own_a: Issued, own_b: Issued, connection: Connection | None = None, days: float = 1.0) -> Pair:
    """A and B with their certificates of one CA."""
    connection = connection or by_certificates()
    return Pair(
        a=connection,
        b=mirror(connection, name="b-a"),
        credentials_a=store(own_a, trusted=(root(),), days=days),
        credentials_b=store(own_b, trusted=(root(),), days=days),
    )


@pytest.mark.parametrize("key", ["rsa2048", "ecdsa", "ecdsa384", "ecdsa521", "ed25519", "ed448"])
def test_certificates(key: str) -> None:
    """Every kind of key, by RFC 7427; the other side has another kind."""
    pair = pair_of(certificate(A, key), certificate(B)).up()
    pair.check_children()


def test_chain_with_an_intermediate() -> None:
    """The peer knows the root only: the CA between is sent."""
    pair = pair_of(certificate(A, below=True), certificate(B, below=True)).up()
    pair.check_children()


def test_own_identity_from_the_certificate() -> None:
    """Without an identity in the configuration it is the one of the certificate."""
    connection = by_certificates(local=pubkey(None), remote=pubkey(None))
    pair = pair_of(certificate(A), certificate(B), connection).up()
    assert pair.a.established[0].remote_id == pair.b.established[0].local_id


def test_one_side_by_key_the_other_by_certificate() -> None:
    """Each direction has its own method (RFC 7296 section 2.15)."""
    connection = connection_a(local=AuthSettings(auth=Auth.PSK, identity=A), remote=pubkey(B))
    keys = psk().preshared_keys
    pair = Pair(
        a=connection,
        b=mirror(connection),
        credentials_a=Credentials(
            preshared_keys=keys, authorities=store(trusted=(root(),)).authorities, clock=NOW.timestamp
        ),
        credentials_b=Credentials(
            preshared_keys=keys, certificates=store(certificate(B)).certificates, clock=NOW.timestamp
        ),
    ).up()
    pair.check_children()


def fails(pair: Pair) -> tuple[str, str]:
    """What A and B say about why nothing comes about; nothing is left."""
    pair.initiate()
    pair.run(400.0)
    assert not pair.a.children and not pair.b.children
    assert not pair.a.ikes and not pair.b.ikes, (pair.a.log, pair.b.log)
    assert len(pair.a.failures) <= 1 and len(pair.b.failures) <= 1, (pair.a.failures, pair.b.failures)
    told_a = pair.a.failures or [str(event.failure) for event in pair.a.closed]
    told_b = pair.b.failures or [str(event.failure) for event in pair.b.closed]
    return told_a[0], told_b[0]


def test_wrong_key() -> None:
    """Both sides name the identities; the responder knows what is wrong."""
    a, b = fails(Pair(credentials_a=psk(b"this"), credentials_b=psk(b"that")))
    assert a == (
        "the peer refuses our authentication: we are 'a.example' by psk and want it to be 'b.example'; "
        "compare identities and secrets or certificates: the peer's log has its view"
    )
    assert b == (
        "the preshared key of 'a.example' is not the one that we have for it and 'b.example'; "
        "compare the secrets of both sides"
    )


def test_no_key() -> None:
    """The initiator has none for this peer: nothing is sent but IKE_SA_INIT, the responder sees it go."""
    pair = Pair(credentials_a=psk(b"this", "c.example", "d.example"))
    a, _ = fails(pair)
    assert a.startswith("no preshared key for a.example (us) and b.example (the peer)")


def test_wrong_identity_of_the_initiator() -> None:
    """The responder says whom it wants."""
    a = connection_a(local=AuthSettings(auth=Auth.PSK, identity=Identity.parse("c.example")))
    told_a, told_b = fails(Pair(a=a, b=mirror(connection_a(), name="b-a")))
    assert "we are 'c.example'" in told_a
    assert told_b == (
        "the peer is 'c.example' by psk, asks for 'b.example'; connection 'b-a' wants 'a.example' by psk and is "
        "'b.example'; make the identities and authentication methods of both sides the same"
    )


def test_wrong_identity_of_the_responder() -> None:
    """The responder does not have the identity that is asked for."""
    a = connection_a(remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("c.example")))
    told_a, told_b = fails(Pair(a=a, b=mirror(connection_a(), name="b-a")))
    assert "want it to be 'c.example'" in told_a
    assert "asks for 'c.example'" in told_b and "is 'b.example'" in told_b


def test_responder_that_is_someone_else() -> None:
    """The initiator takes any of a domain, and the responder is of another: it is refused, and told."""
    a = connection_a(remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("*.example.org")))
    told_a, told_b = fails(Pair(a=a, b=mirror(connection_a(), name="b-a")))
    assert told_a == (
        "the peer says it is 'b.example'; connection 'a-b' wants '*.example.org'; set remote.id to the identity of "
        "the peer, or let the peer use the one that is wanted"
    )
    assert told_b.startswith("the peer closed the IKE SA with AUTHENTICATION_FAILED")


def test_other_method() -> None:
    """One side uses a key, the other demands a certificate."""
    a = connection_a()
    b = mirror(by_certificates(), name="b-a")
    pair = Pair(a=a, b=b, credentials_b=store(certificate(B), trusted=(root(),)))
    _, told = fails(pair)
    assert told == (
        "the peer is 'a.example' by psk, asks for 'b.example'; connection 'b-a' wants 'a.example' by pubkey and is "
        "'b.example'; make the identities and authentication methods of both sides the same"
    )


def test_expired_certificate_of_the_responder() -> None:
    """The initiator refuses after the responder took it for established: the responder is told, and closes."""
    good, bad = certificate(A), issue(root(), "b", [B], days=5, now=NOW)
    pair = pair_of(good, bad, days=10)
    told_a, told_b = fails(pair)
    assert "is not valid any more" in told_a or "expired" in told_a, told_a
    assert told_b.startswith("the peer closed the IKE SA with AUTHENTICATION_FAILED")


def test_certificate_of_an_unknown_authority() -> None:
    """The responder does not trust the initiator's CA."""
    other = issue(root("Other"), "a", [A], now=NOW)
    told_a, told_b = fails(pair_of(other, certificate(B)))
    assert "the peer refuses our authentication" in told_a
    assert "Other" in told_b and "Root" in told_b


# A preshared key proves whom it names


def keys(*each: tuple[bytes, tuple[str, ...]]) -> Credentials:
    """Secrets with the identities that each is for."""
    return Credentials(
        preshared_keys=[
            PresharedKey(identities=tuple(map(Identity.parse, names)), secret=secret)
            for secret, names in each
        ]
    )


def hub(claim: str, secret: bytes, *each: tuple[bytes, tuple[str, ...]]) -> Pair:
    """B takes peers of a whole domain; A has a secret, and says who it is."""
    a = connection_a(local=AuthSettings(auth=Auth.PSK, identity=Identity.parse(claim)))
    b = mirror(a, name="b-a", remote=AuthSettings(auth=Auth.PSK, identity=Identity.parse("*.example")))
    pair = Pair(a=a, b=b, credentials_a=keys((secret, ())), credentials_b=keys(*each))
    pair.initiate()
    pair.run()
    return pair


@pytest.mark.parametrize("claim", ["bob.example", "boss.example"])
def test_the_key_of_another_peer_is_no_proof(claim: str) -> None:
    """Alice's key names B as well, which makes it no key of everybody's."""
    each = (b"of alice", ("b.example", "alice.example")), (b"of bob", ("b.example", "bob.example"))
    pair = hub(claim, b"of alice", *each)
    assert not pair.b.established and claim in pair.b.failures[0]
    assert hub("alice.example", b"of alice", *each).b.established


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("b.example",),
        ("b.example", "192.0.2.2"),  # both are B's
        ("b.example", "192.0.2.0/30"),
        ("*.example",),
        ("b.example", "192.0.2.1"),  # where A is, whatever its name
    ],
)
def test_a_key_that_names_nobody_else_is_everybodys(names: tuple[str, ...]) -> None:
    """Names of ours, and the peer's address, make it nobody else's."""
    assert hub("zoe.example", b"of all", (b"of all", names)).b.established


def test_names_of_ours_are_those_of_all_connections() -> None:
    """A key for two names of B, which has each in another connection."""
    a = connection_a(local=AuthSettings(auth=Auth.PSK, identity=Identity.parse("zoe.example")))
    b = mirror(a, name="b-a", remote=AuthSettings(auth=Auth.PSK))
    other = replace(
        b,
        name="other",
        local=AuthSettings(auth=Auth.PSK, identity=Identity.parse("b2.example")),
        local_addresses=(ip_address("192.0.2.9"),),
    )
    named = ("b.example", "b2.example", "192.0.2.9")
    pair = Pair(a=a, b=(b, other), credentials_b=keys((b"a shared secret", named))).up()
    pair.check_children()
