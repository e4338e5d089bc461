"""What the configuration payload says (RFC 7296 section 3.15, RFC 8598), as server and as client.

    client   request(connection.virtual_addresses)  ->  CFG_REQUEST           read_reply(attributes)  <-  CFG_REPLY
    server   answer(pools, connection.pools, attributes, identity)  ->  Granted, whose attributes are the CFG_REPLY

An address that a client asks for is a wish; the server decides. What a client does not ask for it is told all the same:
DNS servers and networks of the pool (clients ignore what they do not know). Netmask, NBNS and DHCP are not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from control.ike.errors import PeerError, syntax_error
from control.ike.numbers import CfgAttribute, NotifyType
from control.ike.pools import Pools
from control.ike.wire.configuration import (
    Attribute,
    address_attribute,
    parse_address,
    parse_subnet,
    subnet_attribute,
)
from dataplane.model import Address, Network

ADDRESS = {4: CfgAttribute.INTERNAL_IP4_ADDRESS, 6: CfgAttribute.INTERNAL_IP6_ADDRESS}
DNS = {4: CfgAttribute.INTERNAL_IP4_DNS, 6: CfgAttribute.INTERNAL_IP6_DNS}
SUBNETS = (CfgAttribute.INTERNAL_IP4_SUBNET, CfgAttribute.INTERNAL_IP6_SUBNET)
_BROADCAST = ip_address("255.255.255.255")
MAX_ADDRESSES = 4  # that one client may ask for
MAX_ATTRIBUTES = 64  # of a reply that a client reads


@dataclass(frozen=True, kw_only=True)
class Granted:
    """What a server lends a client."""

    addresses: tuple[Address, ...]
    attributes: tuple[Attribute, ...]  # of the CFG_REPLY


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a client was lent."""

    addresses: tuple[Address, ...]
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()
    subnets: tuple[Network, ...] = ()  # behind the gateway; () is whatever the traffic selectors say


def request(wanted: Sequence[Address]) -> tuple[Attribute, ...]:
    """The attributes of a CFG_REQUEST: 0.0.0.0 and :: ask for any address, others for themselves."""
    attributes = [
        address_attribute(ADDRESS[address.version], None if address.is_unspecified else address)
        for address in wanted
    ]
    for version in sorted({address.version for address in wanted}):
        attributes.append(Attribute(type=DNS[version]))
        attributes.append(Attribute(type=SUBNETS[version == 6]))
    attributes.append(Attribute(type=CfgAttribute.INTERNAL_DNS_DOMAIN))
    return tuple(attributes)


def answer(pools: Pools, names: Sequence[str], asked: Iterable[Attribute], identity: str) -> Granted:
    """Lend a client what it asks for; PeerError (INTERNAL_ADDRESS_FAILURE) where nothing can be lent.

    Of two families that are asked for, one is enough. `identity` is the EAP identity, else the IKE identity.
    """
    wishes = [
        (4 if attribute.type == ADDRESS[4] else 6, parse_address(attribute))
        for attribute in asked
        if attribute.type in ADDRESS.values()
    ]
    lent: list[Address] = []
    refusals: list[PeerError] = []
    for version, wish in wishes[:MAX_ADDRESSES]:
        wanted = None if wish is None or wish.is_unspecified else wish
        try:
            lent.append(pools.lease(names, version, identity, wanted))
        except PeerError as error:
            refusals.append(error)
    if wishes and not lent:
        raise refusals[0]
    attributes = [address_attribute(ADDRESS[address.version], address) for address in lent]
    for pool in pools.settings(names):
        families = {address.version for address in lent}
        attributes += [
            address_attribute(DNS[server.version], server)
            for server in pool.dns
            if server.version in families
        ]
        attributes += [
            Attribute(type=CfgAttribute.INTERNAL_DNS_DOMAIN, value=domain.encode()) for domain in pool.domains
        ]
        attributes += [subnet_attribute(network) for network in pool.split if network.version in families]
    return Granted(addresses=tuple(lent), attributes=tuple(dict.fromkeys(attributes)))


def read_reply(attributes: Sequence[Attribute], wanted: Sequence[Address]) -> Received:
    """What the server lends, as its reply to `wanted` says; PeerError where it lends no address, or nonsense."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise syntax_error(f"CFG_REPLY with {len(attributes)} attributes; want at most {MAX_ATTRIBUTES}")
    addresses, dns = _addresses(attributes, ADDRESS), _addresses(attributes, DNS)
    versions = {address.version for address in wanted}
    addresses = [address for address in addresses if address.version in versions]
    if not addresses:
        asked = ", ".join(f"IPv{version}" for version in sorted(versions))
        raise PeerError(
            NotifyType.INTERNAL_ADDRESS_FAILURE,
            f"we asked for an {asked} address; the server's CFG_REPLY has none",
            advice="see the server's log, and which pools its connection has",
        )
    subnets = [parse_subnet(attribute) for attribute in attributes if attribute.type in SUBNETS]
    domains = [
        _domain(attribute.value)
        for attribute in attributes
        if attribute.type == CfgAttribute.INTERNAL_DNS_DOMAIN and attribute.value
    ]
    return Received(
        addresses=tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES],
        dns=tuple(dict.fromkeys(dns)),
        domains=tuple(dict.fromkeys(domains)),
        subnets=tuple(dict.fromkeys(subnet for subnet in subnets if subnet is not None)),
    )


def _addresses(attributes: Sequence[Attribute], kinds: dict[int, CfgAttribute]) -> list[Address]:
    """Addresses that a host can have, or a server: no others are taken from a peer."""
    found = [parse_address(attribute) for attribute in attributes if attribute.type in kinds.values()]
    return [
        address
        for address in found
        if address is not None
        and not (address.is_unspecified or address.is_loopback or address.is_multicast)
        and address != _BROADCAST
    ]


def _domain(value: bytes) -> str:
    """A domain in presentation format (RFC 8598 section 4.1)."""
    text = value.decode("ascii", "replace")
    if len(text) > 255 or not all(one.isalnum() or one in "-._" for one in text) or "\ufffd" in text:
        raise syntax_error(f"INTERNAL_DNS_DOMAIN of {len(value)} bytes that is no domain name")
    return text
