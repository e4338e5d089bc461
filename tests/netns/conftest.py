"""Network namespaces for the tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.lab.space import Space, free_tag, make_spaces, sweep
from tests.peers.linux.guest import Guest, booted

# It wants a strongSwan that no distribution has yet.
collect_ignore = [] if "ESPLANADE_CHARON" in os.environ else ["test_strongswan_hybrid.py"]


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[..., list[Space]]]:
    """A function that makes namespaces by role; they are gone after the test."""
    made: list[Space] = []

    def make(*roles: str) -> list[Space]:
        tag = free_tag()
        mine = make_spaces([f"esp-{tag}-{role}" for role in roles], tmp_path)
        made.extend(mine)
        return mine

    yield make
    for space in made:
        space.close()


@pytest.fixture(scope="session")
def linux() -> Iterator[Guest]:
    """Debian's kernel as a peer, booted when first asked for and shared by all tests."""
    sweep()
    with booted() as guest:
        yield guest
