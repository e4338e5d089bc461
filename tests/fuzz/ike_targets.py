"""The parsers that peers' bytes reach, each with well-formed samples to mutate and what must hold of what it takes.

A target's `run` returns when it took the input, and raises one of REFUSALS when not; anything else is a finding, and
so is a Broken: what was parsed does not come out of the builder as it went in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from control.crypto import auth, exchange
from control.crypto.errors import CryptoError
from control.crypto.sk import Protection
from control.ike.defaults import default_proposals
from control.ike.errors import PeerError
from control.ike.identity import Identity
from control.ike.numbers import CfgAttribute, Group, NotifyType, Protocol
from control.ike.proposal import Proposal, select, suite_of
from control.ike.selectors import everything, narrow, to_settings
from control.ike.settings import Auth, AuthSettings
from control.ike.wire import (
    CpPayload,
    EapPayload,
    IdPayload,
    OfferedProposal,
    SaPayload,
    TsPayload,
    build_eap,
    build_message,
    build_payload_chain,
    build_sealed_prefix,
    parse_eap,
    parse_message,
    parse_payload_chain,
)
from control.ike.wire.configuration import build_attributes, parse_address, parse_attributes, parse_subnet
from control.ike.wire.payloads import Payload
from control.ike.wire.proposal import build_sa, parse_sa
from control.ike.wire.selector import build_selectors, parse_selectors
from control.pki.crl import CrlError, CrlStore, parse_crl
from control.pki.errors import CredentialError
from control.pki.make import Issued, issue, make_authority, make_crl
from control.pki.store import Authority, Credentials
from control.sa.selectors import pairs
from tests import ike_messages
from tests.fuzz.eap_targets import eap_talk, lent, make_eap_talk
from tests.fuzz.ike_responder import (
    Broken,
    conversation,
    first_contact,
    make_conversation,
    make_first_contact,
)

REFUSALS = (PeerError, CryptoError, CredentialError, CrlError)
_NOWHERE = b"\0" * 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser. `make` gives a well-formed input, `run` parses one."""

    name: str
    make: Callable[[random.Random], bytes]
    run: Callable[[bytes], object]
    weight: float = 4  # how often it is fuzzed, against the others
    slow: float = 0.5  # CPU seconds that no input may take
    must_take: bool = True  # whether it takes all that `make` gives


def _same(got: object, want: object) -> None:
    if got != want:
        raise Broken(f"got {got!r:.500}, want {want!r:.500}")


def _buildable(payloads: tuple[Payload, ...]) -> bool:
    """Whether these come out as they went in: what we do not know inside is kept in mind, but not its bytes."""
    for payload in payloads:
        if isinstance(payload, SaPayload):
            if any(each.unknown_attribute for offer in payload.proposals for each in offer.transforms):
                return False
        elif isinstance(payload, TsPayload) and payload.unknown:
            return False
    return True


def _message(data: bytes) -> None:
    message = parse_message(data)
    if message.encrypted is not None:
        _same(message.aad + message.encrypted.body, data)
    elif _buildable(message.payloads):
        again = parse_message(build_message(message.header, message.payloads))
        _same(again.payloads, message.payloads)
        _same(again.header, message.header)


def _make_message(chance: random.Random) -> bytes:
    header = ike_messages.header(chance)
    if chance.random() < 0.4:
        body = chance.randbytes(chance.randrange(16, 200))
        total = chance.choice((0, 1, 2, 30))
        return build_sealed_prefix(header, 35, len(body), number=min(total, 1), total=total) + body
    return build_message(header, ike_messages.payloads(chance))


def _chain(data: bytes) -> None:
    payloads = parse_payload_chain(data[0], data[1:]) if data else ()
    _meaning(payloads)
    if _buildable(payloads):
        first, chain = build_payload_chain(payloads)
        _same(parse_payload_chain(first, chain), payloads)


def _meaning(payloads: tuple[Payload, ...]) -> None:
    """What is read out of payloads later on."""
    for payload in payloads:
        if isinstance(payload, CpPayload):
            _attributes(build_attributes(payload.type, payload.attributes))
        elif isinstance(payload, IdPayload):
            _identity(bytes([payload.id_type]) + payload.data)
        elif isinstance(payload, EapPayload):
            _eap(payload.packet)


def _make_chain(chance: random.Random) -> bytes:
    first, chain = build_payload_chain(ike_messages.payloads(chance))
    return bytes([first]) + chain


@cache
def _configured(protocol: Protocol) -> tuple[Proposal, ...]:
    return default_proposals(protocol, remote_access=True)


