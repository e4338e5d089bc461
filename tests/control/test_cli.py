"""The command line: exit statuses and what goes where."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import BENCHES
from control import cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "site-to-site.toml"


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in (
        "run",
        "status",
        "up",
        "down",
        "rekey",
        "log",
        "keys",
        "pcap",
        "doctor",
        "pki",
        "demo",
        "bench",
    ):
        assert f"\n    {command} " in shown
    assert cli.main([]) == 2
    assert cli.main(["nonsense"]) == 2
    assert cli.main(["status", "--nonsense"]) == 2
    assert cli.main(["--version"]) == 0


def test_help_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    *_, shown = capsys.readouterr().out.partition("\n    bench ")
    words = shown.partition("\n\n")[0].replace(",", "").split()
    assert [word for word in words if word in BENCHES] == list(BENCHES)


@pytest.mark.parametrize("seconds", ["x", "0", "-1", "86401", "1.5", "", "\u0665", "1" * 5000])
def test_demo_refuses_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.build_parser(["demo"]).parse_args(["demo", f"--seconds={seconds}"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"--seconds: got {seconds[:40]!r}, want a whole number of seconds from 1 to 86400")


def test_config_errors_are_all_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(EXAMPLE.read_text().replace("0x1001", "1").replace('driver = "xdp"', 'driver = "xpd"'))
    for command in (["run", "-c"], ["run", "--check", "-c"], ["doctor", "-c"], ["status", "-c"]):
        assert cli.main([*command, str(path)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3 and all(line.startswith(f"{path}: ") for line in lines), lines
    assert cli.main(["run", "-c", str(tmp_path / "none.toml")]) == 2


def test_check_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.toml"
    path.write_text(EXAMPLE.read_text())
    path.chmod(0o644)
    assert cli.main(["run", "--check", "-c", str(path)]) == 0
    assert "chmod 600" in capsys.readouterr().err


def test_status_without_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", str(tmp_path / "none")]) == 1
    assert "is the gateway running" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["up", "x"], ["down", "x"], ["rekey", "x", "--what", "ike"], ["log"], ["keys"]]
)
def test_steering_without_gateway(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--socket", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"esplanade {words[0]}: ")
    assert cli.main([words[0], "--socket", "a", "-c", "b", *words[1:]]) == 2
