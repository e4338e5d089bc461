"""Misconfigurations: two gateways from their configuration files, one thing wrong, and the exact line of each side.

A refusal states both sides' view and the next step on the side that refuses; the other side says what it asked for
and where to look, because that is all that the protocol tells it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.admin.events import describe, level
from control.config import parse
from control.ike.events import Event, IkeEstablished
from control.ike.identity import Identity
from control.ike.pools import Pools
from control.pki.load import load_credentials
from control.pki.make import issue, make_authority
from tests.control.ike.pair import ADDRESS_B, Pair, Wire

A = """
[connections.a-b]
local_addrs = "192.0.2.1"
remote_addrs = "192.0.2.2"
local.id = "a.example"
remote.id = "b.example"
psk = "correct horse battery staple"
proposals = "aes256gcm16-prfsha384-x25519"
local_ts = "10.1.0.0/16"
remote_ts = "10.2.0.0/16"
esp_proposals = "aes256gcm16-x25519"
start_action = "none"
"""
B = """
[connections.b-a]
local_addrs = "192.0.2.2"
remote_addrs = "192.0.2.1"
local.id = "b.example"
remote.id = "a.example"
psk = "correct horse battery staple"
proposals = "aes256gcm16-prfsha384-x25519"
local_ts = "10.2.0.0/16"
remote_ts = "10.1.0.0/16"
esp_proposals = "aes256gcm16-x25519"
start_action = "none"
"""
IKE = "aes256gcm16-prfsha384-x25519"
WAY_A, WAY_B = "192.0.2.1:500 - 192.0.2.2:500", "192.0.2.2:500 - 192.0.2.1:500"
FLOATED_A, FLOATED_B = WAY_A.replace(":500", ":4500"), WAY_B.replace(":500", ":4500")
REFUSED = (
    f"a-b[1]: no IKE SA over {FLOATED_A}: the peer refuses our authentication: we are 'a.example' by psk and want "
    "it to be 'b.example'; compare identities and secrets or certificates: the peer's log has its view"
)


def changed(text: str, *changes: tuple[str, str]) -> str:
    """A configuration with some words replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def gateways(a: str, b: str, wire: Wire | None = None) -> Pair:
    """Two endpoints, made of their configuration files alone."""
    ours, theirs = parse(tomllib.loads(a)).ike, parse(tomllib.loads(b)).ike
    return Pair(
        a=ours.connections,
        b=theirs.connections,
        credentials_a=load_credentials(ours.credentials),
        credentials_b=load_credentials(theirs.credentials),
        settings_a=ours.settings,
        settings_b=theirs.settings,
        pools_b=Pools(theirs.pools),
        wire=wire,
    )


def warnings(log: list[Event]) -> list[str]:
    """The lines that an operator must see."""
    return [describe(event) for event in log if level(event) >= 30]


def outcome(pair: Pair, seconds: float = 400.0) -> tuple[list[str], list[str]]:
    """What both sides print when A begins, beside the ordinary."""
    pair.initiate(pair.a.endpoint.connections[0].children[0].name)
    pair.run(seconds)
    return warnings(pair.a.log), warnings(pair.b.log)


