"""A peer's certificate: what holds, and the exact text of every refusal."""

from __future__ import annotations

import contextlib
import cProfile
import datetime
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from control.pki import make
from control.pki.crl import CrlStore
from control.pki.errors import CredentialError
from control.pki.make import Issued, issue, make_authority, make_crl, signing_hash
from control.pki.store import Authority, Credentials, LoadedCertificate

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
GW = Identity.parse("gw.example")
DEMAND = AuthSettings(auth=Auth.PUBKEY)
URL = "http://crl.example/root.crl"
ROOT = make_authority("C=DE, O=Example, CN=Root", now=NOW)
MIDDLE = make_authority("C=DE, O=Example, CN=Middle", parent=ROOT, path_length=0, now=NOW)


def der(*certificates: x509.Certificate) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def store(*authorities: Issued, now: datetime.datetime = NOW, crls: CrlStore | None = None) -> Credentials:
    trusted = [
        Authority(name=f"ca{index}", certificates=(one.certificate,))
        for index, one in enumerate(authorities or (ROOT,))
    ]
    return Credentials(authorities=trusted, crls=crls, clock=now.timestamp)


def refusal(
    credentials: Credentials,
    sent: Sequence[bytes],
    identity: Identity = GW,
    auth: AuthSettings = DEMAND,
) -> CredentialError:
    with pytest.raises(CredentialError) as caught:
        credentials.verify_peer(auth, identity, sent)
    return caught.value


# ---- what holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["ecdsa", "ecdsa384", "ed25519", "ed448", "rsa2048"])
def test_a_chain_with_an_intermediate(key: str) -> None:
    root = make_authority("Root", key=key, now=NOW)
    middle = make_authority("Middle", parent=root, key=key, now=NOW)
    own = issue(middle, "gw", [GW], key=key, now=NOW)
    peer = store(root).verify_peer(DEMAND, GW, der(own.certificate, middle.certificate))
    assert peer.path == (own.certificate, middle.certificate, root.certificate)
    assert peer.public_key == own.key.public_key() and peer.notes == ()


@pytest.mark.parametrize("text", ["gw.example", "jo@example.org", "192.0.2.1", "2001:db8::1", "C=DE, CN=gw"])
def test_every_kind_of_identity(text: str) -> None:
    identity = Identity.parse(text)
    names = [] if "=" in text else [identity]
    own = issue(ROOT, "C=DE, CN=gw", names, now=NOW)
    assert store().verify_peer(DEMAND, identity, der(own.certificate)).certificate == own.certificate


