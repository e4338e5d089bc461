"""Proposals of connections and children: a list of strongSwan's keyword strings, or the word "default".

Without any, the defaults that RFC 8247 and RFC 8221 ask for are used; a connection that lends addresses accepts,
behind them, what the clients built into telephones and Windows offer.
"""

from __future__ import annotations

from functools import lru_cache

from control.config.problems import kind, show
from control.config.table import Table
from control.ike.defaults import default_proposals
from control.ike.numbers import Protocol
from control.ike.proposal import Proposal, parse_proposal

_EXAMPLE = {
    Protocol.IKE: "aes256gcm16-prfsha384-x25519",
    Protocol.ESP: "aes256gcm16-x25519",
    Protocol.AH: "sha256",
}

_parse = lru_cache(1024)(parse_proposal)  # a thousand connections share the few that they name


def read_proposals(
    table: Table, key: str, protocol: Protocol, *, remote_access: bool
) -> tuple[Proposal, ...]:
    """The proposals at `key`, in order of preference; the defaults when absent."""
    value = table.raw(key)
    want = f'keywords such as "{_EXAMPLE[protocol]}", "default", or a list of them'
    if value is None:
        return default_proposals(protocol, remote_access=remote_access)
    entries = value if isinstance(value, list) else [value]
    if not entries:
        table.error(key, f"got an empty list, want {want}")
    found: list[Proposal] = []
    for index, entry in enumerate(entries):
        where = f"{key}[{index}]" if isinstance(value, list) else key
        if not isinstance(entry, str):
            table.error(where, f"got {kind(entry)} ({show(entry)}), want {want}")
            continue
        for text in entry.split(","):
            if text.strip().lower() == "default":
                found += default_proposals(protocol, remote_access=remote_access)
                continue
            try:
                proposal = _parse(protocol, text.strip())
            except ValueError as error:
                table.error(where, f"got {show(text.strip())}, {error}")
                continue
            found.append(proposal)
            _warn_weak(table, where, proposal)
    return tuple(dict.fromkeys(found))


_WEAK = {"sha1": "SHA-1", "prfsha1": "SHA-1", "null": "no encryption"}


def _warn_weak(table: Table, key: str, proposal: Proposal) -> None:
    """What is only there for old peers is taken when named, and said."""
    found = sorted({_WEAK[word] for word in str(proposal).split("-") if word in _WEAK})
    if found:
        table.warn(
            key, f"got {str(proposal)!r}, which allows {' and '.join(found)}; keep it for old peers only"
        )
