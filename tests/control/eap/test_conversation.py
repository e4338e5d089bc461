"""EAP conversations of server and client with real methods: TLS 1.2 and 1.3, refusals by either side, Nak, disorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto

from control.eap import mschapv2
from control.eap.client import EapClient
from control.eap.conversation import Step
from control.eap.server import EapServer
from control.eap.tls import Tls, TlsCredentials
from control.ike.errors import PeerError
from control.ike.numbers import EapCode, EapType
from control.ike.wire.eap import EapPacket, build_eap, parse_eap
from tests.control.eap.certificates import Authority

CA = Authority.make()
OTHER = Authority.make("Other CA")
VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]


def accept(chain: Sequence[x509.Certificate]) -> str:
    """No further demand."""
    assert chain
    return ""


def credentials(
    name: str,
    *,
    issuer: Authority = CA,
    version: int = SSL.TLS1_3_VERSION,
    check: Callable[[Sequence[x509.Certificate]], str] = accept,
    expired: bool = False,
    padding: int = 0,
) -> TlsCredentials:
    """One side's; both trust CA."""
    certificate, key = issuer.issue(name, expired=expired, padding=padding)
    return TlsCredentials(
        private_key=key,
        chain=(certificate,),
        trusted=(CA.certificate,),
        check=check,
        max_version=version,
    )


def tls_server(how: TlsCredentials) -> EapServer:
    """A server that wants EAP-TLS."""
    return EapServer([(EapType.TLS, lambda identity: Tls(how, server=True))])


def tls_client(how: TlsCredentials) -> EapClient:
    """A client that can do EAP-TLS only."""
    return EapClient("carol", [(EapType.TLS, lambda: Tls(how, server=False))])


def talk(server: EapServer, client: EapClient) -> tuple[Step, Step, int]:
    """Both verdicts, and the number of packets of the server."""
    said = server.start()
    for count in range(1, 200):
        assert said.packet is not None
        answer = client.receive(said.packet)
        if answer.finished:
            return said, answer, count
        assert answer.packet is not None
        said = server.receive(answer.packet)
    raise AssertionError("no end")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("padding", [0, 7000])
def test_tls(version: int, padding: int) -> None:
    """Both end with the same MSK; large certificates go in pieces."""
    server, client, count = talk(
        tls_server(credentials("server", version=version, padding=padding)),
        tls_client(credentials("client", padding=padding)),
    )
    assert server.finished
    assert server.error == client.error == ""
    assert server.msk == client.msk
    assert len(server.msk) == 64
    assert (count > 12) == bool(padding)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("server_side", "client_side", "server_says", "client_says"),
    [
        (
            {},
            {"expired": True},
            "the client's TLS certificate is refused: 'CN=client': cert has expired",
            "certificate expired",
        ),
        ({}, {"issuer": OTHER}, "the client's TLS certificate is refused", "unknown ca"),
        (
            {"expired": True},
            {},
            "certificate expired",
            "the server's TLS certificate is refused: 'CN=server': cert has expired",
        ),
        ({"issuer": OTHER}, {}, "unknown ca", "the server's TLS certificate is refused"),
        ({"check": lambda chain: "wrong name"}, {}, "wrong name", "of 'carol'|closed EAP-TLS"),
        ({}, {"check": lambda chain: "not the gateway"}, "client closed EAP-TLS", "not the gateway"),
    ],
)
def test_refused_certificates(
    version: int,
    server_side: dict[str, object],
    client_side: dict[str, object],
    server_says: str,
    client_says: str,
) -> None:
    """Either side's refusal ends it for both, with a reason on each, and without a key."""
    server, client, _ = talk(
        tls_server(credentials("server", version=version, **server_side)),  # type: ignore[arg-type]
        tls_client(credentials("client", **client_side)),  # type: ignore[arg-type]
    )
    assert server.finished
    assert server.msk == client.msk == b""
    assert server_says in server.error
    assert any(part in client.error for part in client_says.split("|"))


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL X509 objects")
@pytest.mark.parametrize("version", VERSIONS)
def test_certificate_that_cannot_be_read(version: int) -> None:
    """OpenSSL takes more for a certificate than `cryptography` does; that is the peer's fault, and no bug of ours."""
    good = credentials("client")
    der = (
        good.chain[0]
        .public_bytes(Encoding.DER)
        .replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"))
    )
    method = Tls(good, server=False)
    method._connection.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
    client = EapClient("carol", [(EapType.TLS, lambda: method)])
    server, _, _ = talk(tls_server(credentials("server", version=version)), client)
    assert server.error.startswith("the client's TLS certificate is refused: one that cannot be read: ")


def mschapv2_client(user: str = "carol", password: bytes = b"secret") -> EapClient:
    """A client with a password."""
    return EapClient(user, [(EapType.MSCHAPV2, lambda: mschapv2.Client(user, password))])


