"""What IPsec knows and this gateway has not is refused by its name, with what was got and what there is instead."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from control.config import ConfigError, parse
from control.config.unsupported import (
    AUTHENTICATION,
    AUTHORITY,
    CERTIFICATE,
    CHILD,
    CONNECTION,
    MODES,
    POLICY,
    POOL,
    PROTOCOLS,
    SA,
    SECRETS,
    SIDE,
    Unsupported,
)
from control.ike.keywords import GROUPS, KEYWORDS, REFUSED
from control.ike.numbers import Protocol
from control.ike.proposal import parse_proposal
from tests.control.config.good import GOOD
from tests.control.config.good import problems as problems_of

#: What a fresh installation of strongSwan's swanctl has, every key in a comment.
SWANCTL = Path("/etc/swanctl/swanctl.conf")

WHOLE: dict[str, Any] = tomllib.loads("""
    [connections.c]
    remote_addrs = "198.51.100.1"
    local = { auth = "psk" }
    remote = { auth = "psk" }
    [connections.c.children.net]
    remote_ts = "10.2.0.0/24"
    [secrets.us]
    secret = "correct horse battery staple"
    [certificates.gw]
    certificate = "gw.pem"
    [authorities.house]
    certificate = "ca.pem"
    [pools.clients]
    addrs = "10.9.0.0/24"
    """)
AH = {"protocol": "ah", "proposal": "sha256-esn", "integrity_key": "56" * 32, "encryption_key": None}
#: Where the keys of each table belong, and how an error names that place.
SECTIONS: dict[str, tuple[Mapping[str, Unsupported], str, str]] = {
    "connection": (CONNECTION, "connections.c", ""),
    "local": (SIDE, "connections.c.local", ""),
    "remote": (SIDE, "connections.c.remote", ""),
    "child": (CHILD, "connections.c.children.net", ""),
    "certificate": (CERTIFICATE, "certificates.gw", ""),
    "authority": (AUTHORITY, "authorities.house", ""),
    "pool": (POOL, "pools.clients", ""),
    "sa": (SA, "sa.0", ' ("ab")'),
    "policy": (POLICY, "policy.0", ' ("sites")'),
}


def written(values: Mapping[str, Any]) -> str:
    """The name that errors give a table of `values`, behind its path."""
    return f' ("{values["name"]}")' if "name" in values else ""


def place(path: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A good document, the table at `path` in it, and how errors name that table."""
    document = copy.deepcopy(GOOD if path.startswith(("sa.", "policy.")) else WHOLE)
    table: Any = document
    shown = ""
    for word in path.split("."):
        table = table[int(word) if word.isdigit() else word]
        shown += f"[{word}]" if word.isdigit() else f".{word}" if shown else word
    return document, table, shown


def problems(document: Mapping[str, Any]) -> list[str]:
    """What is wrong, without the name of the file."""
    try:
        parse(document)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_the_documents_are_good() -> None:
    """Whatever is refused below is refused for the one thing that is added."""
    assert not problems(WHOLE) and not problems(GOOD)


KEYS = [(section, key) for section, (table, _, _) in SECTIONS.items() for key in table]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section}-{key}" for section, key in KEYS])
def test_keys(section: str, key: str) -> None:
    """Each key by itself: one problem, at that key, with the value and the reason; what asks for nothing is taken."""
    table, path, _ = SECTIONS[section]
    document, target, shown = place(path)
    target[key] = "something"
    want = f"{shown}.{key}{written(target)}: got 'something', and {table[key].why}"
    assert problems(document) == [want]
    assert re.search("; want ", want), "an error says what is there instead"
    for value in table[key].taken:
        target[key] = value
        assert not problems(document), value


WORDS = [
    *(("sa.0", "mode", word, why) for word, why in MODES.items()),
    *(("connections.c.children.net", "mode", word, why) for word, why in MODES.items()),
    *(("sa.0", "protocol", word, why) for word, why in PROTOCOLS.items()),
    *(("connections.c.local", "auth", word, why) for word, why in AUTHENTICATION.items()),
    *(("connections.c.remote", "auth", word, why) for word, why in AUTHENTICATION.items()),
    *(("secrets.us", "type", word, why) for word, why in SECRETS.items()),
]