def test_a_certificate_without_any_extension_of_ikes_kind() -> None:
    """What `openssl req -x509` and older peers make: no extended key usage, and the CA has no key usage."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(make.parse_subject("Plain CA"))
        .issuer_name(make.parse_subject("Plain CA"))
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
    )
    key = make.make_key("ecdsa")
    builder = builder.public_key(key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
    authority = Issued(certificate=builder.sign(key, hashes.SHA256()), key=key)
    own = issue(authority, "gw", [GW], purposes=(), now=NOW)
    assert store(authority).verify_peer(DEMAND, GW, der(own.certificate))


def test_a_ca_of_the_same_name_that_did_not_sign_is_passed_over() -> None:
    namesake = make_authority("C=DE, O=Example, CN=Root", now=NOW)
    own = issue(ROOT, "gw", [GW], now=NOW)
    assert store(namesake, ROOT).verify_peer(DEMAND, GW, der(own.certificate)).path[1] == ROOT.certificate


def test_a_pinned_certificate_needs_no_ca() -> None:
    own = issue(ROOT, "gw", [GW], now=NOW)
    pinned = Credentials(
        certificates=[LoadedCertificate(name="peer", certificate=own.certificate)], clock=NOW.timestamp
    )
    auth = AuthSettings(auth=Auth.PUBKEY, certificates=("peer",))
    assert pinned.verify_peer(auth, GW, der(own.certificate)).path == (own.certificate,)
    assert pinned.verify_peer(auth, GW, []).path == (own.certificate,)  # not even sent


def test_names_within_constraints() -> None:
    limits = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName("example"), x509.IPAddress(ipaddress.ip_network("192.0.2.0/24"))],
        excluded_subtrees=[x509.DNSName("secret.example")],
    )
    limited = make_authority("Limited", parent=ROOT, constraints=limits, now=NOW)
    address = Identity.parse("192.0.2.9")
    own = issue(limited, "gw", [GW, address], now=NOW)
    assert store().verify_peer(DEMAND, address, der(own.certificate, limited.certificate))


# ---- what does not, and the words for it -------------------------------------------------------------------


def test_unknown_authority() -> None:
    stranger = make_authority("Stranger", now=NOW)
    own = issue(stranger, "gw", [GW], now=NOW)
    error = refusal(store(), der(own.certificate))
    assert error.code == "unknown_authority"
    assert str(error) == (
        "certificate CN=gw of peer gw.example has issuer CN=Stranger, which is neither a CA we trust nor sent by "
        "the peer; we trust ca0 (C=DE, O=Example, CN=Root); "
        "add the CA to [authorities], or let the peer send the intermediate certificate"
    )
    assert str(refusal(store(), der(own.certificate, stranger.certificate))) == (
        "certificate CN=Stranger of peer gw.example is self-signed and not one of the CAs we trust; "
        "we trust ca0 (C=DE, O=Example, CN=Root); "
        "add the CA to [authorities], or let the peer send the intermediate certificate"
    )


def test_missing_intermediate() -> None:
    own = issue(MIDDLE, "gw", [GW], now=NOW)
    assert refusal(store(), der(own.certificate)).text == (
        "certificate CN=gw of peer gw.example has issuer C=DE, O=Example, CN=Middle, which is neither a CA we trust "
        "nor sent by the peer; we trust ca0 (C=DE, O=Example, CN=Root)"
    )


def test_a_ca_that_the_connection_does_not_accept() -> None:
    other = make_authority("Other", now=NOW)
    own = issue(other, "gw", [GW], now=NOW)
    auth = AuthSettings(auth=Auth.PUBKEY, authorities=("ca0",))
    assert store(ROOT, other).verify_peer(DEMAND, GW, der(own.certificate))
    assert refusal(store(ROOT, other), der(own.certificate), auth=auth).text.endswith(
        "we trust ca0 (C=DE, O=Example, CN=Root)"
    )


def test_forged_issuer() -> None:
    forger = make_authority("C=DE, O=Example, CN=Root", now=NOW)
    own = issue(forger, "gw", [GW], now=NOW)
    error = refusal(store(), der(own.certificate))
    assert (error.code, str(error)) == (
        "bad_certificate",
        "certificate CN=gw of peer gw.example has a signature that is not that of C=DE, O=Example, CN=Root: "
        "it was made with another key; issue it again; two CAs of one name, or a renewed CA, look like this",
    )


def test_expired_and_not_yet_valid() -> None:
    own = issue(ROOT, "gw", [GW], days=10, now=NOW)
    late = store(now=NOW + datetime.timedelta(days=13))
    error = refusal(late, der(own.certificate))
    assert (error.code, str(error)) == (
        "expired",
        "certificate CN=gw of peer gw.example has expired: notAfter is 2026-03-11 12:00:00 UTC, our clock says "
        "2026-03-14 12:00:00 UTC, 3 days later; renew it, or set the clock of this machine",
    )
    early = store(now=NOW - datetime.timedelta(hours=4))
    error = refusal(early, der(own.certificate))
    assert (error.code, str(error)) == (
        "not_yet_valid",
        "certificate CN=gw of peer gw.example is not valid yet: notBefore is 2026-03-01 11:00:00 UTC, our clock says "
        "2026-03-01 08:00:00 UTC, 3 hours earlier; set the clock of this machine, or of the one that signed it",
    )


def test_a_chain_that_was_verified_before_is_still_held_against_the_clock_and_the_list() -> None:
    clock, crls = [NOW], CrlStore()
    trusted = [Authority(name="ca", certificates=(ROOT.certificate,))]
    credentials = Credentials(authorities=trusted, crls=crls, clock=lambda: clock[0].timestamp())
    own = issue(ROOT, "gw", [GW], days=10, now=NOW)
    sent = der(own.certificate)
    for _ in range(2):
        assert credentials.verify_peer(DEMAND, GW, sent)
    assert refusal(credentials, sent, Identity.parse("other.example")).code == "id_mismatch"
    assert refusal(credentials, sent, auth=AuthSettings(authorities=("none",))).code == "unknown_authority"
    clock[0] += datetime.timedelta(days=11)
    assert refusal(credentials, sent).code == "expired"
    clock[0] = NOW
    crls.add(make_crl(ROOT, [(own.certificate.serial_number, NOW)], now=NOW).public_bytes(Encoding.DER), URL)
    assert refusal(credentials, sent).code == "revoked"


def test_many_peers_do_not_fill_the_memory() -> None:
    credentials, key = store(), make.make_key("ecdsa")
    for index in range(300):
        builder = x509.CertificateBuilder().subject_name(make.parse_subject(f"gw{index}"))
        builder = (
            builder.issuer_name(ROOT.certificate.subject)
            .serial_number(index + 1)
            .public_key(key.public_key())
        )
        builder = builder.not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=1))
        leaf = builder.sign(ROOT.key, hashes.SHA256())
        assert credentials.verify_peer(DEMAND, Identity.parse(f"CN=gw{index}"), der(leaf))
    assert len(credentials._paths) == 256


def test_expired_ca() -> None:
    short = make_authority("Short", days=1, now=NOW)
    own = issue(short, "gw", [GW], now=NOW)
    error = refusal(store(short, now=NOW + datetime.timedelta(days=3)), der(own.certificate))
    assert error.text == (
        "certificate CN=Short of peer gw.example has expired: notAfter is 2026-03-02 12:00:00 UTC, our clock says "
        "2026-03-04 12:00:00 UTC, 2 days later"
    )


def test_identity_that_is_not_in_the_certificate() -> None:
    own = issue(ROOT, "C=DE, CN=gw", [Identity.parse("vpn.example"), Identity.parse("192.0.2.1")], now=NOW)
    error = refusal(store(), der(own.certificate))
    assert (error.code, str(error)) == (
        "id_mismatch",
        "certificate C=DE, CN=gw of peer gw.example does not have this identity (a host name): it has subject C=DE, "
        "CN=gw; subjectAltName dNSName vpn.example; subjectAltName iPAddress 192.0.2.1; want subjectAltName dNSName "
        "gw.example; set the peer's own ID to one of its certificate's names, or issue a certificate that has the ID",
    )


def test_the_common_name_is_no_host_name_and_a_wildcard_stands_for_itself() -> None:
    own = issue(ROOT, "gw.example", [Identity.parse("*.example")], now=NOW)
    assert refusal(store(), der(own.certificate)).code == "id_mismatch"
    key_id = Identity.parse("keyid:office")
    assert "want subjectKeyIdentifier keyid:office" in refusal(store(), der(own.certificate), key_id).text


def usage(**on: bool) -> x509.KeyUsage:
    return make._key_usage(**on)


def test_key_usage_that_cannot_sign() -> None:
    own = issue(ROOT, "gw", [GW], usage=usage(key_encipherment=True), now=NOW)
    error = refusal(store(), der(own.certificate))
    assert (error.code, str(error)) == (
        "not_allowed",
        "certificate CN=gw of peer gw.example has keyUsage with neither digitalSignature nor nonRepudiation, "
        "so it cannot sign AUTH; issue it with keyUsage digitalSignature",
    )


def test_extended_key_usage_for_something_else() -> None:
    own = issue(ROOT, "gw", [GW], purposes=[ExtendedKeyUsageOID.CODE_SIGNING], now=NOW)
    assert str(refusal(store(), der(own.certificate))) == (
        "certificate CN=gw of peer gw.example has extendedKeyUsage codeSigning, want ipsecIKE, serverAuth, "
        "clientAuth or any; issue it with extendedKeyUsage ipsecIKE, or without the field"
    )


def test_an_end_certificate_is_no_ca() -> None:
    end = issue(ROOT, "C=DE, CN=end", [GW], now=NOW)
    own = issue(end, "gw", [GW], now=NOW)
    assert str(refusal(store(), der(own.certificate, end.certificate))) == (
        "certificate C=DE, CN=end of peer gw.example has basicConstraints without CA, yet it signed another; "
        "have it signed by a proper CA certificate"
    )


def test_a_ca_that_may_not_sign_certificates() -> None:
    key = make.make_key("ecdsa")
    builder = (
        x509.CertificateBuilder()
        .subject_name(make.parse_subject("Lists"))
        .issuer_name(ROOT.certificate.subject)
    )
    builder = builder.serial_number(5).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=9))
    builder = builder.public_key(key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
    builder = builder.add_extension(usage(crl_sign=True), True)
    lists = Issued(certificate=builder.sign(ROOT.key, hashes.SHA256()), key=key, chain=(ROOT.certificate,))
    own = issue(lists, "gw", [GW], now=NOW)
    assert refusal(store(), der(own.certificate, lists.certificate)).text == (
        "certificate CN=Lists of peer gw.example has keyUsage without keyCertSign, yet it signed another"
    )


def test_path_length() -> None:
    below = make_authority("Below", parent=MIDDLE, now=NOW)
    own = issue(below, "gw", [GW], now=NOW)
    assert refusal(store(), der(own.certificate, below.certificate, MIDDLE.certificate)).text == (
        "certificate C=DE, O=Example, CN=Middle of peer gw.example has pathLenConstraint 0, and 1 CAs are below it"
    )


@pytest.mark.parametrize(
    ("identity", "broken"),
    [
        ("gw.other", "dNSName gw.other is not within the permitted dNSName example"),
        ("gw.secret.example", "dNSName gw.secret.example is within the excluded dNSName secret.example"),
        ("198.51.100.1", "iPAddress 198.51.100.1 is not within the permitted iPAddress 192.0.2.0/24"),
        ("jo@gw.other", "rfc822Name jo@gw.other is not within the permitted rfc822Name example"),
    ],
)
def test_name_constraints(identity: str, broken: str) -> None:
    limits = x509.NameConstraints(
        permitted_subtrees=[
            x509.DNSName("example"),
            x509.IPAddress(ipaddress.ip_network("192.0.2.0/24")),
            x509.RFC822Name("example"),
        ],
        excluded_subtrees=[x509.DNSName("secret.example")],
    )
    limited = make_authority("Limited", parent=ROOT, constraints=limits, now=NOW)
    who = Identity.parse(identity)
    own = issue(limited, "gw", [who], now=NOW)
    assert str(refusal(store(), der(own.certificate, limited.certificate), who)) == (
        f"certificate CN=gw of peer {identity} breaks the nameConstraints of CN=Limited: {broken}; "
        "have it issued by a CA that may give this name"
    )


def test_directory_name_constraints() -> None:
    base = make.parse_subject("C=DE, O=Example")
    limits = x509.NameConstraints(permitted_subtrees=[x509.DirectoryName(base)], excluded_subtrees=None)
    limited = make_authority("C=DE, O=EXAMPLE, CN=Limited", parent=ROOT, constraints=limits, now=NOW)
    good = issue(limited, "C=DE, O=example, CN=gw", [GW], now=NOW)
    assert store().verify_peer(DEMAND, GW, der(good.certificate, limited.certificate))
    bad = issue(limited, "C=FR, O=Example, CN=gw", [GW], now=NOW)
    assert "name CN=gw,O=Example,C=FR is not within the permitted name O=Example,C=DE" in str(
        refusal(store(), der(bad.certificate, limited.certificate))
    )


def test_thousands_of_names_and_constraints() -> None:
    """A stranger's own CA costs nothing; one that is trusted is refused by name where comparing would take long."""
    limits = x509.NameConstraints(
        permitted_subtrees=None, excluded_subtrees=[x509.DNSName(f"x{number}") for number in range(1000)]
    )
    who = [GW, *(Identity.parse(f"host{number}") for number in range(1000))]
    for root, text, calls in (
        (make_authority("Stranger", now=NOW), "neither a CA we trust nor sent by the peer", 20_000),
        (ROOT, "its 1002 names and 1000 constraints are more than are compared", 40_000),
    ):
        limited = make_authority("Limited", parent=root, constraints=limits, now=NOW)
        sent = der(issue(limited, "gw", who, now=NOW).certificate, limited.certificate)
        profile, credentials = cProfile.Profile(), store()
        assert text in str(profile.runcall(refusal, credentials, sent))
        # Calls, for time says nothing on a busy machine: there are three million where all are compared.
        assert sum(each.callcount for each in profile.getstats()) < calls


