"""EAP-MSCHAPv2 on both sides: RFC 2759 in EAP (draft-kamath-pppext-eap-mschapv2-02), keys by RFC 3079.

    server  Challenge (1)  ->              data = opcode, identifier, length (2), and:
            <-  Response (2)               challenge  16, challenge (16), name
            Success (3) or Failure (4) ->  response   49, peer challenge (16), 0 (8), NT response (24), 0, name
            <-  the same opcode, alone     success    "S=<40 hex digits> M=text"; failure "E=691 R=0 C=... V=3 M=text"

Both sides are proven by knowing the password's MD4 hash. The strength is that of one DES key and of the password: it is
safe only inside a tunnel whose server has proven itself before, as IKEv2 does by certificate. No password change.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from control.eap.md4 import md4
from control.eap.method import Method, Progress, fail
from control.ike.errors import syntax_error
from control.ike.numbers import EapType

CHALLENGE, RESPONSE, SUCCESS, FAILURE = 1, 2, 3, 4
MAX_NAME = 256
_ERRORS = {
    646: "logon at this hour is not allowed",
    647: "the account is disabled",
    648: "the password has expired",
    649: "no permission to dial in",
    691: "wrong user name or password",
    709: "the password cannot be changed",
}

# RFC 2759 section 8.7 and RFC 3079 section 3.4
_MAGIC_SERVER_1 = b"Magic server to client signing constant"
_MAGIC_SERVER_2 = b"Pad to make it do more than one iteration"
_MAGIC_MASTER = b"This is the MPPE Master Key"
_MAGIC_CLIENT_SENDS = b"On the client side, this is the send key; on the server side, it is the receive key."
_MAGIC_SERVER_SENDS = b"On the client side, this is the receive key; on the server side, it is the send key."


# ---- the mathematics (RFC 2759 section 8, RFC 3079 section 3) ------------------------------------------------------


def nt_hash(password: bytes) -> bytes:
    """MD4 of the password in UTF-16; `password` is UTF-8. ValueError where it is not."""
    return md4(password.decode().encode("utf-16-le"))


def challenge_hash(peer_challenge: bytes, server_challenge: bytes, name: str) -> bytes:
    """Eight bytes of SHA-1 over both challenges and the user name without its domain."""
    user = name.rpartition("\\")[2].encode()
    return hashlib.sha1(peer_challenge + server_challenge + user).digest()[:8]


def nt_response(hash_: bytes, challenge: bytes) -> bytes:
    """The challenge encrypted by three DES keys out of the password's hash."""
    padded = hash_.ljust(21, b"\0")
    return b"".join(_des(padded[at : at + 7], challenge) for at in (0, 7, 14))


def authenticator_response(hash_: bytes, response: bytes, challenge: bytes) -> str:
    """ "S=" and 40 hex digits, which prove the server; `challenge` is `challenge_hash`."""
    digest = hashlib.sha1(md4(hash_) + response + _MAGIC_SERVER_1).digest()
    return "S=" + hashlib.sha1(digest + challenge + _MAGIC_SERVER_2).hexdigest().upper()


def master_session_key(hash_: bytes, response: bytes) -> bytes:
    """MSK: the server's receive key, its send key, and zeros; 64 bytes."""
    master = hashlib.sha1(md4(hash_) + response + _MAGIC_MASTER).digest()[:16]

    def key(magic: bytes) -> bytes:
        return hashlib.sha1(master + bytes(40) + magic + b"\xf2" * 40).digest()[:16]

    return key(_MAGIC_CLIENT_SENDS) + key(_MAGIC_SERVER_SENDS) + bytes(32)


def _des(key: bytes, block: bytes) -> bytes:
    """One block of DES under 7 bytes of key, which get their parity bits first (any, for DES ignores them)."""
    bits = int.from_bytes(key, "big")
    spread = bytes((bits >> shift & 0x7F) << 1 for shift in range(49, -7, -7))
    encryptor = Cipher(TripleDES(spread * 3), modes.ECB()).encryptor()
    return encryptor.update(block)


# ---- packets -------------------------------------------------------------------------------------------------------


def _build(opcode: int, identifier: int, value: bytes) -> bytes:
    return struct.pack(">BBH", opcode, identifier, 4 + len(value)) + value


def _parse(data: bytes, *wanted: int) -> tuple[int, int, bytes]:
    """Opcode, identifier and value; PeerError unless the opcode is one of `wanted`."""
    if not data:
        raise syntax_error("EAP-MSCHAPv2 packet without opcode")
    opcode = data[0]
    if opcode not in wanted:
        raise syntax_error(f"EAP-MSCHAPv2 opcode {opcode}; want {' or '.join(map(str, wanted))}")
    if len(data) == 1:
        return opcode, 0, b""  # as a client acknowledges success or failure
    if len(data) < 4:
        raise syntax_error(f"EAP-MSCHAPv2 packet of {len(data)} bytes; want 1, or 4 and more")
    _, identifier, length = struct.unpack_from(">BBH", data)
    if length != len(data):
        raise syntax_error(f"EAP-MSCHAPv2 packet says it has {length} bytes; got {len(data)}")
    return opcode, identifier, data[4:]


