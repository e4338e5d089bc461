"""`record`: a frozen dataclass to whoever checks types, one that is quick to make to whoever runs it.

A handshake makes some fifty payloads, selectors, headers and events. `dataclass(frozen=True)` sets each field by a call
that goes round its own lock, which takes three times as long as setting it; and nothing here is changed after it was
made, which mypy sees to. Equality and hash are the same as a frozen dataclass's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen, kw_only=False, slots=False):
        """`dataclass`, of whose `frozen` only the hash is left."""
        return dataclass(kw_only=kw_only, slots=slots, unsafe_hash=frozen)


__all__ = ["record"]
