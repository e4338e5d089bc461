"""The credential store: which secret and which key serve two ends."""

from __future__ import annotations

import pytest

from control.ike.identity import Identity
from control.pki.settings import EapSecret, PostquantumKey, PresharedKey
from control.pki.store import Credentials


def psk(secret: str, *identities: str) -> PresharedKey:
    return PresharedKey(identities=tuple(map(Identity.parse, identities)), secret=secret.encode())


KEYS = (
    psk("anyone"),
    psk("domain", "*.example"),
    psk("pair", "hq.example", "branch.example"),
    psk("peer only", "10.9.0.1"),
    psk("net", "10.9.0.0/16"),
    psk("mine", "@us"),
)


@pytest.mark.parametrize(
    ("local", "remote", "secret"),
    [
        ("hq.example", "branch.example", "pair"),
        ("branch.example", "hq.example", "pair"),
        ("hq.example", "other.example", "domain"),  # both ends fit, if not exactly
        ("hq.example", "@stranger", "pair"),  # one end is enough
        ("x.example", "y.example", "domain"),
        ("10.0.0.1", "10.9.0.1", "peer only"),
        ("10.0.0.1", "10.9.0.2", "net"),
        ("@us", "10.9.0.1", "peer only"),  # the peer's identity counts before ours
        ("@us", "@stranger", "mine"),
        ("@me", "@you", "anyone"),
    ],
)
def test_the_key_that_fits_best(local: str, remote: str, secret: str) -> None:
    found = Credentials(preshared_keys=KEYS).find_psk(Identity.parse(local), Identity.parse(remote))
    assert found is not None and found.secret == secret.encode()


def test_no_key_says_whom_the_keys_are_for() -> None:
    store = Credentials(preshared_keys=KEYS[2:4])
    us, peer = Identity.parse("@us"), Identity.parse("@you")
    assert store.find_psk(us, peer) is None
    assert str(store.missing_psk(us, peer)) == (
        "no preshared key for us (us) and you (the peer): the keys are for hq.example and branch.example, 10.9.0.1; "
        "add a secret for one of these identities on this side"
    )
    assert str(Credentials().missing_psk(us, None)) == (
        "no preshared key for us (us) and %any (the peer): no preshared key is configured; "
        "add a secret for one of these identities on this side"
    )


def test_secrets_by_name_and_never_shown() -> None:
    store = Credentials(
        preshared_keys=[psk("tell nobody")],
        eap_secrets=[EapSecret(identity="jo", secret=b"tell nobody")],
        postquantum_keys=[PostquantumKey(id="ppk-1", secret=b"tell nobody")],
    )
    assert store.eap_secret("jo") == store.ppk("ppk-1") == b"tell nobody"
    assert store.eap_secret("Jo") is None and store.ppk("ppk-2") is None
    shown = repr((store, store.preshared_keys, EapSecret(identity="jo", secret=b"tell nobody")))
    assert "tell nobody" not in shown and "74656c6c" not in shown
