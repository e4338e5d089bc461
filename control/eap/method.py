"""What an EAP method is to a conversation: bytes in, `Progress` out."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What comes of one packet. With `done` the method has its verdict, with `error` it is a failure.

    An error before `done` is one that the peer is told with `data`, and may answer, or just go.
    """

    data: bytes | None = None  # the type data of the packet to send; None: nothing
    done: bool = False
    error: str = ""
    msk: bytes = field(default=b"", repr=False)  # 64 bytes, where it succeeded and derives keys


class Method(abc.ABC):
    """One method on one side of one conversation."""

    type: int  # of EAP packets
    name: str  # for messages
    identity: str | None = None  # whom a server's method has proven; None: the method does not say

    def start(self) -> bytes:
        """A server's first request; clients have none."""
        raise NotImplementedError(f"{self.name} as a client begins nothing")

    @abc.abstractmethod
    def receive(self, identifier: int, data: bytes) -> Progress:
        """Type data of the peer's packet; PeerError for what is malformed. `identifier` is the EAP packet's."""


def fail(text: str, data: bytes | None = None) -> Progress:
    """A failure, perhaps with a last packet."""
    return Progress(data=data, done=True, error=text)