def test_weak_keys_and_hashes() -> None:
    small = issue(ROOT, "gw", [GW], now=NOW)
    key = rsa.generate_private_key(65537, 1024)
    template = small.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
    )
    weak = builder.public_key(key.public_key()).sign(ROOT.key, hashes.SHA256())
    error = refusal(store(), der(weak))
    assert (error.code, str(error)) == (
        "weak",
        "certificate CN=gw of peer gw.example has an RSA key of 1024 bits, want at least 2048; "
        "make it with an ECDSA P-256, Ed25519 or RSA 3072 key",
    )
    short = builder.public_key(small.key.public_key()).sign(ROOT.key, hashes.SHA224())
    assert str(refusal(store(), der(short))) == (
        "certificate CN=gw of peer gw.example is signed with SHA224, want SHA-256, SHA-384 or SHA-512; "
        "sign it with SHA-256"
    )


def test_critical_extension_that_nobody_knows() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    own = issue(ROOT, "gw", [GW], extensions=[(unknown, True)], now=NOW)
    assert str(refusal(store(), der(own.certificate))) == (
        "certificate CN=gw of peer gw.example has the critical extension 1.2.3.4, which is not understood; "
        "have it issued without this extension"
    )


def element(tag: int, body: bytes) -> bytes:
    length = bytes((len(body),)) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes((tag,)) + length + body


