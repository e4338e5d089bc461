"""The configuration file: what is accepted, and that every problem is named, at once, without keys."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.config import ConfigError, format_proposal, load, parse
from control.config.proposal import parse_ah_proposal
from dataplane.model import (
    ANY_PORTS,
    OPAQUE_PORTS,
    TFC_MTU,
    Action,
    Cipher,
    Df,
    Direction,
    Encap,
    Fragment,
    Integrity,
    Mode,
    Protocol,
    Role,
)

ROOT = Path(__file__).resolve().parents[2]
KEY = "00112233445566778899aabbccddeeff01020304"

GOOD: dict[str, Any] = {
    "gateway": {"workers": 2, "state_dir": "/tmp/state", "run_dir": "/tmp/run"},
    "port": [
        {"name": "lan", "role": "protected", "driver": "xdp", "interface": "eth1"},
        {"name": "wan", "role": "unprotected", "driver": "packet", "interface": "eth0"},
    ],
    "sa": [
        {
            "name": "ab",
            "direction": "out",
            "spi": 0x1001,
            "local": "192.0.2.1",
            "remote": "192.0.2.2",
            "proposal": "aes128gcm16",
            "encryption_key": KEY,
        },
        {
            "name": "ba",
            "direction": "in",
            "spi": "0x1002",
            "local": "192.0.2.1",
            "remote": "192.0.2.2",
            "proposal": "aes256-sha256-esn",
            "encryption_key": "0x" + "12" * 32,
            "integrity_key": "34:" * 31 + "34",
            "encap": True,
            "replay_window": 64,
            "sequence": 7,
            "df": "set",
            "dscp": 46,
            "ttl": 9,
            "mss_clamp": True,
            "fragment": "after",
            "tfc_padding": "mtu",
            "tfc_dummies": 5,
        },
    ],
    "policy": [
        {
            "name": "web",
            "local": "10.1.0.0/24",
            "remote": ["10.2.0.0/24", "10.3.0.1-10.3.0.9"],
            "protocol": "tcp",
            "remote_port": "8000-8999",
            "local_port": 5,
            "out": "ab",
            "in": ["ba"],
        },
        {"name": "none", "action": "discard", "remote": "any"},
    ],
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with one value replaced; `sa.0.spi` style path; None removes the key."""
    values: Any = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    where = values
    for part in parents:
        where = where[int(part)] if part.isdigit() else where.setdefault(part, {})
    if value is None:
        del where[last]
    else:
        where[last] = value
    return values  # type: ignore[no-any-return]


def problems(values: dict[str, Any]) -> list[str]:
    """The problems that a configuration has, one line each."""
    with pytest.raises(ConfigError) as caught:
        parse(values, source="x.toml")
    return caught.value.lines()


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


AH_SA = {
    "name": "auth",
    "direction": "out",
    "spi": 0x1003,
    "local": "192.0.2.1",
    "remote": "192.0.2.2",
    "protocol": "ah",
    "proposal": "sha256-esn",
    "integrity_key": "56" * 32,
}


def test_ah() -> None:
    """Integrity alone, with its keywords; what AH cannot do is refused by name."""
    values = copy.deepcopy(GOOD)
    values["sa"].append(AH_SA)
    sa = parse(values).sas[2]
    assert (sa.protocol, sa.proposal.cipher, sa.proposal.esn) == (Protocol.AH, Cipher.NULL, True)
    assert (sa.proposal.integrity, sa.integrity_key) == (Integrity.HMAC_SHA2_256, bytes.fromhex("56" * 32))
    assert format_proposal(sa.proposal, sa.protocol) == "sha256-esn"
    for text in ("sha1", "sha384", "sha512-esn", "aesxcbc", "aescmac-esn", "aes128gmac", "aes256gmac-esn"):
        assert format_proposal(parse_ah_proposal(text), Protocol.AH) == text
    assert [
        sa.inner_mtu(1500),
        replace(sa, local=ip_address("::1"), remote=ip_address("::2")).inner_mtu(1500),
    ] == [1452, 1428]
    for key, value, told in (
        ("tfc_dummies", 5, 'has no meaning with protocol = "ah", which hides nothing'),
        ("proposal", "esn", "which names no integrity algorithm; want one like sha256 or sha512-esn"),
        ("proposal", "sha256-sha384", "which names two integrity algorithms; want at most one"),
        ("proposal", "sha256-x25519", "but 'x25519' belongs to IKE, and these keys are written by hand"),
        ("encryption_key", "12" * 16, "has no place with"),
        ("encap", True, "has no place with AH, which protects the very addresses that NAT changes; want ESP"),
        (
            "integrity_key",
            "56" * 20,
            "got 40 hex digits (20 bytes), want 64 hex digits (32 bytes) for sha256-esn",
        ),
    ):
        values["sa"][2] = {**AH_SA, key: value}
        assert [line for line in problems(values) if f"sa[2].{key}" in line and told in line], (key, value)


