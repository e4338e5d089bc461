"""A client with a virtual address on the left, a gateway with a pool on the right, of ours and strongSwan each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from control.ike.defaults import default_proposals
from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.pools import Pools
from control.ike.settings import Auth, AuthSettings, ChildSettings, Connection, PoolSettings, TrafficSelector
from control.pki.settings import EapSecret
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.peers.credentials import lab_authority, lab_card
from tests.peers.daemon import Daemon
from tests.peers.node import Node
from tests.peers.strongswan import Charon
from tests.peers.wires import INSIDE, Wire

USER, PASSWORD = "jo", "pa55 wörd"
POOL = "10.99.0.0/24"
POOL6 = "2001:db8:99::/112"
DNS = "10.2.0.53"
GATEWAY, CLIENT = "right.example", "jo@example.org"
KEY = "ecdsa256"


@dataclass(frozen=True, kw_only=True)
class Access:
    """How clients come in: `method` is "eap-mschapv2" or "eap-tls"."""

    method: str = "eap-mschapv2"
    password: str = PASSWORD  # the client's
    both: bool = False  # IPv6 addresses and networks, too
    options: dict[str, Any] = field(default_factory=dict)  # charon: strongswan.conf

    @property
    def by_certificate(self) -> bool:
        """Whether the client has one."""
        return self.method == "eap-tls"

    @property
    def inside(self) -> list[str]:
        """The networks behind the gateway."""
        return [INSIDE["right"][version][1] for version in ((4, 6) if self.both else (4,))]

    @property
    def routes(self) -> list[str]:
        """A gateway's, to its clients."""
        pairs = zip((POOL, POOL6), (4, 6), strict=True)
        return [f"{pool} src {INSIDE['right'][version][0]}" for pool, version in pairs][: len(self.inside)]


def our_side(access: Access, wire: Wire, *, server: bool) -> Node:
    """Ours, not started."""
    method = access.method.removeprefix("eap-")
    inside = tuple(TrafficSelector(network=ip_network(each)) for each in access.inside)
    dynamic = (TrafficSelector(),)
    child = ChildSettings(
        name="net",
        local=inside if server else dynamic,
        remote=dynamic if server else inside,
        proposals=default_proposals(Protocol.ESP, remote_access=True),
    )
    gateway = AuthSettings(auth=Auth.PUBKEY, identity=Identity.parse(GATEWAY))
    client = AuthSettings(
        auth=Auth.EAP,
        eap_methods=(method,),
        identity=None if server else Identity.parse(CLIENT),
        eap_identity=None if server or access.by_certificate else USER,
    )
    connection = Connection(
        name="access",
        remote_addresses=() if server else (wire.address("right"),),
        proposals=default_proposals(Protocol.IKE, remote_access=True),
        local=gateway if server else client,
        remote=client if server else gateway,
        children=(child,),
        pools=("lan",) if server else (),
        virtual_addresses=() if server else tuple(map(ip_address, _any(access))),
    )
    return Node(
        wire.right if server else wire.left,
        connections=[connection],
        credentials=_credentials(access, server=server),
        pools=Pools([_pool()]),
        routes=access.routes if server else access.inside,
    )


def _any(access: Access) -> list[str]:
    return ["0.0.0.0", "::"] if access.both else ["0.0.0.0"]


def _pool() -> PoolSettings:
    networks = ip_network(POOL), ip_network(POOL6)
    ranges = tuple((network[1], network[-2]) for network in networks)
    return PoolSettings(name="lan", ranges=ranges, dns=(ip_address(DNS),))


def _credentials(access: Access, *, server: bool) -> Credentials:
    root = Authority(name="lab", certificates=(lab_authority().certificate,))
    certificates = []
    if server or access.by_certificate:
        card = lab_card(GATEWAY if server else CLIENT, KEY)
        certificates = [LoadedCertificate(name="mine", certificate=card.certificate, key=card.key)]
    secrets = [EapSecret(identity=USER, secret=(PASSWORD if server else access.password).encode())]
    return Credentials(certificates=certificates, authorities=[root], eap_secrets=secrets)


