"""Commands that stream: items as they happen, the end, errors, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from control.admin.server import CommandError, StatusError, StatusServer, follow


class Counting:
    """Streams whose beginning and end can be seen."""

    def __init__(self) -> None:
        self.open = 0
        self.ended = asyncio.Event()
        self.seen: list[Mapping[str, Any]] = []

    async def count(self, arguments: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        self.seen.append(arguments)
        self.open += 1
        try:
            for number in range(arguments.get("to", 3)):
                yield {"number": number}
                await asyncio.sleep(0)
            if arguments.get("fail"):
                raise CommandError("three is not enough")
            if arguments.get("bug"):
                raise RuntimeError("bug")
            if arguments.get("forever"):
                await asyncio.Event().wait()
        finally:
            self.open -= 1
            self.ended.set()


def serve(directory: Path, scenario: Callable[[StatusServer, Counting], Awaitable[None]]) -> None:
    async def main() -> None:
        counting = Counting()
        server = StatusServer(directory, {"status": dict}, {"count": counting.count})
        await server.start()
        try:
            await asyncio.wait_for(scenario(server, counting), 30)
        finally:
            await server.close()
        assert counting.open == 0

    asyncio.run(main())


def collect(path: Path, arguments: Mapping[str, Any]) -> list[Any]:
    return list(follow(path, "count", arguments, wait=20))


def test_items_and_end(tmp_path: Path) -> None:
    async def scenario(server: StatusServer, counting: Counting) -> None:
        items = await asyncio.to_thread(collect, server.path, {"to": 3})
        assert items == [{"number": 0}, {"number": 1}, {"number": 2}]
        with pytest.raises(CommandError, match=r"^three is not enough$"):
            await asyncio.to_thread(collect, server.path, {"fail": True})
        with pytest.raises(StatusError, match="internal error"):
            await asyncio.to_thread(collect, server.path, {"bug": True})
        assert counting.seen == [{"to": 3}, {"fail": True}, {"bug": True}]

    serve(tmp_path, scenario)


def test_one_connection_many_commands(tmp_path: Path) -> None:
    async def scenario(server: StatusServer, counting: Counting) -> None:
        reader, writer = await asyncio.open_unix_connection(server.path)
        for _ in range(2):
            writer.write(b'{"command": "count", "arguments": {"to": 1}}\n')
            assert json.loads(await reader.readline()) == {"item": {"number": 0}}
            assert json.loads(await reader.readline()) == {"ok": True, "count": {}}
        writer.write(b'{"command": "count", "arguments": [1]}\n')
        assert "arguments are no object" in json.loads(await reader.readline())["error"]
        writer.close()

    serve(tmp_path, scenario)


def test_a_client_that_goes_ends_its_stream(tmp_path: Path) -> None:
    async def scenario(server: StatusServer, counting: Counting) -> None:
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(b'{"command": "count", "arguments": {"to": 1, "forever": true}}\n')
        await reader.readline()
        assert counting.open == 1
        writer.close()
        await counting.ended.wait()
        assert counting.open == 0

    serve(tmp_path, scenario)


def test_a_server_that_stops_ends_streams(tmp_path: Path) -> None:
    async def scenario(server: StatusServer, counting: Counting) -> None:
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(b'{"command": "count", "arguments": {"to": 1, "forever": true}}\n')
        await reader.readline()
        await server.close()
        assert counting.open == 0
        writer.close()

    serve(tmp_path, scenario)
