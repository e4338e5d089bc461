"""The configuration file: what is accepted, defaults, warnings, no key shown. Errors are in config/test_errors.py."""

from __future__ import annotations

import copy
import tomllib
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.config import ConfigError, load, parse
from dataplane.model import (
    ANY_PORTS,
    OPAQUE_PORTS,
    TFC_MTU,
    Action,
    Df,
    Direction,
    Encap,
    Fragment,
    Role,
)
from tests.control.config.good import GOOD, KEY, changed, problems

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_arrives() -> None:
    config = parse(GOOD)
    assert [port.role for port in config.ports] == [Role.PROTECTED, Role.UNPROTECTED]
    out, inbound = config.sas
    assert (out.spi, out.direction, out.encryption_key) == (0x1001, Direction.OUT, bytes.fromhex(KEY))
    assert out.selectors == () and out.replay_window == 4096 and out.df is Df.COPY and out.dscp is None
    assert inbound.proposal.esn and inbound.encap == Encap() and inbound.integrity_key == b"\x34" * 32
    assert (inbound.replay_window, inbound.sequence, inbound.df, inbound.dscp, inbound.ttl) == (
        64,
        7,
        Df.SET,
        46,
        9,
    )
    assert inbound.mss_clamp and len(inbound.selectors) == 2
    assert (out.fragment, out.tfc_padding) == (Fragment.BEFORE, 0)
    assert (inbound.fragment, inbound.tfc_padding, inbound.tfc_dummies) == (Fragment.AFTER, TFC_MTU, 5)
    first = inbound.selectors[1]
    assert (first.remote_first, first.remote_last) == (ip_address("10.3.0.1"), ip_address("10.3.0.9"))
    assert (first.protocol, first.local_ports, first.remote_ports) == (6, (5, 5), (8000, 8999))
    # "any" on both sides is one entry per family; the order of the file is the order of the SPD.
    assert [policy.action for policy in config.policies] == [Action.PROTECT] * 2 + [Action.DISCARD] * 2
    assert config.policies[0].sa == "ab"


def test_defaults() -> None:
    values = copy.deepcopy(GOOD)
    del values["gateway"]
    config = parse(values)
    assert config.gateway.workers >= 1 and str(config.gateway.run_dir) == "/run/esplanade"


def test_keys_never_show() -> None:
    config = parse(GOOD)
    assert (
        KEY not in repr(config)
        and "1212" not in repr(config)
        and bytes.fromhex(KEY).hex() not in repr(config)
    )
    for path in ("sa.0.spi", "sa.0.proposal", "sa.0.local", "sa.0.name", "policy.0.remote", "gateway.engine"):
        assert not any(KEY[:16] in line for line in problems(changed(path, KEY))), path


def test_socket_ports_need_fitting_sas() -> None:
    values = copy.deepcopy(GOOD)
    values["port"][1] = {"name": "wan", "role": "unprotected", "driver": "udp"}
    assert problems(values) == [
        (
            'x.toml: sa[0].encap ("ab"): is missing, and every unprotected port is a UDP socket; want encap = '
            'true, or a port with driver = "raw"'
        )
    ]
    values["sa"][0]["encap"] = {"source_port": 4501}
    assert problems(values) == [
        (
            'x.toml: sa[0].encap.source_port ("ab"): got 4501, and the unprotected ports have encap_port 4500; '
            "want the same"
        )
    ]
    values["sa"][0]["encap"] = True
    assert parse(values).sas[0].encap == Encap()
    values["port"][1] = {**GOOD["port"][1], "encap_port": 4501}
    assert any("have encap_port 4501" in line for line in problems(values))
    values["sa"][0]["encap"] = {"source_port": 4501}
    assert parse(values).ports[1].encap_port == 4501