def our_gateway(access: Access, wire: Wire, *, server: bool) -> Daemon:
    """Ours with daemon and dataplane, not started."""
    connection: dict[str, Any] = {}
    local: dict[str, Any] = {"id": GATEWAY if server else CLIENT}
    remote: dict[str, Any] = {} if server else {"id": GATEWAY}
    files = {"ca.pem": lab_authority().pem}
    if server or access.by_certificate:
        card = lab_card(GATEWAY if server else CLIENT, KEY)
        local |= {"certs": "./card.pem", "key": "./card.key"}
        files |= {"card.pem": card.pem, "card.key": card.key_pem}
    if server:
        connection |= {"pools": ["lan"], "local_ts": access.inside}
        remote |= {"auth": access.method, "cacerts": "./ca.pem"}
    else:
        connection |= {
            "remote_addrs": str(wire.address("right")),
            "vips": _any(access),
            "remote_ts": access.inside,
            "start_action": "none",
        }
        local |= {"auth": access.method}
        if not access.by_certificate:
            local["eap_id"] = USER
        remote |= {"auth": "pubkey", "cacerts": "./ca.pem"}
    tables: dict[str, dict[str, Any]] = {
        "connections.access": connection,
        "connections.access.local": local,
        "connections.access.remote": remote,
        "users": {USER: PASSWORD if server else access.password},
    }
    if server:
        tables["pools.lan"] = {"addrs": [POOL, POOL6], "dns": DNS}
    return Daemon(wire.right if server else wire.left, wire.directory, tables, files)


def load_charon(charon: Charon, access: Access, wire: Wire, *, server: bool) -> None:
    """The same for charon."""
    gateway: dict[str, Any] = {"auth": "pubkey", "id": GATEWAY}
    client: dict[str, Any] = {"auth": access.method}
    if server:
        client["eap_id"] = "%any"
        client["id"] = "%any"
        gateway["certs"] = [lab_card(GATEWAY, KEY).der]
        keys = [lab_card(GATEWAY, KEY).pkcs8]
    elif access.by_certificate:
        client |= {"id": CLIENT, "certs": [lab_card(CLIENT, KEY).der]}
        keys = [lab_card(CLIENT, KEY).pkcs8]
    else:
        client |= {"id": CLIENT, "eap_id": USER}
        keys = []
    inside = access.inside
    connection: dict[str, Any] = {
        "local": gateway if server else client,
        "remote": client if server else gateway,
        "children": {"net": {"local_ts": inside} if server else {"remote_ts": inside}},
    }
    if server:
        connection["pools"] = ["lan", "lan6"] if access.both else ["lan"]
        connection["send_cert"] = "always"
    else:
        connection |= {"vips": _any(access), "remote_addrs": [wire.outside["right"][4]]}
    password = PASSWORD if server else access.password
    charon.load(
        {"access": connection},
        secrets=[{"type": "EAP", "data": password, "owners": [USER]}],
        keys=keys,
        authorities=[lab_authority().der],
        pools={"lan": {"addrs": POOL, "dns": [DNS]}, "lan6": {"addrs": POOL6}} if server else {},
    )


@contextmanager
def roadwarrior(
    access: Access, wire: Wire, *, server: str, whole: bool = False
) -> Iterator[tuple[Any, Charon]]:
    """Ours and charon, `server` ("ours" or "theirs") on the right; neither has begun anything.

    `whole`: ours is the daemon, whose only child has its connection's name, else the endpoint alone.
    """
    make = our_gateway if whole else our_side
    ours: Node | Daemon = make(access, wire, server=server == "ours")
    charon = Charon(wire.left if server == "ours" else wire.right, wire.directory, options=access.options)
    charon.start()
    try:
        load_charon(charon, access, wire, server=server == "theirs")
        ours.start()
        yield ours, charon
    except BaseException as error:
        error.add_note(f"---- ours said\n{ours.log(60)}\n---- charon said\n{charon.log(80)}")
        raise
    finally:
        ours.kill()
        charon.kill()
