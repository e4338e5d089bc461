"""`esplanade bench`: which benches run, what their JSON looks like, and that each has its charts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import cli
from bench.plots import CHARTS, chartable
from control.lab import LabError

ROWS: dict[str, list[dict[str, Any]]] = {
    "kernels": [{"algorithm": "aes128gcm16", "direction": "out", "size": 64, "ratio": 1.2, "gbps": 9.0}],
    "rings": [{"algorithm": "aes128gcm16", "direction": "out", "size": "64", "ratio": 1.7}],
    "tables": [{"sas": 1, "direction": "out", "size": 64, "ratio": 1.0}],
    "scaling": [{"workers": 2, "sas": 1, "direction": "in", "size": 64, "how": "dealt", "ratio": 1.9}],
    "ports": [{"driver": "xdp", "mode": "native/copy", "test": "forward", "size": 64, "mpps": 0.5}],
    "rate": [
        {"driver": "xdp", "mode": "native/copy", "size": "64", "ratio_bare_port": 0.97, "no_loss_mpps": 0.3},
        {"driver": "tun", "mode": "queue", "size": "imix", "ratio_bare_port": None, "no_loss_mpps": 0.2},
    ],
    "latency": [{"driver": "xdp", "size": 64, "load": 0.5, "p50_us": 9.0, "p99_us": 40.0, "p999_us": 90.0}],
    "chain": [{"system": "tun", "proto": "tcp", "gbps": 3.0, "ratio_plain": 2.0}],
    "ike": [{"responder": "charon", "auth": "psk", "handshakes_per_cpu_second": 500.0}],
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Benches that only say their rows; returns the names of those that ran."""
    ran: list[str] = []

    def load(name: str) -> SimpleNamespace:
        def run(options: object) -> list[dict[str, Any]]:
            ran.append(name)
            if name == "ports":
                raise LabError("no interfaces today")
            return ROWS[name]

        return SimpleNamespace(run=run)

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: load(name.rpartition(".")[2]))
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    return ran


def test_without_a_name_all_of_them_run(measured: list[str], tmp_path: Path) -> None:
    """One that cannot is named, fails the run, and keeps no other from it; the JSON is one flat list."""
    path = tmp_path / "all.json"
    assert cli.main(["--no-plots", "--json", str(path)]) == 1
    assert measured == list(cli.BENCHES)
    document = json.loads(path.read_text())
    assert [row["bench"] for row in document["results"]] == [
        name for name in cli.BENCHES if name != "ports" for _ in ROWS[name]
    ]
    assert document["results"][-1] == {"bench": "ike", **ROWS["ike"][0]}
    assert json.loads((tmp_path / "results" / "chain.json").read_text())["results"] == ROWS["chain"]


def test_named_benches_run_in_their_order(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The machine's trace comes first, and each bench's table under its name."""
    assert cli.main(["rate", "chain", "--no-plots"]) == 0
    assert measured == ["rate", "chain"]
    said = capsys.readouterr().out
    assert said.startswith("cpu ")
    assert "== rate: " in said
    assert "ratio_bare_port" in said


def test_the_trace_names_the_modes_that_drivers_ran_in(measured: list[str], tmp_path: Path) -> None:
    """As text beside the results."""
    assert cli.main(["rate", "--no-plots"]) == 0
    lines = (tmp_path / "results" / "machine.txt").read_text().splitlines()
    assert [line.split(None, 2) for line in lines if line.startswith("driver")] == [
        ["driver", "xdp", "native/copy"],
        ["driver", "tun", "queue"],
    ]


def test_an_unknown_bench_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are."""
    with pytest.raises(SystemExit) as end:
        cli.main(["speed"])
    assert end.value.code == 2
    assert "no benchmark is called speed; there are kernels, rings," in capsys.readouterr().err


@pytest.mark.parametrize("name", list(cli.BENCHES))
def test_every_bench_has_charts(name: str) -> None:
    """Each with a label for its groups and bars, and a height for at least one."""
    for chart in CHARTS[name]:
        assert all(chart.x(row) and chart.series(row) for row in ROWS[name])
        assert [row[chart.value] for row in chartable(chart, ROWS[name])] == [
            row[chart.value] for row in ROWS[name] if row.get(chart.value) is not None
        ]
        assert chartable(chart, ROWS[name])
