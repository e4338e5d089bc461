"""The judgement of perf CI: what is slower, what cannot be told, and what a file of baselines may hold."""

import json
from pathlib import Path

import pytest

from bench.gate import (
    Baseline,
    BaselineError,
    Figure,
    Finding,
    Judgement,
    exit_status,
    interval,
    judge,
    markdown,
    read_baseline,
    write_baseline,
)

HERE, ELSEWHERE = "this CPU", "another CPU"
TIME, RATE = Figure(name="time"), Figure(name="rate", higher=True)
BASELINE = Baseline(cpu=HERE, ratios={"time": 1.1, "rate": 0.5, "short": 1.5, "own": 0.6}, commit="abc")


def finding(figure: Figure, ratios: list[float], cpu: str = HERE) -> Finding:
    """What five or more rounds come to, with a tolerance of a tenth."""
    return judge(figure, ratios, BASELINE, cpu=cpu, tolerance=0.1).finding


@pytest.mark.parametrize(
    ("rounds", "left_out"), [(1, 0), (3, 0), (5, 0), (8, 0), (9, 1), (10, 1), (15, 3), (20, 5)]
)
def test_interval_holds_the_median(rounds: int, left_out: int) -> None:
    """The tables of the sign test: the interval of a median at 93 % and more (with five rounds and more)."""
    values = [float(each) for each in range(rounds)]
    assert interval(values[::-1]) == (values[left_out], values[rounds - 1 - left_out])


def test_all_rounds_within_tolerance_are_fine() -> None:
    """Of a time that may grow, and of a rate that may fall, by a tenth."""
    assert finding(TIME, [1.10, 1.12, 1.15, 1.08, 1.2]) is Finding.FINE
    assert finding(RATE, [0.5, 0.46, 0.47, 0.55, 0.49]) is Finding.FINE


def test_all_rounds_beyond_tolerance_are_slower() -> None:
    """15 % more time; 15 % less rate."""
    assert finding(TIME, [1.265, 1.27, 1.25, 1.24, 1.29]) is Finding.SLOWER
    assert finding(RATE, [0.43, 0.42, 0.44, 0.43, 0.41]) is Finding.SLOWER


def test_rounds_on_both_sides_are_unclear_until_there_are_enough() -> None:
    """One bad round of five decides nothing; of ten it is left out."""
    assert finding(TIME, [1.1, 1.1, 1.1, 1.1, 1.4]) is Finding.UNCLEAR
    assert finding(TIME, [1.1] * 9 + [1.4]) is Finding.FINE


def test_much_better_is_told() -> None:
    """So that somebody takes a new baseline."""
    assert finding(TIME, [0.9] * 5) is Finding.FASTER
    assert finding(RATE, [0.7] * 5) is Finding.FASTER


def test_slack_widens_the_tolerance() -> None:
    """A figure that varies more may do so."""
    wide = Figure(name="rate", higher=True, slack=4.0)
    assert finding(wide, [0.4, 0.42, 0.45, 0.5, 0.37]) is Finding.FINE


def test_another_cpu_gates_only_what_is_nearly_the_cipher() -> None:
    """A walk around short packets is not comparable between CPUs; around long ones it hardly counts."""
    short = Figure(name="short")
    assert finding(short, [1.9] * 5, ELSEWHERE) is Finding.SHOWN
    assert finding(Figure(name="own"), [1.1] * 5, ELSEWHERE) is Finding.SHOWN
    assert finding(RATE, [0.1] * 5, ELSEWHERE) is Finding.SHOWN
    assert finding(TIME, [1.265] * 5, ELSEWHERE) is Finding.SLOWER
    assert finding(TIME, [1.12] * 5, ELSEWHERE) is Finding.FINE


def test_what_was_not_measured_or_is_not_in_the_baseline_is_listed() -> None:
    """Neither is a regression, and neither is hidden."""
    assert finding(TIME, []) is Finding.MISSING
    assert finding(Figure(name="new"), [1.0]) is Finding.NEW


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([Finding.FINE, Finding.SHOWN, Finding.MISSING], 0),
        ([Finding.FASTER], 0),
        ([Finding.FINE, Finding.UNCLEAR], 2),
        ([Finding.UNCLEAR, Finding.SLOWER], 1),
        ([Finding.SHOWN, Finding.NEW], 2),
        ([], 2),
    ],
)
def test_exit_status(findings: list[Finding], status: int) -> None:
    """Slower beats noisy, and a run that compared nothing is no success."""
    assert exit_status([Judgement(figure=TIME, finding=each) for each in findings]) == status


def test_markdown_puts_the_worst_first() -> None:
    """Verdict in the heading, a row per figure, what is slower in bold."""
    judgements = [
        judge(figure, ratios, BASELINE, cpu=HERE, tolerance=0.1)
        for figure, ratios in ((RATE, [0.5] * 5), (TIME, [1.3] * 5))
    ]
    lines = markdown(judgements, BASELINE, cpu=HERE, tolerance=0.1).splitlines()
    assert lines[0] == "## Performance: **Slower than the baseline.**"
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| time | 1.3 | 1.1 | +18.2% | +18.2% … +18.2% | 5 | **slower** |",
        "| rate | 0.5 | 0.5 | +0.0% | +0.0% … +0.0% | 5 | fine |",
    ]


def test_a_baseline_per_cpu_in_one_file(tmp_path: Path) -> None:
    """Writing replaces this CPU's and keeps the others'; reading prefers this CPU's."""
    path = tmp_path / "baseline.json"
    write_baseline(path, {"commit": "one"}, ELSEWHERE, {"time": 1.0})
    write_baseline(path, {"commit": "two"}, HERE, {"time": 1.2})
    write_baseline(path, {"commit": "three"}, HERE, {"time": 1.23456})
    assert [each["commit"] for each in json.loads(path.read_text())["machines"]] == ["one", "three"]
    assert read_baseline(path, HERE) == Baseline(cpu=HERE, ratios={"time": 1.235}, commit="three")
    assert read_baseline(path, "a third").cpu == ELSEWHERE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"machines": []}',
        '{"machines": [1]}',
        '{"machines": [{"cpu": "x"}]}',
        '{"machines": [{"cpu": "x", "ratios": {"time": 0}}]}',
        '{"machines": [{"cpu": "x", "ratios": {"time": "1"}}]}',
    ],
)
def test_a_bad_baseline_is_refused(tmp_path: Path, text: str) -> None:
    """By name of the file, with what was wanted."""
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=str(path)):
        read_baseline(path, HERE)


def test_a_missing_baseline_is_refused(tmp_path: Path) -> None:
    """Not taken for an empty one."""
    with pytest.raises(BaselineError, match="No such file"):
        read_baseline(tmp_path / "none.json", HERE)
