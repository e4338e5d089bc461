"""What the demo makes of its results: verdicts, table, JSON file, exit status. The laboratory itself is left out."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from control.demo import command
from control.demo.course import Course
from control.demo.report import DriverResult, Plain, Rekeys, format_table, verdict, write_json
from control.lab.space import LabError

PLAIN = Plain(tcp_gbps=20.12345, udp_gbps=3.5)
GOOD = DriverResult(
    pings_sent=1200,
    pings_lost=0,
    cleartext_packets=0,
    esp_packets=98765,
    ah_packets=0,
    active_mode="native/copy",
    ike_suite="aes256gcm16-prfsha384-x25519-ke1_mlkem768",
    esp_suite="aes256gcm16",
    rekeys=Rekeys(child=6, ike=2),
    tcp_gbps=4.98765,
    udp_gbps=1.0,
    protocol="esp",
)
AH = replace(
    GOOD,
    esp_packets=0,
    ah_packets=4321,
    ike_suite="",
    esp_suite="sha256",
    rekeys=Rekeys(),
    protocol="ah",
)
KEYS = {
    "pings_sent",
    "pings_lost",
    "cleartext_packets",
    "esp_packets",
    "ah_packets",
    "active_mode",
    "ike_suite",
    "esp_suite",
    "child_rekeys",
    "ike_rekeys",
    "tcp_gbps",
    "udp_gbps",
    "protocol",
}


@pytest.mark.parametrize(
    ("result", "reasons"),
    [
        (GOOD, ""),
        (AH, ""),
        (replace(GOOD, pings_lost=3), "3 of 1200 pings lost"),
        (replace(GOOD, cleartext_packets=2), "2 packets in clear between the gateways"),
        (replace(GOOD, esp_packets=0), "no ESP packet between the gateways"),
        (replace(GOOD, rekeys=Rekeys(child=2, ike=1)), ""),
        (replace(GOOD, rekeys=Rekeys(child=1, ike=1)), "1 rekeys of child SAs and 1 of IKE SAs only"),
        (replace(GOOD, rekeys=Rekeys(child=6)), "6 rekeys of child SAs and 0 of IKE SAs only"),
        (replace(AH, pings_lost=1), "1 of 1200 pings lost"),
        (replace(AH, cleartext_packets=1), "1 packets in clear between the gateways"),
        (replace(AH, ah_packets=0), "no AH packet between the gateways"),
        (replace(AH, esp_packets=5), "5 ESP packets between the gateways"),
        (
            replace(GOOD, pings_lost=1, esp_packets=0, rekeys=Rekeys()),
            "1 of 1200 pings lost, no ESP packet between the gateways, "
            "0 rekeys of child SAs and 0 of IKE SAs only",
        ),
    ],
)
def test_verdict(result: DriverResult, reasons: str) -> None:
    """Each reason not to pass, and what passes."""
    assert verdict(result) == reasons
    assert result.passed == (not reasons)


def test_json(tmp_path: Path) -> None:
    """The same keys for every driver, whatever made its tunnel; figures are rounded, counts are not."""
    path = tmp_path / "demo.json"
    write_json(path, PLAIN, {"xdp": GOOD, "tun": AH})
    assert path.read_text().endswith("}\n")
    document = json.loads(path.read_text())
    assert document.keys() == {"plain", "drivers"}
    assert document["plain"] == {"tcp_gbps": 20.123, "udp_gbps": 3.5}
    assert list(document["drivers"]) == ["xdp", "tun"]
    for result in document["drivers"].values():
        assert result.keys() == KEYS
    assert document["drivers"]["xdp"] == {
        "pings_sent": 1200,
        "pings_lost": 0,
        "cleartext_packets": 0,
        "esp_packets": 98765,
        "ah_packets": 0,
        "active_mode": "native/copy",
        "ike_suite": GOOD.ike_suite,
        "esp_suite": "aes256gcm16",
        "child_rekeys": 6,
        "ike_rekeys": 2,
        "tcp_gbps": 4.988,
        "udp_gbps": 1.0,
        "protocol": "esp",
    }


def test_table() -> None:
    """A line for plain forwarding and one for each driver, in columns; the algorithms below, each once."""
    text = format_table(PLAIN, {"xdp": GOOD, "packet": replace(GOOD, active_mode="packet"), "tun": AH})
    assert text.splitlines() == [
        "",
        "        mode               TCP Gb/s  UDP Gb/s  pings lost  ESP packets  AH packets  in clear  rekeys",
        "plain   kernel forwarding     20.12      3.50",
        "xdp     native/copy            4.99      1.00   0 of 1200        98765           0         0   6 + 2",
        "packet  packet                 4.99      1.00   0 of 1200        98765           0         0   6 + 2",
        "tun     native/copy            4.99      1.00   0 of 1200            0        4321         0   0 + 0",
        "",
        f"IKE {GOOD.ike_suite}, ESP aes256gcm16",
        "AH sha256, keys by hand",
    ]


class Laboratory:
    """Stands in for what makes namespaces; `results` by driver: what it showed, or how it failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, results: dict[str, DriverResult | LabError]) -> None:
        self.results = results
        self.tried: list[tuple[str, int, Course]] = []
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(command, "DRIVERS", tuple(results))
        monkeypatch.setattr(command, "check_tools", lambda tools: None)
        monkeypatch.setattr(command, "measure_plain", lambda seconds, course: PLAIN)
        monkeypatch.setattr(command, "try_driver", self.try_driver)

    def try_driver(self, driver: str, seconds: int, course: Course) -> DriverResult:
        """As `control.demo.proof.try_driver`."""
        self.tried.append((driver, seconds, course))
        result = self.results[driver]
        if isinstance(result, LabError):
            raise result
        return result