def test_the_library_has_the_last_word() -> None:
    """A serial number of 22 bytes (RFC 5280 section 4.1.2.2 allows 20) passes our walk, and not the verifier."""
    tbs = issue(ROOT, "gw", [GW], now=NOW).certificate.tbs_certificate_bytes
    body = tbs[4:]
    version, serial_length = body[:5], body[6]
    tbs = element(0x30, version + bytes((2, 22)) + bytes(range(1, 23)) + body[7 + serial_length :])
    assert isinstance(ROOT.key, ec.EllipticCurvePrivateKey)
    signature = ROOT.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    leaf = element(0x30, tbs + algorithm + element(0x03, b"\0" + signature))
    # The words behind the colon are the library's own, and may change with it.
    assert str(refusal(store(), [leaf])).startswith(
        "certificate CN=gw of peer gw.example does not pass the library's verifier: validation failed: "
    )


def test_no_certificate_and_bytes_that_are_none() -> None:
    assert str(refusal(store(), [])) == (
        "peer gw.example sent no certificate; let it send one (send_cert = always), or name it in remote.certs here"
    )
    assert str(refusal(Credentials(), [])) == (
        "peer gw.example sent no certificate; we trust no CA, and so asked it for none; "
        "add the CA of its certificate to [authorities]"
    )
    error = refusal(store(), [b"\x30\x03\x02\x01\x00"])
    assert error.code == "bad_certificate"
    assert error.text.startswith("the peer's certificate of 5 bytes cannot be read: ")


