"""[connections], [secrets], [pools] and the rest of IKE: what is accepted, and that every problem is named at once."""

from __future__ import annotations

import copy
import tomllib
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from control.config import ConfigError, load, parse
from control.config.selectors import parse_selector
from control.config.values import parse_duration, parse_secret, parse_size
from control.ike.identity import Identity
from control.ike.settings import (
    Auth,
    Choice,
    DpdAction,
    StartAction,
    TrafficSelector,
    Unique,
)
from dataplane.model import TFC_MTU, Fragment, Mode

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SECRET = "correct horse battery staple"

SHORTEST = """
[connections.branch]
remote_addrs = "198.51.100.1"
psk = "correct horse battery staple"
local_ts = "10.1.0.0/24"
remote_ts = "10.2.0.0/24"
"""

HOSTS = """
[connections.branch]
remote_addrs = "198.51.100.1"
psk = "correct horse battery staple"
mode = "transport"
"""

FULL = """
[ike]
port = 1500
nat_port = 14500
cookie_threshold = 7
block_threshold = 3
half_open_limit = 99
half_open_timeout = "10s"
initial_contact = false
send_vendor_id = true
export_keys = true
retransmit_timeout = 1.5
retransmit_base = 2
retransmit_tries = 3
retransmit_limit = "20s"
fragment_size = 600
keep_alive = 15

[connections.office]
local_addrs = ["192.0.2.1", "2001:db8::1"]
remote_addrs = ["198.51.100.7", "198.51.100.0/24"]
local_port = 1500
remote_port = 2500
proposals = "aes256gcm16-prfsha384-x25519-ke1_mlkem768, aes128-sha256-ecp256"
local = { auth = "pubkey-sha256-sha384", id = "C=DE, CN=gw", certs = ["gw"] }
remote = { auth = "pubkey", id = "*@example.org", cacerts = "house", revocation = "strict" }
vips = ["%any", "::"]
rekey_time = "2h"
reauth_time = "1d"
over_time = "10m"
rand_time = 60
dpd_delay = 5
keyingtries = 0
fragmentation = "force"
mobike = false
encap = true
childless = "never"
unique = "replace"
send_cert = "always"
send_certreq = false
ppk_id = "shared"
ppk_required = true

[connections.office.children.web]
local_ts = ["10.1.0.0/24[tcp/443]", "2001:db8:1::/48"]
remote_ts = ["10.2.0.1-10.2.0.9", "dynamic"]
esp_proposals = "aes128gcm16-esn"
mode = "tunnel"
rekey_time = "20m"
life_time = "30m"
rand_time = "2m"
rekey_bytes = "1G"
life_bytes = "2G"
rekey_packets = 1000
life_packets = 2000
start_action = "start"
close_action = "none"
dpd_action = "clear"
replay_window = 64
df = "set"
dscp = 46
mss_clamp = true
fragment = "after"
tfc_padding = 1000
tfc_dummies = 20

[connections.office.children.voice]
start_action = "trap"
tfc_padding = "mtu"

[connections.people]
local = { certs = "gw" }
remote = { auth = "eap-mschapv2", eap_id = "%any" }
pools = "clients"
local_ts = "0.0.0.0/0"

[secrets]
"@branch" = "0x00112233445566778899aabbccddeeff"
shared = { type = "ppk", id = "shared", secret = "0sAAECAwQFBgcICQoLDA0ODw==" }

[secrets.both]
id = ["192.0.2.1", "@branch"]
file = "psk"

[users]
jo = "open sesame"

[certificates.gw]
certificate = "/etc/gw.pem"
key = "gw.key"
chain = "chain.pem"
password = "hush"

[authorities.house]
certificate = "ca.pem"
crls = ["one.crl"]
crl_urls = "http://crl.example/x"

[pools.clients]
addrs = ["10.9.0.0/24", "2001:db8:9::10-2001:db8:9::1f"]
dns = "10.0.0.53"
domains = ["corp.example"]
split_include = ["10.0.0.0/8"]
"""


def read(text: str, **where: Any) -> Any:
    """The configuration in a TOML text."""
    return parse(tomllib.loads(text), **where)