def test_nothing_is_wrong() -> None:
    pair = gateways(A, B)
    assert outcome(pair, 5.0) == ([], [])
    pair.check_children()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is wrong on either side, and what each of them says about it."""

    name: str
    a: tuple[tuple[str, str], ...] = ()
    b: tuple[tuple[str, str], ...] = ()
    says_a: str
    says_b: str
    stands: bool = False  # the IKE SA does come about


def ike_proposal(name: str, a: str, b: str, difference: str, advice: str) -> Case:
    """IKE proposals that do not fit, as B refuses them."""
    return Case(
        name=name,
        a=((IKE, a),),
        b=((IKE, b),),
        says_a=f"a-b[1]: no IKE SA over {WAY_A}: the peer accepts none of our IKE proposals: we offer {a}; "
        "compare with the peer's proposals, or its addresses: its log has what it accepts",
        says_b=f"b-a[2]: no IKE SA over {WAY_B}: no proposal chosen: the peer offers 1: {a}; connection 'b-a' "
        f"accepts {b}; in 1 {difference}; give both sides a common {advice}, e.g. {b} on the peer",
    )


def esp_proposal(name: str, a: str, b: str, difference: str, advice: str) -> Case:
    """ESP proposals that do not fit: the IKE SA comes about without a child."""
    return Case(
        name=name,
        a=(("aes256gcm16-x25519", a),) if a != "aes256gcm16-x25519" else (),
        b=(("aes256gcm16-x25519", b),),
        stands=True,
        says_a=f"a-b[1]: no child a-b: no proposal chosen for child 'a-b': we offered {a} and the peer accepts "
        "none of these; see the peer's log for what it accepts, and make the esp_proposals of both sides overlap",
        says_b=f"b-a[1]: no child SA: no proposal chosen: the peer offers 1: {a}; child 'b-a' of connection 'b-a' "
        f"accepts {b}; in 1 {difference}; give both sides a common {advice}, e.g. {b} on the peer",
    )


def selectors(name: str, a: str, b: str, asked: str, allowed: str, differs: str, advice: str) -> Case:
    """Selectors that have nothing in common. A's remote side and B's local side are replaced."""
    return Case(
        name=name,
        a=(("10.2.0.0/16", a),),
        b=(("10.2.0.0/16", b),),
        stands=True,
        says_a=f"a-b[1]: no child a-b: traffic selectors unacceptable for child 'a-b': we asked for 10.1.0.0/16 === "
        f"{a} and the peer allows none of it; see the peer's log for what it allows; local_ts and remote_ts of both "
        "sides must mirror each other",
        says_b=f"b-a[1]: no child SA: traffic selectors unacceptable: the peer asks for {asked}; child 'b-a' of "
        f"connection 'b-a' allows {allowed} (ours === the peer's); {differs}; {advice}",
    )


CASES = [
    Case(
        name="another preshared key",
        b=(("staple", "stable"),),
        says_a=REFUSED,
        says_b=f"b-a[1]: no IKE SA over {FLOATED_B}: the preshared key of 'a.example' is not the one that we have for "
        "it and 'b.example'; compare the secrets of both sides",
    ),
    Case(
        name="no preshared key for this peer",
        b=(
            ('psk = "correct horse battery staple"\n', ""),
            (
                'start_action = "none"\n',
                'start_action = "none"\n[secrets]\n"z.example" = "something else entirely"\n',
            ),
        ),
        says_a=REFUSED,
        says_b=f"b-a[1]: no IKE SA over {FLOATED_B}: no preshared key for b.example (us) and a.example (the peer): the "
        "keys are for z.example; add a secret for one of these identities on this side",
    ),
    Case(
        name="our identity is unknown there",
        a=(('local.id = "a.example"', 'local.id = "z.example"'),),
        says_a=REFUSED.replace("we are 'a.example'", "we are 'z.example'"),
        says_b=f"b-a[1]: no IKE SA over {FLOATED_B}: the peer is 'z.example' by psk, asks for 'b.example'; connection "
        "'b-a' wants 'a.example' by psk and is 'b.example'; make the identities and authentication methods of both "
        "sides the same",
    ),
    Case(
        name="the peer is somebody else",
        b=(('local.id = "b.example"', 'local.id = "c.example"'),),
        says_a=REFUSED,
        says_b=f"b-a[1]: no IKE SA over {FLOATED_B}: the peer is 'a.example' by psk, asks for 'b.example'; connection "
        "'b-a' wants 'a.example' by psk and is 'c.example'; make the identities and authentication methods of both "
        "sides the same",
    ),
    ike_proposal(
        "IKE encryption",
        IKE,
        "aes128gcm16-prfsha384-x25519",
        "encryption differs (offered aes256gcm16; accepted aes128gcm16)",
        "encryption",
    ),
    ike_proposal(
        "IKE integrity",
        "aes256-sha384-x25519",
        "aes256-prfsha384-sha256-x25519",
        "integrity differs (offered sha384; accepted sha256)",
        "integrity",
    ),
    ike_proposal(
        "IKE pseudorandom function",
        IKE,
        "aes256gcm16-prfsha256-x25519",
        "pseudorandom function differs (offered prfsha384; accepted prfsha256)",
        "pseudorandom function",
    ),
    ike_proposal(
        "IKE key exchange",
        IKE,
        "aes256gcm16-prfsha384-ecp384",
        "key exchange differs (offered x25519; accepted ecp384)",
        "key exchange",
    ),
    ike_proposal(
        "IKE additional key exchange",
        IKE,
        f"{IKE}-ke1_mlkem768",
        "additional key exchange 1 differs (offered none; accepted ke1_mlkem768)",
        "additional key exchange 1",
    ),
    esp_proposal(
        "ESP encryption",
        "aes256gcm16",
        "aes128gcm16",
        "encryption differs (offered aes256gcm16; accepted aes128gcm16)",
        "encryption",
    ),
    esp_proposal(
        "ESP integrity",
        "aes256-sha256",
        "aes256-sha512",
        "integrity differs (offered sha256; accepted sha512)",
        "integrity",
    ),
    esp_proposal(
        "ESP sequence numbers",
        "aes256gcm16-esn",
        "aes256gcm16",
        "length of sequence numbers differs (offered esn; accepted noesn)",
        "length of sequence numbers",
    ),
    selectors(
        "another network",
        "10.2.0.0/16",
        "10.3.0.0/16",
        "10.2.0.0/16 === 10.1.0.0/16",
        "10.3.0.0/16 === 10.1.0.0/16",
        "our side differs",
        "set the peer's local_ts to 10.1.0.0/16 and its remote_ts to 10.3.0.0/16",
    ),
    selectors(
        "another protocol",
        "10.2.0.0/16[tcp/443]",
        "10.2.0.0/16[udp/53]",
        "10.2.0.0/16[tcp/443] === 10.1.0.0/16",
        "10.2.0.0/16[udp/53] === 10.1.0.0/16",
        "our side differs",
        "set the peer's local_ts to 10.1.0.0/16 and its remote_ts to 10.2.0.0/16[udp/53]",
    ),
    Case(
        name="no connection for this address",
        b=(('remote_addrs = "192.0.2.1"', 'remote_addrs = "192.0.2.77"'),),
        says_a=f"a-b[1]: no IKE SA over {WAY_A}: the peer accepts none of our IKE proposals: we offer {IKE}; "
        "compare with the peer's proposals, or its addresses: its log has what it accepts",
        says_b=f"unknown connection[1]: no IKE SA over {WAY_B}: no connection is configured for 192.0.2.2 (us) and "
        "192.0.2.1 (the peer); check local_addrs and remote_addrs of the connections",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_say_what_differs(case: Case) -> None:
    pair = gateways(changed(A, *case.a), changed(B, *case.b))
    assert outcome(pair) == ([case.says_a], [case.says_b])
    assert bool(pair.a.of(IkeEstablished)) is bool(pair.b.of(IkeEstablished)) is case.stands
    assert not pair.a.children and not pair.b.children


@pytest.mark.parametrize(
    ("port", "way", "floated"), [(500, WAY_A, False), (4500, FLOATED_A, True)], ids=["500", "4500"]
)
def test_a_blocked_port(port: int, way: str, floated: bool) -> None:
    """Nothing comes through to one UDP port: whom we asked, how often, and for how long."""
    pair = gateways(A, B, Wire(drop=lambda _, datagram: datagram.path.remote_port == port))
    ours, theirs = outcome(pair)
    peer = f"192.0.2.2:{port}"
    assert ours == [
        f"a-b[1]: no IKE SA over {way}: no answer from {peer}, sent 6 times in 165 s from 192.0.2.1:{port}; "
        "check that UDP 500 and 4500 are open between the two, and that the peer runs"
    ]
    if floated:
        assert theirs == [
            f"b-a[1]: no IKE SA over {WAY_B}: 192.0.2.1 began, but did not finish within 30 s; see the peer's log"
        ]
    else:
        assert theirs == []


def test_another_way_to_authenticate(tmp_path: Path) -> None:
    """A has a preshared key, and B wants to see a certificate."""
    (tmp_path / "ca.pem").write_bytes(make_authority("CN=Example CA").certificate.public_bytes(Encoding.PEM))
    wanted = f'remote = {{ id = "a.example", auth = "pubkey", cacerts = "{tmp_path}/ca.pem" }}'
    ours, theirs = outcome(gateways(A, changed(B, ('remote.id = "a.example"', wanted))))
    assert ours == [REFUSED]
    assert theirs == [
        f"b-a[1]: no IKE SA over {FLOATED_B}: the peer is 'a.example' by psk, asks for 'b.example'; connection 'b-a' "
        "wants 'a.example' by pubkey and is 'b.example'; make the identities and authentication methods of both sides "
        "the same"
    ]


@pytest.mark.parametrize(
    ("accepted", "shown"), [("aes256gcm16-ecp384", "ecp384"), ("aes256gcm16", "none")], ids=["other", "none"]
)
def test_forward_secrecy_is_missed_when_rekeying(accepted: str, shown: str) -> None:
    """IKE_AUTH has no key exchange for its child, so this mistake is only seen later; the child goes on."""
    pair = gateways(A, changed(B, ("aes256gcm16-x25519", accepted)))
    assert outcome(pair, 5.0) == ([], [])
    [child] = pair.a.children
    pair.a.endpoint.rekey_child(child, pair.now)
    pair.run(20.0)
    assert warnings(pair.a.log) == [
        "a-b[1]: no child a-b: child 'a-b' could not be rekeyed: we offered aes256gcm16-x25519 and the peer answered "
        "NO_PROPOSAL_CHOSEN; the old one goes on until it expires; make esp_proposals of both sides overlap, key "
        "exchange methods included; they count from a rekeying on"
    ]
    assert warnings(pair.b.log) == [
        "b-a[1]: CREATE_CHILD_SA refused: no proposal chosen: the peer offers 1: aes256gcm16-x25519; child 'b-a' of "
        f"connection 'b-a' accepts {accepted}; in 1 key exchange differs (offered x25519; accepted {shown}); give both "
        f"sides a common key exchange, e.g. {accepted} on the peer"
    ]
    pair.check_children()


PPK = '[secrets]\np = { type = "ppk", id = "p", secret = "0x000102030405060708090a0b0c0d0e0f" }\n'
REQUIRED = ("psk =", 'ppk_id = "p"\nppk_required = true\npsk =')
NO_PPK = f"b-a[1]: no IKE SA over {FLOATED_B}: the peer uses "


@pytest.mark.parametrize(
    ("a", "b", "says_a", "says_b"),
    [
        (
            changed(A, REQUIRED) + PPK,
            B,
            f"a-b[1]: no IKE SA over {FLOATED_A}: connection 'a-b' requires a PPK; the peer does not support any (RFC "
            "8784); configure the same PPK on the peer",
            f"b-a[1]: no IKE SA over {WAY_B}: 192.0.2.1 began, but did not finish within 30 s; see the peer's log",
        ),
        (
            A,
            changed(B, REQUIRED) + PPK,
            REFUSED,
            f"{NO_PPK}no PPK; connection 'b-a' requires 'p'; configure the same PPK on both sides",
        ),
        (
            changed(A, REQUIRED, ('ppk_id = "p"', 'ppk_id = "q"')) + PPK.replace('id = "p"', 'id = "q"'),
            changed(B, REQUIRED) + PPK,
            REFUSED,
            f"{NO_PPK}the PPK 'q', which is not among ours; connection 'b-a' requires 'p'; configure the same PPK on "
            "both sides",
        ),
        (
            changed(A, REQUIRED) + PPK,
            changed(B, REQUIRED) + PPK.replace("0x00", "0x99"),
            REFUSED,
            f"b-a[1]: no IKE SA over {FLOATED_B}: the preshared key of 'a.example' is not the one that we have for it "
            "and 'b.example', or its PPK is not ours; compare the secrets of both sides, and their PPKs",
        ),
    ],
    ids=["ours alone", "theirs alone", "another one", "another secret"],
)
def test_postquantum_keys(a: str, b: str, says_a: str, says_b: str) -> None:
    assert outcome(gateways(a, b)) == ([says_a], [says_b])


CLIENT = """
[connections.office]
remote_addrs = "192.0.2.2"
local = { auth = "eap-mschapv2", eap_id = "jo", id = "jo" }
remote = { id = "b.example", cacerts = "DIR/ca.pem" }
vips = "0.0.0.0"
remote_ts = "10.1.0.0/16"
start_action = "none"
[users]
jo = "open sesame"
"""
SERVER = """
[connections.people]
local = { id = "b.example", certs = "DIR/b.pem" }
remote = { auth = "eap-mschapv2", eap_id = "%any" }
local_ts = "10.1.0.0/16"
pools = "clients"
encap = true
[users]
jo = "open sesame"
[pools.clients]
addrs = "10.9.0.1"
"""
COMPARE = "compare the EAP secrets or certificates of both sides"


def certify(directory: Path) -> None:
    """A CA, and a certificate for the server."""
    authority = make_authority("CN=Example CA")
    (directory / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    issued = issue(authority, "b.example", [Identity.parse("b.example")])
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / "b.pem"
    path.touch(mode=0o600)
    path.write_bytes(issued.certificate.public_bytes(Encoding.PEM) + key)


@pytest.mark.parametrize(
    ("change", "says_a", "says_b"),
    [
        (
            ("open sesame", "open sesam"),
            "the server refused EAP-MSCHAPv2 of 'jo' with error 691: wrong user name or password",
            "EAP of 'jo' failed: EAP-MSCHAPv2 of 'jo' failed: the password is wrong",
        ),
        (
            ("jo =", "sam ="),
            "the server refused EAP-MSCHAPv2 of 'jo' with error 691: wrong user name or password",
            "EAP of 'jo' failed: EAP-MSCHAPv2 of 'jo' failed: there is no EAP secret for that name",
        ),
        (
            ("eap-mschapv2", "eap-tls"),
            "the server refused EAP of 'jo', before any method; we can do EAP-MSCHAPV2",
            "EAP of 'jo' failed: the client 'jo' can do EAP-MSCHAPV2; we accept EAP-TLS",
        ),
    ],
    ids=["password", "user", "method"],
)
def test_eap(change: tuple[str, str], says_a: str, says_b: str, tmp_path: Path) -> None:
    certify(tmp_path)
    client, server = CLIENT.replace("DIR", str(tmp_path)), SERVER.replace("DIR", str(tmp_path))
    good = gateways(client, server)
    assert outcome(good, 5.0) == ([], [])
    good.check_children()
    assert outcome(gateways(client, changed(server, change)), 5.0) == (
        [f"office[1]: no IKE SA over {FLOATED_A}: {says_a}; {COMPARE}"],
        [f"people[1]: no IKE SA over {FLOATED_B}: {says_b}; {COMPARE}"],
    )


def test_no_address_is_lent() -> None:
    """A asks for an address, and B has none."""
    ours, theirs = outcome(gateways(changed(A, ("psk", 'vips = "0.0.0.0"\npsk')), B))
    assert ours == [
        "a-b[1]: no child a-b: the peer lends no address, so there is no child 'a-b': we asked for one; see the peer's "
        "log: its pool may be exhausted, or its connection has none"
    ]
    assert theirs == [
        "b-a[1]: no child SA: 'a.example' asks for an IPv4 address: no pool is configured; give the connection a pool "
        "with more addresses, or take idle clients down"
    ]


def test_a_peer_that_does_not_run() -> None:
    """Its host says so by ICMP, which anyone could forge: we go on asking, and name it in the end."""
    pair = gateways(A, B, Wire(drop=lambda _, datagram: datagram.path.remote == ADDRESS_B))
    pair.initiate("a-b")
    path = pair.carried[0].path
    pair.a.endpoint.path_error(path, "ICMP port unreachable from 192.0.2.2", pair.now)
    pair.run(400.0)
    assert warnings(pair.a.log) == [
        f"a-b[1]: no IKE SA over {WAY_A}: no answer from 192.0.2.2:500, sent 6 times in 165 s from 192.0.2.1:500; "
        "last heard of it: ICMP port unreachable from 192.0.2.2; check that UDP 500 and 4500 are open between the two, "
        "and that the peer runs"
    ]
