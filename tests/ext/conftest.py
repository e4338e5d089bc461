"""Gateways for the tests of the kernels."""

from tests.gateway import engine_name, make_gateway  # noqa: F401