def problems(text: str) -> list[str]:
    """The problems that a TOML text has, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read(text, source="x.toml")
    return [line.removeprefix("x.toml: ") for line in caught.value.lines()]


def test_a_tunnel_in_five_lines() -> None:
    config = read(SHORTEST)
    (connection,) = config.ike.connections
    assert connection.remote_addresses == (IPv4Address("198.51.100.1"),)
    assert (connection.local.auth, connection.remote.auth) == (Auth.PSK, Auth.PSK)
    assert connection.dpd_delay == 30.0 and connection.proposals
    (child,) = connection.children
    assert child.name == "branch" and child.proposals
    assert child.local == (TrafficSelector(network=ip_network("10.1.0.0/24")),)
    # Traffic starts it, and starts it again.
    assert child.start_action is child.close_action is StartAction.TRAP
    assert child.dpd_action is DpdAction.TRAP
    (key,) = config.ike.credentials.preshared_keys
    assert key.secret == SECRET.encode() and key.identities == (Identity.parse("198.51.100.1"),)
    # No ports: a TUN device, and UDP sockets, which carry ESP in UDP only.
    assert [port.driver for port in config.ports] == ["tun", "udp"] and connection.encap


def test_initiations_leave_by_a_port_of_ours() -> None:
    assert read(SHORTEST).ike.connections[0].local_port == 500
    assert read(SHORTEST + "[ike]\nport = 1500\n").ike.connections[0].local_port == 1500
    other = SHORTEST + "local_port = 4600\n"
    assert read(other + "[ike]\nnat_port = 4600\n").ike.connections[0].local_port == 4600
    assert problems(other) == [
        "connections.branch.local_port: got 4600, want 500 or 4500, which are port and nat_port of [ike]"
    ]


@pytest.mark.parametrize("name", ["site-to-site-ike.toml", "remote-access.toml", "host-to-office.toml"])
def test_examples(name: str) -> None:
    assert load(EXAMPLES / name).ike.connections
    text = (EXAMPLES / name).read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if name == "site-to-site-ike.toml":
        assert len(lines) < 15


def test_every_key_arrives(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text("a secret from a file\n")
    config = read(FULL, source=str(tmp_path / "esplanade.toml"))
    ike, settings = config.ike, config.ike.settings
    assert settings.nat_ports == (1500, 14500)
    assert {port.encap_port for port in config.ports} == {14500}
    assert (settings.cookie_threshold, settings.block_threshold, settings.half_open_limit) == (7, 3, 99)
    assert settings.half_open_timeout == 10.0 and not settings.initial_contact
    assert settings.send_vendor_id and settings.export_keys
    office = ike.connection("office")
    assert office.local_addresses == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    assert office.remote_addresses == (ip_address("198.51.100.7"), ip_network("198.51.100.0/24"))
    assert (office.local_port, office.remote_port) == (1500, 2500)
    assert [str(proposal) for proposal in office.proposals] == [
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        "aes128-sha256-ecp256",
    ]
    assert office.local.signature_hashes == ("sha256", "sha384") and office.local.certificates == ("gw",)
    assert office.local.identity == Identity.parse("C=DE, CN=gw")
    assert office.remote.authorities == ("house",) and office.remote.revocation == "strict"
    assert office.remote.identity == Identity.parse("*@example.org")
    assert office.virtual_addresses == (ip_address("0.0.0.0"), ip_address("::"))
    assert (office.rekey_time, office.reauth_time, office.over_time, office.random_time) == (
        *(7200.0, 86400.0, 600.0, 60.0),
    )
    sent_again = office.retransmission
    assert (sent_again.timeout, sent_again.base, sent_again.tries, sent_again.limit) == (1.5, 2.0, 3, 20.0)
    assert (office.dpd_delay, office.keepalive, office.keying_tries) == (5.0, 15.0, 0)
    assert office.fragmentation is Choice.FORCE and office.fragment_size == 600
    assert not office.mobike and office.encap and office.childless is Choice.NO
    assert office.unique is Unique.REPLACE and office.send_certificate == "always"
    assert not office.request_certificates and office.ppk_id == "shared" and office.ppk_required
    web, voice = office.children
    assert web.local[0].protocol == 6 and web.local[0].ports == (443, 443)
    assert web.remote[0].first == ip_address("10.2.0.1") and web.remote[1] == TrafficSelector()
    assert [str(proposal) for proposal in web.proposals] == ["aes128gcm16-esn"]
    life = web.lifetime
    assert (life.rekey, life.life, life.random) == (1200.0, 1800.0, 120.0)
    assert (life.rekey_bytes, life.life_bytes) == (1 << 30, 2 << 30)
    assert (life.rekey_packets, life.life_packets) == (1000, 2000)
    assert (web.start_action, web.close_action, web.dpd_action) == (
        *(StartAction.START, StartAction.NONE, DpdAction.CLEAR),
    )
    assert (web.replay_window, web.df.value, web.dscp, web.mss_clamp) == (64, "set", 46, True)
    assert (web.fragment, web.tfc_padding, voice.fragment, voice.tfc_padding) == (
        *(Fragment.AFTER, 1000, Fragment.BEFORE, TFC_MTU),
    )
    assert (web.tfc_dummies, voice.tfc_dummies) == (20, 0)
    assert voice.mode is Mode.TUNNEL and voice.local == (TrafficSelector(),)
    people = ike.connection("people")
    assert people.local.auth is Auth.PUBKEY and people.remote.auth is Auth.EAP
    assert people.remote.eap_methods == ("mschapv2",) and people.pools == ("clients",)
    # Clients come to us: nothing starts by itself, and their built-in proposals are accepted.
    assert people.children[0].start_action is StartAction.NONE
    assert any("sha1" in str(proposal) for proposal in people.proposals)
    _check_credentials(ike, tmp_path)


def _check_credentials(ike: Any, directory: Path) -> None:
    credentials = ike.credentials
    assert [key.secret for key in credentials.preshared_keys] == [
        bytes.fromhex("00112233445566778899aabbccddeeff"),
        b"a secret from a file",
    ]
    assert credentials.preshared_keys[1].identities == (
        *(Identity.parse("192.0.2.1"), Identity.parse("@branch")),
    )
    (user,) = credentials.eap_secrets
    assert (user.identity, user.secret) == ("jo", b"open sesame")
    (ppk,) = credentials.postquantum_keys
    assert (ppk.id, ppk.secret) == ("shared", bytes(range(16)))
    (certificate,) = credentials.certificates
    assert certificate.certificate == Path("/etc/gw.pem") and certificate.key == directory / "gw.key"
    assert certificate.chain == (directory / "chain.pem",) and certificate.password == "hush"
    (authority,) = credentials.authorities
    assert authority.certificate == directory / "ca.pem" and authority.crls == (directory / "one.crl",)
    assert authority.crl_urls == ("http://crl.example/x",)
    (pool,) = ike.pools
    assert pool.ranges[0] == (ip_address("10.9.0.1"), ip_address("10.9.0.254"))
    assert pool.dns == (ip_address("10.0.0.53"),) and pool.domains == ("corp.example",)
    assert pool.split == (ip_network("10.0.0.0/8"),)


def test_who_dials_in_begins() -> None:
    """No traffic has the address that is asked for before there is a tunnel, so none could start it."""
    (child,) = read(SHORTEST + 'vips = "0.0.0.0"\n').ike.connections[0].children
    assert child.start_action is child.close_action is StartAction.START
    assert child.dpd_action is DpdAction.RESTART
    (child,) = read(SHORTEST + 'vips = "0.0.0.0"\nstart_action = "none"\n').ike.connections[0].children
    assert child.start_action is child.close_action is StartAction.NONE


def test_secrets_never_show(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text("a secret from a file\n")
    shown = repr(read(FULL, source=str(tmp_path / "esplanade.toml"))) + repr(read(SHORTEST))
    for secret in (SECRET, "open sesame", "hush", "a secret from a file", "00112233", "AAECAw"):
        assert secret not in shown and repr(secret.encode()) not in shown
    wrong = SHORTEST.replace(SECRET, "0xnot hex at all") + '[secrets.x]\nsecret = "0s!!hidden!!"\n'
    lines = problems(wrong + '[users]\njo = ["hidden"]\n')
    assert len(lines) == 3 and not any("hidden" in line or "not hex" in line for line in lines), lines


def test_what_goes_with_eap() -> None:
    """The server's proof is its certificate (RFC 7296 section 2.16), from any CA that is trusted."""
    text = """
        [connections.c]
        remote_addrs = "192.0.2.1"
        local = { auth = "eap-mschapv2", eap_id = "jo" }
        [users]
        jo = "open sesame"
        [authorities.house]
        certificate = "ca.pem"
        """
    (connection,) = read(text).ike.connections
    assert (connection.local.auth, connection.remote.auth) == (Auth.EAP, Auth.PUBKEY)
    without = text.partition("[authorities")[0]
    assert problems(without) == [
        "connections.c.remote.cacerts: is missing, and there are no [authorities]; it wants the CA of the peer"
    ]


