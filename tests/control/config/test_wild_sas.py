"""Whatever stands in the sections of ports, SAs and policies: a configuration, or ConfigError, a line per problem."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.config import ConfigError, parse
from tests.control.config.good import GOOD, KEY

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
