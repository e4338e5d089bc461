"""Certificates in IKE: what comes up, and for every mistake the exact message of both sides."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.ike.endpoint import Endpoint
from control.ike.identity import Identity
from control.ike.numbers import CertEncoding
from control.ike.settings import Auth, AuthSettings, Connection
from control.ike.v2 import proof
from control.ike.wire.payloads import CertPayload
from control.pki import make
from control.pki.crl import CrlStore
from control.pki.make import Issued, issue, make_authority, make_crl
from control.pki.settings import PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.control.ike.pair import Pair, connection_a, mirror

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
A, B = Identity.parse("a.example"), Identity.parse("b.example")
ROOT = make_authority("C=DE, O=Example, CN=Root", now=NOW)
OTHER = make_authority("Other", now=NOW)
OWN_A = issue(ROOT, "a", [A], now=NOW)
OWN_B = issue(ROOT, "b", [B], now=NOW)


@functools.cache
def made(name: str, key: str = "ecdsa") -> Issued:
    """A certificate with a key of another kind; RSA keys take long to make."""
    return issue(ROOT, name, [Identity.parse(f"{name}.example")], key=key, now=NOW)


def credentials(
    *own: Issued,
    trusted: Sequence[Issued] = (ROOT,),
    pinned: Sequence[Issued] = (),
    now: datetime.datetime = NOW,
    crls: CrlStore | None = None,
    secrets: Sequence[bytes] = (),
) -> Credentials:
    """What one side has: its own certificates, named own0, own1...; CAs ca0...; and peers' certificates peer0..."""
    certificates = [
        LoadedCertificate(name=f"own{index}", certificate=each.certificate, key=each.key, chain=each.chain)
        for index, each in enumerate(own)
    ]
    certificates += [
        LoadedCertificate(name=f"peer{index}", certificate=each.certificate)
        for index, each in enumerate(pinned)
    ]
    authorities = [
        Authority(name=f"ca{index}", certificates=(each.certificate,)) for index, each in enumerate(trusted)
    ]
    return Credentials(
        preshared_keys=[PresharedKey(secret=secret) for secret in secrets],
        certificates=certificates,
        authorities=authorities,
        crls=crls,
        clock=now.timestamp,
    )


def connection(
    local: dict[str, Any] | None = None, remote: dict[str, Any] | None = None, **rest: Any
) -> Connection:
    """A's connection, both sides by certificate."""
    return connection_a(
        local=AuthSettings(auth=Auth.PUBKEY, **{"identity": A, **(local or {})}),
        remote=AuthSettings(auth=Auth.PUBKEY, **{"identity": B, **(remote or {})}),
        **rest,
    )


def b_side(connection: Connection) -> Connection:
    return mirror(connection, name="b-a")


def attempt(
    a: Credentials, b: Credentials, *, ours: Connection | None = None, theirs: Connection | None = None
) -> Pair:
    """A initiates; everything that follows within minutes."""
    pair = Pair(a=ours or connection(), b=theirs or b_side(connection()), credentials_a=a, credentials_b=b)
    pair.initiate()
    pair.run(300.0)
    return pair


def came_up(pair: Pair) -> None:
    assert len(pair.a.established) == len(pair.b.established) == 1, (pair.a.log, pair.b.log)
    pair.check_children()


# ---- what comes up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("b_key", ["ecdsa", "ecdsa384", "ecdsa521", "ed25519", "ed448", "rsa2048"])
@pytest.mark.parametrize("a_key", ["ecdsa", "ed25519", "rsa2048"])
def test_every_kind_of_key(a_key: str, b_key: str) -> None:
    came_up(attempt(credentials(made("a", a_key)), credentials(made("b", b_key))))


