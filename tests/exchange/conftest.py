"""Gateways for the tests of agreement with other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ext.crypto_jobs import ENGINES
from tests.gateway import Gateway

MakeGateway = Callable[..., Gateway]


@pytest.fixture(params=list(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each engine of this machine."""
    name: str = request.param
    return name


@pytest.fixture
def make_gateway(engine_name: str) -> Iterator[MakeGateway]:
    """Makes gateways on that engine; they go when the test ends."""
    made: list[Gateway] = []

    def make(**options: object) -> Gateway:
        made.append(Gateway(ENGINES[engine_name], **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()
