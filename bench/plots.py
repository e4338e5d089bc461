"""One chart per benchmark and value, as SVG and PNG in bench/results: grouped bars, a group per x, a bar per series.

Bars, not lines: sizes and SA counts are few and far from evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import RESULTS, Row


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture: `x` names the groups, `series` the bars in a group, `value` the column that is their height."""

    name: str
    title: str
    x: Callable[[Row], str]
    series: Callable[[Row], str]
    value: str
    unit: str
    line: float | None = None  # a level to compare with


CHARTS: dict[str, Sequence[Chart]] = {
    "kernels": (
        Chart(
            name="kernels-ratio",
            title="Encapsulate and decapsulate, lookup to finish, relative to the bare cipher call",
            x=lambda row: f"{row['algorithm']} {row['direction']}",
            series=lambda row: f"{row['size']} B",
            value="ratio",
            unit="time / time of the bare cipher call",
            line=1.0,
        ),
        Chart(
            name="kernels-gbps",
            title="Encapsulate and decapsulate on one core",
            x=lambda row: f"{row['algorithm']} {row['direction']}",
            series=lambda row: f"{row['size']} B",
            value="gbps",
            unit="Gb/s",
        ),
    ),
    "rings": (
        Chart(
            name="rings",
            title="A worker's whole loop between memory ports, relative to the bare cipher call",
            x=lambda row: f"{row['algorithm']} {row['direction']}",
            series=lambda row: f"{row['size']} B",
            value="ratio",
            unit="time / time of the bare cipher call",
            line=1.0,
        ),
    ),
    "scaling": (
        Chart(
            name="scaling",
            title="Two workers beside one, each on a CPU of its own",
            x=lambda row: f"{row['sas']} SAs {row['direction']} {row['size']} B, {row['how']}",
            series=lambda row: f"{row['workers']} workers",
            value="ratio",
            unit="rate / rate of one worker",
            line=2.0,
        ),
    ),
    "rate": (
        Chart(
            name="rate-saturated",
            title="One worker with more to do than it can, and its ports alone",
            x=lambda row: f"{row['driver']} {row['size']} B",
            series=lambda row: "of the bare ports",
            value="ratio_bare_port",
            unit="rate / rate of the ports with nothing in between",
            line=1.0,
        ),
        Chart(
            name="rate-no-loss",
            title="Highest rate without loss through one gateway (RFC 2544)",
            x=lambda row: str(row["driver"]),
            series=lambda row: f"{row['size']} B",
            value="no_loss_mpps",
            unit="million packets per second",
        ),
    ),
    "latency": (
        *(
            Chart(
                name=f"latency-{name}",
                title=f"One way through one gateway under half load, {title}",
                x=lambda row: f"{row['driver']} {row['size']} B",
                series=lambda row: f"load {row['load']}",
                value=f"{name}_us",
                unit="microseconds",
            )
            for name, title in (("p50", "median"), ("p99", "99 of 100 packets"))
        ),
    ),
    "tables": (
        Chart(
            name="tables",
            title="Packets of many SAs at random, relative to one SA",
            x=lambda row: f"{row['direction']} {row['size']} B",
            series=lambda row: f"{row['sas']} SAs",
            value="ratio",
            unit="time / time with one SA",
            line=1.0,
        ),
    ),
    "ports": (
        Chart(
            name="ports",
            title="Ports, one core",
            x=lambda row: f"{row['driver']} {row['mode']}",
            series=lambda row: f"{row['test']} {row['size']} B",
            value="mpps",
            unit="million packets per second",
        ),
    ),
    "ike": (
        Chart(
            name="ike",
            title="IKE handshakes with one child SA, responder",
            x=lambda row: str(row["auth"]),
            series=lambda row: str(row["responder"]),
            value="handshakes_per_cpu_second",
            unit="handshakes per CPU second",
        ),
    ),
    "chain": (
        Chart(
            name="chain",
            title="iperf3, client to server through two gateways",
            x=lambda row: str(row["system"]),
            series=lambda row: str(row["proto"]),
            value="gbps",
            unit="Gb/s",
        ),
        Chart(
            name="chain-ratio",
            title="iperf3 relative to plain kernel forwarding without TSO",
            x=lambda row: str(row["system"]),
            series=lambda row: str(row["proto"]),
            value="ratio_plain",
            unit="Gb/s / Gb/s of plain",
            line=1.0,
        ),
    ),
}


def draw(name: str, rows: Sequence[Row], directory: Path = RESULTS) -> list[Path]:
    """Draw the charts of benchmark `name`; returns the files."""
    import matplotlib as mpl  # takes a second to import, and only this needs it

    mpl.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    charts = [chart for chart in CHARTS[name] if chartable(chart, rows)]
    return [path for chart in charts for path in _draw(chart, rows, directory)]


def chartable(chart: Chart, rows: Sequence[Row]) -> list[Row]:
    """The rows that have a height."""
    return [row for row in rows if row.get(chart.value) is not None]


def _draw(chart: Chart, rows: Sequence[Row], directory: Path) -> list[Path]:
    from matplotlib import pyplot

    rows = chartable(chart, rows)
    groups = list(dict.fromkeys(chart.x(row) for row in rows))
    series = list(dict.fromkeys(chart.series(row) for row in rows))
    width = 0.8 / max(len(series), 1)
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.5 + 0.28 * len(groups) * (len(series) + 1)), 4.5))
    for number, label in enumerate(series):
        heights = {chart.x(row): float(str(row[chart.value])) for row in rows if chart.series(row) == label}
        offset = (number - (len(series) - 1) / 2) * width
        at = [groups.index(group) + offset for group in heights]
        bars = axes.bar(at, list(heights.values()), width, label=label)
        axes.bar_label(bars, fmt="%.3g", fontsize=6, padding=1)
    if chart.line is not None:
        axes.axhline(chart.line, color="black", linewidth=0.8)
    many = len(groups) > 6
    axes.set_xticks(range(len(groups)), groups, rotation=30 if many else 0, ha="right" if many else "center")
    axes.set_ylabel(chart.unit)
    axes.set_title(chart.title)
    axes.legend()
    figure.tight_layout()
    paths = [directory / f"{chart.name}.{suffix}" for suffix in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return paths