def test_paths_where_names_could_be() -> None:
    config = read("""
        [connections.c]
        remote_addrs = "192.0.2.1"
        local = { certs = "/etc/me.pem", key = "/etc/me.key", id = "@me" }
        remote = { cacerts = "ca.crt", id = "@you" }
        """)
    (connection,) = config.ike.connections
    assert connection.local.auth is connection.remote.auth is Auth.PUBKEY
    (certificate,) = config.ike.credentials.certificates
    assert connection.local.certificates == (certificate.name,)
    assert certificate.key == Path("/etc/me.key")
    assert connection.remote.authorities == (config.ike.credentials.authorities[0].name,)


@pytest.mark.parametrize("name", ["gw.pem", "gw.crt", "gw.cer", "gw.der", "gw.p12", "GW.PFX"])
def test_a_file_by_its_bare_name(tmp_path: Path, name: str) -> None:
    """Every kind of file that certificates come in is one beside the configuration."""
    config = read(SHORTEST + f'local = {{ certs = "{name}" }}\n', source=str(tmp_path / "x.toml"))
    assert config.ike.credentials.certificates[0].certificate == tmp_path / name


GOLDEN = [
    (
        SHORTEST.replace('psk = "correct horse battery staple"\n', ""),
        "connections.branch.psk: is missing; it wants the preshared key (or certificates: local.certs, remote.cacerts)",
    ),
    (
        SHORTEST.replace("remote_addrs", "remote_addr"),
        'connections.branch.remote_addr: is not a known key; did you mean "remote_addrs"?',
    ),
    (
        SHORTEST.replace("198.51.100.1", "198.51.100.300"),
        "connections.branch.remote_addrs: got '198.51.100.300', want an address, a network such as "
        '198.51.100.0/24, or "%any"',
    ),
    (
        SHORTEST.replace("10.2.0.0/24", "2001:db8::/64"),
        "connections.branch.remote_ts: got IPv6 only and local_ts has IPv4 only, want a pair of one family",
    ),
    (
        SHORTEST.replace("10.2.0.0/24", "10.2.0.1/24"),
        "connections.branch.remote_ts: got '10.2.0.1/24', which has bits set right of the prefix; "
        "want 10.2.0.0/24 or a single address",
    ),
    (
        SHORTEST + 'local_addrs = "2001:db8::1"\n',
        "connections.branch.remote_addrs: got IPv4 only and local_addrs is IPv6, want one family",
    ),
    (
        SHORTEST + 'local_addrs = "198.51.100.1"\n',
        "connections.branch.remote_addrs: got 198.51.100.1, which is in local_addrs too; want the peer's address",
    ),
    (
        SHORTEST.replace('remote_addrs = "198.51.100.1"', 'start_action = "start"'),
        'connections.branch.start_action: got "start", and the connection has no single address in '
        'remote_addrs to initiate to; want "none", or an address there',
    ),
    (
        SHORTEST + 'proposals = "aes128-sha256"\n',
        "connections.branch.proposals: got 'aes128-sha256', which names no key exchange; "
        "want e.g. -x25519, -ecp256 or -modp2048 added",
    ),
    (
        SHORTEST + 'esp_proposals = ["aes128gcm16", "aes128-md5"]\n',
        "connections.branch.esp_proposals[1]: got 'aes128-md5', but md5 is broken or obsolete "
        "(RFC 8221, RFC 8247); use sha256",
    ),
    (
        SHORTEST + 'remote = { id = "CN=x, y" }\n',
        "connections.branch.remote.id: got 'CN=x, y', which reads as a distinguished name, but 'y' is no TYPE=value",
    ),
    (
        SHORTEST + 'local = { auth = "psl" }\n',
        'connections.branch.local.auth: got \'psl\', want one of "psk", "pubkey", "eap-mschapv2", "eap-tls", '
        '"eap", "none"; did you mean "psk"?',
    ),
    (
        SHORTEST + 'local = { auth = "pubkey" }\n',
        "connections.branch.local.certs: is missing; it wants the certificate that we prove ourselves with",
    ),
    (
        SHORTEST + 'local = { certs = "gate" }\n[certificates.gates]\ncertificate = "x.pem"\n',
        "connections.branch.local.certs: got 'gate', and there is no [certificates.gate]; did you mean \"gates\"?; "
        "want its name, or a file's path",
    ),
    (
        SHORTEST + 'remote = { auth = "eap-mschapv2" }\n',
        'connections.branch.local.auth: is "psk" where the peer uses EAP; want "pubkey", which proves us '
        "(RFC 7296 2.16)",
    ),
    (
        SHORTEST + 'rekey_time = "1 year"\n',
        'connections.branch.rekey_time: got \'1 year\', want a time such as "90s", "30m", "4h", "1d", '
        "or a number of seconds",
    ),
    (
        SHORTEST + "rekey_time = 3\n",
        "connections.branch.rekey_time: got 3 s, want 0 (never) or at least 10 s",
    ),
    (
        SHORTEST + "encap = false\n",
        "connections.branch.encap: is false, and every unprotected port is a UDP socket; want it left out, or a "
        'port that carries bare ESP (driver = "xdp", "packet" or "raw")',
    ),
    (
        SHORTEST + 'pools = "clients"\n[pools.client]\naddrs = "10.9.0.0/24"\n',
        "connections.branch.pools: got 'clients', and there is no [pools.clients]; did you mean \"client\"?",
    ),
    (
        SHORTEST + "children = {a = {life_time = 60, rekey_time = 90}}\n",
        "connections.branch.local_ts: stands beside [connections.branch.children]; want it in one of the children (a)",
    ),
    (
        SHORTEST + 'mode = "transport"\n',
        'connections.branch.local_ts: got 10.1.0.0/24, and mode = "transport" is between the two hosts themselves; '
        'want it left out, "dynamic", or "dynamic[tcp/443]"',
    ),
    (
        SHORTEST + 'ah_proposals = "sha256"\nesp_proposals = "aes128gcm16"\n',
        "connections.branch.ah_proposals: stands beside esp_proposals, and a child is of ESP or of AH; want one of the "
        "two",
    ),
    (
        SHORTEST + 'ah_proposals = "aes128gcm16"\n',
        "connections.branch.ah_proposals: got 'aes128gcm16', but aes128gcm16 has no meaning for AH; want it left out",
    ),
    (
        SHORTEST + 'ah_proposals = "sha256"\ntfc_dummies = 5\n',
        "connections.branch.tfc_dummies: has no meaning with ah_proposals: AH hides nothing",
    ),
    (
        SHORTEST + 'ah_proposals = "sha256"\nencap = true\n',
        'connections.branch.encap: is true, and child "branch" has ah_proposals: AH goes in no UDP; want a port that '
        'carries bare packets (driver = "xdp", "packet" or "raw"), or esp_proposals',
    ),
    (
        HOSTS + "mobike = true\n",
        'connections.branch.mobike: is true, and child "branch" is in transport mode, which cannot move; want it left '
        'out, or "tunnel"',
    ),
    (
        HOSTS + 'df = "set"\n',
        'connections.branch.df: has no meaning with mode = "transport", where packets keep their own IP header',
    ),
    (
        HOSTS + 'vips = "0.0.0.0"\n',
        'connections.branch.mode: got "transport", and the connection lends or asks for addresses, which want a '
        'tunnel; want "tunnel"',
    ),
    (
        SHORTEST + "ppk_required = true\n",
        "connections.branch.ppk_id: is missing, and ppk_required is true; want the identity of a PPK in [secrets]",
    ),
    (
        SHORTEST
        + 'ppk_id = "sharde"\n[secrets]\nx = { type = "ppk", id = "shared", secret = "0x00112233" }\n',
        'connections.branch.ppk_id: got \'sharde\', and no secret of type "ppk" has that id; did you mean "shared"?; '
        "want one in [secrets]",
    ),
    (
        SHORTEST + '[pools.a]\naddrs = "10.9.0.0/24"\n[pools.b]\naddrs = "10.9.0.9"\n',
        "pools.b.addrs: got 10.9.0.9-10.9.0.9, and [pools.a] has 10.9.0.1-10.9.0.254; want addresses of its own",
    ),
    (
        SHORTEST + '[secrets]\nx = { type = "eap", secret = "y" }\n',
        'secrets.x.id: is missing; type "eap" wants the identity that the secret belongs to',
    ),
    (
        SHORTEST
        + '[[port]]\nrole = "protected"\ndriver = "tun"\ninterface = "t"\n'
        + '[[port]]\nrole = "unprotected"\ndriver = "udp"\nencap_port = 4501\n',
        'port[1].encap_port ("udp"): got 4501, and [ike] nat_port is 4500; want the same, or none here',
    ),
    (
        SHORTEST + "[ike]\nnat_port = 500\n",
        "ike.nat_port: got 500, which is the port too; want two different ports",
    ),
    (
        SHORTEST + "[ike]\ncookie_treshold = 5\n",
        'ike.cookie_treshold: is not a known key; did you mean "cookie_threshold"?',
    ),
]


