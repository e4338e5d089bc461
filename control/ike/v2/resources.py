"""Child SAs of one's own for each worker (RFC 9611): the same selectors, keys and numbers apart.

    first      SA_RESOURCE_INFO, empty, both ways: the common child, which every worker may use, and which stays
    then       its initiator asks for one more per worker of its own, SA_RESOURCE_INFO with the worker's number
    responder  binds each to the first of its workers that has none; too many are refused with TS_MAX_QUEUE

What the peer calls its resource is for reading only (section 5.1): each side binds what it sends to its own workers. A
rekeyed child stays bound as it was, whatever the exchange says of it (section 3). A peer that does not echo the first
notification, as one that knows nothing of it, has one child, as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from control.ike.errors import PeerError
from control.ike.numbers import NotifyType
from control.ike.selectors import Narrowed, to_settings
from control.ike.v2.parts import Child, ChildState
from control.ike.v2.sa import IkeSa
from control.ike.wire.payloads import NotifyPayload

if TYPE_CHECKING:
    from control.ike.settings import ChildSettings
    from control.ike.v2.tasks.create_child import CreateChild

MOST = 16  # children beside a common one: what the dataplane can bind (ext.sa.RESOURCES)


def info(resource: int | None) -> NotifyPayload:
    """SA_RESOURCE_INFO: of a common child without data, of another with the number of the worker that asked for it."""
    data = b"" if resource is None else resource.to_bytes(4, "big")
    return NotifyPayload(type=NotifyType.SA_RESOURCE_INFO, data=data)


def group(sa: IkeSa, settings: ChildSettings) -> list[Child]:
    """The common child and the workers' own, without those that are on their way out."""
    going = (ChildState.DELETING, ChildState.REKEYED)
    return [
        child
        for child in sa.children.values()
        if child.spec.shared and child.spec.settings.name == settings.name and child.state not in going
    ]


def bind(sa: IkeSa, settings: ChildSettings, selectors: Narrowed) -> int | None:
    """As responder: the worker of ours that a new child is for; None: it is the common one.

    PeerError (TS_MAX_QUEUE) where there are enough.
    """
    local, remote = to_settings(selectors.local), to_settings(selectors.remote)
    mates = [
        child
        for child in group(sa, settings)
        if child.spec.local_selectors == local and child.spec.remote_selectors == remote
    ]
    if all(child.spec.resource is not None for child in mates):
        return None
    taken = {child.spec.resource for child in mates}
    free = next((number for number in range(MOST) if number not in taken), None)
    if free is None:
        raise PeerError(
            NotifyType.TS_MAX_QUEUE,
            f"child '{settings.name}' has {len(mates) - 1} SAs for single workers; want {MOST} or fewer",
            advice="the peer goes on with those that it has",
        )
    return free


def complete(sa: IkeSa, child: Child, now: float) -> None:
    """As initiator of a common child: ask for what our workers have not yet."""
    from control.ike.v2.tasks.create_child import CreateChild

    workers = min(sa.host.settings.workers, MOST)
    if not child.spec.shared or child.spec.resource is not None or workers < 2:
        return
    settings = child.spec.settings
    taken = {each.spec.resource for each in group(sa, settings)}
    taken |= {task.resource for task in _asking(sa, settings)}
    for worker in range(workers):
        if worker not in taken:
            sa.queue(CreateChild(settings, initiator=True, resource=worker), now)


def enough(sa: IkeSa, settings: ChildSettings, reason: str) -> None:
    """The peer wants no more of them (section 5.2): those that wait are not asked for."""
    waiting = list(_asking(sa, settings))
    sa.queued = type(sa.queued)(each for each in sa.queued if each[1] not in waiting)
    count = sum(child.spec.resource is not None for child in group(sa, settings))
    sa.note(
        "info",
        f"child '{settings.name}' has {count} SAs for single workers, and the peer wants no more: {reason}",
    )


def _asking(sa: IkeSa, settings: ChildSettings) -> Iterator[CreateChild]:
    """Our requests for children of single workers that wait."""
    from control.ike.v2.tasks.create_child import CreateChild

    for _, task in sa.queued:
        if isinstance(task, CreateChild) and task.resource is not None and task.settings == settings:
            yield task