def test_keys_never_show() -> None:
    config = parse(GOOD)
    assert (
        KEY not in repr(config)
        and "1212" not in repr(config)
        and bytes.fromhex(KEY).hex() not in repr(config)
    )
    for path in ("sa.0.spi", "sa.0.proposal", "sa.0.local", "sa.0.name", "policy.0.remote", "gateway.engine"):
        assert not any(KEY[:16] in line for line in problems(changed(path, KEY))), path


GOLDEN = [
    (
        "sa.0.encryption_key",
        "00" * 16,
        (
            'x.toml: sa[0].encryption_key ("ab"): got 32 hex digits (16 bytes), want 40 hex digits '
            "(20 bytes: 16 key + 4 salt) for aes128gcm16"
        ),
    ),
    (
        "sa.0.encryption_key",
        None,
        (
            'x.toml: sa[0].encryption_key ("ab"): is missing; it wants 40 hex digits (20 bytes: 16 key '
            "+ 4 salt) for aes128gcm16"
        ),
    ),
    (
        "sa.0.encryption_key",
        "zz" * 20,
        (
            'x.toml: sa[0].encryption_key ("ab"): got 40 characters of which 40 are no hex digits, '
            "want 40 hex digits (20 bytes: 16 key + 4 salt) for aes128gcm16"
        ),
    ),
    (
        "sa.0.encryption_key",
        "00" * 20,
        (
            'x.toml: sa[0].encryption_key ("ab"): got all zeros, want 40 hex digits (20 bytes: 16 '
            "key + 4 salt) for aes128gcm16 from a random source, such as `openssl rand -hex 20`"
        ),
    ),
    (
        "sa.0.integrity_key",
        "00",
        'x.toml: sa[0].integrity_key ("ab"): has no place with aes128gcm16; leave it out',
    ),
    (
        "sa.1.integrity_key",
        "00",
        (
            'x.toml: sa[1].integrity_key ("ba"): got 2 hex digits (1 bytes), want 64 hex digits '
            "(32 bytes) for aes256-sha256-esn"
        ),
    ),
    (
        "sa.0.encrypton_key",
        "x",
        'x.toml: sa[0].encrypton_key ("ab"): is not a known key; did you mean "encryption_key"?',
    ),
    (
        "sa.0.spi",
        255,
        'x.toml: sa[0].spi ("ab"): got 255, want an SPI from 256 to 4294967295, such as 4097 or "0x1001"',
    ),
    (
        "sa.0.spi",
        True,
        (
            'x.toml: sa[0].spi ("ab"): got a boolean (true), want an SPI from 256 to 4294967295, such as 4097 or '
            '"0x1001"'
        ),
    ),
    (
        "sa.0.remote",
        "2001:db8::1",
        'x.toml: sa[0].remote ("ab"): got an IPv6 address and local is IPv4, want one family',
    ),
    (
        "sa.0.proposal",
        "aes128",
        (
            "x.toml: sa[0].proposal (\"ab\"): got 'aes128', which has no integrity; want it followed by "
            "-sha256, -sha384 or -sha512"
        ),
    ),
    (
        "sa.0.proposal",
        "aes128gcm16-x25519",
        (
            "x.toml: sa[0].proposal (\"ab\"): got 'aes128gcm16-x25519', but 'x25519' belongs to a "
            "key exchange, and these keys are written by hand; want it left out"
        ),
    ),
    (
        "sa.0.proposal",
        "aes128-md5",
        "x.toml: sa[0].proposal (\"ab\"): got 'aes128-md5', but md5 is broken or obsolete "
        "(RFC 8221, RFC 8247); use sha256",
    ),
    (
        "sa.0.protocol",
        "ah",
        (
            "x.toml: sa[0].proposal (\"ab\"): got 'aes128gcm16', but 'aes128gcm16' is a cipher, and AH encrypts "
            "nothing; want one like sha256 or sha512-esn"
        ),
    ),
    (
        "sa.0.protocol",
        "a",
        'x.toml: sa[0].protocol ("ab"): got \'a\', want "esp" or "ah"; did you mean "ah"?',
    ),
    (
        "sa.0.direction",
        "inn",
        'x.toml: sa[0].direction ("ab"): got \'inn\', want "in" or "out"; did you mean "in"?',
    ),
    (
        "sa.0.replay_window",
        63,
        'x.toml: sa[0].replay_window ("ab"): got 63, want 0 (off) or a number from 64 to 4096',
    ),
    (
        "sa.0.sequence",
        2**32,
        (
            'x.toml: sa[0].sequence ("ab"): got 4294967296, want a number from 1 to 4294967295 (the first '
            "number to send or expect)"
        ),
    ),
    (
        "sa.0.encap",
        "yes",
        (
            "x.toml: sa[0].encap (\"ab\"): got a string ('yes'), want true, false or { source_port = 4500, "
            "destination_port = 4500 }"
        ),
    ),
    (
        "sa.0.encap",
        {"source_prt": 1},
        'x.toml: sa[0].encap.source_prt ("ab"): is not a known key; did you mean "source_port"?',
    ),
    ("sa.1.name", "ab", 'x.toml: sa[1].name ("ab"): got "ab", which sa[0] has too; want a name of its own'),
    (
        "policy.0.out",
        "abc",
        'x.toml: policy[0].out ("web"): got \'abc\', and no [[sa]] has that name; did you mean "ab"?',
    ),
    (
        "policy.0.out",
        "ba",
        'x.toml: policy[0].out ("web"): got "ba", whose direction is "in"; want an SA with direction = "out"',
    ),
    (
        "policy.0.out",
        None,
        'x.toml: policy[0].out ("web"): is missing; action "protect" wants the name of the [[sa]] to send by',
    ),
    (
        "policy.1.out",
        "ab",
        'x.toml: policy[1].out ("none"): has no meaning with action "discard"; leave it out',
    ),
    (
        "policy.0.local",
        "10.1.0.1/24",
        (
            "x.toml: policy[0].local (\"web\"): got '10.1.0.1/24', which has bits set right of the "
            "prefix; want 10.1.0.0/24 or a single address"
        ),
    ),
    (
        "policy.0.local",
        "fd00::/8",
        (
            'x.toml: policy[0].remote ("web"): got IPv4 ranges only and local has IPv6 ranges only, want a '
            "pair of one family"
        ),
    ),
    (
        "policy.0.protocol",
        "icmp",
        (
            'x.toml: policy[0].local_port ("web"): needs protocol = tcp, udp, dccp, sctp, udplite; got '
            "protocol 1, which has no ports"
        ),
    ),
    (
        "port.1.interface",
        "eth1",
        (
            'x.toml: port[1].interface ("wan"): got "eth1", which port[0] ("lan") has too; want an interface '
            "of its own"
        ),
    ),
    (
        "port.1.role",
        "protected",
        'x.toml: port: no port has role = "unprotected"; want at least one [[port]] on either side',
    ),
    (
        "port.1.driver",
        "tun",
        (
            'x.toml: port[1].driver ("wan"): got "tun" on an unprotected port; it carries packets in clear, so '
            "it can only be protected (use udp or raw on the unprotected side)"
        ),
    ),
    (
        "port.1.driver",
        "raw",
        (
            'x.toml: port[1].interface ("wan"): has no meaning for the raw driver: the kernel\'s routes choose; '
            "leave it out"
        ),
    ),
    (
        "port.0.routes",
        True,
        'x.toml: port[0].routes ("lan"): has no meaning for the xdp driver, only for tun; leave it out',
    ),
    ("gateway.workers", 0, "x.toml: gateway.workers: got 0, want a number from 1 to 64 (processes)"),
    (
        "gateway.state_dir",
        "state",
        "x.toml: gateway.state_dir: got 'state', want an absolute path such as /var/lib/esplanade",
    ),
    ("gateways", {}, 'x.toml: gateways: is not a known key; did you mean "gateway"?'),
    ("sa", {}, "x.toml: sa: got a table, want tables [[sa]] (with double brackets)"),
]


