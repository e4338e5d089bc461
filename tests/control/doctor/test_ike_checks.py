"""Doctor about IKE: ports, credentials, clock, names and ways to peers."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.config import Config, parse
from control.doctor import Level, host, ike_checks
from control.ike.identity import Identity
from control.pki.make import issue, make_authority
from tests.capabilities import without


def config(text: str, directory: Path | None = None) -> Config:
    source = "x.toml" if directory is None else str(directory / "x.toml")
    return parse(tomllib.loads(text), source=source)


def connection(**changes: str) -> str:
    keys = {"remote_addrs": '"127.0.0.9"', "psk": '"correct horse battery"', **changes}
    return "[connections.c]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


def test_nothing_about_ike_without_connections() -> None:
    assert (
        ike_checks.check_ike(
            config(
                '[[port]]\nrole = "protected"\ndriver = "tun"\ninterface = "t"\n'
                '[[port]]\nrole = "unprotected"\ndriver = "udp"\n'
            )
        )
        == []
    )


def test_ports(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        (finding,) = ike_checks.check_ports((port,), False)
        assert finding.level is Level.BAD and f"UDP port {port} (IPv4) is held" in finding.text
        assert "ss -ulpn" in finding.mend
        # The gateway itself is no stranger.
        assert ike_checks.check_ports((port,), True)[0].level is Level.OK
    assert ike_checks.check_ports((port,), False)[0].level is Level.OK
    assert not ike_checks.is_running(tmp_path)


@pytest.mark.root
def test_a_port_that_may_not_be_tried_is_not_called_free() -> None:
    with without(host.CAPABILITIES["CAP_NET_BIND_SERVICE"]):
        (finding,) = ike_checks.check_ports((500,), False)
    assert finding.level is Level.WARN and "no CAP_NET_BIND_SERVICE" in finding.text


def certificate(directory: Path, name: str, days: float = 100.0) -> None:
    authority = make_authority("CN=Example CA")
    (directory / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    issued = issue(authority, name, [Identity.parse(name)], days=days)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "gw.pem").write_bytes(issued.certificate.public_bytes(Encoding.PEM) + key)
    (directory / "gw.pem").chmod(0o600)


CERTIFIED = """
[connections.c]
remote_addrs = "127.0.0.9"
local = { id = "gw.example", certs = "gw.pem" }
remote = { cacerts = "ca.pem" }
"""


def test_credentials(tmp_path: Path) -> None:
    found, credentials = ike_checks.check_credentials(config(CERTIFIED, tmp_path).ike.credentials)
    assert credentials is None and {finding.level for finding in found} == {Level.BAD}
    assert "gw.pem" in found[0].text and "No such file" in found[0].text
    certificate(tmp_path, "gw.example")
    found, credentials = ike_checks.check_credentials(config(CERTIFIED, tmp_path).ike.credentials)
    assert credentials is not None and [finding.level for finding in found] == [Level.OK]
    (proof,) = ike_checks.check_proofs(config(CERTIFIED, tmp_path).ike.connections, credentials)
    assert proof.level is Level.OK and "gw.example" in proof.text
    wrong = config(CERTIFIED.replace("gw.example", "other.example"), tmp_path)
    (proof,) = ike_checks.check_proofs(wrong.ike.connections, credentials)
    assert proof.level is Level.BAD and "other.example" in proof.text and proof.mend


def test_a_certificate_near_its_end(tmp_path: Path) -> None:
    certificate(tmp_path, "gw.example", days=3.0)
    found, _ = ike_checks.check_credentials(config(CERTIFIED, tmp_path).ike.credentials)
    assert [finding.level for finding in found] == [Level.WARN]


@pytest.mark.parametrize(("is_set", "level"), [(True, Level.OK), (False, Level.WARN), (None, Level.WARN)])
def test_clock(is_set: bool | None, level: Level) -> None:
    finding = ike_checks.check_clock(is_set)
    assert finding.level is level and (level is Level.OK or finding.mend)
    assert ike_checks.clock_is_set() in (True, False, None)


def test_names() -> None:
    text = (
        connection()
        + '[authorities.a]\ncertificate = "ca.pem"\ncrl_urls = ["http://crl.example/x", "file:///y"]\n'
    )
    settings = config(text).ike.credentials

    def nowhere(host: str, port: int) -> None:
        raise socket.gaierror(-2, f"Name or service not known: {host} {port}")

    (finding,) = ike_checks.check_names(settings, nowhere)
    assert (
        finding.level is Level.BAD
        and "crl.example" in finding.text
        and finding.mend == "getent hosts crl.example"
    )
    (finding,) = ike_checks.check_names(settings, lambda host, port: [])
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, Level.OK, "reaches 127.0.0.9 from 127.0.0.1"),
        ({"local_addrs": '"127.0.0.0/8"'}, Level.OK, "reaches"),
        ({"local_addrs": '"192.0.2.55"'}, Level.WARN, "local_addrs has 192.0.2.55"),
        ({"remote_addrs": '"%any"'}, Level.OK, "waits for its peers"),
        ({"remote_addrs": '"255.255.255.255"'}, Level.BAD, "no route to 255.255.255.255"),
    ],
)
def test_peers(changes: dict[str, str], level: Level, text: str) -> None:
    (one,) = config(connection(**changes)).ike.connections
    finding = ike_checks.check_peer(one)
    assert finding.level is level and text in finding.text
