"""The keys of one IKE SA in use: what seals ours, what opens the peer's, and what further keys come from."""

from __future__ import annotations

from collections.abc import Callable

from control.crypto import keys as derive
from control.crypto.prf import Prf
from control.crypto.sk import Opener, Protection, Sealer


class Mixed:
    """SK_d, SK_pi and SK_pr with a post-quantum preshared key in them (RFC 8784 section 3)."""

    __slots__ = ("d", "pi", "pr")

    def __init__(self, d: bytes, pi: bytes, pr: bytes) -> None:
        self.d, self.pi, self.pr = d, pi, pr


class SaKeys:
    """SK_d for children and successors, SK_pi and SK_pr until both are authenticated, and the two directions."""

    __slots__ = ("d", "opener", "pi", "pr", "prf", "protection", "sealer")

    def __init__(
        self,
        prf: Prf,
        protection: Protection,
        secrets: derive.IkeKeys,
        *,
        initiator: bool,
        random: Callable[[int], bytes],
    ) -> None:
        """`initiator`: we are the original initiator of the IKE SA that these keys are for."""
        self.prf = prf
        self.protection = protection
        self.d = secrets.d
        self.pi = secrets.pi
        self.pr = secrets.pr
        ours, theirs = (secrets.ei, secrets.ai), (secrets.er, secrets.ar)
        if not initiator:
            ours, theirs = theirs, ours
        self.sealer: Sealer = protection.sealer(*ours, random)
        self.opener: Opener = protection.opener(*theirs)

    def forget_authentication(self) -> None:
        """Both sides are authenticated: SK_pi and SK_pr are of no further use."""
        self.pi = self.pr = b""
