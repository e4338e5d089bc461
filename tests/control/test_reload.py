"""What a changed configuration comes to."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import replace

import pytest

from control.config import Config, ConfigError, parse
from control.reload import IkeChanges, compare
from dataplane.model import Direction
from tests.control.config.good import GOOD, changed

OLD = parse(GOOD)
ALIVE = {sa.name: sa for sa in OLD.sas}


def test_nothing_changed() -> None:
    changes = compare(OLD, ALIVE, parse(GOOD))
    assert not changes and str(changes) == "nothing changed" and changes.restart == ()


def test_one_sa_changed() -> None:
    new = parse(changed("sa.0.ttl", 99))
    changes = compare(OLD, ALIVE, new)
    assert [sa.name for sa in changes.replaced] == ["ab"] and not changes.added and not changes.removed
    assert not changes.policies and str(changes) == "1 SA replaced"


def test_policy_change_reaches_the_inbound_selectors() -> None:
    changes = compare(OLD, ALIVE, parse(changed("policy.0.remote", "10.7.0.0/16")))
    assert changes.policies and [sa.name for sa in changes.replaced] == ["ba"]


def test_renamed_sa_goes_before_it_comes() -> None:
    values = changed("sa.0.name", "renamed")
    values["policy"][0]["out"] = "renamed"
    changes = compare(OLD, ALIVE, parse(values))
    assert changes.remove_first == ("ab",) and [sa.name for sa in changes.added] == ["renamed"]
    assert changes.removed == () and str(changes) == "1 SA added, 1 SA removed, policies replaced"


def test_unrelated_sa_goes_last() -> None:
    values = changed("sa.0.name", "other")
    values["sa"][0] |= {"spi": 0x9999, "encryption_key": "55" * 20}
    values["policy"][0]["out"] = "other"
    changes = compare(OLD, ALIVE, parse(values))
    assert changes.remove_first == () and changes.removed == ("ab",)


def test_direction_turned() -> None:
    alive = dict(ALIVE, ab=replace(ALIVE["ab"], direction=Direction.IN))
    changes = compare(OLD, alive, parse(GOOD))
    assert changes.remove_first == ("ab",) and [sa.name for sa in changes.added] == ["ab"]


def test_sa_that_failed_before_is_tried_again() -> None:
    changes = compare(OLD, {"ba": ALIVE["ba"]}, parse(GOOD))
    assert [sa.name for sa in changes.added] == ["ab"]


def ike(text: str, **more: str) -> Config:
    """A configuration with one connection of two children, `text` among its keys."""
    children = {"net": 'remote_ts = "10.2.0.0/24"', "voice": 'remote_ts = "10.3.0.0/24"', **more}
    whole = f'[connections.c]\nremote_addrs = "192.0.2.9"\npsk = "correct horse battery"\n{text}\n'
    whole += "".join(f"[connections.c.children.{name}]\n{keys}\n" for name, keys in children.items() if keys)
    return parse(tomllib.loads(whole))


def ike_changes(new: Config) -> IkeChanges:
    return compare(ike(""), {}, new).ike


def test_connections_that_are_left_alone() -> None:
    assert not ike_changes(ike("")) and str(ike_changes(ike(""))) == "nothing changed"
    other = ike('[connections.d]\nremote_addrs = "192.0.2.10"\npsk = "correct horse battery"\n')
    changes = ike_changes(other)
    assert [connection.name for connection in changes.added] == ["d"] and changes.credentials
    assert not changes.changed and not changes.adjusted and not changes.removed
    assert compare(other, {}, ike("")).ike.removed == ("d",)


def test_a_connection_that_begins_anew() -> None:
    for text in (
        'local.id = "@me"',
        "mobike = false",
        'proposals = "aes256-sha256-x25519"',
        "local_port = 4500",
    ):
        changes = ike_changes(ike(text))
        assert [connection.name for connection in changes.changed] == ["c"] and not changes.adjusted, text


def test_a_connection_whose_ike_sa_stays() -> None:
    (times,) = ike_changes(ike('dpd_delay = "5s"\nrekey_time = "9h"')).adjusted
    assert (times.ended, times.begun, times.connection.dpd_delay) == ((), (), 5.0)
    (less,) = ike_changes(ike("", voice="")).adjusted
    assert (less.ended, less.begun) == (("voice",), ())
    (more,) = ike_changes(ike("", video='remote_ts = "10.4.0.0/24"')).adjusted
    assert (more.ended, more.begun) == ((), ("video",))
    (other,) = ike_changes(ike("", voice='remote_ts = "10.5.0.0/24"')).adjusted
    assert (other.ended, other.begun) == (("voice",), ("voice",))
    assert str(ike_changes(ike("dpd_delay = 5"))) == "1 connection adjusted"


def test_ike_settings() -> None:
    """What [ike] says about all connections adjusts them; only ports wait for a restart."""
    changes = compare(ike(""), {}, ike("[ike]\nretransmit_tries = 9\ncookie_threshold = 3"))
    assert changes.restart == () and len(changes.ike.adjusted) == 1
    changes = compare(ike(""), {}, ike("[ike]\nport = 501"))
    assert (
        changes.restart == ("ike.port, ike.nat_port",) and not changes.ike
    )  # tunnels stay, on the ports there are


def test_what_needs_a_restart_is_named() -> None:
    values = changed("gateway.workers", 1)
    values["port"][0]["mode"] = "generic"
    values["gateway"]["log_level"] = "debug"
    assert compare(OLD, ALIVE, parse(values)).restart == ("gateway.workers", "port")


def test_the_first_sa_in_udp_waits_in_part() -> None:
    """The sockets for its fragments are opened at start; where they are already, or a port has them, nothing waits."""
    bare = copy.deepcopy(GOOD)
    del bare["sa"][1]["encap"]
    config = parse(bare)
    (what,) = compare(config, ALIVE, OLD).restart
    assert what.startswith("sa.encap (the first; ")
    assert compare(OLD, ALIVE, config).restart == () and compare(OLD, ALIVE, OLD).restart == ()
    sockets = {"name": "udp", "role": "unprotected", "driver": "udp"}
    for document in (with_udp := copy.deepcopy(GOOD), bare):
        document["port"].append(sockets)
    assert compare(parse(bare), ALIVE, parse(with_udp)).restart == ()
    # Ports that differ wait as a whole.
    assert compare(config, ALIVE, parse(with_udp)).restart == ("port",)


def sockets(driver: str, local: str, **port: object) -> Config:
    """SAs at `local`, over sockets alone."""
    document = copy.deepcopy(GOOD)
    document["port"] = [
        {"name": "tun", "role": "protected", "driver": "tun", "interface": "t0"},
        {"name": "wan", "role": "unprotected", "driver": driver, **port},
    ]
    for sa in document["sa"]:
        sa["local"] = local
        sa["remote"] = "2001:db8::2" if ":" in local else "192.0.2.2"
        sa["encap"] = driver == "udp"
    return parse(document)


@pytest.mark.parametrize("driver", ["udp", "raw"])
def test_addresses_that_no_socket_is_bound_to(driver: str) -> None:
    """Of one family a socket is at its one address; the other family has none. Several, and none, mean any."""
    old = sockets(driver, "192.0.2.1")
    for local in ("192.0.2.9", "2001:db8::1"):
        (what,) = compare(old, {}, sockets(driver, local)).restart
        assert what == f"local addresses (sockets are bound since the start, to others than {local})"
    assert compare(old, {}, old).restart == ()
    everywhere = sockets(driver, "192.0.2.1", bind=["192.0.2.1", "192.0.2.2"])
    new = sockets(driver, "192.0.2.9", bind=["192.0.2.1", "192.0.2.2"])
    assert compare(everywhere, {}, new).restart == ()
    # An interface has all addresses.
    links = changed("sa.0.local", "192.0.2.9")
    assert compare(OLD, ALIVE, parse(links)).restart == ()


@pytest.mark.parametrize("driver", ["udp", "raw"])
def test_an_address_that_is_not_bound_is_refused(driver: str) -> None:
    """What would never receive anything is no configuration."""
    assert sockets(driver, "192.0.2.1", bind="192.0.2.1")
    for local in ("192.0.2.9", "2001:db8::1"):
        with pytest.raises(
            ConfigError, match=rf"got {local}, and the sockets of wan have bind = 192.0.2.1; want"
        ):
            sockets(driver, local, bind="192.0.2.1")
