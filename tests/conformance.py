"""The table of docs/conformance.md: what agrees with whom, as the tests of one run have shown.

1 a test says by the fixture `agreement` what it is about 2 its report carries that, and how it ended 3 at the end of
a run all of it is rendered as one table per protocol and mode, into build/conformance.md or `--conformance FILE`.
Nothing passes but by a test: cases that were collected and not run are there as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PROPERTY = "agreement"
BUNDLE = "esp in ah"  # the protocol of an SA bundle
LINUX, SCAPY, LIBIPSEC = "Linux", "scapy", "strongSwan libipsec"
MIXES = {"tunnel": ("4in4", "4in6", "6in4", "6in6"), "transport": ("IPv4", "IPv6")}
# (extended sequence numbers, in UDP) -> its letter.
LETTERS = {(False, False): "P", (True, False): "E", (False, True): "U", (True, True): "B"}
INTRODUCTION = """# Conformance

What agrees with which other implementation, in both directions. This page is made of the tests' results by
`./run test --full --conformance docs/conformance.md`; nothing in it is written by hand. This one is of {date}, made by
`{command}`{ended}: {passed} ways passed, {failed} failed, {missing} were not run.

- **Linux**: {linux} in an emulated machine (`tests/netns/test_linux_conformance.py`). Pings, TCP and 1,000 datagrams of
  0 to 8,900 bytes, half of them each way, go through every cell, twice as many through one cell of each kind; nothing
  is lost, and both sides count the same packets and no error.
- **scapy**: the `ipsec` layer of scapy {scapy} opens what we seal, and we open what it seals (`tests/exchange/`).
- **strongSwan libipsec**: strongSwan {strongswan}, SAs by IKEv2, begun, rekeyed and ended by either side
  (`tests/netns/test_strongswan_gateway.py`). It has ESP in UDP and tunnel mode only, and no extended sequence numbers.

A cell names the ways that passed: **P** plain, **E** with extended sequence numbers (across 2^32), **U** in UDP, **B**
both. A way in ~~strokes~~ failed, one in (brackets) was not run. A dash is what the peer does not have, or what no test
tries. Linux has a column per mix of families, the inner in the outer. Of SA bundles, ESP is in the mode
that is named and AH around it in transport mode; Linux has none whose tunnel changes the family.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing tried with one peer."""

    peer: str
    protocol: str
    mode: str
    suite: str
    mix: str
    esn: bool
    encap: bool
    passed: bool | None  # None: not run

    @property
    def way(self) -> tuple[object, ...]:
        """What it is about."""
        return self.peer, self.protocol, self.mode, self.suite, self.mix, self.esn, self.encap


def rows_of(reports: Iterable[Any]) -> list[Row]:
    """The rows that the reports of pytest's call phase carry; a test may be about several things."""
    return [
        Row(**value, passed=report.outcome == "passed")
        for report in reports
        for name, value in report.user_properties
        if name == PROPERTY
    ]


def planned(items: Iterable[Any]) -> list[Row]:
    """A row, not run, for each of pytest's items whose parameter `case` says in `agreement` what it is about."""
    cases = [item.callspec.params.get("case") for item in items if hasattr(item, "callspec")]
    return [Row(**case.agreement, passed=None) for case in cases if hasattr(case, "agreement")]


def render(rows: Iterable[Row], versions: Mapping[str, str]) -> str:
    """The page; `versions` are those of the peers, and `date`."""
    found = list(rows)
    worst: dict[tuple[object, ...], bool | None] = {}
    for row in found:
        worst[row.way] = _worse(worst.get(row.way), row.passed)
    counts = Counter(worst.values())
    text = INTRODUCTION.format(passed=counts[True], failed=counts[False], missing=counts[None], **versions)
    for protocol in ("esp", "ah", BUNDLE):
        for mode, mixes in MIXES.items():
            mine = [row for row in found if (row.protocol, row.mode) == (protocol, mode)]
            if mine:
                text += f"\n## {_heading(protocol)}, {mode} mode\n\n" + _table(mine, mixes)
    return text


def _heading(protocol: str) -> str:
    """What a protocol is called; of an SA bundle, ESP is in the mode, and AH in transport mode."""
    return "ESP in AH (SA bundles)" if protocol == BUNDLE else protocol.upper()


def _table(rows: list[Row], mixes: tuple[str, ...]) -> str:
    """One protocol and mode: a row per suite in order of appearance, a column per mix of Linux and per other peer."""
    columns = [(LINUX, mix) for mix in mixes] + [(SCAPY, None), (LIBIPSEC, None)]
    text = "| algorithms | " + " | ".join(
        f"Linux {mix}" if mix is not None else peer for peer, mix in columns
    )
    text += " |\n|---|" + "---|" * len(columns) + "\n"
    for suite in dict.fromkeys(row.suite for row in sorted(rows, key=lambda row: row.peer != LINUX)):
        cells = [
            _cell([row for row in rows if (row.suite, row.peer) == (suite, peer) and mix in (None, row.mix)])
            for peer, mix in columns
        ]
        text += f"| `{suite}` | " + " | ".join(cells) + " |\n"
    return text


def _worse(one: bool | None, other: bool | None) -> bool | None:
    """Of two results the worse; none at all counts for nothing."""
    return one if other is None else other if one is None else one and other


def _cell(rows: list[Row]) -> str:
    """The letters of what was tried, and in brackets of what was not; the worst counts of several."""
    results: dict[tuple[bool, bool], bool | None] = {}
    for row in rows:
        way = (row.esn, row.encap)
        results[way] = _worse(results.get(way), row.passed)
    forms = {True: "{}", False: "~~{}~~", None: "({})"}
    letters = [forms[results[way]].format(letter) for way, letter in LETTERS.items() if way in results]
    return " ".join(letters) or "–"
