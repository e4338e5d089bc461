"""Is this code slower than it was? Ratios of one run against the ratios of a baseline, and an honest "cannot tell".

A ratio is ours beside what it is compared with in the same round; machines differ less in it than in nanoseconds.
`change` is its cost beside the baseline's: 1.1 is a tenth slower, whether the ratio is better when low (time) or when
high (rate). Each figure has several rounds, and judged is where the median of many more would lie:

    all of the interval above the limit   slower
    all of it at or below the limit       fine ("faster" when all of it is below the limit's inverse)
    the limit within it                   unclear: more rounds, and at the end "too noisy"

A baseline of another CPU says little about short packets, where the walk around the cipher counts most. There, only
ratios gate that are nearly 1 in the baseline (PORTABLE); the others are shown. Far below 1 is a CPU's doing, too: there
ours uses instructions that the library does not.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIDENCE = 0.93  # five rounds are just enough: their range holds the median with 94 %
PORTABLE = (0.98, 1.15)  # a cost ratio within is mostly the library's cipher, on any CPU


class BaselineError(RuntimeError):
    """A baseline file that cannot be used; the text says why."""


class Finding(enum.Enum):
    """What rounds say about one ratio."""

    FINE = "fine"
    FASTER = "faster"
    SLOWER = "slower"
    UNCLEAR = "too noisy"
    SHOWN = "shown only"  # taken on another CPU
    NEW = "not in the baseline"
    MISSING = "not measured"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One ratio that is watched. `higher`: it is better when high; `slack`: its tolerance is so many times wider."""

    name: str
    higher: bool = False
    slack: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A figure's rounds beside its baseline; `change`: cost, median, of the baseline's (None without one)."""

    figure: Figure
    finding: Finding
    ratio: float | None = None
    baseline: float | None = None
    change: float | None = None
    low: float | None = None  # of the change's interval
    high: float | None = None
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Ratios by name, and the CPU they were taken on."""

    cpu: str
    ratios: Mapping[str, float]
    commit: str = ""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with CONFIDENCE, by order statistics: no assumption about how rounds are spread."""
    ordered = sorted(values)
    count = len(ordered)
    inside = 0  # how many can be left out at each end
    outside = 2 * 0.5**count
    while True:
        outside += 2 * math.comb(count, inside + 1) * 0.5**count
        if 1 - outside < CONFIDENCE or 2 * (inside + 1) >= count:
            return ordered[inside], ordered[count - 1 - inside]
        inside += 1


def judge(
    figure: Figure, ratios: Sequence[float], baseline: Baseline, *, cpu: str, tolerance: float
) -> Judgement:
    """One figure. `cpu` is what the rounds were measured on; `tolerance` 0.1 allows a tenth more cost."""
    base = baseline.ratios.get(figure.name)
    if not ratios:
        return Judgement(figure=figure, finding=Finding.MISSING, baseline=base)
    middle = sorted(ratios)[len(ratios) // 2]
    if base is None:
        return Judgement(figure=figure, finding=Finding.NEW, ratio=middle, rounds=len(ratios))
    changes = [base / ratio if figure.higher else ratio / base for ratio in ratios]
    low, high = interval(changes)
    limit = 1 + tolerance * figure.slack
    if cpu != baseline.cpu and (figure.higher or not PORTABLE[0] <= base <= PORTABLE[1]):
        finding = Finding.SHOWN
    elif low > limit:
        finding = Finding.SLOWER
    elif high > limit:
        finding = Finding.UNCLEAR
    else:
        finding = Finding.FASTER if high < 1 / limit else Finding.FINE
    return Judgement(
        figure=figure,
        finding=finding,
        ratio=middle,
        baseline=base,
        change=sorted(changes)[len(changes) // 2],
        low=low,
        high=high,
        rounds=len(ratios),
    )


def exit_status(judgements: Sequence[Judgement]) -> int:
    """1 when something is slower; else 2 when something cannot be told, or nothing could be compared; else 0."""
    findings = {each.finding for each in judgements}
    if Finding.SLOWER in findings:
        return 1
    compared = findings & {Finding.FINE, Finding.FASTER}
    return 2 if Finding.UNCLEAR in findings or not compared else 0


# ---- the file


def read_baseline(path: Path, cpu: str) -> Baseline:
    """The baseline of this CPU, or else the file's first; BaselineError for a file that holds none."""
    machines = _machines(path)
    if not machines:
        raise BaselineError(f"{path}: no machine in it; write one with --write-baseline {path}")
    chosen = next((each for each in machines if each.get("cpu") == cpu), machines[0])
    ratios = chosen.get("ratios")
    if not isinstance(ratios, dict) or not all(_positive(ratio) for ratio in ratios.values()):
        raise BaselineError(f"{path}: {chosen.get('cpu')!r}: want `ratios`, a table of positive numbers")
    return Baseline(cpu=str(chosen.get("cpu", "")), ratios=ratios, commit=str(chosen.get("commit", "")))


def write_baseline(path: Path, machine: Mapping[str, Any], cpu: str, ratios: Mapping[str, float]) -> None:
    """Put this CPU's ratios into the file; those of other CPUs stay."""
    others = [each for each in _machines(path) if each.get("cpu") != cpu] if path.exists() else []
    ours = {
        "cpu": cpu,
        **{key: machine.get(key) for key in ("cpus", "kernel", "libraries", "commit")},
        "ratios": {name: float(f"{ratio:.4g}") for name, ratio in ratios.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machines": [*others, ours]}, indent=1) + "\n")


def _machines(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise BaselineError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BaselineError(f"{path}: no JSON: {error}") from None
    machines = document.get("machines") if isinstance(document, dict) else None
    if not isinstance(machines, list) or not all(isinstance(each, dict) for each in machines):
        raise BaselineError(f'{path}: want {{"machines": [{{"cpu": ..., "ratios": {{...}}}}]}}')
    return machines


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


# ---- the summary

_VERDICTS = {
    0: "No regression.",
    1: "**Slower than the baseline.**",
    2: "**This machine is too noisy to tell**, or nothing could be compared.",
}


def markdown(judgements: Sequence[Judgement], baseline: Baseline, *, cpu: str, tolerance: float) -> str:
    """A summary for people: verdict, then a table, the worst change first."""
    lines = [
        f"## Performance: {_VERDICTS[exit_status(judgements)]}",
        "",
        f"Tolerance {tolerance:.0%}; baseline of `{baseline.commit or 'unknown'}` on {baseline.cpu}.",
    ]
    if cpu != baseline.cpu:
        lines += [
            "",
            f"This machine is another: {cpu}. Only ratios gate that are nearly the bare cipher's; for the others, "
            "take a baseline here (`--write-baseline`).",
        ]
    lines += [
        "",
        "| figure | ratio | baseline | change in cost | interval | rounds | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for each in sorted(judgements, key=lambda one: -(one.change or 0.0)):
        lines.append(
            f"| {each.figure.name} | {_number(each.ratio)} | {_number(each.baseline)} | {_percent(each.change)} | "
            f"{_percent(each.low)} … {_percent(each.high)} | {each.rounds} | {_mark(each.finding)} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change - 1:+.1%}"


def _mark(finding: Finding) -> str:
    return f"**{finding.value}**" if finding in (Finding.SLOWER, Finding.UNCLEAR) else finding.value