def test_a_certificate_that_is_not_the_pinned_one() -> None:
    own, other = issue(ROOT, "gw", [GW], now=NOW), issue(ROOT, "gw-2", [GW], now=NOW)
    pinned = Credentials(
        certificates=[LoadedCertificate(name="peer", certificate=other.certificate)], clock=NOW.timestamp
    )
    auth = AuthSettings(auth=Auth.PUBKEY, certificates=("peer",))
    assert str(refusal(pinned, der(own.certificate), auth=auth)) == (
        "certificate CN=gw of peer gw.example is none of those that the connection accepts: peer (CN=gw-2); "
        "put the peer's present certificate there, or drop remote.certs to accept its CA"
    )


def test_a_swarm_of_namesakes_is_bounded() -> None:
    swarm = [make_authority("Loop", now=NOW).certificate for _ in range(19)]
    own = issue(make_authority("Loop", now=NOW), "gw", [GW], now=NOW)
    assert refusal(store(), der(own.certificate, *swarm)).code in ("bad_certificate", "unknown_authority")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_mutilated_certificates_are_refused_in_words() -> None:
    own = issue(MIDDLE, "C=DE, CN=gw", [GW, Identity.parse("192.0.2.1")], crl_url=URL, now=NOW)
    good, randomness = der(own.certificate, MIDDLE.certificate), random.Random(7)
    credentials = store()
    for _ in range(1500):
        sent = [bytearray(each) for each in good]
        for _ in range(randomness.randint(1, 3)):
            victim = randomness.choice(sent)
            victim[randomness.randrange(len(victim))] = randomness.choice(
                (0, 1, 0x7F, 0x80, 0xFF, randomness.randrange(256))
            )
        with contextlib.suppress(CredentialError):
            credentials.verify_peer(DEMAND, GW, [bytes(each) for each in sent])


