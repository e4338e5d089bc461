"""The process around a gateway: what it tells the service manager while an attempt after another fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from control import process
from control.config import parse
from tests.control.config.good import changed


class Scripted:
    """A gateway whose starts go as `script` says; the last one is followed by a stop."""

    script: list[str]

    def __init__(self, config: object, requests: object, **_rest: object) -> None:
        self.config, self.requests = config, requests

    async def start(self) -> None:
        """Fail, or not."""
        act = Scripted.script.pop(0)
        if not Scripted.script:
            self.requests.stop.set()  # type: ignore[attr-defined]
        if act == "fails":
            raise OSError("no link")

    async def serve(self) -> None:
        """Until an interface changes."""
        self.requests.restart.set()  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """Nothing was brought up."""

    def summary(self) -> str:
        """What runs."""
        return "up"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    monkeypatch.setattr(process, "Gateway", Scripted)
    monkeypatch.setattr(process, "RETRY", 0.0)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield sock


def heard(manager: socket.socket) -> Iterator[str]:
    """What it was told."""
    while True:
        try:
            yield manager.recv(4096).decode()
        except BlockingIOError:
            return


def test_attempts_to_start_again_are_life_to_the_watchdog(manager: socket.socket) -> None:
    """Otherwise it would end them after WatchdogSec, and the next process exits at its first failure."""
    Scripted.script = ["starts", "fails", "fails", "fails"]
    assert asyncio.run(process._run(parse(changed("gateway.workers", 1)), False)) == process.DONE
    again = "WATCHDOG=1\nSTATUS=cannot start again: no link"
    assert list(heard(manager)) == ["READY=1\nSTATUS=up", again, again, again, "STOPPING=1"]


def test_a_first_start_that_fails_is_the_end(manager: socket.socket) -> None:
    """The service manager then decides whether to try again."""
    Scripted.script = ["fails", "starts"]
    assert asyncio.run(process._run(parse(changed("gateway.workers", 1)), False)) == process.FAILED
    assert list(heard(manager)) == ["STATUS=cannot start: no link", "STOPPING=1"]
