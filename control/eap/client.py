"""The client's side of EAP: it answers identity and notification requests, and the methods that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from control.eap.conversation import MAX_ROUNDS, Step, type_name
from control.eap.method import Method, Progress
from control.ike.errors import PeerError, syntax_error
from control.ike.numbers import EapCode, EapType, NotifyType
from control.ike.wire.eap import EapPacket, build_eap, parse_eap


class EapClient:
    """Answers one server as `identity`, with the methods we have; each is made when the server asks for it."""

    def __init__(self, identity: str, methods: Sequence[tuple[EapType, Callable[[], Method]]]) -> None:
        self.identity = identity
        self._methods = dict(methods)
        self._method: Method | None = None
        self._result: Progress | None = None
        self._rounds = 0

    def receive(self, data: bytes) -> Step:
        """A request, success or failure of the server; PeerError for what is malformed or out of order."""
        packet = parse_eap(data)
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise PeerError(NotifyType.AUTHENTICATION_FAILED, f"EAP takes more than {MAX_ROUNDS} rounds")
        if packet.code == EapCode.SUCCESS:
            return self._succeed()
        if packet.code == EapCode.FAILURE:
            return self._fail()
        if packet.code != EapCode.REQUEST or packet.type is None:
            raise syntax_error(f"EAP packet with code {packet.code} from a server; want a request")
        return self._answer(packet, packet.type)

    def _answer(self, packet: EapPacket, kind: int) -> Step:
        if kind == EapType.IDENTITY:
            return self._respond(packet, kind, self.identity.encode())
        if kind == EapType.NOTIFICATION:
            return self._respond(packet, kind, b"")
        if self._method is None:
            make = self._methods.get(EapType(kind)) if kind in EapType.__members__.values() else None
            if make is None:
                # RFC 3748 section 5.3.1: name what we would do; zero is nothing.
                return self._respond(packet, EapType.NAK, bytes(self._methods) or b"\0")
            self._method = make()
        if kind != self._method.type:
            raise syntax_error(f"{type_name(kind)} request amid {self._method.name}")
        progress = self._method.receive(packet.identifier, packet.data)
        if progress.done:
            self._result = progress
        if progress.data is None:
            return Step(finished=True, error=progress.error or "the method says nothing")
        step = self._respond(packet, kind, progress.data)
        if progress.done and progress.error:
            return Step(packet=step.packet, finished=False, error=progress.error)
        return step

    def _succeed(self) -> Step:
        if self._result is not None and self._result.error:
            return Step(finished=True, error=self._result.error)
        if self._result is None:
            # RFC 3748 section 4.2: a success that nothing has led to is no success.
            raise PeerError(
                NotifyType.AUTHENTICATION_FAILED,
                f"EAP success before {self._method.name if self._method else 'any method'} has succeeded",
            )
        return Step(finished=True, msk=self._result.msk)

    def _fail(self) -> Step:
        if self._result is not None and self._result.error:
            return Step(finished=True, error=self._result.error)
        if self._method is None:
            offered = ", ".join(type_name(kind) for kind in self._methods) or "no method"
            return Step(
                finished=True,
                error=f"the server refused EAP of '{self.identity}', before any method; we can do {offered}",
            )
        return Step(finished=True, error=f"the server refused {self._method.name} of '{self.identity}'")

    def _respond(self, packet: EapPacket, kind: int, data: bytes) -> Step:
        response = EapPacket(code=EapCode.RESPONSE, identifier=packet.identifier, type=kind, data=data)
        return Step(packet=build_eap(response))
