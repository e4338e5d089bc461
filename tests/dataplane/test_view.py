"""ext.sa.TablesView: what it refuses to map, the SPI table, generations, and what a dead worker leaves behind."""

from __future__ import annotations

import os
import random
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataplane import layout
from dataplane.engine import open_engine
from dataplane.tables import Limits, Tables
from ext.sa import TablesView
from tests.dataplane.make import make_inbound


def copy_of(tables: Tables, **header: int) -> int:
    """A descriptor of the same segment with other header fields."""
    fd = os.memfd_create("copy")
    size = header.pop("truncate", tables.view.size)
    changed = tables.header.copy()
    for name, value in header.items():
        changed[0][name] = value
    os.pwrite(fd, changed.tobytes(), 0)
    os.ftruncate(fd, size)
    return fd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 7}, "magic 0x7, wanted 0x45535031"),
        ({"version": 9}, "version 9, wanted 2"),
        ({"truncate": 8192}, "is 8192 bytes, its header says"),
        ({"truncate": 100}, "is 100 bytes; its header alone is"),
        ({"spi_mask": 100}, "SPI mask 0x64"),
        ({"max_sas": 2**32 - 1}, "sas .* leaves its"),
        ({"sa_counters_offset": 2**63}, "sa_counters .* leaves its"),
        ({"policies_offset": 4100}, "off a cache line"),
    ],
)
def test_foreign_or_damaged_segments_are_refused(
    tables: Tables, change: dict[str, int], message: str
) -> None:
    fd = copy_of(tables, **change)
    try:
        with pytest.raises(ValueError, match=message):
            TablesView(fd)
    finally:
        os.close(fd)


def test_descriptors_that_are_none_are_named(tables: Tables) -> None:
    with pytest.raises(OSError, match="fstat of descriptor 9999"):
        TablesView(9999)
    with pytest.raises(ValueError, match="worker index 2; the segment has 2"):
        TablesView(tables.fd, 2)


