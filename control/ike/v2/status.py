"""An IKE SA as users are shown it."""

from __future__ import annotations

from control.ike.snapshot import ChildSnapshot, IkeSnapshot
from control.ike.v2.parts import Feature, Timer
from control.ike.v2.sa import IkeSa
from control.ike.v2.states import State
from control.ike.v2.tasks.rekey_ike import RekeyIke


def snapshot_of(sa: IkeSa) -> IkeSnapshot:
    """`sa` at this moment."""
    state = sa.state.value
    if sa.state is State.ESTABLISHED and isinstance(sa.active, RekeyIke):
        state = "rekeying"
    return IkeSnapshot(
        id=sa.id,
        connection=sa.connection.name,
        state=state,
        initiator=sa.initiator,
        path=sa.path,
        spi_initiator=sa.spi_initiator,
        spi_responder=sa.spi_responder,
        local_id="" if sa.local_id is None else str(sa.local_id),
        remote_id="" if sa.remote_id is None else str(sa.remote_id),
        eap_identity=sa.eap_identity,
        suite_name="" if sa.suite is None else str(sa.suite),
        created=sa.created,
        established=sa.established_at,
        rekey_at=sa.timers.get(Timer.REKEY, 0.0),
        reauth_at=sa.timers.get(Timer.REAUTH, 0.0),
        nat_local=sa.nat_local,
        nat_remote=sa.nat_remote,
        mobike=bool(sa.features & Feature.MOBIKE),
        virtual_local=sa.virtual_local,
        virtual_remote=sa.virtual_remote,
        children=tuple(
            ChildSnapshot(sa=child.spec, state=child.state.value) for child in sa.children.values()
        ),
    )