@pytest.mark.parametrize(
    ("path", "value", "line"), GOLDEN, ids=[f"{path}={str(value)[:12]}" for path, value, _ in GOLDEN]
)
def test_golden_errors(path: str, value: object, line: str) -> None:
    assert line in problems(changed(path, value))


def test_all_problems_at_once() -> None:
    values = changed("sa.0.spi", 1)
    values["sa"][1]["replay_window"] = 1
    values["policy"][0]["out"] = "nobody"
    values["gateway"]["engine"] = "fast"
    assert len(problems(values)) == 4


def test_duplicate_spi_in_one_direction_only() -> None:
    assert parse(changed("sa.1.spi", 0x1001)).sas[1].spi == 0x1001
    values = changed("sa.1.spi", 0x1001)
    values["sa"][1]["direction"] = "out"
    values["policy"][0]["in"] = []
    assert any('got 0x00001001, which sa[0] ("ab") has too' in line for line in problems(values))


def test_gmac_in_ah() -> None:
    """A key with salt, which no other sender may have, not even one of ESP (RFC 4543 sections 3.1, 5.3)."""
    values = copy.deepcopy(GOOD)
    gmac = {**AH_SA, "proposal": "aes128gmac", "integrity_key": "56" * 20}
    values["sa"].append(gmac)
    sa = parse(values).sas[2]
    assert (sa.proposal.integrity, sa.proposal.key_bits) == (Integrity.AES_GMAC, 128)
    assert (sa.raw_keys, sa.salt) == ((b"", b"\x56" * 16), b"\x56" * 4)
    values["sa"][2] = {**gmac, "integrity_key": "56" * 16}
    want = "want 40 hex digits (20 bytes: 16 key + 4 salt) for aes128gmac"
    assert [line for line in problems(values) if "sa[2].integrity_key" in line and want in line]
    values["sa"][2] = {**gmac, "integrity_key": values["sa"][0]["encryption_key"]}
    told = 'integrity_key ("auth"): is the key of sa[0] ("ab") too: two senders under one key repeat nonces'
    assert [line for line in problems(values) if told in line]