@pytest.mark.parametrize(("path", "key", "word", "why"), WORDS, ids=["-".join(each[:3]) for each in WORDS])
def test_words(path: str, key: str, word: str, why: str) -> None:
    """Each word that others have as a value: what was got, the reason, and the words that there are."""
    document, target, shown = place(path)
    target[key] = word
    (line,) = [each for each in problems(document) if each.startswith(f"{shown}.{key}")]
    assert line.startswith(f"{shown}.{key}{written(target)}: got '{word}', {why}; want ")


#: What is told by value, or by what stands together: path, what is written, the key that is named, what is said.
TOLD: list[tuple[str, dict[str, Any], str, str]] = [
    ("connections.c", {"version": 1}, "version", "got 1, and only IKEv2 (RFC 7296) is supported"),
    ("connections.c", {"encap": "tcp"}, "encap", "got 'tcp', and IKE and ESP over TCP (RFC 9329) are not"),
    (
        "connections.c",
        {"local2": {"auth": "psk"}},
        "local2",
        "is a further round of authentication (RFC 4739)",
    ),
    (
        "connections.c",
        {"remote-eap": {"auth": "eap"}},
        "remote-eap",
        "is a further round of authentication (RFC 4739)",
    ),
    (
        "connections.c",
        {"remote_addrs": "224.0.0.18"},
        "remote_addrs",
        "got '224.0.0.18', which is a group's, and SAs of groups (RFC 5374) are not supported; want an address",
    ),
    (
        "connections.c",
        {"local_addrs": ["ff02::/16"]},
        "local_addrs[0]",
        "got 'ff02::/16', which is a group's, and SAs of groups (RFC 5374) are not supported; want an address",
    ),
    (
        "connections.c.children.net",
        {"local_ts": "jo@example.org"},
        "local_ts",
        "got 'jo@example.org', which is a name, and selectors by name (RFC 4301 section 4.4.1.1) are not supported",
    ),
    (
        "connections.c.children.net",
        {"local_ts": "10.1.0.0/16[mh/5]"},
        "local_ts",
        "got '10.1.0.0/16[mh/5]', whose protocol is mh, whose message types (RFC 4301 section 4.4.1.1) cannot be",
    ),
    (
        "connections.c.children.net",
        {"ah_proposals": "sha256", "tfc_padding": 1000},
        "tfc_padding",
        "has no meaning with ah_proposals: AH hides nothing",
    ),
    (
        "connections.c.children.net",
        {"ah_proposals": "sha256", "tfc_dummies": 1},
        "tfc_dummies",
        "has no meaning with ah_proposals: AH hides nothing",
    ),
    (
        "sa.0",
        {"encap": "tcp"},
        "encap",
        "got 'tcp', and IKE and ESP over TCP (RFC 9329) are not supported; want true",
    ),
    (
        "sa.0",
        {"remote": "239.1.1.1"},
        "remote",
        "got '239.1.1.1', which is a group's, and SAs of groups (RFC 5374)",
    ),
    (
        "sa.0",
        {"local": "ff15::1"},
        "local",
        "got 'ff15::1', which is a group's, and SAs of groups (RFC 5374) are not",
    ),
    ("sa.0", {"remote": "0.0.0.0"}, "remote", "got '0.0.0.0', which is no host's address; want one"),
    (
        "sa.0",
        {"remote": "255.255.255.255"},
        "remote",
        "got '255.255.255.255', which is no host's address; want one",
    ),
    (
        "sa.0",
        {**AH, "encap": True},
        "encap",
        "has no place with AH, which protects the very addresses that NAT changes",
    ),
    (
        "sa.0",
        {**AH, "tfc_padding": "mtu"},
        "tfc_padding",
        'has no meaning with protocol = "ah", which hides nothing',
    ),
    (
        "sa.0",
        {**AH, "tfc_dummies": 1},
        "tfc_dummies",
        'has no meaning with protocol = "ah", which hides nothing',
    ),
    (
        "sa.0",
        {**AH, "proposal": "aes128-sha256"},
        "proposal",
        "got 'aes128-sha256', but 'aes128' is a cipher, and AH",
    ),
    (
        "sa.0",
        {"proposal": "aes128gcm16-esn", "replay_window": 0},
        "replay_window",
        "got 0 (off), which extended sequence numbers cannot do without; want 64 to 4096",
    ),
    ("sa.0", {"replay_window": 8192}, "replay_window", "got 8192, want a number from 0 to 4096 (numbers)"),
    (
        "sa.0",
        {"proposal": "aes128"},
        "proposal",
        "got 'aes128', which has no integrity; want it followed by -sha256",
    ),
    (
        "sa.0",
        {"proposal": "aes128-null"},
        "proposal",
        "got 'aes128-null', whose null takes the place of integrity, which there must be; want -sha256 there",
    ),
    (
        "sa.0",
        {"proposal": "null-null"},
        "proposal",
        "got 'null-null', whose null takes the place of integrity, which there must be; want -sha256 there",
    ),
    (
        "policy.0",
        {"remote": "host.example.org"},
        "remote",
        "got 'host.example.org', which is a name, and selectors by name (RFC 4301 section 4.4.1.1) are not supported",
    ),
    (
        "policy.0",
        {"protocol": "mh", "local_port": 5},
        "local_port",
        "got protocol 135, whose message types (RFC 4301 section 4.4.1.1) cannot be selected",
    ),
]


