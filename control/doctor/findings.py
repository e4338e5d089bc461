"""What doctor says: a finding, and how a list of them reads."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # works, but slower or less safe than it could
    BAD = "bad"  # the gateway will not start, or traffic will not pass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of doctor's report."""

    subject: str
    level: Level
    text: str
    mend: str = ""  # the command or key that mends it

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return {"subject": self.subject, "level": self.level.value, "text": self.text, "mend": self.mend}


def ok(subject: str, text: str) -> Finding:
    """A finding that needs nothing done."""
    return Finding(subject=subject, level=Level.OK, text=text)


def warn(subject: str, text: str, mend: str) -> Finding:
    """A finding that costs speed or safety."""
    return Finding(subject=subject, level=Level.WARN, text=text, mend=mend)


def bad(subject: str, text: str, mend: str) -> Finding:
    """A finding that keeps traffic from passing."""
    return Finding(subject=subject, level=Level.BAD, text=text, mend=mend)


def format_findings(findings: list[Finding]) -> str:
    """The report: one line per finding, its remedy on a line below."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.value:<4}  {finding.subject:<{width}}  {finding.text}")
        if finding.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.mend}")
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    lines.append(", ".join(f"{counts[level]} {level.value}" for level in Level))
    return "\n".join(lines)