def test_segment_cannot_be_cut_short(tables: Tables) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(tables.fd, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(tables.fd, tables.view.size * 2)


class SpiTable(RuleBasedStateMachine):
    """The SPI table does what a dict does, through collisions, removals and reuse."""

    #: few values, many of which share a home slot in a table of 128
    spis = st.integers(1, 400)

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables(
            engine=open_engine(),
            limits=Limits(
                max_sas=64,
                max_policies=1,
                max_selectors=1,
                max_adjacencies=1,
                max_routes=1,
                max_prefixes=1,
                max_candidates=1,
            ),
        )
        self.view = self.tables.view
        self.model: dict[int, int] = {}

    @rule(spi=spis, index=st.integers(0, 63))
    def insert(self, spi: int, index: int) -> None:
        if spi in self.model:
            with pytest.raises(ValueError, match="is taken"):
                self.view.spi_insert(spi, index)
        elif len(self.model) == 64:
            with pytest.raises(OverflowError, match="half full"):
                self.view.spi_insert(spi, index)
        else:
            self.view.spi_insert(spi, index)
            self.model[spi] = index

    @rule(spi=spis)
    def remove(self, spi: int) -> None:
        if spi in self.model:
            self.view.spi_remove(spi)
            del self.model[spi]
        else:
            with pytest.raises(KeyError):
                self.view.spi_remove(spi)

    @rule(spi=spis, index=st.integers(0, 63))
    def replace(self, spi: int, index: int) -> None:
        if spi in self.model:
            self.view.spi_replace(spi, index)
            self.model[spi] = index
        else:
            with pytest.raises(KeyError):
                self.view.spi_replace(spi, index)

    @invariant()
    def same(self) -> None:
        assert {spi: self.view.spi_lookup(spi) for spi in range(402)} == {
            spi: self.model.get(spi) for spi in range(402)
        }

    def teardown(self) -> None:
        self.tables.close()


SpiTable.TestCase.settings = settings(max_examples=20, stateful_step_count=50, deadline=None)
test_spi_table = SpiTable.TestCase


def test_years_of_rekeying_leave_no_trace_in_the_spi_table(tables: Tables) -> None:
    """A removed entry's slot is free again: tombstones would fill the table, and every unknown SPI scan it."""
    choose = random.Random(4303)
    live = [choose.randrange(256, 2**32) for _ in range(60)]
    for spi in live:
        tables.view.spi_insert(spi, 1)
    for _ in range(20_000):
        at = choose.randrange(len(live))
        tables.view.spi_remove(live[at])
        live[at] = choose.randrange(256, 2**32)
        tables.view.spi_insert(live[at], 1)
    header = tables.header[0]
    spis = np.frombuffer(
        memoryview(tables.view), np.uint64, int(header["spi_mask"]) + 1, int(header["spis_offset"])
    )
    assert int((spis != 0).sum()) == len(live)
    assert all(tables.view.spi_lookup(spi) == 1 for spi in live)
    assert tables.view.spi_lookup(0) is None


def test_no_packet_misses_its_sa_while_neighbours_come_and_go(tables: Tables) -> None:
    """Readers run beside the moves of spi_remove; the entry they want moves up and down its run."""
    view = tables.view
    mask = int(tables.header[0]["spi_mask"])

    def home(spi: int) -> int:
        return (spi * 0x9E3779B97F4A7C15 % 2**64 >> 32) & mask

    wanted, *crowd = [spi for spi in range(256, 2**20) if home(spi) == 5][:12]
    rounds = 1500
    gate = threading.Barrier(2, timeout=30)
    misses: list[int] = []

    def read() -> None:
        for _ in range(rounds):
            gate.wait()
            misses.append(view.spi_misses(wanted, 20_000))
            gate.wait()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(rounds):
        for spi in crowd:
            view.spi_insert(spi, 1)
        view.spi_insert(wanted, 2)  # at the end of the run
        gate.wait()
        for spi in crowd:
            view.spi_remove(spi)  # it moves up, under the reader's eyes
        gate.wait()
        view.spi_remove(wanted)
    reader.join()
    assert sum(misses) == 0
    assert int(tables.header[0]["spi_moves"]) >= rounds * len(crowd)


def test_full_spi_range_is_found(tables: Tables) -> None:
    for index, spi in enumerate((256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)):
        tables.view.spi_insert(spi, index)
        assert tables.view.spi_lookup(spi) == index
    with pytest.raises(ValueError, match="SPI 0 never"):
        tables.view.spi_insert(0, 0)


def test_generations_wait_for_live_workers_only(tables: Tables) -> None:
    view = tables.view
    first = view.bump()
    assert view.quiescent(first)  # nobody lives
    worker = TablesView(tables.fd, 1)
    worker.worker_enter(4711)
    assert view.quiescent(view.bump())  # it sleeps
    tables.workers[1]["seen_generation"] = first
    second = view.bump()
    assert view.quiescent(first)
    assert not view.quiescent(second)
    view.worker_gone(1)
    assert view.quiescent(second)
    assert tables.workers[1]["pid"] == 0


def test_a_dead_workers_windows_only_drop(tables: Tables) -> None:
    """A worker died while it moved a window: what it may have accepted is not accepted again."""
    from ext.counters import DROP_NAMES
    from ext.replay import check_and_accept

    index = tables.add_sa(make_inbound(replay_window=128), start=1, limit=0)
    other = tables.add_sa(make_inbound(replay_window=128), start=1, limit=0)
    for number in (1, 2, 70, 200):
        assert check_and_accept(tables.view, index, number, False)[0] == 0
        assert check_and_accept(tables.view, other, number, False)[0] == 0
    tables.sas["replay"]["lock"][index] = 2  # worker 1
    assert tables.view.worker_gone(0) == 0
    assert tables.view.worker_gone(1) == 1
    assert tables.sas["replay"]["lock"][index] == 0
    for number in range(1, 201):
        verdict = check_and_accept(tables.view, index, number, False)[0]
        assert DROP_NAMES[verdict] in ("replay", "replay_old"), number
    for number in (202, 201, 256, 255, 1000):  # the top's own block, and beyond
        assert check_and_accept(tables.view, index, number, False)[0] == 0, number
    assert check_and_accept(tables.view, other, 199, False)[0] == 0  # nobody held this one


def test_limits_only_grow_and_stay_below_the_hard_one(tables: Tables) -> None:
    from tests.dataplane.make import make_sa

    index = tables.add_sa(make_sa(), start=1, limit=100)
    tables.view.set_limit(index, 200)
    assert tables.view.sequence(index) == (1, 200)
    with pytest.raises(ValueError, match="below the present one"):
        tables.view.set_limit(index, 199)
    with pytest.raises(ValueError, match="past the hard limit 4294967296"):
        tables.view.set_limit(index, 2**32 + 1)


def test_indices_are_checked(tables: Tables) -> None:
    with pytest.raises(IndexError, match="SA index 64"):
        tables.view.set_adjacency(64, layout.NO_INDEX)
    with pytest.raises(IndexError, match="adjacency 8"):
        tables.view.set_adjacency(0, 8)
    with pytest.raises(IndexError, match="policy 64"):
        tables.view.set_policy_sa(64, layout.NO_INDEX)
