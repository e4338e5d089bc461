"""A configuration of SAs with keys by hand that is right, and what it is to change one thing in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from control.config import ConfigError, parse

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