def test_one_aead_key_for_two_senders() -> None:
    values = copy.deepcopy(GOOD)
    values["sa"].append({**values["sa"][0], "name": "other", "spi": 0x3001})
    assert any("two senders under one key repeat nonces" in line for line in problems(values))
    values["sa"][2]["direction"] = "in"
    values["policy"][0]["in"] = ["ba", "other"]
    assert any("both directions under one key" in str(warning) for warning in parse(values).warnings)


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


# Values as TOML can hold them, biased to the words this schema knows.
_words = st.sampled_from(
    [
        "in",
        "out",
        "xdp",
        "tun",
        "udp",
        "protected",
        "any",
        "0x1001",
        KEY,
        "10.0.0.0/8",
        "1.2.3.4-1.2.3.9",
        "::1",
        "ab",
        "ba",
        "aes128gcm16",
        "null-sha256",
        "protect",
        "discard",
        "tcp",
        "1-2",
        "",
        " ",
        "eth0",
    ]
)
_scalars = st.one_of(
    _words,
    st.text(max_size=40),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.times(),
    st.datetimes(),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)
_keys = sorted(
    {key for section in ("port", "sa", "policy") for entry in GOOD[section] for key in entry}
    | set(GOOD["gateway"])
    | {"mode", "zero_copy", "busy_poll", "addresses", "bind", "routes", "cpus", "engine", "encap_port", "mtu"}
)
_tables = st.dictionaries(st.sampled_from(_keys) | st.text(max_size=8), _values, max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gateway": _tables | _values,
            "port": st.lists(_tables, max_size=3) | _values,
            "sa": st.lists(_tables, max_size=3) | _values,
            "policy": st.lists(_tables, max_size=3) | _values,
            "extra": _values,
        },
    )
)
def test_only_config_error_for_any_toml(values: dict[str, Any]) -> None:
    try:
        parse(values)
    except ConfigError as error:
        assert error.problems and all("\n" not in line for line in error.lines())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["port", "sa", "policy"]), st.integers(0, 1), st.sampled_from(_keys), _values)
def test_only_config_error_for_one_wild_value(section: str, index: int, key: str, value: object) -> None:
    values = copy.deepcopy(GOOD)
    values[section][index][key] = value
    try:
        parse(values)
    except ConfigError as error:
        assert error.problems


def transport() -> dict[str, Any]:
    """GOOD between two hosts."""
    values = copy.deepcopy(GOOD)
    for sa in values["sa"]:
        sa["mode"] = "transport"
        for key in ("df", "dscp", "ttl", "fragment", "tfc_padding", "tfc_dummies"):
            sa.pop(key, None)
    values["policy"] = [
        {
            "name": "l2tp",
            "local": "192.0.2.1",
            "remote": "192.0.2.2",
            "protocol": "udp",
            "remote_port": 1701,
            "out": "ab",
            "in": "ba",
        }
    ]
    return values


def test_transport_mode() -> None:
    """The mode, and the addresses before NAT, arrive."""
    values = transport()
    values["sa"][1]["nat_original"] = {"local": "10.0.0.1", "remote": "10.9.0.1"}
    out, into = parse(values).sas
    assert (out.mode, into.mode) == (Mode.TRANSPORT, Mode.TRANSPORT)
    assert into.nat_original == (ip_address("10.0.0.1"), ip_address("10.9.0.1"))
    assert parse(GOOD).sas[0].mode is Mode.TUNNEL


