"""The reference peer against itself: what the tests with strongSwan stand on, and where its own limits are."""

from __future__ import annotations

import pytest

from control.lab.space import wait_until
from tests.peers import wires
from tests.peers.credentials import lab_authority, lab_card
from tests.peers.peer import PeerRefused
from tests.peers.relay import Relay
from tests.peers.strongswan import Charon, start_all
from tests.peers.wires import Wire

pytestmark = pytest.mark.root

IKE = "aes128gcm16-prfsha256-x25519"


def connection(wire: Wire, side: str, **more: object) -> dict[str, object]:
    """A connection of one side with a PSK."""
    other = wires.OTHER[side]
    return {
        "local_addrs": [wire.outside[side][4]],
        "remote_addrs": [wire.outside[other][4]] if other == "right" else ["%any"],
        "proposals": [IKE],
        "local": {"auth": "psk", "id": f"{side}.example"},
        "remote": {"auth": "psk", "id": f"{other}.example"},
        "children": {
            "net": {
                "local_ts": [wires.INSIDE[side][4][1]],
                "remote_ts": [wires.INSIDE[other][4][1]],
                "esp_proposals": ["aes128gcm16"],
            }
        },
        **more,
    }


def start(wire: Wire, *, key: str | None = None, **more: object) -> tuple[Charon, Charon]:
    """charon on both sides, loaded; with certificates where `key` names their kind."""
    made = tuple(Charon(wire.spaces[side], wire.directory) for side in ("left", "right"))
    start_all(*made)
    for side, charon in zip(("left", "right"), made, strict=True):
        settings = connection(wire, side, **more)
        if key is None:
            charon.load({"site": settings}, secrets=[{"type": "IKE", "data": "open sesame"}])
            continue
        card = lab_card(f"{side}.example", key)
        settings["local"] = {"auth": "pubkey", "id": card.identity, "certs": [card.der]}
        settings["remote"] = {"auth": "pubkey", "id": f"{wires.OTHER[side]}.example"}
        charon.load({"site": settings}, keys=[card.pkcs8], authorities=[lab_authority().der])
    return made


def echo(wire: Wire, count: int = 3) -> int:
    """Pings lost, left to right through the tunnel."""
    source, target = wires.INSIDE["left"][4][0], wires.INSIDE["right"][4][0]
    shown = wire.left.run(
        ["ping", "-n", "-I", source, "-i", "0.05", "-c", str(count), "-w", "5", target], check=False
    ).output()
    return count - shown.count("bytes from")


def test_psk_direct() -> None:
    """Up, ping through ESP in UDP, both rekeys, both deletes."""
    with wires.direct() as wire:
        left, right = start(wire)
        left.initiate(child="net")
        assert echo(wire) == 0
        before = right.child()
        assert before.encapsulated
        assert before.packets_in >= 3
        # One after the other: crossing, they refuse each other with TEMPORARY_FAILURE, and charon waits up to 15 s.
        left.rekey(child="net")
        wait_until(lambda: right.child().spi_in != before.spi_in, timeout=10, what="a new child")
        assert echo(wire) == 0
        old = left.sa().spi_initiator
        right.rekey(ike="site")
        wait_until(lambda: left.sa().spi_initiator != old, timeout=10, what="a new IKE SA")
        assert echo(wire) == 0
        left.terminate(child="net")
        assert not right.sa().installed
        left.terminate(ike="site")
        assert not right.sas()


@pytest.mark.full
@pytest.mark.parametrize("key", ["rsa2048", "ecdsa256", "ecdsa384", "ed25519"])
def test_certificates(key: str) -> None:
    """Our test CA is one that strongSwan takes, whatever the kind of key."""
    with wires.direct() as wire:
        left, _ = start(wire, key=key)
        left.initiate(child="net")
        assert echo(wire) == 0


def test_wrong_secret_is_reported() -> None:
    """PeerRefused has what charon said."""
    with wires.direct() as wire:
        left, right = start(wire)
        left.load({}, secrets=[{"type": "IKE", "data": "other", "owners": ["right.example"]}])
        with pytest.raises(PeerRefused, match="AUTHENTICATION_FAILED"):
            left.initiate(child="net")
        assert "MAC mismatched" in right.log()


@pytest.mark.full
def test_nat_and_a_new_mapping() -> None:
    """Behind a masquerading router, which then forgets its mappings."""
    with wires.routed(nat=True) as wire:
        left, right = start(wire, dpd_delay="1s", mobike="no")
        left.initiate(child="net")
        assert echo(wire) == 0
        before = right.sa().remote
        assert before.startswith("203.0.113.1:2")
        wires.forget_mappings(wire.middle)
        assert echo(wire, count=20) < 20
        assert right.sa().remote != before


@pytest.mark.full
def test_fragments_over_a_narrow_link() -> None:
    """Chains of 4 KB over an MTU of 1280."""
    with wires.routed(mtu=1280) as wire:
        left, right = (Charon(wire.spaces[side], wire.directory) for side in ("left", "right"))
        start_all(left, right)
        issuer = lab_authority().intermediate("Esplanade Lab Intermediate")
        for side, charon in (("left", left), ("right", right)):
            card = issuer.issue(f"{side}.example", filler=3000)
            local = {"auth": "pubkey", "id": card.identity, "certs": [card.der]}
            remote = {"auth": "pubkey", "id": f"{wires.OTHER[side]}.example"}
            settings = connection(wire, side, local=local, remote=remote)
            charon.load(
                {"site": settings}, keys=[card.pkcs8], authorities=[lab_authority().der, *card.chain_der]
            )
        said = left.initiate(child="net")
        assert "EF(1/" in said
        assert echo(wire) == 0


@pytest.mark.full
def test_mobike() -> None:
    """Another address on the left while the old one goes."""
    with wires.direct() as wire:
        left, right = start(wire, local_addrs=["%any"])
        left.initiate(child="net")
        wire.left.ip("address add 192.0.2.77/24 dev eth0", "address del 192.0.2.1/24 dev eth0")
        wire.left.ip("address add 192.0.2.77/24 dev eth0")
        assert echo(wire, count=40) < 40
        assert right.sa().remote == "192.0.2.77:4500"


@pytest.mark.full
def test_a_bad_wire() -> None:
    """30 % lost, some doubled, all reordered: it comes up."""
    with wires.relayed() as wire, Relay(wire.middle, loss=0.3, double=0.1, jitter=0.02):
        left, _ = start(wire)
        left.initiate(child="net", timeout=100)
        assert echo(wire, count=40) < 40
