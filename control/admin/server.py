"""The status socket: a line of JSON in, one or more lines of JSON out, over a unix socket of mode 0600.

    {"command": "status"}                              -> {"ok": true, "status": {...}}
    {"command": "up", "arguments": {"name": "branch"}} -> {"item": {...}} ... {"ok": true, "up": {...}}
    {"command": "nonsense"}                            -> {"ok": false, "error": "..."}

A command that takes its time is a stream: its items come as they happen, and the line with "ok" is the last. When
the client goes, the stream ends where it is. The directory is locked for as long as the gateway runs, so two
gateways cannot share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger("esplanade.status")

SOCKET_NAME = "status.sock"
REQUEST_MAX = 4096  # bytes of one request line
REPLY_MAX = 64 << 20  # bytes of one reply line: a hundred thousand SAs
IDLE = 60.0  # seconds after which a silent client is let go
CLIENTS_MAX = 16

Command = Callable[[], Mapping[str, Any]]
# Takes the request's arguments, yields items; CommandError ends it with an error.
Stream = Callable[[Mapping[str, Any]], AsyncGenerator[Mapping[str, Any], None]]


class StatusError(Exception):
    """The status socket cannot be opened or gives no answer; the text says why and what to do."""


class CommandError(StatusError):
    """A command cannot be done, or has failed; the text is for whoever gave it."""


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

    def __init__(
        self, directory: Path, commands: Mapping[str, Command], streams: Mapping[str, Stream] | None = None
    ) -> None:
        self.path = directory / SOCKET_NAME
        self._commands = commands
        self._streams = streams or {}
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
            name, arguments, error = self._parse(line)
            if error:
                await _send(writer, {"ok": False, "error": error})
            elif name in self._streams:
                if not await self._stream(name, arguments, reader, writer):
                    return
            else:
                await _send(writer, self._answer(name))

    def _parse(self, line: bytes) -> tuple[str, Mapping[str, Any], str]:
        """Name and arguments of the command in a line, and what is wrong with it."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return "", {}, 'the request is no JSON; want {"command": "status"}'
        name = request.get("command") if isinstance(request, dict) else None
        if not isinstance(name, str) or (name not in self._commands and name not in self._streams):
            known = ", ".join(sorted([*self._commands, *self._streams]))
            return "", {}, f"unknown command; known are {known}"
        arguments = request.get("arguments", {})
        if not isinstance(arguments, dict):
            return name, {}, 'arguments are no object; want {"command": "up", "arguments": {"name": "..."}}'
        return name, arguments, ""

    def _answer(self, name: str) -> dict[str, Any]:
        try:
            return {"ok": True, name: self._commands[name]()}
        except Exception:
            return _bug(name)

    async def _stream(
        self,
        name: str,
        arguments: Mapping[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Run a stream to its end, or until the client goes; False then."""
        work = asyncio.create_task(self._send_items(name, arguments, writer), name=f"command {name}")
        # While a stream runs the client has nothing to say: whatever comes, or the end, ends the stream.
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return False
            await work
            return not gone.done()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _send_items(
        self, name: str, arguments: Mapping[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        last: dict[str, Any] = {"ok": True, name: {}}
        items = self._streams[name](arguments)
        try:
            async for item in items:
                await _send(writer, {"item": item})
        except CommandError as error:
            last = {"ok": False, "error": str(error)}
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            last = _bug(name)
        finally:
            await items.aclose()
        await _send(writer, last)


def _bug(name: str) -> dict[str, Any]:
    log.exception("command %s", name)
    return {"ok": False, "error": "internal error; the gateway's log has the details"}


async def _send(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    """One line; TimeoutError from a client that does not read."""
    writer.write(json.dumps(document).encode() + b"\n")
    async with asyncio.timeout(IDLE):
        await writer.drain()


def ask(path: Path, command: str, *, wait: float = 5.0) -> dict[str, Any]:
    """Send one command to a running gateway and return what it says. StatusError says why there is none."""
    with _connected(path, wait) as stream:
        reply = _request(path, stream, command, {})
    return _answer_in(path, command, reply)


def follow(
    path: Path, command: str, arguments: Mapping[str, Any], *, wait: float | None = None
) -> Iterator[dict[str, Any]]:
    """Give a command that streams and yield its items; StatusError when it fails, or there is no gateway.

    `wait`: seconds without any item after which to give up; None waits for ever.
    """
    with _connected(path, wait) as stream:
        reply = _request(path, stream, command, arguments)
        while isinstance(reply, dict) and "item" in reply:
            yield reply["item"]
            reply = _read(path, stream)
    _answer_in(path, command, reply)


@contextlib.contextmanager
def _connected(path: Path, wait: float | None) -> Iterator[BinaryIO]:
    """A connection to the gateway's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(wait)
        try:
            sock.connect(str(path))
        except FileNotFoundError:
            raise StatusError(
                f"{path}: no such socket; is the gateway running? (another one: --config or --socket)"
            ) from None
        except ConnectionRefusedError:
            raise StatusError(f"{path}: nobody listens; the gateway has ended without cleaning up") from None
        except PermissionError:
            raise StatusError(f"{path}: permission denied; run as the gateway's user (sudo)") from None
        except OSError as error:
            raise StatusError(f"{path}: {error}") from None
        with sock.makefile("rwb") as stream:
            yield stream  # type: ignore[misc]


def _request(path: Path, stream: BinaryIO, command: str, arguments: Mapping[str, Any]) -> object:
    """Send a command and read the first line of its answer."""
    try:
        stream.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
        stream.flush()
    except OSError as error:
        raise StatusError(f"{path}: {error}") from None
    return _read(path, stream)


def _read(path: Path, stream: BinaryIO) -> object:
    try:
        return json.loads(stream.readline(REPLY_MAX) or b"null")
    except TimeoutError:
        raise StatusError(f"{path}: no answer in time") from None
    except (OSError, ValueError) as error:
        raise StatusError(f"{path}: {error}") from None


def _answer_in(path: Path, command: str, reply: object) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise StatusError(f"{path}: no answer; the gateway has ended")
    if not reply.get("ok"):
        raise CommandError(str(reply.get("error")))
    answer: dict[str, Any] = reply[command]
    return answer