@pytest.mark.parametrize(
    ("section", "index", "key", "value", "line"),
    [
        (
            "policy",
            0,
            "remote",
            "192.0.2.0/24",
            'got 192.0.2.0-192.0.2.255, and out = "ab" is in transport mode, which protects its own two hosts; '
            'want "192.0.2.2"',
        ),
        (
            "sa",
            0,
            "ttl",
            9,
            'has no meaning with mode = "transport", where packets keep their own IP header',
        ),
        ("sa", 0, "mode", "tunel", 'got \'tunel\', want "tunnel" or "transport"; did you mean "tunnel"?'),
        (
            "sa",
            0,
            "nat_original",
            {"local": "10.0.0.1", "remote": "10.9.0.1"},
            'has no meaning but with mode = "transport", encap and direction = "in"; leave it out',
        ),
        (
            "sa",
            1,
            "nat_original",
            {"local": "10.0.0.1", "remote": "fd00::1"},
            "got an IPv6 address and local is IPv4, want one family",
        ),
    ],
)
def test_transport_mode_refused(section: str, index: int, key: str, value: object, line: str) -> None:
    """What transport mode cannot be is said."""
    values = transport()
    values[section][index][key] = value
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert any(line in problem for problem in caught.value.lines()), caught.value.lines()


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


def bundle() -> dict[str, Any]:
    """GOOD with AH around both SAs."""
    values = copy.deepcopy(GOOD)
    for index, direction in enumerate(("out", "in")):
        sa = values["sa"][index]
        sa.pop("encap", None)
        sa["outer"] = f"ah-{direction}"
        around = {"name": f"ah-{direction}", "direction": direction, "protocol": "ah", "mode": "transport"}
        around |= {"spi": 0x9000 + index, "proposal": "sha256", "integrity_key": f"{7 + index:02}" * 32}
        values["sa"].append(around | {"local": sa["local"], "remote": sa["remote"]})
    return values


def test_bundle() -> None:
    """The outer SA is told, with its length; inbound it takes ESP between its ends."""
    config = parse(bundle())
    out, into, ah_out, ah_in = config.sas
    assert (out.outer, into.outer, ah_out.outer, ah_in.outer) == ("ah-out", "ah-in", None, None)
    assert out.outer_length == ah_out.ah_length == 28
    assert out.inner_mtu(1500) == replace(out, outer_length=0).inner_mtu(1472)
    (inside,) = ah_in.selectors
    assert (inside.protocol, inside.local_first, inside.remote_last) == (50, ah_in.local, ah_in.remote)
    assert not any("tun" in warning or "ah-" in warning for warning in map(str, config.warnings))


@pytest.mark.parametrize(
    ("index", "changes", "line"),
    [
        (0, {"outer": "ah-uot"}, "got 'ah-uot', and no [[sa]] has that name; did you mean \"ah-out\"?"),
        (0, {"outer": "ah-in"}, 'got "ah-in", whose direction is "in"; want "out" as here'),
        (0, {"outer": "ab"}, "names this SA itself; want another one, of AH"),
        (0, {"outer": "ba"}, 'got "ba", whose protocol is "esp"; want an SA with protocol = "ah"'),
        (0, {"encap": True}, "has no place with encap: AH protects the very addresses that NAT changes"),
        (2, {"mode": "tunnel"}, 'got "ah-out", whose mode is "tunnel"; want an SA with mode = "transport"'),
        (2, {"remote": "192.0.2.9"}, 'got "ah-out", whose ends are 192.0.2.1 and 192.0.2.9; want 192.0.2.1'),
        (2, {"outer": "ab"}, 'has no place with protocol = "ah": a bundle is AH around ESP, two SAs and no'),
        (
            2,
            {"outer": "ah-in"},
            'has no place with protocol = "ah": a bundle is AH around ESP, two SAs and no',
        ),
    ],
)
def test_bundle_refused(index: int, changes: dict[str, Any], line: str) -> None:
    """What cannot go around an SA is named."""
    values = bundle()
    values["sa"][index] |= changes
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert any("outer" in problem and line in problem for problem in caught.value.lines()), (
        caught.value.lines()
    )


@pytest.mark.parametrize(("key", "name", "inner"), [("out", "ah-out", "ab"), ("in", "ah-in", "ba")])
def test_policies_name_the_sa_within(key: str, name: str, inner: str) -> None:
    """The AH of a bundle carries nothing of its own."""
    values = bundle()
    values["policy"][0][key] = name
    with pytest.raises(
        ConfigError, match=f'"{name}", which is the outer of "{inner}" and carries nothing else'
    ):
        parse(values)
