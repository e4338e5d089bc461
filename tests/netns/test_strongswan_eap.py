"""Remote access between ours and strongSwan: EAP with a virtual address from a pool, either as the server."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from control.ike.events import VirtualAddressesAssigned
from control.lab.space import wait_until
from tests.peers import wires
from tests.peers.peer import PeerRefused
from tests.peers.roadwarrior import DNS, USER, Access, roadwarrior
from tests.peers.traffic import ping_from

pytestmark = pytest.mark.root

INSIDE = wires.INSIDE["right"]


@pytest.mark.parametrize("method", ["eap-mschapv2", "eap-tls"])
@pytest.mark.parametrize("server", ["ours", "theirs"])
def test_eap(server: str, method: str) -> None:
    """The server proves itself by certificate, the client by EAP, and gets an address to ping from."""
    with wires.direct() as wire, roadwarrior(Access(method=method), wire, server=server) as (ours, theirs):
        client, gateway = (theirs, ours) if server == "ours" else (ours, theirs)
        client.initiate(child="net")
        (address,) = client.sa().virtual
        assert address.startswith("10.99.0.")
        assert gateway.sa().virtual == (address,)
        assert ping_from(wire.left, address, INSIDE[4][0]) == 0
        client.terminate(ike="access")
        wait_until(lambda: not gateway.sas(), timeout=5, what="the address is free again")


@pytest.mark.parametrize("method", ["eap-mschapv2", "eap-tls"])
@pytest.mark.parametrize("server", ["ours", "theirs"])
def test_whole_gateway(server: str, method: str) -> None:
    """The same through configuration file, daemon and dataplane: the client has its address while the tunnel is up."""
    access = Access(method=method, both=True)
    with wires.direct() as wire, roadwarrior(access, wire, server=server, whole=True) as (ours, theirs):
        client, gateway = (theirs, ours) if server == "ours" else (ours, theirs)
        client.initiate(child="net" if server == "ours" else "access")
        four, six = sorted(client.sa().virtual, key=lambda text: ":" in text)
        assert set(gateway.sa().virtual) == {four, six}
        wait_until(lambda: ping_from(wire.left, four, INSIDE[4][0]) == 0, timeout=10, what="a ping by IPv4")
        wait_until(lambda: ping_from(wire.left, six, INSIDE[6][0]) == 0, timeout=10, what="a ping by IPv6")
        client.terminate(ike="access")
        wait_until(lambda: not gateway.sas(), timeout=5, what="the IKE SA is gone")
        shown = wire.left.run(["ip", "address"]).output()
        assert four not in shown and six not in shown


@pytest.mark.parametrize("server", ["ours", "theirs"])
def test_rekeying_keeps_the_address(server: str) -> None:
    """By either side: the IKE SA's successor has it on both, and it works on."""
    with wires.direct() as wire, roadwarrior(Access(), wire, server=server) as (ours, theirs):
        client, gateway = (theirs, ours) if server == "ours" else (ours, theirs)
        client.initiate(child="net")
        (address,) = client.sa().virtual
        for who in (client, gateway):
            before = client.sa().spi_initiator
            who.rekey(ike="access")
            wait_until(
                lambda before=before: client.sa().spi_initiator != before, timeout=10, what="another IKE SA"
            )
            assert client.sa().virtual == gateway.sa().virtual == (address,)
            assert ping_from(wire.left, address, INSIDE[4][0]) == 0
        if server == "ours":
            assert ours.endpoint.pools.status[0].online == 1
            client.terminate(ike="access")
            wait_until(lambda: not gateway.sas(), timeout=5, what="the IKE SA is gone")
            assert ours.endpoint.pools.status[0].online == 0


@pytest.mark.parametrize("server", ["ours", "theirs"])
def test_both_families(server: str) -> None:
    """A client asks for an IPv4 and an IPv6 address, and reaches both networks in one child."""
    with wires.direct() as wire, roadwarrior(Access(both=True), wire, server=server) as (ours, theirs):
        client = theirs if server == "ours" else ours
        client.initiate(child="net")
        four, six = sorted(client.sa().virtual, key=lambda text: ":" in text)
        assert ping_from(wire.left, four, INSIDE[4][0]) == 0
        assert ping_from(wire.left, six, INSIDE[6][0]) == 0


def test_dns_is_told() -> None:
    """What strongSwan's pool says about DNS reaches the event."""
    with wires.direct() as wire, roadwarrior(Access(), wire, server="theirs") as (ours, _):
        ours.initiate(child="net")
        [told] = [event for event in ours.events if isinstance(event, VirtualAddressesAssigned)]
        assert told.dns == (ip_address(DNS),)


def test_wrong_password_at_our_server() -> None:
    """strongSwan is told 691, says so and leaves; we say whose password is wrong."""
    with wires.direct() as wire, roadwarrior(Access(password="guess"), wire, server="ours") as (ours, theirs):
        with pytest.raises(PeerRefused, match="ERROR_AUTHENTICATION_FAILURE"):
            theirs.initiate(child="net")
        text = f"EAP-MSCHAPv2 of '{USER}' failed: the password is wrong"
        wait_until(lambda: text in ours.log(), timeout=5, what="we say why")


def test_wrong_password_of_ours() -> None:
    """What strongSwan refuses us with is told as its reason."""
    access = Access(password="guess")
    with wires.direct() as wire, roadwarrior(access, wire, server="theirs") as (ours, _):
        with pytest.raises(PeerRefused, match="with error 691: wrong user name or password"):
            ours.initiate(child="net")
