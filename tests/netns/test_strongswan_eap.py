"""Remote access between ours and strongSwan: EAP with a virtual address from a pool, either as the server."""

from __future__ import annotations

import pytest

from control.lab.space import wait_until
from tests.peers import wires
from tests.peers.roadwarrior import Access, roadwarrior
from tests.peers.traffic import ping_from

pytestmark = pytest.mark.root


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
        assert ping_from(wire.left, address, wires.INSIDE["right"][4][0]) == 0
        client.terminate(ike="access")
        wait_until(lambda: not gateway.sas(), timeout=5, what="the address is free again")