@pytest.mark.parametrize(("text", "message"), GOLDEN, ids=[message.split(":")[0] for _, message in GOLDEN])
def test_messages(text: str, message: str) -> None:
    assert message in problems(text)


@pytest.mark.parametrize(
    ("section", "key", "least"),
    [
        ("ike", "half_open_timeout", "1"),
        ("ike", "retransmit_timeout", "0.1"),
        ("gateway", "path_mtu_age", "1"),
    ],
)
def test_times_that_cannot_be_nothing(section: str, key: str, least: str) -> None:
    """0 is no "never" where each handshake would end, or be sent again, at once."""
    for value, read_as in (("0", "0"), ('"0s"', "0"), ("0.05", "0.05")):
        [line] = problems(SHORTEST + f"[{section}]\n{key} = {value}\n")
        assert line == f"{section}.{key}: got {read_as} s, want at least {least} s"
    assert read(SHORTEST + f"[{section}]\n{key} = {least}\n")


def test_all_problems_at_once() -> None:
    text = SHORTEST.replace("10.1.0.0/24", "x").replace("198.51.100.1", "y") + 'dpd_delay = "z"\nfoo = 1\n'
    assert len(problems(text)) == 4


def test_warnings() -> None:
    text = (
        SHORTEST.replace(SECRET, "short") + 'proposals = "aes128-sha1-modp2048"\n[ike]\nexport_keys = true\n'
    )
    warnings = [str(problem) for problem in read(text).warnings]
    assert len(warnings) == 3
    assert any("connections.branch.psk: is 5 bytes long" in line for line in warnings)
    assert any("allows SHA-1" in line for line in warnings)
    assert any("ike.export_keys" in line for line in warnings)


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("df", "clear", "a UDP socket sends every packet with DF set"),
        ("df", "copy", "a UDP socket sends every packet with DF set"),
        ("fragment", "after", "a UDP socket sends no fragments, so packets are cut before encapsulation"),
    ],
)
def test_what_udp_ports_do_not_heed(key: str, value: str, instead: str) -> None:
    """Over UDP sockets alone, the default, each such key is named where it is written; over others it has effect."""
    line, socket = f'{key} = "{value}"\n', '[[port]]\nrole = "unprotected"\ndriver = "udp"\n'
    child = SHORTEST.replace("local_ts", f"[connections.branch.children.net]\n{line}local_ts")
    lan = '[[port]]\nrole = "protected"\ndriver = "tun"\ninterface = "tun7"\n'
    said = f"got '{value}', which udp ports do not heed: {instead}"
    for text, path in (
        (SHORTEST + line, "connections.branch"),
        (SHORTEST + line + lan + socket, "connections.branch"),
        (child, "connections.branch.children.net"),
    ):
        assert [str(warning) for warning in read(text).warnings] == [f"{path}.{key}: {said}"]
    for driver in ("raw", "packet"):
        wan = socket.replace("udp", driver) + ('interface = "eth0"\n' if driver == "packet" else "")
        assert read(SHORTEST + line + lan + wan).warnings == ()


