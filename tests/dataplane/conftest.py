"""Tables for one test each, small enough to reason about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataplane.engine import open_engine
from dataplane.tables import Limits, Tables
from ext.crypto import EngineHandle

SMALL = Limits(
    max_sas=64,
    max_policies=32,
    max_selectors=64,
    max_adjacencies=8,
    max_routes=16,
    max_prefixes=256,
    max_candidates=1024,
)


@pytest.fixture(scope="session")
def engine() -> EngineHandle:
    """The fastest engine of this machine."""
    return open_engine("auto")


@pytest.fixture
def tables(engine: EngineHandle) -> Iterator[Tables]:
    """Tables for two workers."""
    made = Tables(engine=engine, workers=2, limits=SMALL)
    yield made
    made.close()
