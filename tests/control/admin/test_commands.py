"""Commands inside the gateway, on two real endpoints: what a NAME means, when a command is done, why it failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from control.admin.commands import IkeCommands
from control.admin.feed import BACKLOG, EventFeed
from control.admin.ike_report import build_ike
from control.admin.render_ike import render_ike
from control.admin.server import CommandError
from control.admin.steering import ChildTraffic, IkeControl
from control.ike.events import Noted
from control.ike.settings import Connection, EndpointSettings, PoolSettings
from control.ike.snapshot import IkeSnapshot
from tests.control.ike.pair import Pair, child, connection_a, connection_b, psk


class Control:
    """A's endpoint as the daemon would hold it: after every command the wire carries what it carries."""

    def __init__(self, pair: Pair, settings: EndpointSettings | None = None) -> None:
        self.pair = pair
        self.feed = EventFeed(clock=lambda: 1_700_000_000.0)
        self.settings = settings or EndpointSettings()
        self.connections: Mapping[str, Connection] = {
            connection.name: connection for connection in pair.a.endpoint.connections
        }
        self.pools: Sequence[PoolSettings] = ()
        self.settled = 0  # how often somebody waited for policies

    def now(self) -> float:
        return self.pair.now

    def snapshot(self, connection: str | None = None) -> Sequence[IkeSnapshot]:
        return self.pair.a.endpoint.snapshot(connection)

    def traffic(self) -> Mapping[int, ChildTraffic]:
        return {id: ChildTraffic(packets_in=7, bytes_in=700) for id in self.pair.a.children}

    def leases(self) -> Mapping[str, int]:
        return {}

    def datagrams(self) -> Mapping[str, int]:
        return {"received": 5, "cookies": 0, "unknown_spi": 2}

    async def policies_settled(self) -> None:
        self.settled += 1

    def initiate(self, connection: str, child: str | None) -> int:
        return self._then(self.pair.a.endpoint.initiate(connection, child, self.pair.now))

    def terminate_ike(self, ike: int) -> None:
        self._then(self.pair.a.endpoint.terminate_ike(ike, self.pair.now))

    def terminate_child(self, child: int) -> None:
        self._then(self.pair.a.endpoint.terminate_child(child, self.pair.now))

    def rekey_ike(self, ike: int) -> None:
        self._then(self.pair.a.endpoint.rekey_ike(ike, self.pair.now))

    def rekey_child(self, child: int) -> None:
        self._then(self.pair.a.endpoint.rekey_child(child, self.pair.now))

    def _then(self, result: Any) -> Any:
        asyncio.get_running_loop().call_soon(self._carry)
        return result

    def _carry(self) -> None:
        told = len(self.pair.a.log)
        self.pair.run(200.0)
        self.feed.publish(self.pair.a.log[told:])


CHILDREN = (child("net"), child("voice", "10.3.0.0/16", "10.4.0.0/16"))


def two_children() -> Pair:
    return Pair(a=connection_a(children=CHILDREN), b=connection_b(children=CHILDREN))


def scenario(pair: Pair, run: Callable[[IkeCommands, Control], Awaitable[None]], **rest: Any) -> None:
    """Run one with commands on A."""

    async def main() -> None:
        control = Control(pair, **rest)
        typed: IkeControl = control  # what commands need, and the test has, is the same
        await asyncio.wait_for(run(IkeCommands(typed), control), 20)

    asyncio.run(main())


async def texts(items: AsyncGenerator[Mapping[str, Any], None]) -> list[str]:
    return [str(item.get("text", item)) async for item in items]


async def refusal(items: AsyncGenerator[Mapping[str, Any], None]) -> str:
    with pytest.raises(CommandError) as caught:
        await texts(items)
    return str(caught.value)


