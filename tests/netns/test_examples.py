"""Examples as they stand: the README's five lines, and a host that dials in with the files of `esplanade pki`."""

from __future__ import annotations

from pathlib import Path

import pytest

from control import cli
from control.lab import Lab
from control.lab.gateway import Gateway, Tunnel
from control.lab.space import wait_until
from control.lab.topology import PEER, address
from control.lab.traffic import ping

pytestmark = pytest.mark.root

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FIVE_LINES = """
[connections.branch]
remote_addrs = "{peer}"
psk = "Kq0eNnR5o3Ff0cTjQ7w1uB3xVYbI2mGzPzLhXkqYf0A="
local_ts = "{near}"
remote_ts = "{far}"
"""
NETWORKS = {"gwa": "10.1.0.0/24", "gwb": "10.2.0.0/24"}


def start(gateway: Gateway, text: str) -> None:
    """Start a gateway on a configuration to which only its directories are added."""
    place = f'[gateway]\nstate_dir = "{gateway.directory}/state"\nrun_dir = "{gateway.directory}/run"\n'
    gateway.config_path.write_text(place + text)
    gateway.start()


def test_five_lines_are_enough() -> None:
    with Lab(routed=False) as lab:
        gateways = [Gateway(lab, host, "tun", Tunnel()) for host in PEER]
        try:
            for gateway in gateways:
                host = gateway.host
                peer = address(PEER[host], "wan0")
                near, far = NETWORKS[host], NETWORKS[PEER[host]]
                start(gateway, FIVE_LINES.format(peer=peer, near=near, far=far))
            for gateway in gateways:
                gateway.wait_ready()
            # The first packets ask for the tunnel, and may be lost over it.
            ping(lab.client, address("server", "eth0"), count=20)
            assert ping(lab.client, address("server", "eth0"), count=20).lost == 0
            for gateway in gateways:
                (connection,) = gateway.status()["ike"]["connections"]
                assert (connection["name"], connection["state"]) == ("branch", "up")
                (sa,) = gateway.status()["ike"]["ike_sas"]
                assert sa["suite"] == "aes256gcm16-prfsha384-x25519"
                (child,) = sa["children"]
                assert child["suite"] == "aes256gcm16-esn" and child["packets_in"] >= 20
        finally:
            for gateway in gateways:
                gateway.close()


def test_a_host_dials_in(capsys: pytest.CaptureFixture[str]) -> None:
    """Both files verbatim, but for the gateway's address; certificates by the two commands that one of them names."""
    with Lab(routed=False) as lab:
        server, client = (Gateway(lab, host, "tun", Tunnel()) for host in ("gwb", "gwa"))
        for words in (["ca", "Example CA"], ["server", "gw.example.org"]):
            assert cli.main(["pki", *words, "-d", str(server.directory)]) == 0, capsys.readouterr().err
        (client.directory / "ca.pem").write_bytes((server.directory / "ca.pem").read_bytes())
        dial = (EXAMPLES / "host-to-office.toml").read_text()
        assert "203.0.113.1" in dial
        try:
            start(server, (EXAMPLES / "remote-access.toml").read_text())
            server.wait_ready()
            start(client, dial.replace("203.0.113.1", str(address("gwb", "wan0"))))
            client.wait_ready()
            wait_until(
                lambda: client.ike()["connections"][0]["state"] == "up",
                timeout=20,
                what=f"the client is in\n{client.log(20)}\n{server.log(20)}",
            )
            (sa,) = server.ike()["ike_sas"]
            assert sa["eap_identity"] == "jo"
            assert sa["virtual_remote"] == ["10.9.0.1", "2001:db8:9::1"]
            target = str(address("server", "eth0"))
            wait_until(
                lambda: lab.spaces["gwa"].run(["ping", "-c1", "-W1", target], check=False).wait(5) == 0,
                timeout=20,
                what="the office answers",
            )
        finally:
            for gateway in (client, server):
                gateway.close()
