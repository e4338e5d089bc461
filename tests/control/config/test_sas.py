"""[[sa]] and what follows from it: AH, transport mode, bundles, keys that two have."""

from __future__ import annotations

import copy
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from control.config import ConfigError, format_proposal, parse
from control.config.proposal import parse_ah_proposal
from dataplane.model import (
    Cipher,
    Integrity,
    Mode,
    Protocol,
)
from tests.control.config.good import GOOD, changed, problems

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


@pytest.mark.parametrize(
    ("key", "value", "got", "instead"),
    [
        ("df", "clear", "'clear'", "a UDP socket sends every packet with DF set"),
        ("df", "copy", "'copy'", "a UDP socket sends every packet with DF set"),
        ("ttl", 64, "64", "a UDP socket sends packets with the TTL or hop limit of their route"),
        (
            "fragment",
            "after",
            "'after'",
            "a UDP socket sends no fragments, so packets are cut before encapsulation",
        ),
    ],
)
def test_what_udp_ports_do_not_heed(key: str, value: object, got: str, instead: str) -> None:
    """Where an SA's packets leave by a UDP socket each such key is named; defaults, and what comes to them, are not."""
    values = changed("sa.0.encap", True)
    for unheard in ("df", "ttl", "fragment"):
        del values["sa"][1][unheard]
    values["sa"][0][key] = value
    assert parse(values).warnings == ()
    values["port"][1] = {"name": "wan", "role": "unprotected", "driver": "udp"}
    said = [f'sa[0].{key} ("ab"): got {got}, which udp ports do not heed: {instead}']
    assert [str(warning) for warning in parse(values).warnings] == said
    values["port"].append({"name": "bare", "role": "unprotected", "driver": "raw"})
    assert [str(warning) for warning in parse(values).warnings] == said
    del values["sa"][0][key]
    values["sa"][0] |= {"df": "set", "fragment": "before"}
    assert parse(values).warnings == ()


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
