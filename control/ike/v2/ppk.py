"""Post-quantum preshared keys (RFC 8784): 1 IKE_SA_INIT says that we can 2 IKE_AUTH says which 3 keys are mixed.

The initiator names its PPK and, where it may do without, adds what AUTH would be without it. The responder mixes it
in if it has it. SK_d, SK_pi and SK_pr change; the IKE SA's own encryption does not until its first rekeying.
"""

from __future__ import annotations

from control.crypto.keys import mix_ppk
from control.ike.numbers import NotifyType
from control.ike.v2.keys import Mixed
from control.ike.v2.parts import Feature
from control.ike.v2.proof import AuthenticationFailed
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.wire.payloads import AuthPayload

_FIXED = 2  # PPK_ID_FIXED: the rest is an identity (RFC 8784 section 5.1)


def offered(sa: IkeSa) -> Mixed | None:
    """As initiator: keys with the PPK that the connection names; None where there is to be none."""
    connection, handshake = sa.connection, sa.handshake
    assert handshake is not None
    if connection.ppk_id is None:
        return None
    if not handshake.ppk:
        if connection.ppk_required:
            raise AuthenticationFailed(
                f"connection '{connection.name}' requires a PPK; the peer does not support any (RFC 8784)",
                "configure the same PPK on the peer",
                code="no_ppk",
            )
        return None
    mixed = mix(sa, connection.ppk_id)
    if mixed is None and connection.ppk_required:
        raise AuthenticationFailed(
            f"connection '{connection.name}' requires the PPK '{connection.ppk_id}'; there is no such secret here",
            "add it to the secrets of this side",
            code="no_ppk",
        )
    return mixed


def add_identity(sa: IkeSa, message: Outgoing) -> None:
    """As initiator: N(PPK_IDENTITY)."""
    assert sa.connection.ppk_id is not None
    message.notify(NotifyType.PPK_IDENTITY, bytes([_FIXED]) + sa.connection.ppk_id.encode())


def mix(sa: IkeSa, ppk_id: str) -> Mixed | None:
    """The SA's keys with a PPK mixed in; None where we do not have it."""
    secret, keys = sa.host.credentials.ppk(ppk_id), sa.keys
    assert keys is not None
    if secret is None:
        return None
    return Mixed(*mix_ppk(keys.prf, secret, keys.d, keys.pi, keys.pr))


def asked(sa: IkeSa, message: Incoming) -> Mixed | None:
    """As responder: keys with the PPK that the initiator names and we have; None where it goes without.

    A connection that requires a PPK means its own: another peer's, which we also have, proves nothing about this one.
    """
    connection, handshake = sa.connection, sa.handshake
    assert handshake is not None
    named = message.notify(NotifyType.PPK_IDENTITY)
    name = ""
    mixed = None
    if named is not None and handshake.ppk and named.data[:1] == bytes([_FIXED]):
        name = named.data[1:].decode("utf-8", "replace")
        if not connection.ppk_required or name == connection.ppk_id:
            mixed = mix(sa, name)
    if mixed is not None:
        return mixed
    may_go_without = message.notify(NotifyType.NO_PPK_AUTH) is not None or named is None
    if connection.ppk_required or not may_go_without:
        theirs = "no PPK"
        if named is not None:
            ours = sa.host.credentials.ppk(name) is not None
            theirs = f"the PPK '{name}'" if ours else f"the PPK '{name}', which is not among ours"
        wanted = f"requires '{connection.ppk_id}'" if connection.ppk_required else "uses none"
        raise AuthenticationFailed(
            f"the peer uses {theirs}; connection '{connection.name}' {wanted}",
            "configure the same PPK on both sides",
            code="no_ppk",
        )
    return None


def use(sa: IkeSa, mixed: Mixed) -> None:
    """Both sides have it: the keys of children, successors and AUTH are the mixed ones from now on."""
    assert sa.keys is not None
    sa.keys.d, sa.keys.pi, sa.keys.pr = mixed.d, mixed.pi, mixed.pr
    sa.features |= Feature.PPK


def without(message: Incoming, auth: AuthPayload) -> AuthPayload:
    """The proof that counts where no PPK is mixed in: N(NO_PPK_AUTH) if there is one (RFC 8784 section 3)."""
    other = message.notify(NotifyType.NO_PPK_AUTH)
    return auth if other is None else AuthPayload(method=auth.method, data=other.data)
