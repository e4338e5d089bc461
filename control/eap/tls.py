"""EAP-TLS on both sides: TLS 1.2 (RFC 5216) and TLS 1.3 (RFC 9190) by OpenSSL over memory, cut into EAP packets.

    data = flags, [length of the whole TLS message (4)], a piece of it        flags: 0x80 length, 0x40 more, 0x20 start

A piece that is not the last is acknowledged by an empty packet. TLS itself demands that each chain leads to a trusted
CA; what else is wanted of a peer's certificate `check` says once the chain is known, and before the peer hears of
success. MSK is the first half of what is exported; with TLS 1.3 the server confirms the end by a zero byte.

strongSwan 5.9.8 speaks TLS 1.2 unless told otherwise; its TLS 1.3 is of a draft (another MSK, no zero byte) and
does not work with this.

No session resumption, no early data, no PSK suites: a client proves its certificate anew each time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from control.crypto.auth import PrivateKey
from control.eap.method import Method, Progress, fail
from control.ike.errors import syntax_error
from control.ike.numbers import EapType

LENGTH, MORE, START = 0x80, 0x40, 0x20
PIECE = 1000  # bytes of TLS in one EAP packet; strongSwan's fragment_size is 1024
MAX_MESSAGE = 65536  # bytes of one TLS message: a long chain has 20,000
_REASONS = {
    code: name.removeprefix("ERR_").lower().replace("_", " ")
    for name, code in vars(SSL.X509VerificationCodes).items()
    if name.startswith("ERR_")
}
_LABEL_TLS12 = b"client EAP encryption"  # RFC 5216 section 2.3
_LABEL_TLS13 = b"EXPORTER_EAP_TLS_Key_Material"  # RFC 9190 section 2.3


@dataclass(frozen=True, kw_only=True)
class TlsCredentials:
    """What one side proves itself with, whom it trusts, and what else it wants of the peer's chain."""

    private_key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]  # ours, then its issuers without the root
    trusted: tuple[x509.Certificate, ...]
    check: Callable[[Sequence[x509.Certificate]], str]  # the peer's chain -> "", or why it is refused
    max_version: int = SSL.TLS1_3_VERSION


