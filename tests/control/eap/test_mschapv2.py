"""EAP-MSCHAPv2: the RFCs' known answers, both sides in one process, and what must not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.eap import mschapv2
from control.eap.md4 import md4
from control.ike.errors import PeerError

PASSWORDS = {"carol": b"Ar3etTnp", "jürgen": "pässword".encode()}


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        (b"abc", "a448017aaf21d8525fc10ae87aa6729d"),
        (b"message digest", "d9130a8164549fe818874806e1c7014b"),
        (b"1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_md4(text: bytes, digest: str) -> None:
    """RFC 1320 appendix A.5."""
    assert md4(text).hex() == digest


def test_rfc_2759_and_3079() -> None:
    """RFC 2759 section 9.2 and RFC 3079 section 3.5.3: every intermediate value."""
    server = bytes.fromhex("5B5D7C7D7B3F2F3E3C2C602132262628")
    peer = bytes.fromhex("21402324255E262A28295F2B3A337C7E")
    hash_ = mschapv2.nt_hash(b"clientPass")
    assert hash_.hex().upper() == "44EBBA8D5312B8D611474411F56989AE"
    challenge = mschapv2.challenge_hash(peer, server, "User")
    assert challenge.hex().upper() == "D02E4386BCE91226"
    assert mschapv2.challenge_hash(peer, server, "DOMAIN\\User") == challenge
    response = mschapv2.nt_response(hash_, challenge)
    assert response.hex().upper() == "82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF"
    proof = mschapv2.authenticator_response(hash_, response, challenge)
    assert proof == "S=407A5589115FD0D6209F510FE9C04566932CDA56"
    msk = mschapv2.master_session_key(hash_, response)
    assert msk[16:32].hex().upper() == "8B7CDC149B993A1BA118CB153F56DCCB"
    assert (len(msk), msk[32:]) == (64, bytes(32))


def talk(user: str, password: bytes) -> tuple[mschapv2.Progress, mschapv2.Progress, mschapv2.Server]:
    """A whole conversation; the last progress of client and server."""
    server = mschapv2.Server(PASSWORDS.get, "gateway")
    client = mschapv2.Client(user, password)
    answer = client.receive(1, server.start())
    assert answer.data is not None
    verdict = server.receive(1, answer.data)
    assert verdict.data is not None
    assert not verdict.done
    end = client.receive(2, verdict.data)
    assert end.done
    assert end.data is not None
    return end, server.receive(2, end.data), server


@pytest.mark.parametrize("user", ["carol", "jürgen", "CORP\\carol"])
def test_both_know_the_password(user: str) -> None:
    """Both end with the same MSK, and the server knows whom it has proven: one user, whatever domain he says."""
    client, server, method = talk(user, PASSWORDS[user.rpartition("\\")[2]])
    assert client.error == server.error == ""
    assert client.msk == server.msk
    assert any(server.msk[:32])
    assert method.identity == user.rpartition("\\")[2]
    assert client.msk.hex() not in repr(client)


@pytest.mark.parametrize(
    ("user", "reason"),
    [("carol", "the password is wrong"), ("dave", "there is no EAP secret for that name")],
)
def test_wrong_passwords(user: str, reason: str) -> None:
    """Both sides say what failed; to the client an unknown user looks like a wrong password."""
    client, server, _ = talk(user, b"guess")
    assert server.error == f"EAP-MSCHAPv2 of '{user}' failed: {reason}"
    assert client.error == (
        f"the server refused EAP-MSCHAPv2 of '{user}' with error 691: wrong user name or password"
    )
    assert (client.msk, server.msk) == (b"", b"")


def test_server_that_does_not_know_the_password() -> None:
    """It would have to send the proof, and cannot."""
    server = mschapv2.Server(PASSWORDS.get, "gateway")
    client = mschapv2.Client("carol", PASSWORDS["carol"])
    answer = client.receive(1, server.start())
    assert answer.data is not None
    forged = mschapv2._build(mschapv2.SUCCESS, 1, b"S=" + b"0" * 40 + b" M=hello")
    end = client.receive(2, forged)
    assert end.done
    assert "does not know the password" in end.error


def test_success_before_the_challenge_is_refused() -> None:
    """A server cannot skip the challenge."""
    client = mschapv2.Client("carol", PASSWORDS["carol"])
    with pytest.raises(PeerError, match="opcode 3; want 1"):
        client.receive(1, mschapv2._build(mschapv2.SUCCESS, 1, b"S=" + b"0" * 40))


def test_client_cannot_acknowledge_a_failure_as_success() -> None:
    """After a failure only its acknowledgement is taken."""
    server = mschapv2.Server(PASSWORDS.get, "gateway")
    client = mschapv2.Client("carol", b"wrong")
    answer = client.receive(1, server.start())
    assert answer.data is not None
    server.receive(1, answer.data)
    with pytest.raises(PeerError, match="opcode 3; want 4"):
        server.receive(2, bytes([mschapv2.SUCCESS]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "without opcode"),
        (b"\x02\x00", "2 bytes"),
        (b"\x02\x00\x00\x09", "says it has 9 bytes; got 4"),
        (mschapv2._build(2, 7, b""), "response to 7"),
        (mschapv2._build(2, 0, b"\x31" + bytes(20)), "want 49"),
        (mschapv2._build(2, 0, b"\x31" + bytes(49) + b"a" * 257), "257 bytes"),
        (mschapv2._build(2, 0, b"\x31" + bytes(49) + b"a\nb"), "not printable"),
        (mschapv2._build(2, 0, b"\x31" + bytes(49) + b"\xff"), "not printable"),
    ],
)
def test_malformed_responses(data: bytes, text: str) -> None:
    """Each says what was got and wanted."""
    server = mschapv2.Server(PASSWORDS.get, "gateway", random=bytes)
    server.start()
    with pytest.raises(PeerError, match=text):
        server.receive(1, data)


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    """PeerError, or a failure: nothing else."""
    for method in (mschapv2.Server(PASSWORDS.get, "gateway"), mschapv2.Client("carol", b"x")):
        try:
            progress = method.receive(1, data)
        except PeerError:
            continue
        assert not progress.msk