# ---- revocation --------------------------------------------------------------------------------------------


def revoking(serials: Sequence[int] = (), *, signer: Issued = ROOT, days: float = 30) -> CrlStore:
    crls = CrlStore()
    crls.add(
        make_crl(signer, [(serial, NOW) for serial in serials], days=days, now=NOW).public_bytes(
            Encoding.DER
        ),
        URL,
    )
    return crls


@pytest.mark.parametrize("policy", ["relaxed", "ifuri", "strict"])
def test_revoked_under_every_policy(policy: str) -> None:
    own = issue(ROOT, "gw", [GW], now=NOW)
    auth = AuthSettings(auth=Auth.PUBKEY, revocation=policy)
    revoked = store(crls=revoking([own.certificate.serial_number]))
    error = refusal(revoked, der(own.certificate), auth=auth)
    assert (error.code, str(error)) == (
        "revoked",
        "certificate CN=gw of peer gw.example is revoked on 2026-03-01 12:00 UTC (no reason given) by the list from "
        "http://crl.example/root.crl; issue a new one for this peer",
    )
    assert store(crls=revoking()).verify_peer(auth, GW, der(own.certificate))


@pytest.mark.parametrize(
    ("policy", "url", "refused"),
    [("relaxed", URL, False), ("ifuri", "", False), ("ifuri", URL, True), ("strict", "", True)],
)
def test_no_list(policy: str, url: str, refused: bool) -> None:
    own = issue(ROOT, "gw", [GW], crl_url=url, now=NOW)
    auth = AuthSettings(auth=Auth.PUBKEY, revocation=policy)
    credentials = store()
    if not refused:
        assert credentials.verify_peer(auth, GW, der(own.certificate)).notes == ()
        assert credentials.crls.wanted_urls() == ([url] if url else [])
        return
    where = f"; it names {url} (not fetched yet)" if url else ", and it names none"
    assert str(refusal(credentials, der(own.certificate), auth=auth)) == (
        f"certificate CN=gw of peer gw.example may have been revoked, and revocation = {policy}: "
        f"no revocation list of C=DE, O=Example, CN=Root{where}; "
        "make the list available, or set revocation = relaxed"
    )


