"""`esplanade doctor`: 1 look at the host 2 look at what a configuration asks of it 3 one line per finding.

Each line is ok, warn or bad; anything but ok says what is wrong and gives the command that mends it.
Nothing is changed, and nothing but ordinary sockets is opened.
"""

from __future__ import annotations

from control.config import Config
from control.doctor.config_checks import check_config
from control.doctor.findings import Finding, Level, format_findings
from control.doctor.host import check_host
from control.doctor.ike_checks import check_ike


def examine(config: Config | None) -> list[Finding]:
    """Every finding, host first."""
    findings = check_host(config)
    if config is not None:
        findings += check_config(config) + check_ike(config)
    return findings


__all__ = ["Finding", "Level", "examine", "format_findings"]
