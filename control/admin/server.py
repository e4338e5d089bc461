"""The status socket: one line of JSON in, one line of JSON out, over a unix socket of mode 0600.

    {"command": "status"}  ->  {"ok": true, "status": {...}}
    {"command": "nonsense"} -> {"ok": false, "error": "..."}

The directory is locked for as long as the gateway runs, so two gateways cannot share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("esplanade.status")

SOCKET_NAME = "status.sock"
REQUEST_MAX = 4096  # bytes of one request line
REPLY_MAX = 64 << 20  # bytes of one reply line: a hundred thousand SAs
IDLE = 60.0  # seconds after which a silent client is let go
CLIENTS_MAX = 16

Command = Callable[[], Mapping[str, Any]]


class StatusError(Exception):
    """The status socket cannot be opened or gives no answer; the text says why and what to do."""


class RunDirectory:
    """The run directory, made if need be and locked: one gateway per directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StatusError(
                f"run directory {path}: {error.strerror}; make it writable or set gateway.run_dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StatusError(
                f"run directory {path} belongs to a gateway that runs; stop it, or set another gateway.run_dir"
            ) from None

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)


class StatusServer:
    """Answers commands on `directory/status.sock`."""

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        self.path = directory / SOCKET_NAME
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. The directory's lock says that no other gateway does, so an old socket is only left over."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        old_mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._connected, path=self.path, limit=REQUEST_MAX)
        except OSError as error:
            raise StatusError(
                f"status socket {self.path}: {error.strerror or error}; set gateway.run_dir"
            ) from None
        finally:
            os.umask(old_mask)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            self._server = None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= CLIENTS_MAX:
                await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, ValueError):
            pass  # gone, silent, or a line without end
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE):
                line = await reader.readline()
            if not line:
                return
            writer.write(json.dumps(self._answer(line)).encode() + b"\n")
            async with asyncio.timeout(IDLE):
                await writer.drain()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": 'the request is no JSON; want {"command": "status"}'}
        command = request.get("command") if isinstance(request, dict) else None
        if not isinstance(command, str) or command not in self._commands:
            return {"ok": False, "error": f"unknown command; known are {', '.join(sorted(self._commands))}"}
        try:
            return {"ok": True, command: self._commands[command]()}
        except Exception:
            log.exception("command %s", command)
            return {"ok": False, "error": "internal error; the gateway's log has the details"}


def ask(path: Path, command: str, *, wait: float = 5.0) -> dict[str, Any]:
    """Send one command to a running gateway and return what it says. StatusError says why there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(wait)
            sock.connect(str(path))
            sock.sendall(json.dumps({"command": command}).encode() + b"\n")
            with sock.makefile("rb") as stream:
                reply = json.loads(stream.readline(REPLY_MAX) or b"null")
    except FileNotFoundError:
        raise StatusError(
            f"{path}: no such socket; is the gateway running? (another one: --config or --socket)"
        ) from None
    except ConnectionRefusedError:
        raise StatusError(f"{path}: nobody listens; the gateway has ended without cleaning up") from None
    except PermissionError:
        raise StatusError(f"{path}: permission denied; run as the gateway's user (sudo)") from None
    except (OSError, ValueError) as error:
        raise StatusError(f"{path}: {error}") from None
    if not isinstance(reply, dict) or not reply.get("ok"):
        raise StatusError(f"{path}: {reply.get('error') if isinstance(reply, dict) else 'no answer'}")
    answer: dict[str, Any] = reply[command]
    return answer
