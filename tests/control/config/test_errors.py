"""What is wrong with ports, SAs and policies is named, word for word, all of it at once."""

from __future__ import annotations

import pytest

from tests.control.config.good import changed, problems

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
