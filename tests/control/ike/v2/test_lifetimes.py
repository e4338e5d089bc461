"""Soft and hard lifetimes, their defaults and their random parts."""

from __future__ import annotations

import pytest

from control.ike.settings import Lifetime
from control.ike.v2.lifetimes import NEVER, child_times, jitter, retry_at

NOW = 1000.0


def least(size: int) -> bytes:
    return bytes(size)


def most(size: int) -> bytes:
    return b"\xff" * size


def test_jitter_spans_its_limit() -> None:
    assert jitter(least, 30.0) == 0.0
    assert 29.9 < jitter(most, 30.0) < 30.0


def test_defaults_of_a_child_are_a_tenth_more_and_a_tenth_of_spread() -> None:
    latest = child_times(Lifetime(rekey=3600.0), NOW, least)
    assert latest.replace_at == NOW + 3600.0
    assert latest.expires_at == pytest.approx(NOW + 3960.0)
    earliest = child_times(Lifetime(rekey=3600.0), NOW, most)
    assert earliest.replace_at == pytest.approx(NOW + 3240.0, abs=0.01)
    assert earliest.expires_at == latest.expires_at


def test_explicit_figures_are_kept() -> None:
    times = child_times(Lifetime(rekey=100.0, life=300.0, random=10.0), NOW, most)
    assert times.replace_at == pytest.approx(NOW + 90.0, abs=0.01)
    assert times.expires_at == NOW + 300.0


def test_zero_is_never() -> None:
    times = child_times(Lifetime(rekey=0.0), NOW, least)
    assert (times.replace_at, times.expires_at) == (NEVER, NEVER)
    only_hard = child_times(Lifetime(rekey=0.0, life=50.0), NOW, least)
    assert (only_hard.replace_at, only_hard.expires_at) == (NEVER, NOW + 50.0)


def test_a_spread_as_long_as_the_life_leaves_half_of_it() -> None:
    assert child_times(Lifetime(rekey=10.0, random=100.0), NOW, most).replace_at == NOW + 5.0


def test_a_retry_comes_before_the_end() -> None:
    assert NOW + 15.0 <= retry_at(NOW, least) < retry_at(NOW, most) <= NOW + 30.0
    assert retry_at(NOW, most, expires_at=NOW + 8.0) == NOW + 4.0
    assert retry_at(NOW, most, expires_at=NOW) == NOW + 1.0