def test_a_stale_list_is_noted_or_refused() -> None:
    own = issue(ROOT, "gw", [GW], now=NOW)
    crls = revoking(days=1)
    late = store(crls=crls, now=NOW + datetime.timedelta(days=2))
    text = f"the list from {URL} should have been replaced by 2026-03-02 12:00 UTC"
    assert late.verify_peer(DEMAND, GW, der(own.certificate)).notes == (
        f"certificate CN=gw of peer gw.example: {text}",
    )
    strict = AuthSettings(auth=Auth.PUBKEY, revocation="strict")
    assert text in refusal(late, der(own.certificate), auth=strict).text


def test_a_forged_list_is_not_believed() -> None:
    own = issue(ROOT, "gw", [GW], now=NOW)
    forger = make_authority("C=DE, O=Example, CN=Root", now=NOW)
    strict = AuthSettings(auth=Auth.PUBKEY, revocation="strict")
    crls = revoking([own.certificate.serial_number], signer=forger)
    assert store(crls=crls).verify_peer(DEMAND, GW, der(own.certificate))
    assert "(a list with this issuer's name has a signature that is not its own)" in str(
        refusal(store(crls=crls), der(own.certificate), auth=strict)
    )


def test_a_list_that_the_peer_sends() -> None:
    own = issue(ROOT, "gw", [GW], now=NOW)
    strict = AuthSettings(auth=Auth.PUBKEY, revocation="strict")
    crl = make_crl(ROOT, now=NOW).public_bytes(Encoding.DER)
    assert store().verify_peer(strict, GW, der(own.certificate), [b"nonsense", crl])
    forged = make_crl(make_authority("C=DE, O=Example, CN=Root", now=NOW), now=NOW).public_bytes(Encoding.DER)
    with pytest.raises(CredentialError):
        store().verify_peer(strict, GW, der(own.certificate), [forged])


@pytest.mark.parametrize("scope", ["cas", "another part"])
def test_a_list_of_other_certificates_says_nothing(scope: str) -> None:
    """A newer list, of CAs only or of another distribution point, does not hide that the peer's is revoked."""
    own = issue(ROOT, "gw", [GW], crl_url=URL, now=NOW)
    crls = revoking([own.certificate.serial_number])
    other = x509.IssuingDistributionPoint(
        full_name=None
        if scope == "cas"
        else [x509.UniformResourceIdentifier("http://crl.example/part2.crl")],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=scope == "cas",
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    newer = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ROOT.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + datetime.timedelta(days=30))
        .add_extension(other, True)
        .sign(ROOT.key, signing_hash(ROOT.key))
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(CredentialError, match="is revoked"):
        store(crls=crls).verify_peer(DEMAND, GW, der(own.certificate), [newer])
    with pytest.raises(CredentialError, match="may have been revoked"):
        store().verify_peer(replace(DEMAND, revocation="strict"), GW, der(own.certificate), [newer])


@pytest.mark.parametrize(("bits", "exponent"), [(16384, 65537), (3072, (1 << 3000) | 1)])
def test_keys_that_cost_much_are_not_calculated_with(bits: int, exponent: int) -> None:
    """A peer's chain is checked before the peer has proven anything: one signature of these takes up to 10 ms."""
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) | (1 << 9) | 1).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Slow")]))
        .issuer_name(ROOT.certificate.subject)
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .public_key(key)
    )
    slow = builder.sign(ROOT.key, signing_hash(ROOT.key))
    # Signed by somebody, that is enough.
    below = issue(Issued(certificate=slow, key=ROOT.key, chain=()), "gw", [GW], now=NOW)
    found = refusal(store(ROOT), der(below.certificate, slow))
    assert f"has an RSA key of {bits} bits and an exponent of {exponent.bit_length()}" in found.text
