"""tshark reads the same out of IKE messages as we do: what strongSwan sent, and what we build, field by field.

What was sealed is laid open first (tests/control/ike/test_reference.py has the keys), for what is compared here is the
decoding of payloads. tshark 4.0 knows neither RFC 9370's transform types nor some configuration attributes; it is
asked for their numbers only.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from control.ike.numbers import IdType, TransformType
from control.ike.wire import (
    AuthPayload,
    CertPayload,
    CpPayload,
    DeletePayload,
    EapPayload,
    Header,
    IdPayload,
    KePayload,
    Message,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    VendorPayload,
    build_message,
    parse_message,
    payload_type,
)
from dataplane.ports import pcap
from tests import ike_messages
from tests.control.ike.test_reference import RECORD, Replay
from tests.packets import udp_packet

_TRANSFORM_IDS = {
    TransformType.ENCR: "isakmp.tf.id.encr",
    TransformType.PRF: "isakmp.tf.id.prf",
    TransformType.INTEG: "isakmp.tf.id.integ",
    TransformType.KE: "isakmp.tf.id.dh",
    TransformType.ESN: "isakmp.tf.id.esn",
}
FIELDS = (
    *("isakmp.ispi", "isakmp.rspi", "isakmp.exchangetype", "isakmp.messageid", "isakmp.length"),
    *("isakmp.flag_i", "isakmp.flag_r", "isakmp.typepayload"),
    *("isakmp.prop.number", "isakmp.prop.protoid", "isakmp.prop.transforms", "isakmp.spisize"),
    *("isakmp.tf.type", *_TRANSFORM_IDS.values(), "isakmp.ike2.attr.key_length"),
    *("isakmp.key_exchange.dh_group", "isakmp.key_exchange.data", "isakmp.nonce"),
    *("isakmp.id.type", "isakmp.cert.encoding", "isakmp.auth.method", "isakmp.notify.msgtype"),
    *("isakmp.delete.protoid", "isakmp.delete.spi"),
    *(
        "isakmp.ts.number",
        "isakmp.ts.type",
        "isakmp.ts.protoid",
        "isakmp.ts.start_port",
        "isakmp.ts.end_port",
    ),
    *("isakmp.ts.start_ipv4", "isakmp.ts.end_ipv4", "isakmp.ts.start_ipv6", "isakmp.ts.end_ipv6"),
    *("isakmp.cfg.type", "isakmp.cfg.attr.type", "eap.code", "eap.id"),
)
Values = dict[str, list[str]]


def ours(message: Message) -> Values:
    """What each of FIELDS must be, by our parser."""
    header = message.header
    found: Values = {name: [] for name in FIELDS}

    def say(name: str, *values: object) -> None:
        found[name] += [value.hex() if isinstance(value, bytes) else str(value) for value in values]

    say("isakmp.ispi", header.initiator_spi)
    say("isakmp.rspi", header.responder_spi)
    say("isakmp.exchangetype", int(header.exchange))
    say("isakmp.messageid", f"0x{header.message_id:08x}")
    say("isakmp.length", len(message.data))
    say("isakmp.flag_i", int(header.initiator))
    say("isakmp.flag_r", int(header.response))
    for payload in message.payloads:
        say("isakmp.typepayload", int(payload_type(payload)))
        for name, values in _fields(payload):
            say(name, *values)
    return found


def _fields(payload: Payload) -> Iterator[tuple[str, tuple[object, ...]]]:
    match payload:
        case SaPayload():
            yield from _sa_fields(payload)
        case KePayload():
            yield "isakmp.key_exchange.dh_group", (int(payload.group),)
            yield "isakmp.key_exchange.data", (payload.public,)
        case NoncePayload():
            yield "isakmp.nonce", (payload.data,)
        case IdPayload():
            yield "isakmp.id.type", (int(payload.id_type),)
        case CertPayload():
            yield "isakmp.cert.encoding", (int(payload.encoding),)
        case AuthPayload():
            yield "isakmp.auth.method", (int(payload.method),)
        case NotifyPayload():
            yield "isakmp.notify.msgtype", (int(payload.type),)
            yield "isakmp.spisize", (len(payload.spi),)
        case DeletePayload():
            yield "isakmp.delete.protoid", (int(payload.protocol),)
            yield "isakmp.spisize", (0 if payload.protocol == 1 else 4,)
            yield "isakmp.delete.spi", payload.spis
        case TsPayload():
            yield from _ts_fields(payload)
        case CpPayload():
            yield "isakmp.cfg.type", (payload.type,)
            yield "isakmp.cfg.attr.type", tuple(int(each.type) for each in payload.attributes)
        case EapPayload():
            yield "eap.code", (payload.packet[0],)
            yield "eap.id", (payload.packet[1],)
        case VendorPayload():
            pass


def _sa_fields(payload: SaPayload) -> Iterator[tuple[str, tuple[object, ...]]]:
    for proposal in payload.proposals:
        # tshark shows each proposal as a payload of type 2, each transform as one of type 3.
        yield "isakmp.typepayload", (2,)
        yield "isakmp.prop.number", (proposal.number,)
        yield "isakmp.prop.protoid", (int(proposal.protocol),)
        yield "isakmp.prop.transforms", (len(proposal.transforms),)
        yield "isakmp.spisize", (len(proposal.spi),)
        for transform in proposal.transforms:
            yield "isakmp.typepayload", (3,)
            yield "isakmp.tf.type", (int(transform.type),)
            if transform.type in _TRANSFORM_IDS:
                yield _TRANSFORM_IDS[TransformType(transform.type)], (int(transform.id),)
            if transform.key_bits is not None:
                yield "isakmp.ike2.attr.key_length", (transform.key_bits,)


def _ts_fields(payload: TsPayload) -> Iterator[tuple[str, tuple[object, ...]]]:
    yield "isakmp.ts.number", (len(payload.selectors),)
    for each in payload.selectors:
        version = each.first.version
        yield "isakmp.ts.type", (7 if version == 4 else 8,)
        yield "isakmp.ts.protoid", (each.protocol,)
        yield "isakmp.ts.start_port", (each.ports[0],)
        yield "isakmp.ts.end_port", (each.ports[1],)
        yield f"isakmp.ts.start_ipv{version}", (each.first,)
        yield f"isakmp.ts.end_ipv{version}", (each.last,)


def theirs(path: Path) -> list[Values]:
    """FIELDS of every packet of a capture, by tshark."""
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]
    for name in FIELDS:
        command += ["-e", name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [
        {name: text.split(",") if text else [] for name, text in zip(FIELDS, line.split("|"), strict=True)}
        for line in run.stdout.splitlines()
    ]


def compare(messages: list[bytes], path: Path) -> None:
    """All of them, in one capture."""
    with pcap.CaptureWriter(path.open("wb"), pcap.RAW) as capture:
        for number, data in enumerate(messages):
            capture.write(udp_packet(4, data, ports=(500, 500)), number)
    decoded = theirs(path)
    assert len(decoded) == len(messages)
    for data, found in zip(messages, decoded, strict=True):
        assert found == ours(parse_message(data)), data.hex()


class Laid(Replay):
    """A recorded handshake with its messages laid open."""

    def __init__(self, handshake: dict[str, object]) -> None:
        super().__init__(handshake)
        self.messages: list[bytes] = []

    def _take(self, data: bytes) -> None:
        message = parse_message(data)
        if message.encrypted is None:
            self.messages.append(data)
        super()._take(data)

    def _open(self, message: Message) -> list[Payload]:
        payloads = super()._open(message)
        self.messages.append(build_message(message.header, payloads))
        return payloads


def test_what_strongswan_sent(tmp_path: Path) -> None:
    messages: list[bytes] = []
    for handshake in RECORD["handshakes"]:
        replay = Laid(handshake)
        replay.walk()
        messages += replay.messages
    assert len(messages) > 40
    compare(messages, tmp_path / "strongswan.pcap")


def test_what_we_build(tmp_path: Path) -> None:
    chance = random.Random(7)
    messages = []
    for _ in range(200):
        header = Header(
            initiator_spi=chance.randbytes(7) + b"\1",
            responder_spi=chance.randbytes(8),
            exchange=chance.choice((34, 35, 36, 37, 43)),
            initiator=chance.random() < 0.5,
            response=chance.random() < 0.5,
            message_id=chance.getrandbits(32),
        )
        messages.append(build_message(header, [_shown(chance) for _ in range(chance.randrange(1, 6))]))
    compare(messages, tmp_path / "ours.pcap")


_COMPARED = SaPayload | KePayload | NoncePayload | DeletePayload | TsPayload | CpPayload


def _shown(chance: random.Random) -> Payload:
    """A payload that tshark takes apart; it gives up at an address whose length is wrong, which we leave for later."""
    while True:
        payload = ike_messages.payload(chance)
        if isinstance(payload, IdPayload):
            return IdPayload(initiator=payload.initiator, id_type=IdType.KEY_ID, data=payload.data)
        if isinstance(payload, _COMPARED):
            return payload