@pytest.mark.parametrize("side", ["a", "b"])
def test_hashes_that_are_demanded_have_no_way_around(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do we fall back to RSA with SHA-1 when the peer names no hash of ours, nor do we take that of it."""
    demanding, lax = {"signature_hashes": ("sha512",)}, connection()
    ours = connection(local=demanding) if side == "a" else lax
    theirs = b_side(connection(local=demanding) if side == "b" else lax)
    monkeypatch.setattr("control.ike.v2.tasks.init.HASHES", ())  # both sides are as old as RFC 5996
    keys = credentials(made("a", "rsa2048")), credentials(made("b", "rsa2048"))
    came_up(attempt(*keys))
    pair = attempt(*keys, ours=ours, theirs=theirs)
    assert not pair.b.established
    refusing = pair.a if side == "a" else pair.b
    text = (
        "the peer can check signatures with the hashes none; connection 'a-b' has local.auth = 'pubkey-sha512'; "
        "allow one of the peer's hashes, or set local.auth to pubkey"
    )
    if side == "a":
        assert refusing.failures[0] == text
    else:
        assert "did not make with SHA2-512, which alone are allowed here" in refusing.failures[0]


def test_intermediate_authorities_are_sent_along() -> None:
    middle = make_authority("Middle", parent=ROOT, now=NOW)
    lower = make_authority("Lower", parent=middle, now=NOW)
    own = issue(lower, "a", [A], now=NOW)
    came_up(attempt(credentials(own), credentials(OWN_B)))


def test_a_long_chain_goes_in_fragments() -> None:
    """4 KB of certificates: no datagram is longer than the fragment size (RFC 7383)."""
    parent = ROOT
    for index in range(5):
        parent = make_authority(f"CA {index} with a key of RSA", parent=parent, key="rsa2048", now=NOW)
    own = issue(parent, "a", [A], key="rsa2048", now=NOW)
    pair = attempt(credentials(own), credentials(OWN_B))
    came_up(pair)
    assert sum(len(each.public_bytes(Encoding.DER)) for each in (own.certificate, *own.chain[:-1])) > 4000
    assert len(pair.carried) > 4 and max(len(each.data) for each in pair.carried) <= 1280


def test_the_certificate_of_the_authority_that_is_asked_for() -> None:
    by_other = issue(OTHER, "a", [A], now=NOW)
    for trusted in (ROOT, OTHER):  # B knows one of them only, and A has a certificate of each
        a = credentials(OWN_A, by_other, trusted=(ROOT, OTHER))
        came_up(attempt(a, credentials(OWN_B, trusted=(trusted,))))


def test_a_responder_asks_for_all_of_its_connections() -> None:
    """The first that fits the addresses wants a secret; which one it is turns out in IKE_AUTH only."""
    secret = mirror(connection_a(), name="by-secret")
    pair = Pair(
        a=connection(),
        b=(secret, b_side(connection())),
        credentials_a=credentials(OWN_A),
        credentials_b=credentials(OWN_B),
    )
    pair.initiate()
    pair.run(60.0)
    came_up(pair)
    assert pair.b.established[0].connection == "b-a"


def test_certificates_that_both_sides_know_need_not_be_sent() -> None:
    ours = connection(
        remote={"certificates": ("peer0",)}, send_certificate="never", request_certificates=False
    )
    theirs = b_side(connection(local={"certificates": ("peer0",)}, send_certificate="never"))
    theirs = replace(theirs, request_certificates=False, local=replace(theirs.local, certificates=()))
    a = credentials(OWN_A, pinned=[OWN_B], trusted=())
    came_up(attempt(a, credentials(OWN_B, pinned=[OWN_A], trusted=()), ours=ours, theirs=theirs))


def test_the_subject_is_the_identity_by_default() -> None:
    ours = connection(local={"identity": None}, remote={"identity": Identity.parse("C=DE, O=*, CN=b")})
    theirs = b_side(connection(local={"identity": Identity.parse("CN=*")}, remote={"identity": None}))
    own = issue(ROOT, "C=DE, O=Example, CN=b", now=NOW)
    pair = attempt(credentials(OWN_A), credentials(own), ours=ours, theirs=theirs)
    came_up(pair)
    assert pair.a.established[0].remote_id == "C=DE, O=Example, CN=b"
    assert pair.b.established[0].remote_id == "CN=a"


def test_one_side_by_certificate_the_other_by_secret() -> None:
    ours = connection_a(local=AuthSettings(auth=Auth.PSK, identity=A), remote=connection().remote)
    secrets = [b"a shared secret"]
    a, b = credentials(secrets=secrets), credentials(OWN_B, trusted=(), secrets=secrets)
    came_up(attempt(a, b, ours=ours, theirs=b_side(ours)))


# ---- what does not: the side that checks says why, the other one what it knows -----------------------------

REFUSED = (
    "the peer refuses our authentication: we are '{us}' by pubkey and want it to be '{peer}'; "
    "compare identities and secrets or certificates: the peer's log has its view"
)


def crl(*revoked: Issued) -> CrlStore:
    store = CrlStore()
    list_ = make_crl(ROOT, [(each.certificate.serial_number, NOW) for each in revoked], now=NOW)
    store.add(list_.public_bytes(Encoding.DER), "http://crl.example/root.crl")
    return store


def wrong(name: str, identity: Identity) -> dict[str, tuple[Issued, dict[str, Any], str]]:
    """By mistake: the certificate of the side that makes it, what the other side has, what the other side says."""
    middle = make_authority("Middle", parent=ROOT, now=NOW)
    usage = make._key_usage(key_encipherment=True)
    good, what = issue(ROOT, name, [identity], now=NOW), f"certificate CN={name} of peer {name}.example"
    late = NOW + datetime.timedelta(days=800)
    return {
        "missing CA": (
            issue(OTHER, name, [identity], now=NOW),
            {},
            f"{what} has issuer CN=Other, which is neither a CA we trust nor sent by the peer; we trust ca0 "
            "(C=DE, O=Example, CN=Root); add the CA to [authorities], or let the peer send the intermediate "
            "certificate",
        ),
        "missing intermediate CA": (
            replace(issue(middle, name, [identity], now=NOW), chain=()),
            {},
            f"{what} has issuer CN=Middle, which is neither a CA we trust nor sent by the peer; we trust ca0 "
            "(C=DE, O=Example, CN=Root); add the CA to [authorities], or let the peer send the intermediate "
            "certificate",
        ),
        "expired": (
            good,
            {"now": late},
            f"{what} has expired: notAfter is 2028-02-29 12:00:00 UTC, our clock says 2028-05-09 12:00:00 UTC, "
            "70 days later; renew it, or set the clock of this machine",
        ),
        "a clock that is slow": (
            good,
            {"now": NOW - datetime.timedelta(days=10)},
            f"{what} is not valid yet: notBefore is 2026-03-01 11:00:00 UTC, our clock says 2026-02-19 12:00:00 "
            "UTC, 9 days earlier; set the clock of this machine, or of the one that signed it",
        ),
        "key usage": (
            issue(ROOT, name, [identity], usage=usage, now=NOW),
            {},
            f"{what} has keyUsage with neither digitalSignature nor nonRepudiation, so it cannot sign AUTH; "
            "issue it with keyUsage digitalSignature",
        ),
        "extended key usage": (
            issue(ROOT, name, [identity], purposes=[ExtendedKeyUsageOID.CODE_SIGNING], now=NOW),
            {},
            f"{what} has extendedKeyUsage codeSigning, want ipsecIKE, serverAuth, clientAuth or any; "
            "issue it with extendedKeyUsage ipsecIKE, or without the field",
        ),
        "revoked": (
            good,
            {"crls": crl(good)},
            f"{what} is revoked on 2026-03-01 12:00 UTC (no reason given) by the list from "
            "http://crl.example/root.crl; issue a new one for this peer",
        ),
        "a key that is not the certificate's": (
            replace(good, key=made("other").key),
            {},
            f"the signature of '{name}.example' does not hold: got a signature by ECDSA with SHA2-256 that this "
            "certificate's key did not make over this exchange; check that the peer signs with the key of its "
            "certificate",
        ),
    }


MISTAKES = tuple(wrong("a", A))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_responder_refuses(mistake: str) -> None:
    own, checks, text = wrong("a", A)[mistake]
    pair = attempt(credentials(own), credentials(OWN_B, **checks))
    assert pair.b.failures == [text]
    assert pair.a.failures == [REFUSED.format(us="a.example", peer="b.example")]
    assert not pair.a.ikes and not pair.b.ikes


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_initiator_refuses(mistake: str) -> None:
    """B believed A by then: it learns that A does not believe it, and closes what it had opened (RFC 7296 2.21.2)."""
    own, checks, text = wrong("b", B)[mistake]
    pair = attempt(credentials(OWN_A, **checks), credentials(own))
    assert pair.a.failures == [text]
    assert [str(each.failure) for each in pair.b.closed] == [
        "the peer closed the IKE SA with AUTHENTICATION_FAILED: it did not accept how we proved ourselves, or a "
        "message; see the peer's log for the reason"
    ]
    assert not pair.a.ikes and not pair.b.ikes and not pair.b.children


def test_strict_revocation_without_a_list() -> None:
    theirs = b_side(connection(local={"revocation": "strict"}))
    pair = attempt(credentials(OWN_A), credentials(OWN_B), theirs=theirs)
    assert pair.b.failures == [
        "certificate CN=a of peer a.example may have been revoked, and revocation = strict: no revocation list of "
        "C=DE, O=Example, CN=Root, and it names none; make the list available, or set revocation = relaxed"
    ]
    assert pair.a.failures == [REFUSED.format(us="a.example", peer="b.example")]


def test_a_certificate_that_is_not_the_pinned_one() -> None:
    theirs = b_side(connection(local={"certificates": ("peer0",)}))
    pair = attempt(credentials(OWN_A), credentials(OWN_B, pinned=[made("a", "ecdsa384")]), theirs=theirs)
    assert pair.b.failures == [
        "certificate CN=a of peer a.example is none of those that the connection accepts: peer0 (CN=a); "
        "put the peer's present certificate there, or drop remote.certs to accept its CA"
    ]


def test_no_certificate_is_sent() -> None:
    pair = attempt(credentials(OWN_A), credentials(OWN_B), ours=connection(send_certificate="never"))
    assert pair.b.failures == [
        "peer a.example sent no certificate; let it send one (send_cert = always), or name it in remote.certs here"
    ]
    pair = attempt(credentials(OWN_A), credentials(OWN_B, trusted=()))
    assert pair.b.failures == [
        "peer a.example sent no certificate; we trust no CA, and so asked it for none; "
        "add the CA of its certificate to [authorities]"
    ]


def test_an_identity_that_no_certificate_of_ours_has() -> None:
    nameless = issue(ROOT, "a", now=NOW)
    pair = attempt(credentials(nameless), credentials(OWN_B))
    assert pair.a.failures == [
        "our identity a.example (a host name) is in none of our certificates: own0 has subject CN=a; "
        "set local.id to one of these names, or make a certificate that has it"
    ]
    pair = attempt(credentials(OWN_A), credentials(issue(ROOT, "b", now=NOW)))
    assert pair.b.failures == [
        "our identity b.example (a host name) is in none of our certificates: own0 has subject CN=b; "
        "set local.id to one of these names, or make a certificate that has it"
    ]
    assert pair.a.failures == [REFUSED.format(us="a.example", peer="b.example")]


def test_no_key_at_all() -> None:
    pair = attempt(credentials(), credentials(OWN_B))
    assert pair.a.failures == [
        "we have no certificate with a private key at all to prove a.example with; "
        "give [certificates.NAME] a certificate and its key"
    ]


def test_an_identity_that_the_connection_does_not_want() -> None:
    theirs = b_side(connection(local={"identity": Identity.parse("c.example")}))
    pair = attempt(credentials(OWN_A), credentials(OWN_B), theirs=theirs)
    assert pair.b.failures == [
        "the peer is 'a.example' by pubkey, asks for 'b.example'; connection 'b-a' wants 'c.example' by pubkey and is "
        "'b.example'; make the identities and authentication methods of both sides the same"
    ]
    assert pair.a.failures == [REFUSED.format(us="a.example", peer="b.example")]


def test_a_secret_where_a_certificate_is_demanded() -> None:
    a = credentials(secrets=[b"a shared secret"])
    pair = attempt(a, credentials(OWN_B), ours=connection_a())
    assert pair.b.failures == [
        "the peer is 'a.example' by psk, asks for 'b.example'; connection 'b-a' wants 'a.example' by pubkey and is "
        "'b.example'; make the identities and authentication methods of both sides the same"
    ]
    assert pair.a.failures == [
        "the peer refuses our authentication: we are 'a.example' by psk and want it to be 'b.example'; "
        "compare identities and secrets or certificates: the peer's log has its view"
    ]


def test_an_identity_that_the_certificate_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that claims more than its certificate proves: we never would."""
    own = credentials(made("c"))
    found = own.key_for(AuthSettings(auth=Auth.PUBKEY), Identity.parse("c.example"))
    monkeypatch.setattr(own, "key_for", lambda *rest: replace(found, identity=A))
    pair = attempt(own, credentials(OWN_B))
    assert pair.b.failures == [
        "certificate CN=c of peer a.example does not have this identity (a host name): it has subject CN=c; "
        "subjectAltName dNSName c.example; want subjectAltName dNSName a.example; "
        "set the peer's own ID to one of its certificate's names, or issue a certificate that has the ID"
    ]
    assert pair.a.failures == [REFUSED.format(us="a.example", peer="b.example")]


def test_a_certificate_by_hash_and_url(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = proof.ours

    def by_url(*rest: Any, **more: Any) -> proof.Ours:
        made = ours(*rest, **more)
        if made.identity == A:
            url = CertPayload(
                encoding=CertEncoding.HASH_AND_URL_X509, data=bytes(20) + b"http://a.example/a.crt"
            )
            made.certificates = (url,)
        return made

    monkeypatch.setattr(proof, "ours", by_url)
    pair = attempt(credentials(OWN_A), credentials(OWN_B))
    assert pair.b.failures == [
        "the peer 'a.example' sent its certificate as HASH_AND_URL_X509, want X509_SIGNATURE; "
        "let it send the X.509 certificate itself (strongSwan: hash_and_url = no)"
    ]


def test_credentials_of_a_new_configuration_are_used_at_once() -> None:
    pair = Pair(
        a=connection(),
        b=b_side(connection()),
        credentials_a=credentials(OWN_A),
        credentials_b=credentials(OWN_B, trusted=(OTHER,)),
    )
    pair.initiate()
    pair.run(60.0)
    assert not pair.a.established
    endpoint: Endpoint = pair.b.endpoint
    endpoint.set_credentials(credentials(OWN_B))
    pair.initiate()
    pair.run(60.0)
    came_up(pair)
