"""Gateways for the tests of agreement with other implementations."""

from tests.gateway import engine_name, make_gateway  # noqa: F401
