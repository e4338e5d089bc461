"""The benchmark's machine trace, table and JSON file."""

import json
from pathlib import Path

from bench.machine import describe_machine
from bench.report import format_table, write_json

ROWS = [
    {"driver": "xdp", "size": 64, "mpps": 1.23456},
    {"driver": "packet", "size": 1408, "mpps": 0.0456},
]


def test_table_lines_up() -> None:
    """Text to the left, numbers to the right, four digits of what is small."""
    assert format_table(ROWS).splitlines() == [
        "driver  size    mpps",
        "xdp       64    1.23",
        "packet  1408  0.0456",
    ]


def test_rows_of_other_columns_are_a_table_of_their_own() -> None:
    """Two kinds of results of one benchmark."""
    text = format_table([*ROWS, {"tunnels": 1000, "pings_lost": 0}])
    assert text.splitlines()[3:] == ["", "tunnels  pings_lost", "   1000           0"]


def test_json_holds_machine_and_rows(tmp_path: Path) -> None:
    """The file is {"machine", "results"} and names what the figures depend on."""
    path = tmp_path / "deep" / "result.json"
    write_json(path, describe_machine(), ROWS)
    document = json.loads(path.read_text())
    assert document["results"] == [
        {**row, "mpps": round(row["mpps"], 4 if row["mpps"] < 1 else 3)} for row in ROWS
    ]
    machine = document["machine"]
    assert machine["cpus"] >= 1
    assert machine["memory_mib"] > 0
    assert machine["kernel"]
    assert machine["libraries"]["crypto"].startswith("OpenSSL")