@pytest.mark.parametrize(
    ("path", "more", "key", "says"),
    TOLD,
    ids=[f"{path}-{key}-{at}" for at, (path, _, key, _) in enumerate(TOLD)],
)
def test_told(path: str, more: dict[str, Any], key: str, says: str) -> None:
    """Values and combinations."""
    document, target, shown = place(path)
    target.update(more)
    for absent in [name for name, value in target.items() if value is None]:
        del target[absent]
    lines = [line for line in problems(document) if line.startswith(f"{shown}.{key}{written(target)}: ")]
    assert len(lines) == 1 and says in lines[0], problems(document)


@pytest.mark.parametrize("word", REFUSED)
def test_algorithms(word: str) -> None:
    """What RFC 8221 and RFC 8247 forbid, or nobody needs, is refused by name wherever it may stand."""
    assert word not in KEYWORDS
    whole = f"{word}-aes128-sha256-x25519"
    for protocol in (Protocol.IKE, Protocol.ESP, Protocol.AH):
        with pytest.raises(ValueError, match=rf"^but {word} {re.escape(REFUSED[word])}$"):
            parse_proposal(protocol, whole)
    instead = re.search(r"; use ((?:\S+, )?\S+(?: or \S+)?)$", REFUSED[word])
    assert instead, "an error says what to use"
    for other in re.split(r", | or ", instead[1]):
        assert other.removeprefix("ke1_") in (*KEYWORDS, *GROUPS), other
    values = copy.deepcopy(GOOD)
    values["sa"][0]["proposal"] = word
    assert f"x.toml: sa[0].proposal (\"ab\"): got '{word}', but {word} {REFUSED[word]}" in problems_of(values)


def test_what_rfc_8221_forbids() -> None:
    """MUST NOT in sections 5 and 6, by the names that strongSwan or the registry has."""
    for word in ("des_iv64", "des", "3des", "rc5", "idea", "cast", "blowfish", "3idea", "des_iv32"):
        assert "broken" in REFUSED[word]
    for word in ("md5", "des_mac", "kpdk_md5"):
        assert "broken" in REFUSED[word]


def keys_of_swanctl() -> Iterator[tuple[str, str]]:
    """Every key of swanctl.conf(5) that has a section here, with that section."""
    where: list[str] = []
    sections = {
        ("connections", "<conn>"): "connection",
        ("connections", "<conn>", "local<suffix>"): "local",
        ("connections", "<conn>", "remote<suffix>"): "remote",
        ("connections", "<conn>", "children", "<child>"): "child",
        ("authorities", "<name>"): "authority",
    }
    for line in SWANCTL.read_text().splitlines():
        text = line.strip().lstrip("# ")
        if re.fullmatch(r"[\w<>]+ \{", text):
            where.append(text[:-2])
        elif text == "}":
            where.pop()
        elif (key := re.fullmatch(r"([a-z][a-z0-9_]*) =.*", text)) and tuple(where) in sections:
            yield sections[tuple(where)], key[1]


def test_all_of_swanctl() -> None:
    """Whatever swanctl.conf has for a connection is a key here, or refused by name; nothing of it is unknown."""
    found = list(keys_of_swanctl())
    assert len(found) > 90 and {section for section, _ in found} == {
        *("connection", "local", "remote", "child", "authority"),
    }
    for section, key in found:
        document, target, shown = place(SECTIONS[section][1])
        target[key] = object()
        assert not [line for line in problems(document) if "is not a known key" in line], (shown, key)