class Tls(Method):
    """Either side; a server begins with `start`."""

    type = EapType.TLS
    name = "EAP-TLS"

    def __init__(self, credentials: TlsCredentials, *, server: bool) -> None:
        self._server = server
        self._check = credentials.check
        self._refused: list[str] = []  # why OpenSSL found the peer's chain no good
        self._connection = SSL.Connection(self._context(credentials), None)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
        self._incoming = bytearray()
        self._expected = 0  # bytes of the message that is coming in pieces; 0: not said
        self._outgoing = b""
        self._sent = 0  # bytes of it that are sent
        self._begun = server
        self._established = False
        self._verdict: Progress | None = None  # ready, to be told once all is sent

    def _context(self, credentials: TlsCredentials) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_max_proto_version(credentials.max_version)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        # strongSwan's server knows no RFC 5746. What that extension protects, a later handshake on the same
        # connection, there is none of here: renegotiation is off, and no application data ever flows.
        context.set_options(SSL.OP_LEGACY_SERVER_CONNECT)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.use_privatekey(credentials.private_key)
        context.use_certificate(credentials.chain[0])
        for issuer in credentials.chain[1:]:
            context.add_extra_chain_cert(issuer)
        store = context.get_cert_store()
        if store is None:
            raise RuntimeError("OpenSSL context without certificate store")
        # An intermediate CA that is trusted by configuration needs no root.
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
        for authority in credentials.trusted:
            store.add_cert(X509.from_cryptography(authority))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verified)
        return context

    def _verified(self, _: SSL.Connection, certificate: X509, error: int, depth: int, good: int) -> bool:
        if not good:
            # What OpenSSL takes for a certificate the other library may refuse to read, in more than one way.
            try:
                subject = repr(certificate.to_cryptography().subject.rfc4514_string())
            except Exception:
                subject = "one that cannot be read"
            self._refused.append(f"{subject}: {_REASONS.get(error, f'error {error} of OpenSSL')}")
        return bool(good)

    # ---- EAP packets ---------------------------------------------------------------------------------------------

    def start(self) -> bytes:
        """EAP-TLS/Start."""
        return bytes([START])

    def receive(self, identifier: int, data: bytes) -> Progress:
        """A piece of a TLS message, or the acknowledgement of one of ours."""
        if not data:
            raise syntax_error("EAP-TLS packet without flags")
        flags, piece = data[0], data[1:]
        if not self._server and flags & START:
            if self._begun:
                raise syntax_error("EAP-TLS starts a second time")
            self._begun = True
            return self._advance(b"")
        if not self._begun:
            raise syntax_error("EAP-TLS packet before its start")
        if flags & LENGTH:
            piece = self._announced(piece)
        if self._sent < len(self._outgoing):
            if piece:
                raise syntax_error(f"EAP-TLS data of {len(piece)} bytes while our message is not yet sent")
            return self._next_piece()
        if len(self._incoming) + len(piece) > (self._expected or MAX_MESSAGE):
            raise syntax_error(
                f"EAP-TLS message of {len(self._incoming) + len(piece)} bytes or more; "
                f"want {self._expected or MAX_MESSAGE}"
            )
        self._incoming += piece
        if flags & MORE:
            if not piece:
                raise syntax_error("EAP-TLS piece without bytes, of which more are to come")
            return Progress(data=b"\0")
        message = bytes(self._incoming)
        self._incoming.clear()
        self._expected = 0
        return self._advance(message)

    def _announced(self, piece: bytes) -> bytes:
        """Take in the length of the whole message, which the first piece has."""
        if len(piece) < 4:
            raise syntax_error(f"EAP-TLS length field of {len(piece)} bytes; want 4")
        (length,) = struct.unpack_from(">I", piece)
        if length > MAX_MESSAGE:
            raise syntax_error(f"EAP-TLS message of {length} bytes; want at most {MAX_MESSAGE}")
        if self._expected and length != self._expected:
            raise syntax_error(f"EAP-TLS message of {length} bytes, of which {self._expected} were announced")
        self._expected = length
        return piece[4:]

    def _next_piece(self) -> Progress:
        """The next piece of our message; with the last one the verdict, if that is known."""
        first = self._sent == 0
        piece = self._outgoing[self._sent : self._sent + PIECE]
        self._sent += len(piece)
        more = self._sent < len(self._outgoing)
        flags = MORE if more else 0
        if first and more:
            # RFC 5216 section 2.1.5: the first of several pieces says how long it will be.
            return Progress(data=bytes([flags | LENGTH]) + struct.pack(">I", len(self._outgoing)) + piece)
        return self._close(bytes([flags]) + piece, more=more)

    def _close(self, data: bytes, *, more: bool) -> Progress:
        verdict = self._verdict
        if verdict is None or more:
            return Progress(data=data)
        if self._server:
            return Progress(data=data)  # the client answers once more; then the verdict is told
        return Progress(data=data, done=True, error=verdict.error, msk=verdict.msk)

    # ---- TLS -----------------------------------------------------------------------------------------------------

    def _advance(self, message: bytes) -> Progress:
        """Give TLS what came, and send what it says to that."""
        if self._verdict is not None:
            return self._confirm(message) if self._server else replace(self._verdict, data=b"\0")
        try:
            if message:
                self._connection.bio_write(message)
            self._handshake()
        except SSL.ZeroReturnError:
            side = "client" if self._server else "server"
            self._verdict = fail(f"the {side} closed EAP-TLS: it does not accept our certificate")
        except SSL.Error as error:
            self._verdict = fail(self._explain(error))
        self._outgoing, self._sent = self._output(), 0
        if not self._outgoing and self._verdict is not None and (self._server or self._verdict.error):
            # A client without anything to say still owes an answer (RFC 9190 section 2.1.1).
            data = None if self._server else b"\0"
            return Progress(data=data, done=True, error=self._verdict.error, msk=self._verdict.msk)
        return self._next_piece()

    def _confirm(self, message: bytes) -> Progress:
        """A client's last packet is empty, unless it has second thoughts about us: an alert."""
        if message and self._verdict is not None and not self._verdict.error:
            self._connection.bio_write(message)
            try:
                self._connection.recv(16)
            except SSL.ZeroReturnError:
                return fail("the client closed EAP-TLS: it does not accept our certificate")
            except SSL.Error as error:
                return fail(self._explain(error))
            return fail("the client sent data after the end of EAP-TLS")
        return self._verdict or fail("EAP-TLS is not over")

    def _handshake(self) -> None:
        if not self._established:
            try:
                self._connection.do_handshake()
            except SSL.WantReadError:
                return
            self._established = True
            try:
                chain = self._peer_chain()
            except ValueError as error:  # what OpenSSL takes and the other library does not
                raise syntax_error(f"EAP-TLS certificate that cannot be read: {error}") from None
            refusal = self._check(chain)
            if refusal:
                self._verdict = fail(refusal)
                self._connection.shutdown()
                return
            if self._server:
                self._look_for_alert()
                self._verdict = Progress(done=True, msk=self._msk())
                if self._is_tls13:
                    self._connection.send(b"\0")  # RFC 9190 section 2.1.1: the protected success indication
                return
        if self._server:
            return
        if self._is_tls13:
            try:
                indication = self._connection.recv(16)
            except SSL.WantReadError:
                return
            if indication != b"\0":
                raise syntax_error(f"EAP-TLS success indication of {len(indication)} bytes; want a zero byte")
        self._verdict = Progress(done=True, msk=self._msk())

    def _look_for_alert(self) -> None:
        """An alert may come in one message with the client's Finished; SSL.Error then."""
        try:
            self._connection.recv(16)
        except SSL.WantReadError:
            return
        raise syntax_error("EAP-TLS data from the client beyond its handshake")

    @property
    def _is_tls13(self) -> bool:
        return self._connection.get_protocol_version() >= SSL.TLS1_3_VERSION

    def _msk(self) -> bytes:
        if self._is_tls13:
            return self._connection.export_keying_material(_LABEL_TLS13, 128, bytes([EapType.TLS]))[:64]
        return self._connection.export_keying_material(_LABEL_TLS12, 128)[:64]

    def _peer_chain(self) -> list[x509.Certificate]:
        chain = [one.to_cryptography() for one in self._connection.get_peer_cert_chain() or ()]
        own = self._connection.get_peer_certificate()
        if own is not None and (not chain or chain[0] != own.to_cryptography()):
            chain.insert(0, own.to_cryptography())
        return chain

    def _output(self) -> bytes:
        parts = []
        while True:
            try:
                parts.append(self._connection.bio_read(65536))
            except SSL.WantReadError:
                return b"".join(parts)

    def _explain(self, error: SSL.Error) -> str:
        side = "client" if self._server else "server"
        if self._refused:
            return f"the {side}'s TLS certificate is refused: {self._refused[0]}"
        reasons = [str(entry[2]) for entry in (error.args[0] if error.args else ()) if len(entry) > 2]
        return f"EAP-TLS with the {side} failed: {', '.join(reasons) or type(error).__name__}"
