"""Message IDs and retransmission times."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from control.ike.errors import LocalError
from control.ike.events import PeerPath
from control.ike.settings import Retransmission
from control.ike.v2.window import Arrival, Pending, Window

PATH = PeerPath(
    local=ip_address("192.0.2.1"), local_port=500, remote=ip_address("192.0.2.2"), remote_port=500
)


def test_requests_are_numbered_one_at_a_time() -> None:
    """A window of one (RFC 7296 section 2.3)."""
    window = Window()
    pending = window.send([b"first"], PATH, Retransmission(), 10.0)
    assert (pending.message_id, pending.due) == (0, 14.0)
    with pytest.raises(LocalError):
        window.send([b"second"], PATH, Retransmission(), 11.0)
    window.responded()
    assert window.send([b"second"], PATH, Retransmission(), 12.0).message_id == 1


def test_restart_keeps_the_number() -> None:
    """IKE_SA_INIT with a cookie is message 0 again (RFC 7296 section 2.6)."""
    window = Window()
    window.send([b"first"], PATH, Retransmission(), 0.0)
    window.restart()
    assert window.send([b"again"], PATH, Retransmission(), 1.0).message_id == 0


def test_arrivals() -> None:
    """New, repeated, older, ahead."""
    window = Window()
    assert window.arrival(0) is Arrival.NEW
    assert window.arrival(1) is Arrival.AHEAD
    window.answer(hash(b"request"), [b"response"])
    window.answer(hash(b"other"), [b"another"])
    kinds = [window.arrival(number) for number in range(4)]
    assert kinds == [Arrival.OLD, Arrival.REPEATED, Arrival.NEW, Arrival.AHEAD]
    assert window.response == [b"another"]


@pytest.mark.parametrize(
    ("how", "pauses"),
    [
        (Retransmission(), [4.0, 7.2, 12.96, 23.328, 41.9904, 75.58272]),  # swanctl's: 165 s in all
        (Retransmission(timeout=2.0, base=2.0, limit=5.0), [2.0, 4.0, 5.0, 5.0, 5.0, 5.0]),
    ],
)
def test_pauses(how: Retransmission, pauses: list[float]) -> None:
    """timeout x base^n, up to the limit."""
    pending = Pending(0, [b""], PATH, 100.0)
    for number, pause in enumerate(pauses):
        pending.repeats = number
        pending.schedule(how, 100.0)
        assert pending.due == pytest.approx(100.0 + pause)
