"""`esplanade pki`: what it writes is what the gateway loads, a peer accepts, and OpenSSL verifies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from control import cli
from control.ike.identity import Identity
from control.ike.settings import Auth, AuthSettings
from control.pki.load import load_credentials
from control.pki.make import KEYS
from control.pki.settings import AuthorityFiles, CertificateFiles, CredentialSettings
from control.pki.store import Credentials


def pki(directory: Path, *words: str) -> int:
    return cli.main(["pki", words[0], *words[1:], "-d", str(directory)])


def load(directory: Path, *names: str, revocation_list: bool = False) -> Credentials:
    certificates = tuple(
        CertificateFiles(name=name, certificate=directory / f"{name}.pem", key=directory / f"{name}.key")
        for name in names
    )
    crls = (directory / "ca.crl",) if revocation_list else ()
    authority = AuthorityFiles(name="ca", certificate=directory / "ca.pem", crls=crls)
    return load_credentials(CredentialSettings(certificates=certificates, authorities=(authority,)))


def proves(credentials: Credentials, name: str, identity: str) -> None:
    """What we would send as `name` passes as `identity`."""
    own = credentials.key_for(AuthSettings(auth=Auth.PUBKEY, certificates=(name,)), Identity.parse(identity))
    credentials.verify_peer(AuthSettings(auth=Auth.PUBKEY), Identity.parse(identity), own.chain)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("rsa", "rsa3072", "rsa4096")])
def test_a_gateway_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    assert pki(tmp_path, "ca", "Example CA", "--key", key) == 0
    assert pki(tmp_path, "server", "gw.example", "192.0.2.1", "2001:db8::1", "--key", key) == 0
    shown = capsys.readouterr().out
    assert "authority CN=Example CA: " in shown and "off the gateways" in shown
    assert (
        "certificate subject CN=gw.example; subjectAltName dNSName gw.example; "
        "subjectAltName iPAddress 192.0.2.1; subjectAltName iPAddress 2001:db8::1: " in shown
    )
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "ca.pem": 0o644,
        "ca.key": 0o600,
        "gw.example.pem": 0o644,
        "gw.example.key": 0o600,
    }
    credentials = load(tmp_path, "gw.example")
    for identity in ("gw.example", "192.0.2.1", "2001:db8::1", "CN=gw.example"):
        proves(credentials, "gw.example", identity)
    verified = [
        "openssl",
        "verify",
        "-x509_strict",
        "-CAfile",
        tmp_path / "ca.pem",
        tmp_path / "gw.example.pem",
    ]
    subprocess.run(verified, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("verb", "default"), [("ca", "itself"), ("server", "ca"), ("client", "ca"), ("revoke", "ca")]
)
def test_who_signs_by_default(capsys: pytest.CaptureFixture[str], verb: str, default: str) -> None:
    assert cli.main(["pki", verb, "--help"]) == 0
    assert f"the CA that signs, NAME.pem and NAME.key (default: {default})" in " ".join(
        capsys.readouterr().out.split()
    )


def test_below_an_intermediate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pki(tmp_path, "ca", "C=DE, O=Example, CN=Root") == 0
    assert pki(tmp_path, "ca", "C=DE, O=Example, CN=Clients", "--ca", "ca") == 0
    assert pki(tmp_path, "client", "jo@example.org", "--ca", "Clients", "--p12") == 0
    password = capsys.readouterr().out.split("its password: ")[1].strip()
    assert len(x509.load_pem_x509_certificates((tmp_path / "jo@example.org.pem").read_bytes())) == 2
    proves(load(tmp_path, "jo@example.org"), "jo@example.org", "jo@example.org")
    data = (tmp_path / "jo@example.org.p12").read_bytes()
    key, certificate, chain = pkcs12.load_key_and_certificates(data, password.encode())
    assert key is not None and certificate is not None and len(chain) == 1
    loaded = load_credentials(
        CredentialSettings(
            certificates=(
                CertificateFiles(name="jo", certificate=tmp_path / "jo@example.org.p12", password=password),
            )
        )
    )
    assert loaded.certificates[0].key is not None and len(loaded.certificates[0].chain) == 1
    command = ["openssl", "verify", "-CAfile", tmp_path / "ca.pem", "-untrusted", tmp_path / "Clients.pem"]
    subprocess.run([*command, tmp_path / "jo@example.org.pem"], check=True, capture_output=True)


def test_revoke_and_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki(tmp_path, "ca", "Example CA")
    pki(tmp_path, "client", "jo@example.org", "--crl-url", "http://crl.example/ca.crl")
    pki(tmp_path, "client", "al@example.org")
    assert cli.main(["pki", "revoke", str(tmp_path / "jo@example.org.pem"), "-d", str(tmp_path)]) == 0
    assert cli.main(["pki", "revoke", str(tmp_path / "al@example.org.pem"), "-d", str(tmp_path)]) == 0
    assert pki(tmp_path, "revoke") == 0
    assert capsys.readouterr().out.count("2 revoked, to be renewed before ") == 2
    credentials = load(tmp_path, "jo@example.org", revocation_list=True)
    with pytest.raises(Exception, match=r"certificate CN=jo@example.org of peer .* is revoked on "):
        proves(credentials, "jo@example.org", "jo@example.org")
    files = [str(tmp_path / name) for name in ("jo@example.org.pem", "ca.crl")]
    assert cli.main(["pki", "show", *files]) == 0
    shown = capsys.readouterr().out
    assert "identity jo@example.org (a mail address)" in shown and "issuer CN=Example CA" in shown
    assert "revocation list http://crl.example/ca.crl" in shown and "2 revoked" in shown
    # OpenSSL reads the list, and finds it signed by the CA.
    checked = ["openssl", "crl", "-in", tmp_path / "ca.crl", "-CAfile", tmp_path / "ca.pem", "-noout"]
    assert b"verify OK" in subprocess.run(checked, check=True, capture_output=True).stderr


def refused(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert pki(directory, *words) == 1
    return capsys.readouterr().err.strip().replace(str(directory), "DIR")


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(tmp_path, capsys, "server", "gw.example") == (
        "esplanade pki: DIR/ca.pem is not there; make a CA first: esplanade pki ca NAME -d DIR"
    )
    pki(tmp_path, "ca", "Example CA")
    assert refused(tmp_path, capsys, "ca", "Example CA") == (
        "esplanade pki: DIR/ca.key and DIR/ca.pem exist already; --force overwrites"
    )
    assert refused(tmp_path, capsys, "server", "10.0.0.0/8") == (
        "esplanade pki: got name '10.0.0.0/8', which stands for several; want one identity"
    )
    assert refused(tmp_path, capsys, "server", "gw.example", "keyid:x") == (
        "esplanade pki: got names gw.example, keyid:x: keyid:x (a key id) cannot be in a certificate; "
        "want a host name, mail or IP address"
    )
    pki(tmp_path, "server", "gw.example")
    pki(tmp_path, "ca", "Other CA", "--ca", "ca")
    assert refused(tmp_path, capsys, "revoke", str(tmp_path / "gw.example.pem"), "--ca", "Other-CA") == (
        "esplanade pki: DIR/gw.example.pem: was signed by CN=Example CA, not by CN=Other CA; name its CA by --ca"
    )
    (tmp_path / "ca.key").write_bytes((tmp_path / "gw.example.key").read_bytes())
    assert (
        refused(tmp_path, capsys, "server", "two.example")
        == "esplanade pki: DIR/ca.key is not the key of DIR/ca.pem"
    )
    assert pki(tmp_path, "ca", "Example CA", "--days", "0") == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".key",
        ".key",
        ".key",
        ".pem",
        ".pem",
        ".pem",
    ]