def test_up_brings_up_every_child() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        lines = await texts(commands.up({"name": "a-b"}))
        assert [line for line in lines if "IKE SA established" in line]
        for name in ("net", "voice"):
            assert len([line for line in lines if f"child {name}{{" in line and "established" in line]) == 1
        control.pair.check_children(2)
        assert control.settled == 1
        assert await texts(commands.up({"name": "voice"})) == ["a-b: child voice is up already"]

    scenario(two_children(), run)


def test_up_of_one_child_and_down_of_it() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        await texts(commands.up({"name": "a-b/voice"}))
        control.pair.check_children(1)
        assert await refusal(commands.down({"name": "a-b/net"})) == (
            "a-b/net is not up; esplanade status shows what is"
        )
        lines = await texts(commands.down({"name": "voice"}))
        assert "closed by us" in lines[-1] and not control.pair.b.children
        # The IKE SA stands; a connection's name takes that down, too.
        lines = await texts(commands.down({"name": "a-b"}))
        assert "IKE SA gone: closed by us" in lines[-1] and not control.pair.b.ikes

    scenario(two_children(), run)


def test_up_says_why_not() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        message = await refusal(commands.up({"name": "a-b"}))
        assert "the peer refuses our authentication: we are 'a.example'" in message
        code = control.feed.last_errors()["a-b"][1].code
        assert code == "authentication_failed"
        (connection,) = build_ike(control)["connections"]
        assert connection["state"] == "down" and connection["last_error"]["code"] == code

    scenario(Pair(credentials_b=psk(b"another secret")), run)


def test_up_without_an_answer() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        assert "no answer from 192.0.2.2:500, sent 6 times" in await refusal(commands.up({"name": "a-b"}))

    pair = Pair()
    pair.wire.drop = lambda number, datagram: True
    scenario(pair, run)


def test_a_connection_without_children() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        lines = await texts(commands.up({"name": "a-b"}))
        assert "IKE SA established" in lines[-1]
        assert await texts(commands.up({"name": "a-b"})) == ["a-b is up already, and has no children"]
        assert build_ike(control)["connections"][0]["state"] == "up"

    scenario(Pair(a=connection_a(children=()), b=connection_b(children=())), run)


def test_nowhere_to_begin() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        message = await refusal(commands.up({"name": "a-b"}))
        assert message.startswith("a-b cannot be begun: ") and "remote_addrs" in message

    scenario(Pair(a=connection_a(remote_addresses=())), run)


def test_a_child_is_refused() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        message = await refusal(commands.up({"name": "a-b/voice"}))
        assert "traffic selectors unacceptable for child 'voice': we asked for 10.3.0.0/16" in message

    scenario(Pair(a=connection_a(children=CHILDREN), b=connection_b()), run)


def test_rekey() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        message = await refusal(commands.rekey({"name": "a-b"}))
        assert message == "a-b is not up; bring it up first: esplanade up a-b"
        await texts(commands.up({"name": "a-b"}))
        before = set(control.pair.a.children), set(control.pair.a.ikes)
        lines = await texts(commands.rekey({"name": "net"}))
        assert "instead of" in lines[-1] or "instead of" in lines[0]
        assert len(set(control.pair.a.children) & before[0]) == 1 and set(control.pair.a.ikes) == before[1]
        lines = await texts(commands.rekey({"name": "a-b", "what": "ike"}))
        assert "IKE SA rekeyed" in lines[-1] and not set(control.pair.a.ikes) & before[1]
        await texts(commands.rekey({"name": "a-b"}))
        control.pair.check_children(2)
        assert "want" in await refusal(commands.rekey({"name": "a-b", "what": "everything"}))

    scenario(two_children(), run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the name of a connection is missing"),
        ({"name": 3}, "the name of a connection is missing"),
        ({"name": "a-c"}, "there is no connection or child 'a-c'; did you mean \"a-b\"?; there are a-b, c-d"),
        ({"name": "a-b/voise"}, "connection a-b has no child 'voise'; it has net, voice"),
        ({"name": "net"}, "several connections have a child net; want a-b/net or c-d/net"),
    ],
)
def test_names_that_mean_nothing(arguments: dict[str, Any], message: str) -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        for command in (commands.up, commands.down, commands.rekey):
            assert await refusal(command(arguments)) == message

    first = connection_a(children=CHILDREN)
    scenario(Pair(a=(first, replace(first, name="c-d", children=CHILDREN[:1]))), run)


