"""The two errors of the protocol: the peer's fault, and ours. Neither ends the daemon.

PeerError is what any bytes of a peer may raise, and nothing else; it carries what to answer with. LocalError means
that this code, or what called it, broke a rule of its own: it is logged as a bug, and the peer's SA is closed.
"""

from __future__ import annotations

from control.ike.numbers import NotifyType


class IkeError(Exception):
    """Something failed; `text` has what was got, what was wanted and where, `advice` the next step."""

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


class PeerError(IkeError):
    """The peer sent what it may not, or what we do not accept; `notify` and `data` are what to tell it."""

    def __init__(self, notify: NotifyType, text: str, *, data: bytes = b"", advice: str = "") -> None:
        super().__init__(text, advice)
        self.notify = notify
        self.data = data  # of the notification: the critical payload's type, the wanted group, our version


class LocalError(IkeError):
    """A rule of our own is broken: a bug, never the peer's doing."""


def syntax_error(text: str) -> PeerError:
    """INVALID_SYNTAX (RFC 7296 section 3.10.1): something that no correct peer sends."""
    return PeerError(NotifyType.INVALID_SYNTAX, text)
