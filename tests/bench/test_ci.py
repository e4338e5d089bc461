"""`esplanade bench --ci` on the kernels alone: a slowdown made to order is found, and no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ci, cli
from bench.gate import Figure
from bench.options import Options
from control.lab import LabError

ROOT = Path(__file__).resolve().parents[2]
TRIES = 4  # on a machine that is too noisy to tell


def bench(*arguments: str, slowdown: str = "1") -> subprocess.CompletedProcess[str]:
    """`esplanade bench --ci kernels` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "control", "bench", "--ci", "kernels", *arguments],
        cwd=ROOT,
        env={**os.environ, "ESPLANADE_BENCH_SLOWDOWN": slowdown},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratios of this machine, taken now."""
    path = tmp_path_factory.mktemp("ci") / "baseline.json"
    done = bench("--write-baseline", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_a_baseline_takes_all_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rounds are enough to pass, not to be what all later runs are held against."""
    ratios = iter(range(1, 100))
    probe = ci.Probe(figures=(Figure(name="a"),), round=lambda: {"a": float(next(ratios))})
    monkeypatch.setattr(ci, "PROBES", {"one": lambda _stack: iter([probe])})
    path = tmp_path / "baseline.json"
    ci.run(None, 0.1, path, {}, Options())
    assert json.loads(path.read_text())["machines"][0]["ratios"] == {"a": 8.0}  # the middle of 1 to 15
    _, _, rows = ci.run(None, 0.1, None, {}, Options())
    assert rows[0]["rounds"] == ci.ROUNDS


def test_the_same_code_is_no_regression(baseline: Path, tmp_path: Path) -> None:
    """With a tolerance that the tests' neighbours cannot exceed; the summary is Markdown, the rows JSON."""
    rows = tmp_path / "rows.json"
    done = bench("--baseline", str(baseline), "--tolerance", "0.5", "--json", str(rows))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("## Performance: No regression.")
    results = json.loads(rows.read_text())["results"]
    assert {row["figure"] for row in results} == set(
        json.loads(baseline.read_text())["machines"][0]["ratios"]
    )
    assert {row["finding"] for row in results} <= {"fine", "faster"}


def test_a_slowdown_is_found(baseline: Path) -> None:
    """Every walk takes half again its time: status 1, and the figures that show it."""
    done = bench("--baseline", str(baseline), slowdown="1.5")
    assert done.returncode == 1, done.stdout
    assert "| **slower** |" in done.stdout


@pytest.mark.full
def test_fifteen_percent_are_found(baseline: Path) -> None:
    """At the default tolerance of a tenth: status 1. Status 2, "cannot tell", is tried again; 0 never is an answer."""
    for _ in range(TRIES):
        done = bench("--baseline", str(baseline), slowdown="1.15")
        if done.returncode != 2:
            break
    assert done.returncode == 1, done.stdout
    assert done.stdout.startswith("## Performance: **Slower than the baseline.**")
    assert "Tolerance 10%" in done.stdout


def test_a_probe_that_comes_to_nothing_is_no_pass(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 2, and it is listed, however well the others did."""

    def fails() -> dict[str, float]:
        raise LabError("no packet came in")

    figure = Figure(name="broken")
    monkeypatch.setitem(ci.PROBES, "broken", lambda stack: iter([ci.Probe(figures=(figure,), round=fails)]))
    options = Options(only=("kernels", "broken"))
    status, text, rows = ci.run(baseline, 0.5, None, {}, options)
    assert status == 2, text
    assert [row["finding"] for row in rows if row["figure"] == "broken"] == ["too noisy"]


def test_no_baseline_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a pass: status 2 before anything is measured."""
    assert cli.main(["--ci", "kernels", "--baseline", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_nonsense_slowdown_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than taken for none."""
    monkeypatch.setenv("ESPLANADE_BENCH_SLOWDOWN", "fast")
    with pytest.raises(SystemExit) as end:
        cli.main(["--ci", "kernels"])
    assert end.value.code == 2
    assert "ESPLANADE_BENCH_SLOWDOWN is 'fast'" in capsys.readouterr().err
