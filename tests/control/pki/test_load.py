"""Files into the store: what is wrong with one is said when the configuration is read, exactly."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from control import cli
from control.ike.identity import Identity
from control.pki.load import CredentialFileError, load_credentials
from control.pki.make import Issued, issue, make_authority, make_crl
from control.pki.settings import (
    AuthorityFiles,
    CertificateFiles,
    CredentialProblem,
    CredentialSettings,
    stamped,
)

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
ROOT = make_authority("Root", now=NOW)
MIDDLE = make_authority("Middle", parent=ROOT, now=NOW)
OWN = issue(MIDDLE, "gw", [Identity.parse("gw.example")], now=NOW)


def key_bytes(issued: Issued, password: str = "") -> bytes:
    way = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, way)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def own(directory: Path, **changes: object) -> CredentialSettings:
    files: dict[str, object] = {
        "certificate": write(directory / "gw.pem", pem(OWN.certificate, MIDDLE.certificate)),
        "key": write(directory / "gw.key", key_bytes(OWN)),
    }
    return CredentialSettings(certificates=(CertificateFiles(name="gw", **{**files, **changes}),))  # type: ignore[arg-type]


def authority(path: Path, **more: object) -> CredentialSettings:
    return CredentialSettings(authorities=(AuthorityFiles(name="ca", certificate=path, **more),))  # type: ignore[arg-type]


def problem(settings: CredentialSettings, directory: Path) -> str:
    with pytest.raises(CredentialFileError) as caught:
        load_credentials(settings, clock=NOW.timestamp)
    assert len(caught.value.problems) == 1
    return str(caught.value).replace(str(directory), "DIR")


def test_pem_der_and_pkcs12(tmp_path: Path) -> None:
    loaded = load_credentials(own(tmp_path), clock=NOW.timestamp).certificates[0]
    assert (loaded.certificate, loaded.chain) == (OWN.certificate, (MIDDLE.certificate,))
    der = write(tmp_path / "gw.der", OWN.certificate.public_bytes(Encoding.DER))
    encrypted = write(tmp_path / "encrypted.key", key_bytes(OWN, "tell nobody"))
    chain = (write(tmp_path / "middle.pem", pem(MIDDLE.certificate)),)
    settings = own(tmp_path, certificate=der, key=encrypted, password="tell nobody", chain=chain)
    assert load_credentials(settings, clock=NOW.timestamp).certificates[0].chain == (MIDDLE.certificate,)
    assert "tell nobody" not in repr(settings)
    way = BestAvailableEncryption(b"tell nobody")
    bundle = pkcs12.serialize_key_and_certificates(b"gw", OWN.key, OWN.certificate, [MIDDLE.certificate], way)
    settings = own(tmp_path, certificate=write(tmp_path / "gw.p12", bundle), key=None, password="tell nobody")
    loaded = load_credentials(settings, clock=NOW.timestamp).certificates[0]
    assert loaded.key is not None and loaded.chain == (MIDDLE.certificate,)
    settings.certificates[0].certificate.chmod(0o644)
    warned: list[str] = []
    load_credentials(settings, clock=NOW.timestamp, warn=lambda problem: warned.append(str(problem)))
    assert len(warned) == 1 and "gw.p12 has mode 644, so that others can read it" in warned[0]


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    other = write(tmp_path / "other.key", key_bytes(ROOT))
    assert problem(own(tmp_path, key=other), tmp_path) == (
        "certificates.gw.key: DIR/other.key holds a key that is not that of certificate CN=gw (ECDSA secp256r1); "
        "want the key it was made with"
    )


def test_a_key_that_is_encrypted_or_none(tmp_path: Path) -> None:
    encrypted = write(tmp_path / "encrypted.key", key_bytes(OWN, "tell nobody"))
    assert problem(own(tmp_path, key=encrypted), tmp_path) == (
        "certificates.gw.key: DIR/encrypted.key is encrypted; want its password as `password`"
    )
    wrong = problem(own(tmp_path, key=encrypted, password="guess"), tmp_path)
    assert wrong.startswith("certificates.gw.key: DIR/encrypted.key holds no private key that can be read: ")
    swapped = own(tmp_path, certificate=tmp_path / "gw.key")
    assert problem(swapped, tmp_path) == (
        "certificates.gw.certificate: DIR/gw.key holds a private key; want a certificate in PEM or DER"
    )
    exchange = x25519.X25519PrivateKey.generate()
    data = exchange.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert problem(own(tmp_path, key=write(tmp_path / "x.key", data)), tmp_path) == (
        "certificates.gw.key: DIR/x.key holds a key that is neither RSA, ECDSA nor EdDSA"
    )


def test_files_that_are_not_there_or_nothing(tmp_path: Path) -> None:
    assert problem(own(tmp_path, key=tmp_path / "none.key"), tmp_path) == (
        "certificates.gw.key: DIR/none.key: No such file or directory"
    )
    empty = write(tmp_path / "empty.pem", b"")
    assert problem(own(tmp_path, certificate=empty), tmp_path).startswith(
        "certificates.gw.certificate: DIR/empty.pem holds no certificate ("
    )
    crls = (write(tmp_path / "ca.crl", b"nonsense"),)
    settings = authority(write(tmp_path / "ca.pem", pem(ROOT.certificate)), crls=crls)
    assert problem(settings, tmp_path).startswith(
        "authorities.ca.crls: DIR/ca.crl: 8 bytes that are no revocation list: "
    )
    bad = write(tmp_path / "bad.p12", b"nonsense")
    assert problem(own(tmp_path, certificate=bad, key=None), tmp_path).endswith("; is the password right?")


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "ca.pem", pem(OWN.certificate))
    assert problem(authority(path), tmp_path) == (
        "authorities.ca.certificate: DIR/ca.pem: CN=gw is no CA (basicConstraints without CA); "
        "want a CA's certificate here, or this one under [certificates]"
    )


def test_every_problem_at_once(tmp_path: Path) -> None:
    settings = CredentialSettings(
        certificates=(CertificateFiles(name="gw", certificate=tmp_path / "a"),),
        authorities=(AuthorityFiles(name="ca", certificate=tmp_path / "b", crls=(tmp_path / "c",)),),
    )
    with pytest.raises(CredentialFileError) as caught:
        load_credentials(settings)
    assert [(each.table, each.name, each.key) for each in caught.value.problems] == [
        ("certificates", "gw", "certificate"),
        ("authorities", "ca", "certificate"),
        ("authorities", "ca", "crls"),
    ]


@pytest.mark.parametrize(
    ("day", "mode", "warning"),
    [
        (0, 0o644, "key: DIR/gw.key has mode 644, so that others can read it; chmod 600 DIR/gw.key"),
        (725, 0o600, "certificate: CN=gw expires on 2028-02-29 12:00 UTC; renew it"),
        (731, 0o600, "certificate: CN=gw expired on 2028-02-29 12:00 UTC; renew it"),
        (
            -1,
            0o600,
            "certificate: CN=gw is not valid before 2026-03-01 11:00 UTC; is this machine's clock right?",
        ),
    ],
)
def test_what_is_merely_unwise(tmp_path: Path, day: int, mode: int, warning: str) -> None:
    settings, warnings = own(tmp_path), list[CredentialProblem]()
    (tmp_path / "gw.key").chmod(mode)
    now = NOW + datetime.timedelta(days=day)
    load_credentials(settings, clock=now.timestamp, warn=warnings.append)
    assert [str(each).replace(str(tmp_path), "DIR") for each in warnings] == [f"certificates.gw.{warning}"]


def test_fetched_lists_outlive_a_reload(tmp_path: Path) -> None:
    settings = authority(
        write(tmp_path / "ca.pem", pem(ROOT.certificate)), crl_urls=("http://crl.example/x",)
    )
    first = load_credentials(settings, clock=NOW.timestamp)
    first.crls.add(make_crl(ROOT, [(5, NOW)], now=NOW).public_bytes(Encoding.PEM), "http://crl.example/x")
    second = load_credentials(settings, crls=first.crls, clock=NOW.timestamp)
    assert second.crls.next_update("http://crl.example/x") is not None
    assert second.crls.wanted_urls() == ["http://crl.example/x"]


def test_a_certificate_renewed_in_place_makes_other_settings(tmp_path: Path) -> None:
    settings = own(tmp_path)
    before = stamped(settings)
    assert stamped(settings) == before != settings
    renewed = issue(MIDDLE, "gw", [Identity.parse("gw.example")], now=NOW)
    write(tmp_path / "gw.pem", pem(renewed.certificate))
    write(tmp_path / "gw.key", key_bytes(renewed))
    assert stamped(settings) != before
    (tmp_path / "gw.pem").unlink()
    assert stamped(settings).stamps[0] == (0, 0)


def test_check_reads_the_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(tmp_path)
    config = tmp_path / "esplanade.toml"
    config.write_text(
        """
        [connections.branch]
        remote_addrs = "198.51.100.1"
        local = { auth = "pubkey", certs = "gw" }
        remote = { auth = "pubkey" }
        local_ts = "10.1.0.0/24"
        remote_ts = "10.2.0.0/24"
        [certificates.gw]
        certificate = "gw.pem"
        key = "gw.key"
        [authorities.ca]
        certificate = "ca.pem"
        """
    )
    config.chmod(0o600)
    assert cli.main(["run", "--check", "-c", str(config)]) == 2
    shown = capsys.readouterr().err.replace(str(tmp_path), "DIR")
    assert "DIR/esplanade.toml: authorities.ca.certificate: DIR/ca.pem: No such file or directory" in shown
    write(tmp_path / "ca.pem", pem(ROOT.certificate), 0o644)
    (tmp_path / "gw.key").chmod(0o640)
    assert cli.main(["run", "--check", "-c", str(config)]) == 0
    shown = capsys.readouterr().err.replace(str(tmp_path), "DIR")
    assert "warning: certificates.gw.key: DIR/gw.key has mode 640, so that others can read it" in shown