def run(*argv: str) -> int:
    """`esplanade demo`, its exit status."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def test_all_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0; the table alone on standard output; every driver in the file, tried as the options say."""
    laboratory = Laboratory(monkeypatch, {"xdp": GOOD, "tun": GOOD})
    path = tmp_path / "demo.json"
    assert run("--json", str(path), "--seconds", "2", "--mode", "transport") == 0
    assert laboratory.tried == [("xdp", 2, Course(mode="transport")), ("tun", 2, Course(mode="transport"))]
    said = capsys.readouterr()
    assert said.out == format_table(PLAIN, {"xdp": GOOD, "tun": GOOD}) + "\n"
    assert "FAILED" not in said.err
    assert json.loads(path.read_text())["drivers"].keys() == {"xdp", "tun"}


def test_one_driver_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AH: what is tried is the one that was named."""
    laboratory = Laboratory(monkeypatch, {"xdp": AH, "tun": AH})
    assert run("--driver", "tun", "--protocol", "ah") == 0
    assert laboratory.tried == [("tun", command.SECONDS, Course(protocol="ah"))]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (replace(GOOD, pings_lost=1), "FAILED tun: 1 of 1200 pings lost"),
        (LabError("iperf3 ended with status 1\nand its output"), "FAILED tun: iperf3 ended with status 1"),
    ],
)
def test_one_fails(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    second: DriverResult | LabError,
    said: str,
) -> None:
    """By its verdict, or by what went wrong: status 1, one line that says so at the end, and the others go on."""
    laboratory = Laboratory(monkeypatch, {"xdp": GOOD, "tun": second, "packet": GOOD})
    monkeypatch.setattr(
        command, "keep", lambda driver, course: pytest.fail("nothing is kept after a failure")
    )
    path = tmp_path / "demo.json"
    assert run("--json", str(path), "--keep") == 1
    assert [driver for driver, *_ in laboratory.tried] == ["xdp", "tun", "packet"]
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == said
    found = json.loads(path.read_text())["drivers"]
    assert found.keys() == {"xdp", "packet"} | ({"tun"} if isinstance(second, DriverResult) else set())
    assert ("\ntun " in output.out) == isinstance(second, DriverResult)


def test_nothing_can_be_tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """AH in transport mode, a program that is missing, no root: status 1 and why, and no table."""
    laboratory = Laboratory(monkeypatch, {"xdp": AH})
    assert run("--protocol", "ah", "--mode", "transport") == 1
    assert "--protocol ah is shown in tunnel mode" in capsys.readouterr().err

    def missing(tools: dict[str, str]) -> None:
        raise LabError(f"programs are missing: {', '.join(tools)}")

    monkeypatch.setattr(command, "check_tools", missing)
    assert run() == 1
    assert capsys.readouterr().err == "esplanade demo: programs are missing: ping, iperf3\n"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run() == 1
    said = capsys.readouterr()
    assert "must run as root" in said.err and not said.out
    assert not laboratory.tried