def test_ports_that_are_none() -> None:
    """RFC 4301 section 4.4.1.1: OPAQUE ports, and type and code of ICMP in their place."""
    values = copy.deepcopy(GOOD)
    policy = values["policy"][0]
    policy["local_port"], policy["remote_port"] = "any", "opaque"
    selector = parse(values).policies[0].selector
    assert (selector.local_ports, selector.remote_ports) == (ANY_PORTS, OPAQUE_PORTS)
    del policy["protocol"]
    assert parse(values).policies[0].selector.remote_ports == OPAQUE_PORTS
    del policy["local_port"], policy["remote_port"]
    policy["protocol"] = "icmp"
    for icmp, ports in ((8, (0x800, 0x8FF)), ("3(4)", (0x304, 0x304)), ("3(0-3)", (0x300, 0x303))):
        policy["icmp"] = icmp
        selector = parse(values).policies[0].selector
        assert (selector.protocol, selector.local_ports, selector.remote_ports) == (1, ports, ports)
    for icmp, why in (
        ("3(5-4)", "got '3(5-4)', want an ICMP type, type(code) or type(code-code), each from 0 to 255"),
        (256, "got '256', want an ICMP type, type(code) or type(code-code), each from 0 to 255"),
        (True, 'got a boolean (true), want a type such as 8, or "3(4)" with its code'),
    ):
        policy["icmp"] = icmp
        assert problems(values) == [f'x.toml: policy[0].icmp ("web"): {why}']
    policy["icmp"], policy["local_port"] = 8, "opaque"
    assert problems(values) == [
        'x.toml: policy[0].icmp ("web"): stands in the place of ports; leave local_port and remote_port out'
    ]
    del policy["local_port"]
    policy["protocol"] = "udp"
    assert problems(values) == [
        'x.toml: policy[0].icmp ("web"): needs protocol = "icmp" or "icmpv6"; got protocol 17'
    ]


def test_warnings(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "site-to-site.toml").read_text()
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    path.chmod(0o644)
    assert any(f"chmod 600 {path}" in str(warning) for warning in load(path).warnings)
    path.chmod(0o600)
    assert load(path).warnings == ()
    # As Windows' editors write it: marked as UTF-8, with carriage returns.
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load(path).sas == parse(tomllib.loads(text)).sas
    values = tomllib.loads(text)
    del values["policy"][0]["in"]
    del values["sa"][1]
    values["sa"].append({**values["sa"][0], "name": "idle", "spi": 0x1009, "encryption_key": "77" * 20})
    warned = [str(warning) for warning in parse(values).warnings]
    assert any("nothing that answers" in line for line in warned)
    assert 'sa[1].name ("idle"): is the "out" of no [[policy]], so nothing goes out by it' in warned


def test_an_inbound_sa_needs_a_policy() -> None:
    values = copy.deepcopy(GOOD)
    values["policy"][0]["in"] = []
    assert problems(values) == [
        'x.toml: sa[1].name ("ba"): is in the "in" of no [[policy]], so nothing may come by it; want it in one'
    ]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_valid(example: Path) -> None:
    load(example)


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path)
    path.write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 4"):
        load(path)
    path.write_text("a = \n")
    with pytest.raises(ConfigError, match=r"is no valid TOML: .*line 1"):
        load(path)
    path.write_text("a = " + "[" * 100000)
    with pytest.raises(ConfigError, match="is no valid TOML"):
        load(path)


def test_busy_poll_is_for_xdp_ports() -> None:
    """Microseconds up to a thousand, of an xdp port; no other has a queue to drive."""
    values = changed("port.0.driver", "xdp")
    values["port"][0] |= {"interface": "eth7", "busy_poll": 20}
    assert parse(values).ports[0].busy_poll == 20
    values["port"][0]["busy_poll"] = 1001
    with pytest.raises(ConfigError, match=r"busy_poll.*got 1001, want a number from 0 to 1000"):
        parse(values)
    values["port"][0] |= {"busy_poll": 20, "driver": "packet"}
    with pytest.raises(ConfigError, match="busy_poll"):
        parse(values)