def _value(value: bytes, size: int) -> tuple[bytes, str]:
    """The sized value at a packet's start, and the name behind it."""
    if len(value) < 1 + size or value[0] != size:
        got = value[0] if value else 0
        raise syntax_error(f"EAP-MSCHAPv2 value of {got} bytes in {len(value)}; want {size}")
    name = value[1 + size :]
    if len(name) > MAX_NAME:
        raise syntax_error(f"EAP-MSCHAPv2 name of {len(name)} bytes; want at most {MAX_NAME}")
    text = name.decode("utf-8", "replace")
    if not text.isprintable() or "\ufffd" in text:
        raise syntax_error("EAP-MSCHAPv2 name that is not printable UTF-8")
    return value[1 : 1 + size], text


# ---- the server ----------------------------------------------------------------------------------------------------


class Server(Method):
    """Asks for the password of whoever answers. `password` gives a user's (UTF-8), or None for an unknown one."""

    type = EapType.MSCHAPV2
    name = "EAP-MSCHAPv2"

    def __init__(
        self,
        password: Callable[[str], bytes | None],
        server_name: str,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._password = password
        self._server_name = server_name
        self._challenge = random(16)
        self._identifier = random(1)[0]
        self._verdict: Progress | None = None  # given when the client has acknowledged it
        self._opcode = RESPONSE  # what is awaited

    def start(self) -> bytes:
        """The challenge."""
        value = bytes([16]) + self._challenge + self._server_name.encode()
        return _build(CHALLENGE, self._identifier, value)

    def receive(self, identifier: int, data: bytes) -> Progress:
        """The response, then the acknowledgement of our verdict."""
        _, number, value = _parse(data, self._opcode)
        if self._verdict is not None:
            return self._verdict
        if number != self._identifier:
            raise syntax_error(f"EAP-MSCHAPv2 response to {number}; want {self._identifier}")
        response, name = _value(value, 49)
        return self._check(response[:16], response[24:48], name)

    def _check(self, peer_challenge: bytes, got: bytes, name: str) -> Progress:
        self.identity, password = self._find(name)
        challenge = challenge_hash(peer_challenge, self._challenge, name)
        # An unknown user takes the same way as a wrong password, so that names cannot be tried out.
        hash_ = nt_hash(password) if password is not None else os.urandom(16)
        if hmac.compare_digest(nt_response(hash_, challenge), got) and password is not None:
            self._opcode = SUCCESS
            self._verdict = Progress(done=True, msk=master_session_key(hash_, got))
            text = authenticator_response(hash_, got, challenge) + " M=Welcome"
            return Progress(data=_build(SUCCESS, self._identifier, text.encode()))
        self._opcode = FAILURE
        why = "the password is wrong" if password is not None else "there is no EAP secret for that name"
        self._verdict = fail(f"EAP-MSCHAPv2 of '{name}' failed: {why}")
        text = f"E=691 R=0 C={self._challenge.hex().upper()} V=3 M=Authentication failed"
        packet = _build(FAILURE, self._identifier, text.encode())
        return Progress(data=packet, error=self._verdict.error)

    def _find(self, name: str) -> tuple[str, bytes | None]:
        """Whose password counts, and it: by the whole name, else without its Windows domain.

        Any domain would do then, so it is no part of who has been proven: one user is not many.
        """
        found = self._password(name)
        if found is not None:
            return name, found
        user = name.rpartition("\\")[2]
        return user, self._password(user)


# ---- the client ----------------------------------------------------------------------------------------------------


class Client(Method):
    """Answers with a user's name and password (UTF-8), and checks that the server knows the password, too."""

    type = EapType.MSCHAPV2
    name = "EAP-MSCHAPv2"

    def __init__(self, user: str, password: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        self._user = user
        self._hash = nt_hash(password)
        self._random = random
        self._expected = ""  # the server's proof, once we have answered
        self._response = b""
        self._done = False

    def receive(self, identifier: int, data: bytes) -> Progress:
        """Challenge, then success or failure."""
        if self._done:
            raise syntax_error("EAP-MSCHAPv2 packet after its end")
        wanted = (SUCCESS, FAILURE) if self._expected else (CHALLENGE,)
        opcode, number, value = _parse(data, *wanted)
        if opcode == CHALLENGE:
            return self._answer(number, value)
        self._done = True
        text = value.decode("utf-8", "replace")
        if opcode == FAILURE:
            return fail(self._explain(text), bytes([FAILURE]))
        got = text[:42].upper()
        if not hmac.compare_digest(got.encode(), self._expected.encode()):
            return fail("the EAP-MSCHAPv2 server does not know the password: its proof is wrong")
        return Progress(data=bytes([SUCCESS]), done=True, msk=master_session_key(self._hash, self._response))

    def _answer(self, number: int, value: bytes) -> Progress:
        server_challenge, _ = _value(value, 16)
        peer_challenge = self._random(16)
        challenge = challenge_hash(peer_challenge, server_challenge, self._user)
        self._response = nt_response(self._hash, challenge)
        self._expected = authenticator_response(self._hash, self._response, challenge)
        content = bytes([49]) + peer_challenge + bytes(8) + self._response + b"\0" + self._user.encode()
        return Progress(data=_build(RESPONSE, number, content))

    def _explain(self, text: str) -> str:
        fields = dict(part.partition("=")[::2] for part in text.split(" ") if "=" in part)
        code = fields.get("E", "")
        number = int(code) if code.isascii() and code.isdigit() and len(code) < 6 else 0
        reason = _ERRORS.get(number, "no reason that we know")
        return f"the server refused EAP-MSCHAPv2 of '{self._user}' with error {number or 'unknown'}: {reason}"
