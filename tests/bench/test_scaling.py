"""The bench of two workers: each way of sharing an SA really shares it, and every packet is accounted for."""

import os

from bench import scaling
from bench.options import Options
from bench.tunnels import tunnels
from control.config.proposal import parse_proposal


def test_workers_share_one_sa() -> None:
    """Both ways, by the same sequence numbers; rates are of one and of both."""
    cpus = sorted(os.sched_getaffinity(0))
    with tunnels(parse_proposal(scaling.ALGORITHM), 1, workers=scaling.WORKERS) as tunnel:
        workers = scaling.make_workers(tunnel, [cpus[0], cpus[-1]])
        before = tunnel.view.sequence(0)[0]
        rows = scaling.figure(workers, 1, "out", 1408, Options(rounds=1))
        assert [row["workers"] for row in rows] == [1, 2]
        assert all(float(str(row["mpps"])) > 0.01 for row in rows)
        assert tunnel.view.sequence(0)[0] - before > 10_000


def test_one_receives_and_the_other_helps() -> None:
    """Every packet comes out, alone and with help; a helper that a busy machine stops for long is given up (ADR 55)."""
    cpus = sorted(os.sched_getaffinity(0))
    with scaling.dealers(1408, [cpus[0], cpus[-1]]) as one_slice:
        for patience in (2, 1, 0):
            try:
                rates = one_slice()
                break
            except RuntimeError:
                if not patience:
                    raise
    assert set(rates) == {1, 2}
    assert min(rates.values()) > 0.01
