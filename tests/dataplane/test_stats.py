"""dataplane.stats: what the workers' counters add up to."""

from __future__ import annotations

from dataplane.layout import PORTS_MAX
from dataplane.stats import verdict_sums, worker_stats
from dataplane.supervisor import WorkerState
from dataplane.tables import Tables


def test_what_the_kernel_refused_is_dropped(tables: Tables) -> None:
    """A port took it, and the kernel did not send it: a drop by name, on each worker and of all."""
    errors = tables.workers["ports"]["tx_errors"]
    errors[0, 1], errors[1, 2] = 5, 1
    errors[1, PORTS_MAX - 1] = 3  # the way to the kernel
    drops, _ = verdict_sums(tables)
    assert {name: count for name, count in drops.items() if count} == {"tx_error": 6, "kernel": 3}
    states = [WorkerState(index=index, cpu=None) for index in range(2)]
    assert [worker.dropped for worker in worker_stats(tables, states)] == [5, 4]
