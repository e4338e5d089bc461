"""Why a credential cannot be used: what was got, what was wanted, which certificate and field, and the next step."""

from __future__ import annotations


class CredentialError(Exception):
    """No use of credentials that would authenticate somebody: `code` for programs, `text` and `advice` for people.

    Codes: `no_private_key`, `no_certificate`, `bad_certificate`, `unknown_authority`, `not_yet_valid`, `expired`,
    `revoked`, `revocation_unknown`, `not_allowed` (key usage, constraints), `id_mismatch`, `weak`, `no_preshared_key`.
    """

    def __init__(self, code: str, text: str, advice: str = "") -> None:
        self.code = code
        self.text = text
        self.advice = advice
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text
