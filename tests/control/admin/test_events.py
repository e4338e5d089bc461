"""Events as text, as JSON and as a feed: one line each, no key in any, and a slow follower costs nobody anything."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from control.admin.events import as_dict, describe, format_selector, level
from control.admin.feed import BACKLOG, EventFeed
from control.ike import events
from control.ike.defaults import default_proposals
from control.ike.events import (
    ChildClosed,
    ChildEstablished,
    ChildFailed,
    ChildOutboundReady,
    ChildSa,
    ChildWanted,
    Closed,
    Event,
    Failure,
    IkeClosed,
    IkeEstablished,
    IkeFailed,
    IkeRekeyed,
    KeysExported,
    Noted,
    PathChanged,
    PeerPath,
    VirtualAddressesAssigned,
)
from control.ike.numbers import Protocol
from control.ike.settings import ChildSettings, TrafficSelector
from dataplane.model import Cipher, EspProposal, Mode

PATH = PeerPath(
    local=ip_address("192.0.2.1"), local_port=4500, remote=ip_address("2001:db8::2"), remote_port=4501
)
SETTINGS = ChildSettings(name="net", proposals=default_proposals(Protocol.ESP))
LOCAL = TrafficSelector(first=ip_address("10.1.0.0"), last=ip_address("10.1.0.255"))
REMOTE = TrafficSelector(
    first=ip_address("10.2.0.9"), last=ip_address("10.2.0.9"), protocol=6, ports=(80, 81)
)
CHILD = ChildSa(
    id=7,
    ike=3,
    connection="branch",
    settings=SETTINGS,
    mode=Mode.TUNNEL,
    suite=EspProposal(cipher=Cipher.AES_GCM, key_bits=128),
    suite_name="aes128gcm16-x25519",
    spi_in=0xC0FFEE01,
    spi_out=0xBAD,
    encryption_key_in=b"inbound-key-of-20-by",
    encryption_key_out=b"outbound-key-of-20-b",
    local_selectors=(LOCAL,),
    remote_selectors=(REMOTE,),
    path=PATH,
    encapsulated=True,
    established=1.0,
    rekey_at=2.0,
    expires_at=3.0,
)
FAILURE = Failure(code="peer_silent", text="no answer to 6 messages", advice="is UDP 500 open?")
ABOUT = {"ike": 3, "connection": "branch"}

TEXTS: list[tuple[Event, int, str]] = [
    (
        IkeEstablished(
            **ABOUT,  # type: ignore[arg-type]
            path=PATH,
            local_id="gw-a",
            remote_id="gw-b",
            suite_name="aes256gcm16-prfsha384-x25519",
            initiator=True,
            eap_identity="jo",
        ),
        logging.INFO,
        "branch[3]: IKE SA established with 'gw-b' as 'jo', we are 'gw-a' (initiator), "
        "192.0.2.1:4500 - [2001:db8::2]:4501, aes256gcm16-prfsha384-x25519",
    ),
    (
        IkeRekeyed(**ABOUT, new=4, suite_name="x"),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: IKE SA rekeyed, goes on as [4], x",
    ),
    (
        IkeClosed(**ABOUT, why=Closed.PEER),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: IKE SA gone: closed by the peer",
    ),
    (
        IkeClosed(**ABOUT, why=Closed.PEER_DEAD, failure=FAILURE),  # type: ignore[arg-type]
        logging.WARNING,
        "branch[3]: IKE SA gone: the peer is silent: no answer to 6 messages; is UDP 500 open?",
    ),
    (
        IkeFailed(ike=3, connection="", path=PATH, failure=FAILURE),
        logging.WARNING,
        "unknown connection[3]: no IKE SA over 192.0.2.1:4500 - [2001:db8::2]:4501: "
        "no answer to 6 messages; is UDP 500 open?",
    ),
    (
        ChildEstablished(**ABOUT, child=CHILD, outbound=True, replaces=6),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: child net{7} established, tunnel in UDP, aes128gcm16-x25519, SPIs c0ffee01 in 00000bad out, "
        "10.1.0.0/24 === 10.2.0.9/32[tcp/80-81], instead of {6}",
    ),
    (
        ChildOutboundReady(**ABOUT, child=7),  # type: ignore[arg-type]
        logging.DEBUG,
        "branch[3]: child {7} is sent through from now on",
    ),
    (
        ChildClosed(**ABOUT, child=6, name="net", why=Closed.REPLACED, replaced_by=7),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: child net{6} gone: replaced by {7}",
    ),
    (
        ChildFailed(**ABOUT, name="net", failure=FAILURE),  # type: ignore[arg-type]
        logging.WARNING,
        "branch[3]: no child net: no answer to 6 messages; is UDP 500 open?",
    ),
    (
        ChildWanted(**ABOUT, name="net", reason="no address of ours"),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: child net comes back when it can: no address of ours",
    ),
    (
        PathChanged(**ABOUT, path=PATH, encapsulated=True),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: path is 192.0.2.1:4500 - [2001:db8::2]:4501 now, ESP in UDP",
    ),
    (
        VirtualAddressesAssigned(
            **ABOUT,  # type: ignore[arg-type]
            addresses=(ip_address("10.9.0.1"),),
            dns=(ip_address("10.0.0.53"),),
            domains=("corp.example",),
            networks=(ip_network("10.0.0.0/8"),),
        ),
        logging.INFO,
        "branch[3]: the peer lent us 10.9.0.1, DNS 10.0.0.53 for corp.example, networks 10.0.0.0/8",
    ),
    (
        KeysExported(**ABOUT, table="esp_sa", line="5ec2e7"),  # type: ignore[arg-type]
        logging.INFO,
        "branch[3]: keys exported for esp_sa",
    ),
    (
        Noted(**ABOUT, level="debug", text="sent again"),  # type: ignore[arg-type]
        logging.DEBUG,
        "branch[3]: sent again",
    ),
]


@pytest.mark.parametrize(("event", "expected", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_texts(event: Event, expected: int, text: str) -> None:
    assert describe(event) == text and level(event) == expected
    document = json.loads(json.dumps(as_dict(event)))
    assert document["text"] == text and document["ike"] == 3
    shown = repr(document) + repr(event)
    assert "5ec2e7" not in shown and "key-of-20" not in shown


def test_every_event_has_a_text() -> None:
    known = {type(event) for event, _, _ in TEXTS}
    kinds = {each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)}
    assert kinds - {Event} == known


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (TrafficSelector(), "dynamic"),
        (TrafficSelector(protocol=17, ports=(1701, 1701)), "dynamic[udp/1701]"),
        (TrafficSelector(network=ip_network("::/0"), ports=(65535, 0), protocol=6), "::/0[tcp/opaque]"),
        (TrafficSelector(first=ip_address("10.0.0.1"), last=ip_address("10.0.0.2")), "10.0.0.1-10.0.0.2"),
        (TrafficSelector(first=ip_address("::"), last=ip_address("::3")), "::/126"),
        (TrafficSelector(network=ip_network("10.0.0.0/8"), protocol=47), "10.0.0.0/8[47]"),
    ],
)
def test_selectors(selector: TrafficSelector, text: str) -> None:
    assert format_selector(selector) == text


def test_feed_remembers_and_follows() -> None:
    async def main() -> None:
        feed = EventFeed(clock=lambda: 5.0)
        feed.publish([IkeFailed(ike=1, connection="branch", path=PATH, failure=FAILURE)])
        assert feed.last_errors() == {"branch": (5.0, FAILURE)}
        with feed.follow() as follower:
            feed.publish(
                [TEXTS[0][0], KeysExported(ike=3, connection="branch", table="esp_sa", line="secret")]
            )
            record = await follower.next()
            assert record.as_dict()["event"] == "ike_established" and record.time == 5.0
            # Established again: the old error is no news.
            assert feed.last_errors() == {}
            feed.publish([TEXTS[-1][0]] * (BACKLOG + 5))
            assert follower.lost == 6
        assert [key.line for key in feed.exported_keys()] == ["secret"]
        assert len(feed.last(3)) == 3 and feed.last(0) == []
        assert len(feed.last(10**6)) == 1000

    asyncio.run(main())


def test_an_open_child_error_outlives_nothing() -> None:
    """The last error goes when the connection is established, not when another connection is."""
    feed = EventFeed(clock=lambda: 1.0)
    feed.publish([ChildFailed(ike=3, connection="branch", name="net", failure=FAILURE)])
    established = TEXTS[0][0]
    feed.publish([replace(established, connection="other")])
    assert list(feed.last_errors()) == ["branch"]
