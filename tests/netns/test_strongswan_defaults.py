"""Our default ESP proposals against strongSwan with and without forward secrecy: either may rekey."""

from __future__ import annotations

import pytest

from tests.netns.test_strongswan_matrix import rekey_child
from tests.peers import wires
from tests.peers.site import Site, pair
from tests.peers.traffic import assert_connected

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "theirs_esp", ["aes256gcm16", "aes256gcm16-x25519", "aes128-sha256-modp2048", "default"]
)
def test_default_children_are_rekeyed_by_either(theirs_esp: str) -> None:
    """The defaults offer each set with and without a key exchange; the other side has one of them."""
    site = Site(auth="psk", ike="aes256gcm16-prfsha384-x25519", esp=theirs_esp, ours_esp="default")
    with wires.direct() as wire, pair(site, wire) as (ours, theirs):
        ours.initiate(child="net")
        assert_connected(wire)
        for who in (ours, theirs):
            rekey_child(who, ours, theirs)
            assert_connected(wire)
