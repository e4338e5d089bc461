"""One connection between left and right, as each kind of peer is configured with it.

site = Site(ike="aes256gcm16-prfsha384-ecp384", esp="aes256gcm16", auth="ecdsa384")
left = site.node(wire, "left"); right = site.charon(wire, "right")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from control.ike.defaults import default_proposals
from control.ike.identity import Identity
from control.ike.numbers import Protocol
from control.ike.proposal import Proposal, parse_proposal
from control.ike.settings import (
    Auth,
    AuthSettings,
    ChildSettings,
    Connection,
    EndpointSettings,
    TrafficSelector,
)
from control.pki.settings import PostquantumKey, PresharedKey
from control.pki.store import Authority, Credentials, LoadedCertificate
from tests.peers.credentials import Card, lab_authority, lab_card
from tests.peers.strongswan import Charon
from tests.peers.wires import INSIDE, OTHER, Wire

if TYPE_CHECKING:
    from tests.peers.daemon import Daemon
    from tests.peers.node import Node

SECRET = "open sesame"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A tunnel between the protected networks. `auth` is "psk" or a kind of key (tests.peers.credentials.KINDS)."""

    ike: str = "aes128gcm16-prfsha256-x25519"
    esp: str = "aes128gcm16"
    ah: str = ""  # in place of `esp`
    auth: str = "psk"
    version: int = 4  # of the outer addresses
    inside: int = 4  # of the protected networks
    secrets: dict[str, str] = field(default_factory=dict)  # side -> PSK, where it is another
    cards: dict[str, Card] = field(default_factory=dict)  # side -> certificate, where it is another
    more: dict[str, Any] = field(default_factory=dict)  # charon: settings of the connection
    local_more: dict[str, Any] = field(default_factory=dict)  # charon: its own side of the authentication
    remote_more: dict[str, Any] = field(default_factory=dict)  # charon: what it wants of ours
    child_more: dict[str, Any] = field(default_factory=dict)  # charon: settings of the child
    ppks: dict[str, str] = field(default_factory=dict)  # charon: PPK_ID -> secret (RFC 8784)
    ppks_ours: dict[str, str] = field(default_factory=dict)  # ours: the same
    options: dict[str, Any] = field(default_factory=dict)  # charon: strongswan.conf
    ours_ike: str = ""  # ours, comma-separated, where it is not `ike`
    ours_esp: str = ""
    ours: dict[str, Any] = field(default_factory=dict)  # ours: fields of Connection
    child_ours: dict[str, Any] = field(default_factory=dict)  # ours: fields of ChildSettings
    tables: dict[str, Any] = field(default_factory=dict)  # ours as a daemon: settings of the connection
    child_tables: dict[str, Any] = field(default_factory=dict)  # the same: settings of the child
    endpoint: dict[str, Any] = field(default_factory=dict)  # ours: fields of EndpointSettings
    unprotected: str = "udp"  # ours as a daemon: driver of the unprotected port

    def identity(self, side: str) -> str:
        """What a side is called."""
        return f"{side}.example"

    def card(self, side: str) -> Card:
        """A side's certificate."""
        return self.cards.get(side) or lab_card(self.identity(side), self.auth)

    # --- strongSwan ----------------------------------------------------------------------------------

    def charon(self, wire: Wire, side: str) -> Charon:
        """charon on a side, not started; `load_charon` configures it once it runs."""
        return Charon(wire.spaces[side], wire.directory, options=self.options)

    def load_charon(self, charon: Charon, wire: Wire, side: str) -> None:
        """The connection `site` with the child `net`."""
        other = OTHER[side]
        local: dict[str, Any] = {"id": self.identity(side)}
        remote: dict[str, Any] = {"id": self.identity(other)}
        if self.auth == "psk":
            local["auth"] = remote["auth"] = "psk"
        else:
            card = self.card(side)
            local |= {"auth": "pubkey", "certs": [card.der]}
            remote |= {"auth": "pubkey"}
        local |= self.local_more
        remote |= self.remote_more
        connection = {
            "local_addrs": [wire.outside[side][self.version]],
            "remote_addrs": [wire.outside[other][self.version]],
            "proposals": [self.ike],
            "local": local,
            "remote": remote,
            "children": {
                "net": {
                    "local_ts": [INSIDE[side][self.inside][1]],
                    "remote_ts": [INSIDE[other][self.inside][1]],
                    **({"ah_proposals": [self.ah]} if self.ah else {"esp_proposals": [self.esp]}),
                    **self.child_more,
                }
            },
            **self.more,
        }
        secrets = [{"type": "PPK", "data": secret, "owners": [name]} for name, secret in self.ppks.items()]
        if self.auth == "psk":
            secrets.append({"type": "IKE", "data": self.secrets.get(side, SECRET)})
            charon.load({"site": connection}, secrets=secrets)
        else:
            authorities = [lab_authority().der, *card.chain_der]
            charon.load({"site": connection}, secrets=secrets, keys=[card.pkcs8], authorities=authorities)

    # --- ours ----------------------------------------------------------------------------------------

    def connection(self, wire: Wire, side: str) -> Connection:
        """The same as our endpoint takes it."""
        other = OTHER[side]
        method = Auth.PSK if self.auth == "psk" else Auth.PUBKEY
        child = ChildSettings(
            name="net",
            local=(TrafficSelector(network=ip_network(INSIDE[side][self.inside][1])),),
            remote=(TrafficSelector(network=ip_network(INSIDE[other][self.inside][1])),),
            proposals=_proposals(Protocol.AH, self.ah)
            if self.ah
            else _proposals(Protocol.ESP, self.ours_esp or self.esp),
        )
        connection = Connection(
            name="site",
            local_addresses=(wire.address(side, self.version),),
            remote_addresses=(wire.address(other, self.version),),
            proposals=_proposals(Protocol.IKE, self.ours_ike or self.ike),
            local=AuthSettings(auth=method, identity=Identity.parse(self.identity(side))),
            remote=AuthSettings(auth=method, identity=Identity.parse(self.identity(other))),
            children=(replace(child, **self.child_ours),),
        )
        return replace(connection, **self.ours)

    def credentials(self, side: str) -> Credentials:
        """Our secrets, or certificate and CA."""
        ppks = [PostquantumKey(id=name, secret=secret.encode()) for name, secret in self.ppks_ours.items()]
        if self.auth == "psk":
            secret = self.secrets.get(side, SECRET).encode()
            return Credentials(preshared_keys=[PresharedKey(secret=secret)], postquantum_keys=ppks)
        card = self.card(side)
        mine = LoadedCertificate(name=side, certificate=card.certificate, key=card.key, chain=card.chain)
        root = Authority(name="lab", certificates=(lab_authority().certificate,))
        return Credentials(certificates=[mine], authorities=[root], postquantum_keys=ppks)

    def node(self, wire: Wire, side: str) -> Node:
        """Our endpoint alone on a side, not started."""
        from tests.peers.node import Node

        far = INSIDE[OTHER[side]][self.inside][1]
        near = INSIDE[side][self.inside][0]
        return Node(
            wire.spaces[side],
            connections=[self.connection(wire, side)],
            credentials=self.credentials(side),
            settings=EndpointSettings(**self.endpoint),
            routes=[f"{far} src {near}"],
        )

    def daemon(self, wire: Wire, side: str) -> Daemon:
        """Our whole gateway on a side, not started."""
        from tests.peers.daemon import Daemon, base_with

        other = OTHER[side]
        connection: dict[str, Any] = {
            "local_addrs": str(wire.address(side, self.version)),
            "remote_addrs": str(wire.address(other, self.version)),
            "proposals": (self.ours_ike or self.ike).split(","),
        }
        local: dict[str, Any] = {"id": self.identity(side)}
        remote: dict[str, Any] = {"id": self.identity(other)}
        files: dict[str, bytes] = {}
        if self.auth == "psk":
            connection["psk"] = self.secrets.get(side, SECRET)
        else:
            card = self.card(side)
            local |= {"certs": "./card.pem", "key": "./card.key"}
            remote |= {"cacerts": "./ca.pem"}
            files = {"card.pem": card.pem, "card.key": card.key_pem, "ca.pem": lab_authority().pem}
        child = {
            "local_ts": [INSIDE[side][self.inside][1]],
            "remote_ts": [INSIDE[other][self.inside][1]],
            "start_action": "none",
        }
        if self.ah:
            child["ah_proposals"] = self.ah.split(",")
        else:
            child["esp_proposals"] = (self.ours_esp or self.esp).split(",")
        tables = {
            "connections.site": connection | self.tables,
            "connections.site.local": local,
            "connections.site.remote": remote,
            "connections.site.children.net": child | self.child_tables,
        }
        return Daemon(wire.spaces[side], wire.directory, tables, files, base=base_with(self.unprotected))


def _proposals(protocol: Protocol, texts: str) -> tuple[Proposal, ...]:
    """What comma-separated keywords name; "default" stands for the default set."""
    found: list[Proposal] = []
    for text in texts.split(","):
        found += default_proposals(protocol) if text == "default" else [parse_proposal(protocol, text)]
    return tuple(found)


@contextmanager
def pair(
    site: Site, wire: Wire, *, ours: str = "left", whole: bool = False, charon: Charon | None = None
) -> Iterator[tuple[Any, Charon]]:
    """Ours on one side and charon on the other, running and configured; neither has begun anything.

    `whole`: ours is the daemon, else the endpoint alone. `charon`: another than that of a namespace.
    """
    theirs = OTHER[ours]
    node: Node | Daemon = site.daemon(wire, ours) if whole else site.node(wire, ours)
    charon = charon or site.charon(wire, theirs)
    charon.start()
    try:
        site.load_charon(charon, wire, theirs)
        node.start()
        yield node, charon
    except BaseException as error:
        error.add_note(f"---- ours said\n{node.log(60)}\n---- charon said\n{charon.log(80)}")
        raise
    finally:
        node.kill()
        charon.kill()
