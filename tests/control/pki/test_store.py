"""The credential store: which secret and which key serve two ends."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.crypto.auth import PrivateKey
from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from control.pki.errors import CredentialError
from control.pki.make import issue, make_authority
from control.pki.settings import EapSecret, PostquantumKey, PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate, key_hash

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)


def psk(secret: str, *identities: str) -> PresharedKey:
    return PresharedKey(identities=tuple(map(Identity.parse, identities)), secret=secret.encode())


KEYS = (
    psk("anyone"),
    psk("domain", "*.example"),
    psk("pair", "hq.example", "branch.example"),
    psk("peer only", "10.9.0.1"),
    psk("net", "10.9.0.0/16"),
    psk("mine", "@us"),
)


@pytest.mark.parametrize(
    ("local", "remote", "secret"),
    [
        ("hq.example", "branch.example", "pair"),
        ("branch.example", "hq.example", "pair"),
        ("hq.example", "other.example", "domain"),  # both ends fit, if not exactly
        ("hq.example", "@stranger", "pair"),  # one end is enough
        ("x.example", "y.example", "domain"),
        ("10.0.0.1", "10.9.0.1", "peer only"),
        ("10.0.0.1", "10.9.0.2", "net"),
        ("@us", "10.9.0.1", "peer only"),  # the peer's identity counts before ours
        ("@us", "@stranger", "mine"),
        ("@me", "@you", "anyone"),
    ],
)
def test_the_key_that_fits_best(local: str, remote: str, secret: str) -> None:
    found = Credentials(preshared_keys=KEYS).find_psk(Identity.parse(local), Identity.parse(remote))
    assert found is not None and found.secret == secret.encode()


@pytest.mark.parametrize(
    ("remote", "secret"),
    [
        ("branch.example", "pair"),
        ("other.example", "domain"),  # `pair` names branch.example beside us
        ("@stranger", "anyone"),
        ("10.9.0.1", "peer only"),
        ("10.9.0.2", "net"),
    ],
)
def test_the_key_of_a_peer_that_is_known(remote: str, secret: str) -> None:
    us = Identity.parse("hq.example")
    found = Credentials(preshared_keys=KEYS).find_psk(us, Identity.parse(remote), lambda name: name == us)
    assert found is not None and found.secret == secret.encode()


def test_the_first_of_equal_keys_and_every_key_of_many() -> None:
    us = Identity.parse("@us")
    keys = [psk("first", "@us", "@p0"), *(psk(f"key {index}", "@us", f"@p{index}") for index in range(500))]
    store = Credentials(preshared_keys=keys)
    for index in range(1, 500):
        found = store.find_psk(us, Identity.parse(f"@p{index}"))
        assert found is not None and found.secret == f"key {index}".encode()
    for remote in ("@p0", "@nobody"):
        found = store.find_psk(us, Identity.parse(remote))
        assert found is not None and found.secret == b"first"


def test_no_key_says_whom_the_keys_are_for() -> None:
    store = Credentials(preshared_keys=KEYS[2:4])
    us, peer = Identity.parse("@us"), Identity.parse("@you")
    assert store.find_psk(us, peer) is None
    assert str(store.missing_psk(us, peer)) == (
        "no preshared key for us (us) and you (the peer): the keys are for hq.example and branch.example, 10.9.0.1; "
        "add a secret for one of these identities on this side"
    )
    assert str(Credentials().missing_psk(us, None)) == (
        "no preshared key for us (us) and %any (the peer): no preshared key is configured; "
        "add a secret for one of these identities on this side"
    )


def test_secrets_by_name_and_never_shown() -> None:
    store = Credentials(
        preshared_keys=[psk("tell nobody")],
        eap_secrets=[EapSecret(identity="jo", secret=b"tell nobody")],
        postquantum_keys=[PostquantumKey(id="ppk-1", secret=b"tell nobody")],
    )
    assert store.eap_secret("jo") == store.ppk("ppk-1") == b"tell nobody"
    assert store.eap_secret("Jo") is None and store.ppk("ppk-2") is None
    shown = repr((store, store.preshared_keys, EapSecret(identity="jo", secret=b"tell nobody")))
    assert "tell nobody" not in shown and "74656c6c" not in shown


# ---- our own certificates ----------------------------------------------------------------------------------


ROOT = make_authority("Root", now=NOW)
MIDDLE = make_authority("Middle", parent=ROOT, now=NOW)
OTHER = make_authority("Other", now=NOW)
GW = Identity.parse("gw.example")
OURS = AuthSettings(auth=Auth.PUBKEY)
BY_ROOT = issue(MIDDLE, "gw", [GW], now=NOW)
BY_OTHER = issue(OTHER, "C=DE, CN=gw", [GW, Identity.parse("192.0.2.1")], key="ed25519", now=NOW)


def ours() -> Credentials:
    return Credentials(
        certificates=[
            LoadedCertificate(
                name="root's", certificate=BY_ROOT.certificate, key=BY_ROOT.key, chain=(MIDDLE.certificate,)
            ),
            LoadedCertificate(name="other's", certificate=BY_OTHER.certificate, key=BY_OTHER.key),
            LoadedCertificate(name="peer's", certificate=MIDDLE.certificate),
        ],
        authorities=[Authority(name="ca", certificates=(ROOT.certificate, OTHER.certificate))],
        clock=NOW.timestamp,
    )


def test_certificate_requests_are_sha1_of_the_key_info() -> None:
    info = ROOT.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert ours().certificate_requests() == [hashlib.sha1(info).digest(), key_hash(OTHER.certificate)]
    assert ours().certificate_requests(AuthSettings(authorities=("none",))) == []


def test_the_certificate_that_the_peer_asks_for() -> None:
    for authority, name in ((ROOT, "root's"), (MIDDLE, "root's"), (OTHER, "other's")):
        assert ours().key_for(OURS, GW, [key_hash(authority.certificate)]).name == name
    # A peer that asks for none that we have may still know ours.
    assert ours().key_for(OURS, GW, [bytes(20)]).name == "root's"


def test_the_chain_leaves_the_root_out() -> None:
    found = ours().key_for(OURS, GW)
    der = [one.certificate.public_bytes(Encoding.DER) for one in (BY_ROOT, MIDDLE)]
    assert found.chain == tuple(der) and found.private_key is BY_ROOT.key and found.identity == GW


def test_the_identity_chooses_and_defaults_to_the_subject() -> None:
    address = Identity.parse("192.0.2.1")
    assert ours().key_for(OURS, address).name == "other's"
    named = AuthSettings(auth=Auth.PUBKEY, certificates=("other's",))
    assert str(ours().key_for(named).identity) == "C=DE, CN=gw"
    assert ours().key_for(AuthSettings(auth=Auth.PUBKEY, identity=address)).identity == address


def test_a_key_that_the_peer_cannot_verify_is_passed_over() -> None:
    def no_eddsa(key: PrivateKey) -> bool:
        return not isinstance(key, Ed25519PrivateKey)

    assert ours().key_for(OURS, GW, [key_hash(OTHER.certificate)], no_eddsa).name == "root's"
    with pytest.raises(CredentialError) as caught:
        ours().key_for(AuthSettings(certificates=("other's",)), GW, (), no_eddsa)
    assert str(caught.value) == (
        "the peer cannot verify a signature of our key (Ed25519); "
        "use a certificate with an ECDSA P-256 or RSA key for this connection"
    )


def test_no_certificate_of_ours_fits() -> None:
    with pytest.raises(CredentialError) as caught:
        ours().key_for(OURS, Identity.parse("vpn.example"))
    assert str(caught.value) == (
        "our identity vpn.example (a host name) is in none of our certificates: root's has subject CN=gw; "
        "subjectAltName dNSName gw.example; other's has subject C=DE, CN=gw; subjectAltName dNSName gw.example; "
        "subjectAltName iPAddress 192.0.2.1; "
        "set local.id to one of these names, or make a certificate that has it"
    )
    with pytest.raises(CredentialError) as caught:
        ours().key_for(AuthSettings(certificates=("peer's",)), GW)
    assert str(caught.value) == (
        "we have no certificate with a private key named peer's to prove gw.example with; "
        "give [certificates.NAME] a certificate and its key"
    )
    with pytest.raises(CredentialError, match="at all to prove who we are with"):
        Credentials().key_for(OURS)
