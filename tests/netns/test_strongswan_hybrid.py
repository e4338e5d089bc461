"""Additional key exchanges and ML-KEM with strongSwan 6 (RFC 9242, RFC 9370), whose charon ESPLANADE_CHARON names.

Debian's 5.9 has none of it, so this is collected only where that variable is set (conftest.py). 6.0.6 was tried.
"""

from __future__ import annotations

import pytest

from tests.netns.test_strongswan_gateway import live
from tests.peers import wires
from tests.peers.site import Site, pair

pytestmark = pytest.mark.root

HYBRIDS = [  # proposals of IKE and ESP, kind of key
    ("aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768", "ecdsa256"),
    ("aes256gcm16-prfsha384-mlkem1024", "aes256gcm16-mlkem768", "ed448"),
    (
        "aes256-sha512-ecp384-ke1_mlkem1024-ke2_x25519",
        "aes128gcm16-x25519-ke1_mlkem768-ke2_ecp384",
        "rsa3072",
    ),
    ("chacha20poly1305-prfsha512-x448-ke1_none-ke1_mlkem768", "chacha20poly1305-x448-ke1_none", "ecdsa521"),
]


@pytest.mark.parametrize("whole", [False, True], ids=["endpoint", "gateway"])
@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize(("ike", "esp", "auth"), HYBRIDS)
def test_hybrid(ike: str, esp: str, auth: str, initiator: str, whole: bool) -> None:
    """One life: up, both rekeys by both, both deletes."""
    site = Site(ike=ike, esp=esp, auth=auth)
    with wires.direct() as wire, pair(site, wire, whole=whole) as (ours, theirs):
        live(ours, theirs, wire, initiator)
