"""Logs, service manager and status socket: what the outside sees of the gateway."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from control.admin.logs import JsonFormatter, TextFormatter
from control.admin.notify import notify, notify_reloading, watchdog_interval
from control.admin.render import render_status
from control.admin.server import RunDirectory, StatusError, StatusServer, ask
from control.admin.tables import duration, size


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("esplanade.x", logging.WARNING, "file", 1, text, arguments, None)


def test_text_lines_stay_one_line() -> None:
    line = TextFormatter().format(record("got %s", "a\nb\x1b[31m\u2028é"))
    assert line.endswith("warning esplanade.x: got a\\nb\\x1b[31m\\u2028é") and "\n" not in line
    assert TextFormatter(journal=True).format(record("x")) == "<4>esplanade.x: x"


def test_json_lines_are_json() -> None:
    line = JsonFormatter().format(record("got %s", 'a\n"b"'))
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "esplanade.x", 'got a\n"b"')
    assert fields["time"].endswith("Z")


def test_exceptions_stay_on_the_line() -> None:
    try:
        raise ValueError("bad\nnews")
    except ValueError as error:
        failed = logging.LogRecord("esplanade", logging.ERROR, "f", 1, "oops", (), (type(error), error, None))
    line = TextFormatter().format(failed)
    assert "\n" not in line and "ValueError: bad\\nnews" in line


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@esplanade-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1", "STATUS=up")
        assert manager.recv(100) == b"READY=1\nSTATUS=up"
        assert notify_reloading()
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_notify_without_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    for path in (str(tmp_path / "gone"), "relative", ""):
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert not notify("READY=1")


def test_a_manager_that_does_not_read_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert not all(notify("WATCHDOG=1") for _ in range(5000))


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_interval() is None


def serve(directory: Path, scenario: Callable[[StatusServer], Awaitable[None]]) -> None:
    """Run a scenario beside a status server."""

    def broken() -> dict[str, object]:
        raise RuntimeError("bug")

    async def main() -> None:
        server = StatusServer(directory, {"status": lambda: {"answer": 42}, "broken": broken})
        await server.start()
        try:
            await scenario(server)
        finally:
            await server.close()

    asyncio.run(main())


def test_status_socket(tmp_path: Path) -> None:
    async def scenario(server: StatusServer) -> None:
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
        assert await asyncio.to_thread(ask, server.path, "status") == {"answer": 42}
        for command, message in (("nonsense", "known are broken, status"), ("broken", "internal error")):
            with pytest.raises(StatusError, match=message):
                await asyncio.to_thread(ask, server.path, command)
        reader, writer = await asyncio.open_unix_connection(server.path)
        for line in (b"no json\n", b"[" * 3000 + b"\n", b"3\n", b'{"command": ["status"]}\n'):
            writer.write(line)
            assert json.loads(await reader.readline())["ok"] is False
        # The same connection goes on; a line that never ends closes it.
        writer.write(b'{"command": "status"}\n')
        assert json.loads(await reader.readline()) == {"ok": True, "status": {"answer": 42}}
        writer.write(b"x" * 100000)
        assert await reader.read() == b""
        writer.close()

    serve(tmp_path, scenario)
    assert not (tmp_path / "status.sock").exists()


def test_status_socket_of_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(tmp_path / "status.sock"))
    old.close()

    async def scenario(server: StatusServer) -> None:
        assert await asyncio.to_thread(ask, server.path, "status") == {"answer": 42}

    with pytest.raises(StatusError, match="nobody listens"):
        ask(tmp_path / "status.sock", "status")
    serve(tmp_path, scenario)
    with pytest.raises(StatusError, match="is the gateway running"):
        ask(tmp_path / "status.sock", "status")


def test_too_many_clients_are_turned_away(tmp_path: Path) -> None:
    async def scenario(server: StatusServer) -> None:
        held = [await asyncio.open_unix_connection(server.path) for _ in range(16)]
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_unix_connection(server.path)
        assert await reader.read() == b""
        for each in (writer, *(writer for _, writer in held)):
            each.close()

    serve(tmp_path, scenario)


def test_run_directory_belongs_to_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "esplanade"
    first = RunDirectory(path)
    with pytest.raises(StatusError, match=r"belongs to a gateway that runs.*gateway\.run_dir"):
        RunDirectory(path)
    first.close()
    RunDirectory(path).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(StatusError, match="Not a directory"):
        RunDirectory(tmp_path / "file" / "run")


def test_units() -> None:
    assert [size(value) for value in (0, 999, 1000, 1_500_000, 2 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.0 TB",
    ]
    assert [duration(value) for value in (0, 61, 3600, 90061)] == ["0 s", "1 min 1 s", "1 h", "1 d 1 h"]


def test_render() -> None:
    """The table of a small status: aligned, and every drop that happened is there by name."""
    status = {
        "gateway": {"version": "0.1", "pid": 7, "uptime": 61.0, "engine": "openssl", "config": "x.toml"},
        "ports": [
            {
                "name": "lan",
                "role": "protected",
                "driver": "xdp",
                "interface": "eth1",
                "mode": "native/copy",
                "link": "up",
                "rx_packets": 12,
                "rx_bytes": 1200,
                "tx_packets": 3,
                "tx_bytes": 30,
                "tx_full": 0,
            }
        ],
        "workers": [{"index": 0, "pid": 8, "cpu": None, "restarts": 1, "packets": 11, "drops": 1}],
        "sas": [
            {
                "name": "a",
                "direction": "in",
                "spi": 0x1001,
                "remote": "192.0.2.1",
                "proposal": "aes128gcm16",
                "packets": 11,
                "bytes": 1,
                "sequence": 12,
                "replay_window": 1024,
                "path": "",
                "drops": {"replay": 1, "ecn": 0},
            }
        ],
        "drops": {"replay": 1, "no_sa": 5, "runt": 0},
        "events": {"pass": 11, "to_kernel": 2},
    }
    assert render_status(status).splitlines() == [
        "esplanade 0.1, pid 7, up 1 min 1 s, engine openssl, x.toml",
        "",
        "port  role       interface  mode         link  rx packets  rx      tx packets  tx    tx full",
        "lan   protected  eth1       native/copy  up            12  1.2 kB           3  30 B        0",
        "",
        "worker  pid  cpu  restarts  packets  drops",
        "     0    8  -           1       11      1",
        "",
        "sa  dir  spi         peer       proposal     packets  bytes  sequence  window  path  drops",
        "a   in   0x00001001  192.0.2.1  aes128gcm16       11  1 B          12    1024  -         1",
        "",
        "drop    packets  of sa",
        "no_sa         5",
        "replay        1",
        "replay        1  a",
        "",
        "pass 11, to_kernel 2",
    ]
