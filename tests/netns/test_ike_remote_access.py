"""A host that dials in: an address and a password, everything or a network through the tunnel, and all of it undone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from control.lab.gateway import Gateway, IkeTunnel, make_lab
from control.lab.space import wait_until
from control.lab.topology import Lab

pytestmark = pytest.mark.root

SERVER_TOML = """
[connections.people]
local_ts = ["0.0.0.0/0", "::/0"]
pools = ["people4", "people6"]

[connections.people.local]
id = "gwb.esplanade.example"
certs = "{directory}/gwb.pem"
key = "{directory}/gwb.key"

[connections.people.remote]
auth = "eap-mschapv2"
eap_id = "%any"

[users]
jo = "five words that nobody guesses"

[pools.people4]
addrs = "10.9.0.0/24"

[pools.people6]
addrs = "2001:db8:9::/112"
"""
CLIENT_TOML = """
[connections.office]
remote_addrs = "198.51.100.2"
local = {{ auth = "eap-mschapv2", eap_id = "jo" }}
remote = {{ id = "gwb.esplanade.example", cacerts = "{directory}/ca.pem" }}
vips = ["0.0.0.0", "::"]
remote_ts = {remote_ts}
start_action = "none"

[users]
jo = "five words that nobody guesses"
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with make_lab("tun") as made:
        yield made


def gateway(lab: Lab, host: str, tunnel: IkeTunnel, text: str, driver: str = "tun") -> Gateway:
    """A gateway with connections of its own, on a TUN device and UDP sockets or as `driver` has it."""
    made = Gateway(lab, host, driver, tunnel)
    head = made.config_path.read_text().partition("[connections.")[0]
    made.config_path.write_text(head + text)
    made.start()
    return made


def addresses(lab: Lab, host: str, interface: str) -> set[str]:
    """Global addresses of an interface."""
    shown = json.loads(lab.spaces[host].run(["ip", "-j", "address", "show", "dev", interface]).output())
    return {each["local"] for each in shown[0]["addr_info"]}


@pytest.mark.parametrize("everything", [False, True])
def test_a_host_dials_in(lab: Lab, everything: bool) -> None:
    """It gets addresses of both families and reaches the office's network from them; when it hangs up they go."""
    tunnel = IkeTunnel.make(lab.directory)
    remote_ts = ["0.0.0.0/0", "::/0"] if everything else ["10.2.0.0/24", "2001:db8:b::/64"]
    server = gateway(lab, "gwb", tunnel, SERVER_TOML.format(directory=tunnel.directory))
    client = gateway(
        lab, "gwa", tunnel, CLIENT_TOML.format(directory=tunnel.directory, remote_ts=json.dumps(remote_ts))
    )
    try:
        server.wait_ready()
        client.wait_ready()
        for _ in range(2):
            client.follow("up", {"name": "office"})
            wait_until(
                lambda: len(addresses(lab, "gwa", "esp0")) >= 2, timeout=10, what="addresses are there"
            )
            for target in ("10.2.0.2", "2001:db8:b::2"):
                wait_until(
                    lambda target=target: (
                        lab.spaces["gwa"].run(["ping", "-c", "1", "-W", "1", target], check=False).wait(5)
                        == 0
                    ),
                    timeout=20,
                    what=f"{target} answers; the client says:\n{client.log(20)}\nthe server:\n{server.log(20)}",
                )
            lent = server.ike()["pools"]
            assert [(pool["name"], pool["lent"]) for pool in lent] == [("people4", 1), ("people6", 1)]
            [sa] = server.ike()["ike_sas"]
            assert sa["eap_identity"] == "jo" and set(sa["virtual_remote"]) <= addresses(lab, "gwa", "esp0")
            client.follow("down", {"name": "office"})
            wait_until(lambda: not addresses(lab, "gwa", "esp0"), timeout=10, what="they are given back")
            wait_until(
                lambda: [pool["lent"] for pool in server.ike()["pools"]] == [0, 0],
                timeout=10,
                what="leases end",
            )
    finally:
        client.close()
        server.close()
    routes = lab.spaces["gwa"].run(["ip", "route", "show", "type", "blackhole"]).output()
    assert routes == ""


def test_a_client_that_was_killed_opens_the_way_again_when_it_starts(lab: Lab) -> None:
    """Blackholes hold the way closed after it was killed; the next run, which wants none of them, takes them away."""
    tunnel = IkeTunnel.make(lab.directory)
    server = gateway(lab, "gwb", tunnel, SERVER_TOML.format(directory=tunnel.directory))
    text = CLIENT_TOML.format(directory=tunnel.directory, remote_ts=json.dumps(["0.0.0.0/0", "::/0"]))
    client = gateway(lab, "gwa", tunnel, text)

    def blackholes() -> str:
        asked = [["ip", version, "route", "show", "type", "blackhole"] for version in ("-4", "-6")]
        return "".join(lab.spaces["gwa"].run(each).output() for each in asked)

    try:
        server.wait_ready()
        client.wait_ready()
        client.follow("up", {"name": "office"})
        wait_until(lambda: "0.0.0.0/1 " in blackholes(), timeout=10, what="routes")
        assert client.program is not None
        os.kill(client.program.pid, signal.SIGKILL)
        client.program.wait(10)
        assert "0.0.0.0/1 " in blackholes()
        client.start()
        client.wait_ready()
        assert blackholes() == "", client.log(20)
        assert "blackholes of an earlier run are removed: " in client.log(20)
    finally:
        client.close()
        server.close()


def test_addresses_of_a_client_that_was_killed_go_when_it_starts() -> None:
    """Without a TUN device they are on the loopback device, which outlives the client."""
    with make_lab("packet") as lab:
        tunnel = IkeTunnel.make(lab.directory)
        server = gateway(lab, "gwb", tunnel, SERVER_TOML.format(directory=tunnel.directory), "packet")
        text = CLIENT_TOML.format(directory=tunnel.directory, remote_ts=json.dumps(["10.2.0.0/24"]))
        client = gateway(lab, "gwa", tunnel, text, "packet")
        try:
            server.wait_ready()
            client.wait_ready()
            client.follow("up", {"name": "office"})
            wait_until(lambda: "10.9.0.1" in addresses(lab, "gwa", "lo"), timeout=10, what="an address")
            before = addresses(lab, "gwa", "lo")
            assert client.program is not None
            os.kill(client.program.pid, signal.SIGKILL)
            client.program.wait(10)
            assert addresses(lab, "gwa", "lo") == before
            client.start()
            client.wait_ready()
            assert "10.9.0.1" not in addresses(lab, "gwa", "lo"), client.log(20)
            assert "addresses that an earlier run was lent are removed: 10.9.0.1/32" in client.log(40)
            assert "127.0.0.1" in addresses(lab, "gwa", "lo")
        finally:
            client.close()
            server.close()
