"""The rounds that EAP adds to IKE_AUTH, between the first request, without AUTH, and both sides' AUTH by the MSK.

`tasks/auth.py` has what every IKE_AUTH has; this is what it asks when a side authenticates by EAP.
"""

from __future__ import annotations

from control.eap.client import EapClient
from control.eap.conversation import Step
from control.eap.server import EapServer
from control.ike.errors import syntax_error
from control.ike.events import Failure
from control.ike.identity import Identity
from control.ike.numbers import NotifyType
from control.ike.settings import Auth
from control.ike.v2 import eap, ppk, proof
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import FAIL, MORE, Incoming, Outgoing, Result
from control.ike.wire.payloads import AuthPayload, EapPayload, IdPayload


class EapInitiator:
    """A client's rounds."""

    __slots__ = ("_claimed", "_client", "_step", "done")

    def __init__(self) -> None:
        self._claimed: IdPayload | None = None  # the server's
        self._client: EapClient | None = None
        self._step = Step()
        self.done = False  # EAP has succeeded: the next response is the last

    @property
    def msk(self) -> bytes:
        """What EAP has agreed on; empty where the method derives no key."""
        return self._step.msk

    @property
    def begun(self) -> bool:
        """The server has said who it is."""
        return self._client is not None

    def announce(self, sa: IkeSa, message: Outgoing) -> None:
        """In the first request: whether the server may go without AUTH of its own."""
        if sa.connection.remote.auth in (Auth.NONE, Auth.EAP):
            message.notify(NotifyType.EAP_ONLY_AUTHENTICATION)

    def begin(self, sa: IkeSa, claimed: IdPayload) -> None:
        """The first response has come, and the server is who it should be."""
        self._claimed = claimed
        self._client = eap.client(sa, sa.connection)

    def take(self, message: Incoming) -> None:
        """The server's EAP packet."""
        payload = message.get(EapPayload)
        if payload is None or self._client is None:
            raise syntax_error("the answer to IKE_AUTH has no EAP payload; EAP is not over")
        self._step = self._client.receive(payload.packet)
        if not self._step.finished:
            return
        if self._step.error:
            raise AuthenticationFailed(
                self._step.error, "compare the EAP secrets or certificates of both sides", code="eap_failed"
            )
        self.done = True

    def build(self, message: Outgoing) -> None:
        """Our EAP packet."""
        assert self._step.packet is not None
        message.add(EapPayload(packet=self._step.packet))

    def finish(self, sa: IkeSa, message: Incoming) -> None:
        """The server's AUTH by the MSK."""
        assert self._claimed is not None and self._client is not None
        covered = proof.octets(sa, self._claimed)
        eap.verify(sa, self._step.msk, message.need(AuthPayload), covered, initiator=False)
        sa.eap_identity = self._client.identity


class EapResponder:
    """A server's rounds."""

    __slots__ = ("_claimed", "_peer", "_server", "_step", "alone", "done")

    def __init__(self, sa: IkeSa, request: Incoming, peer: Identity) -> None:
        """`request` is the first, and has no AUTH; the SA's connection is the one that fits it."""
        self._peer = peer
        self._claimed = request.need(IdPayload, initiator=True)
        self.alone = sa.connection.local.auth in (Auth.NONE, Auth.EAP)  # EAP proves us, too (RFC 5998)
        if self.alone and request.notify(NotifyType.EAP_ONLY_AUTHENTICATION) is None:
            raise AuthenticationFailed(
                f"the peer '{peer}' wants us to prove ourselves by certificate or preshared key before EAP; "
                f"connection '{sa.connection.name}' has local.auth = {sa.connection.local.auth.value}",
                "give the connection a certificate for local",
                code="method_mismatch",
            )
        self._server: EapServer = eap.server(sa, sa.connection)
        self._step = self._server.start()
        self.done = False  # the client's AUTH has come, and is good

    def take(self, sa: IkeSa, message: Incoming) -> None:
        """The client's EAP packet; after a success its AUTH."""
        if self._step.finished:
            self._take_proof(sa, message)
            return
        payload = message.get(EapPayload)
        if payload is None:
            raise syntax_error("IKE_AUTH request without EAP payload; EAP is not over")
        self._step = self._server.receive(payload.packet)
        if self._step.finished and not self._step.error:
            eap.check_identity(self._server.identity, self._peer, sa.connection)
            sa.eap_identity = self._server.identity

    def _take_proof(self, sa: IkeSa, message: Incoming) -> None:
        auth = message.need(AuthPayload)
        mixed = ppk.asked(sa, message)
        if mixed is not None:
            ppk.use(sa, mixed)
        else:
            auth = ppk.without(message, auth)
        covered = proof.octets(sa, self._claimed)
        eap.verify(sa, self._step.msk, auth, covered, initiator=True)
        self.done = True

    def build(self, sa: IkeSa, message: Outgoing) -> Result:
        """Our EAP packet."""
        assert self._step.packet is not None
        message.add(EapPayload(packet=self._step.packet))
        if self._step.error:
            sa.last_error = Failure(
                code="eap_failed",
                text=f"EAP of '{self._peer}' failed: {self._step.error}",
                advice="compare the EAP secrets or certificates of both sides",
            )
        return FAIL if self._step.finished and self._step.error else MORE

    def finish(self, sa: IkeSa, message: Outgoing, ours: IdPayload) -> None:
        """Our AUTH by the MSK."""
        message.add(eap.auth(sa, self._step.msk, proof.octets(sa, ours), initiator=False))