def test_log() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        await texts(commands.up({"name": "a-b"}))
        once = {"follow": False}
        everything = await texts(commands.log(once | {"last": 1000}))
        assert len(everything) == len(control.feed.last(1000)) > 1
        assert await texts(commands.log(once | {"last": 1})) == everything[-1:]
        assert await texts(commands.log(once | {"name": "a-b", "last": 1})) == everything[-1:]
        assert "no connection" in await refusal(commands.log({"name": "b-a"}))
        assert "want a number from 0" in await refusal(commands.log({"last": "many"}))
        # Following: a reader that falls behind is told how much it missed.
        items = commands.log({"last": 0})
        waiting = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        control.feed.publish([Noted(ike=1, connection="a-b", level="info", text="x")] * (BACKLOG + 3))
        assert (await waiting)["event"] == "lost" and "3 events lost" not in everything
        assert (await anext(items))["text"] == "a-b[1]: x"
        await items.aclose()

    scenario(two_children(), run)


def test_keys_only_where_they_are_allowed() -> None:
    async def run(commands: IkeCommands, control: Control) -> None:
        message = await refusal(commands.keys({"follow": False}))
        assert (
            "the configuration does not allow it; set [ike] export_keys = true, reload the gateway" in message
        )

    scenario(Pair(), run)

    async def allowed(commands: IkeCommands, control: Control) -> None:
        await texts(commands.up({"name": "a-b"}))
        items = [item async for item in commands.keys({"follow": False})]
        assert {item["table"] for item in items} == {"ikev2_decryption_table", "esp_sa"}
        following = commands.keys({})
        for item in items:
            assert await anext(following) == item
        waiting = asyncio.create_task(anext(following))
        await asyncio.sleep(0)
        await texts(commands.rekey({"name": "net"}))
        assert (await waiting)["table"] == "esp_sa"
        await following.aclose()

    settings = EndpointSettings(export_keys=True)
    scenario(Pair(settings_a=settings), allowed, settings=settings)


def test_status_of_ike() -> None:
    """The document, and its tables."""

    async def run(commands: IkeCommands, control: Control) -> None:
        assert build_ike(control)["connections"][0]["state"] == "down"
        await texts(commands.up({"name": "net"}))
        ike = build_ike(control)
        (connection,) = ike["connections"]
        assert connection["state"] == "partly up" and connection["last_error"] is None
        assert [each["up"] for each in connection["children"]] == [True, False]
        (sa,) = ike["ike_sas"]
        assert sa["remote"] == "192.0.2.2:4500" and sa["suite"] == "aes128gcm16-prfsha256-x25519"
        assert sa["established"] >= 0 and 0 < sa["rekey_in"] <= 14400
        (found,) = sa["children"]
        assert (found["local_ts"], found["remote_ts"]) == (["10.1.0.0/16"], ["10.2.0.0/16"])
        assert (found["packets_in"], found["bytes_in"], found["packets_out"]) == (7, 700, 0)
        lines = render_ike(ike).splitlines()
        assert lines[:2] == [
            "connection  state      peer       children",
            "a-b         partly up  192.0.2.2  net, voice (down)",
        ]
        assert "a-b[1]" in lines[4] and "b.example" in lines[4] and "aes128gcm16-prfsha256-x25519" in lines[4]
        assert "10.1.0.0/16 === 10.2.0.0/16" in lines[7] and "700 B" in lines[7]
        assert ike["datagrams"]["cookies"] == 0
        assert "ike datagrams: received 5, unknown_spi 2" in lines

    scenario(two_children(), run)
