"""What both ends of an EAP conversation have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from control.ike.numbers import EapType, name_of

MAX_ROUNDS = 100  # packets of a conversation; EAP-TLS with a chain of 60 KB takes about 70


@dataclass(frozen=True, kw_only=True)
class Step:
    """What comes of one packet. Once `finished`, `error` is empty for a success; before, it foretells the failure."""

    packet: bytes | None = field(default=None, repr=False)  # an EAP packet to send
    finished: bool = False
    error: str = ""
    msk: bytes = field(default=b"", repr=False)  # empty where the method derives no keys


def type_name(number: int) -> str:
    """A method's name for messages: EAP-TLS, EAP-MSCHAPV2."""
    name = name_of(EapType, number)
    return f"EAP-{name}" if number in EapType.__members__.values() else name
