"""What a changed configuration comes to."""

from __future__ import annotations

from dataclasses import replace

from control.config import parse
from control.reload import compare
from dataplane.model import Direction
from tests.control.test_config import GOOD, changed

OLD = parse(GOOD)
ALIVE = {sa.name: sa for sa in OLD.sas}


def test_nothing_changed() -> None:
    changes = compare(OLD, ALIVE, parse(GOOD))
    assert not changes and str(changes) == "nothing changed" and changes.restart == ()


def test_one_sa_changed() -> None:
    new = parse(changed("sa.0.ttl", 99))
    changes = compare(OLD, ALIVE, new)
    assert [sa.name for sa in changes.replaced] == ["ab"] and not changes.added and not changes.removed
    assert not changes.policies and str(changes) == "1 SA replaced"


def test_policy_change_reaches_the_inbound_selectors() -> None:
    changes = compare(OLD, ALIVE, parse(changed("policy.0.remote", "10.7.0.0/16")))
    assert changes.policies and [sa.name for sa in changes.replaced] == ["ba"]


def test_renamed_sa_goes_before_it_comes() -> None:
    values = changed("sa.0.name", "renamed")
    values["policy"][0]["out"] = "renamed"
    changes = compare(OLD, ALIVE, parse(values))
    assert changes.remove_first == ("ab",) and [sa.name for sa in changes.added] == ["renamed"]
    assert changes.removed == () and str(changes) == "1 SA added, 1 SA removed, policies replaced"


def test_unrelated_sa_goes_last() -> None:
    values = changed("sa.0.name", "other")
    values["sa"][0] |= {"spi": 0x9999, "encryption_key": "55" * 20}
    values["policy"][0]["out"] = "other"
    changes = compare(OLD, ALIVE, parse(values))
    assert changes.remove_first == () and changes.removed == ("ab",)


def test_direction_turned() -> None:
    alive = dict(ALIVE, ab=replace(ALIVE["ab"], direction=Direction.IN))
    changes = compare(OLD, alive, parse(GOOD))
    assert changes.remove_first == ("ab",) and [sa.name for sa in changes.added] == ["ab"]


def test_sa_that_failed_before_is_tried_again() -> None:
    changes = compare(OLD, {"ba": ALIVE["ba"]}, parse(GOOD))
    assert [sa.name for sa in changes.added] == ["ab"]


def test_what_needs_a_restart_is_named() -> None:
    values = changed("gateway.workers", 1)
    values["port"][0]["mode"] = "generic"
    values["gateway"]["log_level"] = "debug"
    assert compare(OLD, ALIVE, parse(values)).restart == ("gateway.workers", "port")
