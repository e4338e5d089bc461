"""Whatever stands in the sections of IKE: a configuration, or ConfigError with one line per problem."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.config import ConfigError, parse
from tests.control.config.test_connections import FULL

SECTIONS = ("ike", "connections", "secrets", "users", "certificates", "authorities", "pools")
WORDS = (
    *(
        "10.0.0.0/8",
        "::/0",
        "192.0.2.1",
        "%any",
        "dynamic[tcp/80]",
        "[",
        "[]",
        "0s",
        "0x",
        "0xzz",
        "1h",
        "9" * 40,
    ),
    *(
        "aes256gcm16-prfsha384-x25519",
        "default",
        "-",
        "aes",
        "C=DE, CN=x",
        "@#zz",
        "psk",
        "eap-tls",
        "pubkey-",
        "a/b",
    ),
    *(
        "http://",
        "file:///",
        "clients",
        "gw",
        "house",
        "\n",
        "\x00",
        "é",
        "x" * 5000,
        "10.0.0.1-10.0.0.0",
        "start",
    ),
)
_scalars = (
    st.none().map(lambda _: "")
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
GOOD: dict[str, Any] = tomllib.loads(FULL.replace('file = "psk"', 'secret = "of both sides, in fact"'))


def paths(values: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested tables."""
    found = []
    for key, value in values.items():
        found.append((*before, key))
        if isinstance(value, dict):
            found += paths(value, (*before, key))
    return found


def check(values: dict[str, Any]) -> None:
    try:
        parse(values)
    except ConfigError as error:
        assert error.problems
        for line in error.lines():
            assert "\n" not in line and len(line) < 2000, line


def test_the_original_is_good() -> None:
    parse(copy.deepcopy(GOOD))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            section: st.dictionaries(st.text(max_size=8), _values, max_size=4) | _values
            for section in SECTIONS
        },
    )
)
def test_any_toml(values: dict[str, Any]) -> None:
    check(values)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(paths(GOOD)), _values), min_size=1, max_size=3))
def test_wild_values_in_a_good_one(changes: list[tuple[tuple[str, ...], object]]) -> None:
    values = copy.deepcopy(GOOD)
    for path, value in changes:
        where: Any = values
        for key in path[:-1]:
            where = where.get(key) if isinstance(where, dict) else None
        if isinstance(where, dict):
            where[path[-1]] = value
    check(values)


@pytest.mark.parametrize("path", paths(GOOD), ids=".".join)
def test_each_key_may_be_missing_or_of_another_type(path: tuple[str, ...], tmp_path: Path) -> None:
    for value in (None, True, -1.5, "\n", [[]]):
        values = copy.deepcopy(GOOD)
        where = values
        for key in path[:-1]:
            where = where[key]
        if value is None:
            del where[path[-1]]
        else:
            where[path[-1]] = value
        check(values)
