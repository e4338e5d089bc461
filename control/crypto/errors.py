"""What goes wrong in cryptography because of what the peer sent. Anything else that is raised is our own mistake."""

from __future__ import annotations


class CryptoError(Exception):
    """The peer's bytes do not stand up to a check; the text says what was got, what was wanted and where."""


class PublicValueError(CryptoError):
    """A key exchange's public value (or what it leads to) is invalid: RFC 6989, RFC 8031 section 5."""


class IntegrityError(CryptoError):
    """An encrypted payload was changed, or sealed with other keys: the message is to be dropped (RFC 7296 2.21)."""


class SignatureError(CryptoError):
    """AUTH data that does not prove what it should; the text names method and reason, never key bytes."""


class UnsupportedError(Exception):
    """An algorithm that Esplanade, or the library below it, does not have: a choice that should not have come here."""
