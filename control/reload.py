"""What a changed configuration means for the running gateway: 1 compare 2 say what must be done.

Pure: nothing is touched here. Ports, workers and directories are fixed while the gateway runs; a change of
theirs is named, and the rest is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from control.config import Config
from dataplane.model import Direction, SaSpec

RELOADABLE = ("log_level", "log_json")  # keys of [gateway] that take effect at once


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The steps from one configuration to the next, in the order in which they are done."""

    remove_first: tuple[str, ...]  # names of SAs that hold what an added one needs: an SPI or a key
    added: tuple[SaSpec, ...]
    replaced: tuple[SaSpec, ...]
    policies: bool  # the SPD differs
    removed: tuple[str, ...]  # the other SAs that go
    restart: tuple[str, ...]  # what only a restart brings into effect

    def __bool__(self) -> bool:
        return bool(self.remove_first or self.added or self.replaced or self.policies or self.removed)

    def __str__(self) -> str:
        removed = len(self.remove_first) + len(self.removed)
        counts = ((len(self.added), "added"), (len(self.replaced), "replaced"), (removed, "removed"))
        parts = [f"{count} SA{'s' if count > 1 else ''} {word}" for count, word in counts if count]
        if self.policies:
            parts.append("policies replaced")
        return ", ".join(parts) or "nothing changed"


def compare(old: Config, alive: Mapping[str, SaSpec], new: Config) -> Changes:
    """What leads from `old`, of whose SAs those in `alive` are in use, to `new`.

    An SA is known by its name; one that changed in any way is replaced, unless it changed direction.
    """
    after = {sa.name: sa for sa in new.sas}
    turned = {
        name for name, sa in after.items() if name in alive and sa.direction is not alive[name].direction
    }
    gone = [name for name in alive if name not in after or name in turned]
    added = [sa for name, sa in after.items() if name not in alive or name in turned]
    replaced = [
        sa for name, sa in after.items() if name in alive and name not in turned and sa != alive[name]
    ]
    coming = [*added, *replaced]
    first = [name for name in gone if name in turned or any(_collide(alive[name], sa) for sa in coming)]
    restart = [
        f"gateway.{field.name}"
        for field in fields(old.gateway)
        if field.name not in RELOADABLE
        and getattr(old.gateway, field.name) != getattr(new.gateway, field.name)
    ]
    if old.ports != new.ports:
        restart.append("port")
    return Changes(
        remove_first=tuple(first),
        added=tuple(added),
        replaced=tuple(replaced),
        policies=old.policies != new.policies,
        removed=tuple(name for name in gone if name not in first),
        restart=tuple(restart),
    )


def _collide(old: SaSpec, new: SaSpec) -> bool:
    """True when `new` cannot be there together with `old`."""
    if old.direction is not new.direction:
        return False
    same_key = bool(new.encryption_key) and old.encryption_key == new.encryption_key
    return same_key or (new.direction is Direction.IN and old.spi == new.spi)