def _proposals(data: bytes) -> None:
    offers = parse_sa(data)
    if _buildable((SaPayload(proposals=offers),)):
        _same(parse_sa(build_sa(offers)), offers)
    refusals = [_choose(offers, _configured(protocol)) for protocol in (Protocol.IKE, Protocol.ESP)]
    if all(refusals):
        raise PeerError(NotifyType.NO_PROPOSAL_CHOSEN, "; ".join(refusals))


def _choose(offers: tuple[OfferedProposal, ...], configured: tuple[Proposal, ...]) -> str:
    """A responder's choice, and an initiator's look at the same as an answer; the responder's refusal, or nothing."""
    try:
        str(suite_of(offers[0], configured))
    except PeerError:
        pass
    try:
        suite, number = select(offers, configured, prefer_group=19)
    except PeerError as error:
        return str(error)
    [chosen] = [each for each in offers if each.number == number]
    _same(set(suite.transforms) <= set(chosen.transforms), True)
    return ""


def _make_proposals(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        configured = _configured(chance.choice((Protocol.IKE, Protocol.ESP)))
        return build_sa(tuple(each.to_wire(number) for number, each in enumerate(configured, start=1)))
    return build_sa(ike_messages.proposals(chance))


def _selectors(data: bytes) -> None:
    selectors, unknown = parse_selectors(data)
    if not unknown:
        _same(parse_selectors(build_selectors(selectors))[0], selectors)
    everywhere = (everything(4), everything(6))
    found = narrow(
        asked_local=selectors, asked_remote=selectors, allowed_local=everywhere, allowed_remote=everywhere
    )
    pairs(to_settings(found.local), to_settings(found.remote))


def _make_selectors(chance: random.Random) -> bytes:
    return build_selectors([ike_messages.selector(chance) for _ in range(chance.choice((1, 2, 3, 60)))])


_ADDRESSES = {
    *(CfgAttribute.INTERNAL_IP4_ADDRESS, CfgAttribute.INTERNAL_IP4_DNS, CfgAttribute.INTERNAL_IP4_NETMASK),
    *(CfgAttribute.INTERNAL_IP6_ADDRESS, CfgAttribute.INTERNAL_IP6_DNS),
}


def _attributes(data: bytes) -> None:
    kind, attributes = parse_attributes(data)
    _same(parse_attributes(build_attributes(kind, attributes)), (kind, attributes))
    for attribute in attributes:
        if attribute.type in _ADDRESSES:
            parse_address(attribute)
        elif attribute.type in (CfgAttribute.INTERNAL_IP4_SUBNET, CfgAttribute.INTERNAL_IP6_SUBNET):
            parse_subnet(attribute)


def _make_attributes(chance: random.Random) -> bytes:
    return build_attributes(1, [ike_messages.attribute(chance) for _ in range(chance.randrange(9))])


def _eap(data: bytes) -> None:
    packet = parse_eap(data)
    _same(build_eap(packet), data)


_IDENTITIES = (
    "gw.example.org",
    "jo@example.org",
    "10.0.0.1",
    "2001:db8::1",
    "C=DE, O=Example, OU=Gateways, CN=gw.example.org",
    "@#0a1b2c3d",
)
_PATTERNS = [
    Identity.parse(text) for text in ("%any", "*.example.org", "C=DE, O=Example, CN=*", "10.0.0.0/8")
]


def _identity(data: bytes) -> None:
    if not data:
        return
    identity = Identity.from_wire(data[0], data[1:])
    str(identity)
    _same(Identity.from_wire(*identity.to_wire()), identity)
    for pattern in _PATTERNS:
        identity.matches(pattern)


def _make_identity(chance: random.Random) -> bytes:
    kind, data = Identity.parse(chance.choice(_IDENTITIES)).to_wire()
    return bytes([kind]) + data


@cache
def _keys() -> tuple[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey]:
    return (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    )


def _signature(data: bytes) -> None:
    if len(data) > 1:
        auth.verify(_keys()[data[0] % 3].public_key(), data[1], data[2:], _NOWHERE, auth.HASHES)


def _make_signature(chance: random.Random) -> bytes:
    number = chance.randrange(3)
    hashes = () if number < 2 and chance.random() < 0.3 else auth.HASHES
    method, data = auth.sign(_keys()[number], _NOWHERE, hashes, pkcs1=chance.random() < 0.5)
    return bytes([number, method]) + data


_FAST_GROUPS = (Group.CURVE25519, Group.ECP_256, Group.ECP_384, Group.CURVE448, Group.ML_KEM_768)


def _public_value(data: bytes) -> None:
    if not data:
        return
    group = _FAST_GROUPS[data[0] % len(_FAST_GROUPS)]
    exchange.answer(group, data[1:])


def _make_public_value(chance: random.Random) -> bytes:
    number = chance.randrange(len(_FAST_GROUPS))
    return bytes([number]) + exchange.offer(_FAST_GROUPS[number]).public


_PROTECTIONS = (
    Protection(encr_id=20, key_bits=256),
    Protection(encr_id=12, key_bits=128, integ_id=12),
    Protection(encr_id=28),
)


def _key(protection: Protection) -> tuple[bytes, bytes]:
    return bytes(protection.encryption_key_length), bytes(protection.integrity_key_length)


def _sealed(data: bytes) -> None:
    if not data:
        return
    protection = _PROTECTIONS[data[0] % len(_PROTECTIONS)]
    protection.opener(*_key(protection)).open(_NOWHERE, data[1:])


def _make_sealed(chance: random.Random) -> bytes:
    number = chance.randrange(len(_PROTECTIONS))
    protection = _PROTECTIONS[number]
    plain = chance.randbytes(chance.randrange(100))
    return bytes([number]) + protection.sealer(*_key(protection)).seal(_NOWHERE, plain)


_GW = Identity.parse("gw.example.org")
_DEMANDS = AuthSettings(auth=Auth.PUBKEY, revocation="ifuri")


@cache
def _issued() -> tuple[Issued, Issued, tuple[Issued, ...]]:
    root = make_authority("C=DE, O=Example, CN=Root")
    limits = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.org")], excluded_subtrees=None)
    middle = make_authority("C=DE, O=Example, CN=Middle", parent=root, path_length=0, constraints=limits)
    url = "http://crl.example.org/root.crl"
    ends = [
        issue(middle, f"CN=gw{key}", [_GW], key=key, crl_url=url) for key in ("ecdsa", "ed25519", "rsa2048")
    ]
    return root, middle, tuple(ends)


@cache
def _crls() -> CrlStore:
    crls = CrlStore()
    for issuer in _issued()[:2]:
        crls.add(make_crl(issuer).public_bytes(Encoding.DER), issuer.certificate.subject.rfc4514_string())
    return crls


def _credentials() -> Credentials:
    """New each time: what was verified once is remembered, and would not be looked at again."""
    authority = Authority(name="ca", certificates=(_issued()[0].certificate,))
    return Credentials(authorities=[authority], crls=_crls())


def _certificates(data: bytes) -> None:
    """The length of the first certificate in two bytes, it, and the second."""
    length = int.from_bytes(data[:2], "big")
    sent = [part for part in (data[2 : 2 + length], data[2 + length :]) if part]
    _credentials().verify_peer(_DEMANDS, _GW, sent)


def _make_certificates(chance: random.Random) -> bytes:
    _, middle, ends = _issued()
    first, second = (each.certificate.public_bytes(Encoding.DER) for each in (chance.choice(ends), middle))
    return len(first).to_bytes(2, "big") + first + second


def _crl(data: bytes) -> None:
    root, middle, _ = _issued()
    parse_crl(data)
    store = CrlStore()
    store.add_signed(data, "the peer", [root.certificate])
    store.add(data, "a file")
    store.check(middle.certificate, root.certificate, middle.certificate.not_valid_after_utc).explain()


def _make_crl(chance: random.Random) -> bytes:
    root, middle, _ = _issued()
    revoked = [
        (serial, middle.certificate.not_valid_before_utc) for serial in range(1, chance.randrange(2, 20))
    ]
    return make_crl(root, revoked).public_bytes(chance.choice((Encoding.DER, Encoding.PEM)))


TARGETS: tuple[Target, ...] = (
    Target(name="message", make=_make_message, run=_message, weight=30),
    Target(name="chain", make=_make_chain, run=_chain, weight=30, must_take=False),
    Target(name="proposals", make=_make_proposals, run=_proposals, weight=8, must_take=False),
    Target(name="selectors", make=_make_selectors, run=_selectors, weight=8, must_take=False),
    Target(name="configuration", make=_make_attributes, run=_attributes, weight=8),
    Target(name="eap", make=ike_messages.eap, run=_eap, weight=4),
    Target(name="eap talk", make=make_eap_talk, run=eap_talk, weight=1, must_take=False),
    Target(name="lent", make=_make_attributes, run=lent, weight=2, must_take=False),
    Target(name="identity", make=_make_identity, run=_identity, weight=8),
    Target(name="signature", make=_make_signature, run=_signature, weight=2),
    Target(name="public value", make=_make_public_value, run=_public_value, weight=1),
    Target(name="sealed", make=_make_sealed, run=_sealed, weight=4),
    Target(name="certificates", make=_make_certificates, run=_certificates, weight=1),
    Target(name="revocation list", make=_make_crl, run=_crl, weight=1),
    Target(name="first contact", make=make_first_contact, run=first_contact, weight=8),
    # Each input is a seed, and some 20 ms of two endpoints' talk: fewer, and longer.
    Target(name="conversation", make=make_conversation, run=conversation, weight=0.2, slow=30.0),
)