def test_what_udp_ports_do_anyway() -> None:
    """Defaults are no news, nor is what comes to the same."""
    for rest in ("", 'df = "set"\n', 'fragment = "before"\n', "dscp = 46\n", "mss_clamp = true\n"):
        assert read(SHORTEST + rest).warnings == ()


def test_a_secret_in_a_file_of_its_own(tmp_path: Path) -> None:
    """Who may read it is said; how an editor ends its line, or marks its text, is no part of it."""
    path, secret = tmp_path / "x.toml", tmp_path / "psk"
    path.write_text(SHORTEST.replace(f'psk = "{SECRET}"\n', "") + '[secrets.them]\nfile = "psk"\n')
    for content in (SECRET.encode(), b"\xef\xbb\xbf" + SECRET.encode() + b"\r\n"):
        secret.write_bytes(content)
        secret.chmod(0o600)
        [key] = load(path).ike.credentials.preshared_keys
        assert key.secret == SECRET.encode()
    assert not [each for each in load(path).warnings if "psk" in str(each)]
    secret.chmod(0o640)
    [warning] = [str(each) for each in load(path).warnings if str(secret) in str(each)]
    assert (
        warning.startswith("secrets.them.file: ")
        and "has mode 0640, so others can read or change it" in warning
    )


def test_a_file_with_secrets_is_private(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(SHORTEST)
    path.chmod(0o644)
    assert any("chmod 600" in str(problem) for problem in load(path).warnings)
    path.chmod(0o600)
    assert not load(path).warnings


def test_ports_are_named_after_their_interfaces() -> None:
    values = tomllib.loads(SHORTEST) | {
        "port": [
            {"role": "protected", "driver": "xdp", "interface": "eth1"},
            {"role": "unprotected", "driver": "xdp", "interface": "eth0"},
        ]
    }
    config = parse(copy.deepcopy(values))
    assert [port.name for port in config.ports] == ["eth1", "eth0"]
    assert not config.ike.connections[0].encap


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("dynamic", TrafficSelector()),
        ("dynamic[udp/l2tp]", TrafficSelector(protocol=17, ports=(1701, 1701))),
        ("[tcp]", TrafficSelector(protocol=6)),
        ("10.0.0.1", TrafficSelector(network=ip_network("10.0.0.1/32"))),
        (
            "::/0[sctp/5000-5010]",
            TrafficSelector(network=ip_network("::/0"), protocol=132, ports=(5000, 5010)),
        ),
        (
            "10.0.0.0/8[udp/opaque]",
            TrafficSelector(network=ip_network("10.0.0.0/8"), protocol=17, ports=(65535, 0)),
        ),
        ("dynamic[icmp/8]", TrafficSelector(protocol=1, ports=(0x800, 0x8FF))),
        ("dynamic[ipv6-icmp/1(4)]", TrafficSelector(protocol=58, ports=(0x104, 0x104))),
        ("dynamic[icmp/3(1-4)]", TrafficSelector(protocol=1, ports=(0x301, 0x304))),
        ("dynamic[47]", TrafficSelector(protocol=47)),
        ("dynamic[tcp/any]", TrafficSelector(protocol=6)),
    ],
)
def test_selectors(text: str, selector: TrafficSelector) -> None:
    assert parse_selector(text) == selector


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0/33",
        "x",
        "any",
        "10.0.0.0/8[tcp",
        "dynamic[tcp/]",
        "dynamic[gre/5]",
        "dynamic[any/53]",
        "[]x",
    ],
)
def test_wrong_selectors(text: str) -> None:
    with pytest.raises(ValueError, match=r"want|which"):
        parse_selector(text)


def test_units() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "1h30m", "1d", "2w")] == [
        *(90.0, 90.0, 5400.0, 86400.0, 1209600.0),
    ]
    assert [parse_size(text) for text in ("7", "1k", "500M", "2G", "1GiB")] == [
        *(7, 1024, 500 << 20, 2 << 30, 1 << 30),
    ]
    assert parse_secret("0x0a0B") == b"\n\x0b" and parse_secret("0saGk=") == b"hi"
    assert parse_secret(" spaces stay ") == b" spaces stay "
