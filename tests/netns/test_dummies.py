"""Dummy packets between two gateways that have nothing to say (RFC 4303 section 2.6)."""

from __future__ import annotations

import pytest

from control.lab.gateway import Gateways, make_lab
from control.lab.space import wait_until
from control.lab.topology import address
from control.lab.traffic import ping

pytestmark = pytest.mark.root


@pytest.mark.parametrize("driver", ["xdp", "tun"])
def test_quiet_gateways(driver: str) -> None:
    """Both send and drop them, whether the worker sleeps or not; no SA counts them, and real packets pass between."""
    with make_lab(driver) as lab:
        both = Gateways(lab, driver)
        for each in (both.a, both.b):
            text = each.config_path.read_text()
            each.config_path.write_text(text.replace("[sa]]\n", "[sa]]\ntfc_dummies = 100\n"))
        with both:
            wait_until(
                lambda: min(each.status()["drops"].get("dummy", 0) for each in (both.a, both.b)) > 100,
                timeout=60,
                what="dummies on both sides",
            )
            assert [sa["packets"] for each in (both.a, both.b) for sa in each.status()["sas"]] == [0] * 4
            assert all(each.status()["events"]["dummy_sent"] > 100 for each in (both.a, both.b))
            ping(lab.client, address("server", "eth0"), count=2)
            assert ping(lab.client, address("server", "eth0"), count=10).lost == 0
