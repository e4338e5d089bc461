"""The server's side of EAP: 1 who are you 2 the method we want 3 another one, if the client asks 4 success or failure.

Packets have identifiers that count up; a response with another one is a protocol error, for IKE_AUTH loses none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from control.eap.conversation import MAX_ROUNDS, Step, type_name
from control.eap.method import Method, Progress
from control.ike.errors import syntax_error
from control.ike.numbers import EapCode, EapType
from control.ike.wire.eap import EapPacket, build_eap, parse_eap


class EapServer:
    """Authenticates one client by one of `methods`, in our order of preference; each is made when it is wanted."""

    def __init__(
        self,
        methods: Sequence[tuple[EapType, Callable[[str], Method]]],
        *,
        ask_identity: bool = True,
        identity: str = "",
    ) -> None:
        """`identity` is whom a client is taken for when `ask_identity` is off."""
        self._methods = dict(methods)
        self._ask_identity = ask_identity
        self.identity = identity  # what the client says, and once it is proven, who it is
        self._method: Method | None = None
        self._tried: list[int] = []
        self._identifier = 0
        self._rounds = 0
        self._awaited_identity = False

    def start(self) -> Step:
        """The first request."""
        if self._ask_identity:
            self._awaited_identity = True
            return self._request(EapType.IDENTITY, b"")
        return self._begin(next(iter(self._methods)))

    def receive(self, data: bytes) -> Step:
        """A response of the client; PeerError for what is malformed or out of order."""
        packet = parse_eap(data)
        if packet.code != EapCode.RESPONSE or packet.type is None:
            raise syntax_error(f"EAP packet with code {packet.code} from a client; want a response")
        if packet.identifier != self._identifier:
            raise syntax_error(f"EAP response to {packet.identifier}; want {self._identifier}")
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            return self._fail(f"EAP takes more than {MAX_ROUNDS} rounds")
        if self._awaited_identity:
            return self._take_identity(packet)
        if packet.type == EapType.NAK:
            return self._take_nak(packet.data)
        if self._method is None or packet.type != self._method.type:
            wanted = self._method.name if self._method else "nothing"
            raise syntax_error(f"{type_name(packet.type)} response; want {wanted}")
        return self._take(self._method.receive(packet.identifier, packet.data), self._method)

    def _take_identity(self, packet: EapPacket) -> Step:
        if packet.type != EapType.IDENTITY:
            raise syntax_error(f"{type_name(packet.type or 0)} response; want EAP-IDENTITY")
        # RFC 3748 section 5.1: what follows a zero byte is not part of the name.
        name = packet.data.partition(b"\0")[0].decode("utf-8", "replace")
        if not name.isprintable() or "\ufffd" in name or len(packet.data) > 1024:
            raise syntax_error(f"EAP identity of {len(packet.data)} bytes that is not printable UTF-8")
        self.identity = name
        self._awaited_identity = False
        return self._begin(next(iter(self._methods)))

    def _take_nak(self, wanted: bytes) -> Step:
        """RFC 3748 section 5.3.1: the client names what it would rather do."""
        if self._method is None or len(self._tried) > len(self._methods):
            raise syntax_error("EAP-NAK where no method was asked for")
        for kind in wanted:
            if kind in self._methods and kind not in self._tried:
                return self._begin(EapType(kind))
        theirs = ", ".join(type_name(kind) for kind in wanted if kind) or "nothing"
        ours = ", ".join(type_name(kind) for kind in self._methods)
        return self._fail(f"the client '{self.identity}' can do {theirs}; we accept {ours}")

    def _begin(self, kind: int) -> Step:
        self._tried.append(kind)
        self._method = self._methods[EapType(kind)](self.identity)
        return self._request(kind, self._method.start())

    def _take(self, progress: Progress, method: Method) -> Step:
        if not progress.done:
            return replace(self._request(method.type, progress.data or b""), error=progress.error)
        if progress.error:
            return self._fail(progress.error)
        if method.identity is not None:
            self.identity = method.identity
        packet = build_eap(EapPacket(code=EapCode.SUCCESS, identifier=self._identifier))
        return Step(packet=packet, finished=True, msk=progress.msk)

    def _request(self, kind: int, data: bytes) -> Step:
        self._identifier = (self._identifier + 1) % 256
        return Step(
            packet=build_eap(
                EapPacket(code=EapCode.REQUEST, identifier=self._identifier, type=kind, data=data)
            )
        )

    def _fail(self, error: str) -> Step:
        packet = build_eap(EapPacket(code=EapCode.FAILURE, identifier=self._identifier))
        return Step(packet=packet, finished=True, error=error)