def mschapv2_server() -> EapServer:
    """A server that prefers EAP-TLS and takes EAP-MSCHAPv2."""
    how = credentials("server")
    return EapServer(
        [
            (EapType.TLS, lambda identity: Tls(how, server=True)),
            (EapType.MSCHAPV2, lambda identity: mschapv2.Server({"carol": b"secret"}.get, "gw")),
        ]
    )


def test_nak_finds_a_common_method() -> None:
    """The client can do no TLS, says so, and is asked for its password instead."""
    eap = mschapv2_server()
    server, client, _ = talk(eap, mschapv2_client())
    assert server.error == client.error == ""
    assert server.msk == client.msk
    assert eap.identity == "carol"


def test_the_name_that_is_proven_counts() -> None:
    """The identity of the beginning is only said; the name that goes with the password is proven."""
    eap = mschapv2_server()
    client = EapClient("admin", [(EapType.MSCHAPV2, lambda: mschapv2.Client("carol", b"secret"))])
    server, _, _ = talk(eap, client)
    assert server.error == ""
    assert eap.identity == "carol"


def test_no_common_method() -> None:
    """Both say what the other can do, or what they can."""
    server, client, _ = talk(tls_server(credentials("server")), mschapv2_client())
    assert server.error == "the client 'carol' can do EAP-MSCHAPV2; we accept EAP-TLS"
    assert client.error == "the server refused EAP of 'carol', before any method; we can do EAP-MSCHAPV2"


def test_identity_is_not_asked_for_where_it_is_known() -> None:
    """The server begins with the method."""
    eap = EapServer(
        [(EapType.MSCHAPV2, lambda identity: mschapv2.Server({"carol": b"secret"}.get, "gw"))],
        ask_identity=False,
        identity="carol",
    )
    first = eap.start().packet
    assert first is not None
    assert parse_eap(first).type == EapType.MSCHAPV2


def test_success_out_of_nothing() -> None:
    """RFC 3748 section 4.2: a success without a method before it is refused."""
    with pytest.raises(PeerError, match="EAP success before any method has succeeded"):
        mschapv2_client().receive(build_eap(EapPacket(code=EapCode.SUCCESS, identifier=1)))


def test_notification_is_acknowledged() -> None:
    """RFC 3748 section 5.2."""
    request = EapPacket(code=EapCode.REQUEST, identifier=9, type=EapType.NOTIFICATION, data=b"hello")
    step = mschapv2_client().receive(build_eap(request))
    assert step.packet is not None
    answer = parse_eap(step.packet)
    assert (answer.code, answer.identifier, answer.type, answer.data) == (EapCode.RESPONSE, 9, 2, b"")


def test_identifiers_must_fit() -> None:
    """A response to another request is not taken."""
    server = mschapv2_server()
    server.start()
    answer = EapPacket(code=EapCode.RESPONSE, identifier=77, type=EapType.IDENTITY, data=b"carol")
    with pytest.raises(PeerError, match="response to 77; want 1"):
        server.receive(build_eap(answer))


def test_endless_conversation_ends() -> None:
    """A client that sends empty pieces for ever is cut off, by bytes or by rounds."""
    server = tls_server(credentials("server"))
    step = server.start()
    client = EapPacket(code=EapCode.RESPONSE, identifier=1, type=EapType.IDENTITY, data=b"carol")
    step = server.receive(build_eap(client))
    for number in range(2, 300):
        piece = EapPacket(code=EapCode.RESPONSE, identifier=number, type=EapType.TLS, data=b"\x40x")
        step = server.receive(build_eap(piece))
        if step.finished:
            break
    assert "more than 100 rounds" in step.error


def test_announced_length_is_bounded() -> None:
    """Nobody makes us keep more than 64 KB."""
    tls = Tls(credentials("server"), server=True)
    with pytest.raises(PeerError, match="message of 16777216 bytes; want at most 65536"):
        tls.receive(1, b"\xc0\x01\x00\x00\x00x")
    with pytest.raises(PeerError, match="message of 4 bytes or more; want 3"):
        tls.receive(1, b"\xc0\x00\x00\x00\x03abcd")


SERVER, CLIENT = credentials("server"), credentials("client")


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([EapType.TLS, EapType.MSCHAPV2, 1, 3, 99])
)
def test_any_bytes(packets: list[bytes], kind: int) -> None:
    """Well-framed nonsense ends in PeerError or in a failure, on both sides; never in a key."""
    server = tls_server(SERVER)
    server.start()
    identity = EapPacket(code=EapCode.RESPONSE, identifier=1, type=EapType.IDENTITY, data=b"x")
    server.receive(build_eap(identity))
    client = tls_client(CLIENT)
    for number, data in enumerate(packets, 2):
        for end, code in ((server, EapCode.RESPONSE), (client, EapCode.REQUEST)):
            try:
                step = end.receive(build_eap(EapPacket(code=code, identifier=number, type=kind, data=data)))
            except PeerError:
                continue
            assert not step.msk
