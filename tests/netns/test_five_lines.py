"""The tunnel of the README: five lines on either side, no port, no address of our own; traffic brings it up."""

from __future__ import annotations

import pytest

from control.lab import Lab
from control.lab.gateway import Gateway, Tunnel
from control.lab.topology import PEER, address
from control.lab.traffic import ping

pytestmark = pytest.mark.root

FIVE_LINES = """
[connections.branch]
remote_addrs = "{peer}"
psk = "Kq0eNnR5o3Ff0cTjQ7w1uB3xVYbI2mGzPzLhXkqYf0A="
local_ts = "{near}"
remote_ts = "{far}"
"""
NETWORKS = {"gwa": "10.1.0.0/24", "gwb": "10.2.0.0/24"}


def test_five_lines_are_enough() -> None:
    with Lab(routed=False) as lab:
        gateways = [Gateway(lab, host, "tun", Tunnel()) for host in PEER]
        try:
            for gateway in gateways:
                host = gateway.host
                place = f'[gateway]\nstate_dir = "{gateway.directory}/state"\nrun_dir = "{gateway.directory}/run"\n'
                peer = address(PEER[host], "wan0")
                near, far = NETWORKS[host], NETWORKS[PEER[host]]
                gateway.config_path.write_text(place + FIVE_LINES.format(peer=peer, near=near, far=far))
                gateway.start()
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
