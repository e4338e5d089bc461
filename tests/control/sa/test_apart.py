"""Which peers behind one NAT are known by another port, and which cannot be told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from control.ike.events import ChildSa, PeerPath
from control.ike.settings import ChildSettings
from control.sa.apart import Ports, keep_apart
from dataplane.api import DataPlaneError
from dataplane.model import Cipher, EspProposal, Mode, SelectorSpec

HERE, NAT, ELSEWHERE = (IPv4Address(each) for each in ("203.0.113.2", "203.0.113.1", "198.51.100.9"))


def pair(
    port: tuple[int, int] = (1701, 1701),
    protocol: int = 17,
    remote: Any = NAT,
    local: tuple[int, int] = (1701, 1701),
) -> SelectorSpec:
    """Between our port 1701 and the peer's."""
    return SelectorSpec(
        local_first=HERE,
        local_last=HERE,
        remote_first=remote,
        remote_last=remote,
        protocol=protocol,
        local_ports=local,
        remote_ports=port,
    )


def child(ike: int, port: int, **rest: Any) -> ChildSa:
    """A new child of a peer that the NAT has given a port."""
    path = PeerPath(local=HERE, local_port=4500, remote=rest.pop("remote", NAT), remote_port=port)
    fields: dict[str, Any] = {
        "id": ike,
        "ike": ike,
        "connection": "l2tp",
        "settings": ChildSettings(name="udp", proposals=()),
        "mode": Mode.TRANSPORT,
        "suite": EspProposal(cipher=Cipher.AES_GCM, key_bits=128),
        "suite_name": "aes128gcm16",
        "spi_in": ike,
        "spi_out": ike,
        "encryption_key_in": b"",
        "encryption_key_out": b"",
        "local_selectors": (),
        "remote_selectors": (),
        "path": path,
        "encapsulated": True,
        "established": 0.0,
        "rekey_at": 0.0,
        "expires_at": 0.0,
    }
    return ChildSa(**{**fields, **rest})


@dataclass
class There:
    """A child that is installed."""

    sa: ChildSa
    selectors: tuple[SelectorSpec, ...]
    nat_ports: Ports | None = None

    @property
    def ike(self) -> int:
        return self.sa.ike

    @property
    def path(self) -> PeerPath:
        return self.sa.path

    @property
    def encapsulated(self) -> bool:
        return self.sa.encapsulated


def install(there: list[There], new: ChildSa, *selectors: SelectorSpec) -> Ports | None:
    """Install a child beside others; its ports."""
    found = keep_apart(new, selectors, there)  # type: ignore[arg-type]
    there.append(There(new, found.selectors, found.ports))
    shown = found.ports[1] if found.ports is not None else None
    assert found.selectors == tuple(
        each if shown is None else replace(each, remote_ports=(shown, shown)) for each in selectors
    )
    return found.ports


def test_the_first_is_as_it_is_and_others_have_the_nat_s_ports() -> None:
    there: list[There] = []
    assert install(there, child(1, 20001), pair()) is None
    assert install(there, child(2, 20002), pair()) == (1701, 20002)
    assert install(there, child(3, 20003), pair()) == (1701, 20003)
    assert len({each.selectors for each in there}) == 3


def test_a_port_that_is_taken_is_not_given_again() -> None:
    """By another peer's own port, or by one that was given before its NAT gave it away again."""
    there: list[There] = []
    install(there, child(1, 20001), pair(), pair(protocol=6))
    install(there, child(2, 20002), pair((20003, 20003)))
    assert install(there, child(3, 20003), pair()) == (1701, 20004)
    assert install(there, child(4, 65535), pair()) == (1701, 65535)
    there[-1].sa = child(4, 20009)  # its NAT has given it another
    assert install(there, child(5, 65535), pair()) == (1701, 1024)


def test_what_takes_another_s_place_is_known_as_that() -> None:
    """A rekeyed child, and one of a peer that authenticates anew: the session goes on."""
    there: list[There] = []
    install(there, child(1, 20001), pair())
    install(there, child(2, 20002), pair())
    assert install(there, child(2, 20002, id=7), pair()) == (1701, 20002)
    assert install(there, child(9, 20002), pair()) == (1701, 20002)
    assert install(there, child(1, 20001, id=8), pair()) is None
    there[1:] = [There(child(2, 31000), there[1].selectors, there[1].nat_ports)]  # it moved
    assert install(there, child(2, 31000, id=10), pair()) == (1701, 20002)


@pytest.mark.parametrize(
    "rest",
    [{"mode": Mode.TUNNEL}, {"encapsulated": False}, {"remote": ELSEWHERE}],
    ids=["tunnel", "no NAT", "another address"],
)
def test_others_are_left_alone(rest: dict[str, Any]) -> None:
    there: list[There] = []
    install(there, child(1, 20001), pair())
    assert install(there, child(2, 20002, **rest), pair()) is None


def test_other_traffic_is_left_alone() -> None:
    there: list[There] = []
    install(there, child(1, 20001), pair())
    assert install(there, child(2, 20002), pair((1702, 1702))) is None
    assert install(there, child(3, 20003), pair(protocol=6)) is None
    assert install(there, child(4, 20004), pair(local=(22, 22))) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pair(), pair((0, 65535))),
        (pair((0, 65535)), pair()),
        (pair(), pair((0, 65535), 0, local=(0, 65535))),
        (pair((0, 65535), 0, local=(0, 65535)), pair((0, 65535), 0, local=(0, 65535))),
        (pair(protocol=132), pair(protocol=132)),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_name(first: SelectorSpec, second: SelectorSpec) -> None:
    there: list[There] = []
    install(there, child(1, 20001), first)
    with pytest.raises(
        DataPlaneError, match=r"behind the NAT at 203\.0\.113\.1, by its port 20001, has transport mode"
    ):
        install(there, child(2, 20002), second)
    there.clear()
    install(there, child(2, 20002), second)


def test_ipv6_is_refused() -> None:
    ours, nat = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    wide = SelectorSpec(
        local_first=ours,
        local_last=ours,
        remote_first=nat,
        remote_last=nat,
        protocol=17,
        remote_ports=(1701, 1701),
    )
    there: list[There] = []
    install(there, child(1, 20001, remote=nat), wide)
    with pytest.raises(DataPlaneError, match="told apart"):
        install(there, child(2, 20002, remote=nat), wide)
