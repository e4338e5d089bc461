"""What a changed configuration means for the running gateway: 1 compare 2 say what must be done.

Pure: nothing is touched here. Ports, workers and directories are fixed while the gateway runs; a change of
theirs is named, and the rest is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from control.config import Config
from dataplane.model import SaSpec

RELOADABLE = ("log_level", "log_json")  # keys of [gateway] that take effect at once


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The steps from one configuration to the next, in the order in which they are done."""

    added: tuple[SaSpec, ...]
    replaced: tuple[SaSpec, ...]
    policies: bool  # the SPD differs
    removed: tuple[str, ...]  # names of SAs
    restart: tuple[str, ...]  # what only a restart brings into effect

    def __bool__(self) -> bool:
        return bool(self.added or self.replaced or self.policies or self.removed)

    def __str__(self) -> str:
        parts = [
            f"{len(entries)} SAs {word}"
            for word, entries in (
                ("added", self.added),
                ("replaced", self.replaced),
                ("removed", self.removed),
            )
            if entries
        ]
        if self.policies:
            parts.append("policies replaced")
        return ", ".join(parts) or "nothing changed"


def compare(old: Config, new: Config) -> Changes:
    """What leads from `old` to `new`. An SA is known by its name; one that changed in any way is replaced."""
    before = {sa.name: sa for sa in old.sas}
    after = {sa.name: sa for sa in new.sas}
    restart = [
        f"gateway.{field.name}"
        for field in fields(old.gateway)
        if field.name not in RELOADABLE
        and getattr(old.gateway, field.name) != getattr(new.gateway, field.name)
    ]
    if old.ports != new.ports:
        restart.append("port")
    return Changes(
        added=tuple(sa for name, sa in after.items() if name not in before),
        replaced=tuple(sa for name, sa in after.items() if name in before and sa != before[name]),
        policies=old.policies != new.policies,
        removed=tuple(name for name in before if name not in after),
        restart=tuple(restart),
    )
