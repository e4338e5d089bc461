"""Proposals as keywords, the choice between offers and configuration, and the words of a refusal."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.crypto.exchange import public_length
from control.ike.defaults import default_proposals
from control.ike.errors import LocalError, PeerError
from control.ike.keywords import GROUPS
from control.ike.numbers import WEAK_GROUPS, Encr, Group, Integ, NotifyType, PrfId, Protocol, TransformType
from control.ike.proposal import NoProposalChosen, Proposal, parse_proposal, select, suite_of
from control.ike.wire import OfferedProposal, Transform
from dataplane.model import Cipher, EspProposal, Integrity
from tests.ike_messages import proposals as any_offers

IKE, ESP = Protocol.IKE, Protocol.ESP


def ike(text: str) -> Proposal:
    return parse_proposal(IKE, text)


def esp(text: str) -> Proposal:
    return parse_proposal(ESP, text)


def refusal(offers: list[str], configured: list[str], protocol: Protocol = IKE) -> str:
    wire = [parse_proposal(protocol, text).to_wire(number) for number, text in enumerate(offers, start=1)]
    with pytest.raises(NoProposalChosen) as caught:
        select(wire, [parse_proposal(protocol, text) for text in configured], whose="connection 'branch'")
    assert caught.value.notify == NotifyType.NO_PROPOSAL_CHOSEN
    return str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "text", "shown"),
    [
        (IKE, "aes128gcm16-sha256-x25519-ke1_mlkem768", "aes128gcm16-prfsha256-x25519-ke1_mlkem768"),
        (IKE, "AES256-sha256-MODP2048!", "aes256-sha256-modp2048"),
        (IKE, "aes256-aes128-sha512-sha256-prfsha384-ecp384", "aes256-aes128-prfsha384-sha512-sha256-ecp384"),
        (IKE, "curve448-chacha20poly1305-prfaescmac", "chacha20poly1305-prfaescmac-x448"),
        (IKE, "aes128-sha1-modp1024", "aes128-sha1-modp1024"),
        (ESP, "aes", None),
        (ESP, "aes128gcm128-noesn", "aes128gcm16"),
        (
            ESP,
            "esn-noesn-aes256-sha384-ecp256-ke1_mlkem768-ke1_none",
            "aes256-sha384-ecp256-esn-noesn-ke1_mlkem768-ke1_none",
        ),
        (ESP, "null-sha256", "null-sha256"),
    ],
)
def test_keywords(protocol: Protocol, text: str, shown: str | None) -> None:
    if shown is None:
        with pytest.raises(ValueError, match="which has no integrity"):
            parse_proposal(protocol, text)
        return
    proposal = parse_proposal(protocol, text)
    assert str(proposal) == shown
    assert parse_proposal(protocol, shown) == proposal


@pytest.mark.parametrize(
    ("protocol", "text", "error"),
    [
        (IKE, "aes128gcm16-x25519", "names no pseudorandom function; want e.g. -prfsha256 added"),
        (IKE, "aes128-sha256", "names no key exchange"),
        (IKE, "sha256-x25519", "names no cipher"),
        (IKE, "aes128gcm16-aes128-sha256-x25519", "mixes ciphers with and without integrity of their own"),
        (IKE, "aes128gcm16-sha256-prfsha256-x25519", "brings its own integrity"),
        (IKE, "null-sha256-x25519", "an IKE SA is always encrypted"),
        (IKE, "aes128-sha256-modp768", "but modp768 is broken"),
        (IKE, "aes128-sha256-x25519-esn", "but esn has no meaning for IKE"),
        (IKE, "aes128-sha265-x25519", "of which 'sha265' is unknown; did you mean \"sha256\"?"),
        (IKE, "aes128-sha256-x25519-ke1_mlkem786", 'did you mean "ke1_mlkem768"?'),
        (IKE, "aes128-sha256-x25519-ke8_mlkem768", "is unknown"),
        (IKE, "aes128-sha256--x25519", "has an empty word"),
        (IKE, "aes128-aes128-sha256-x25519", "says aes128 twice"),
        (IKE, "3des-sha256-x25519", "but 3des is broken or obsolete"),
        (ESP, "aes128gcm16-prfsha256", "has no meaning for ESP"),
        (ESP, "aes128gmac-sha256", "brings its own integrity"),
        (ESP, "aes128ctr", "has no integrity"),
        (
            IKE,
            "aes256gmac-prfsha256-x25519",
            "an IKE SA is always encrypted (RFC 7296 section 3.14); want aes256gcm16",
        ),
        (IKE, "aes128ctr-sha256-x25519", "aes128ctr is offered for ESP alone; use aes128gcm16"),
        (IKE, "aes128gcm16iiv-prfsha256-x25519", "is not for an IKE SA (RFC 8750 section 8"),
        (ESP, "aes128-sha256-ke1_mlkem768", "but no first one"),
        (ESP, "aes128gcm16-" + "0123456789abcdef" * 2, "a word of 32 characters is unknown"),
    ],
)
def test_bad_keywords(protocol: Protocol, text: str, error: str) -> None:
    with pytest.raises(ValueError, match=r"^(which|whose|but|of which) ") as caught:
        parse_proposal(protocol, text)
    assert error in str(caught.value)


@given(st.text(alphabet="aesgcm1286hke_5x-!\0é", max_size=60), st.sampled_from([IKE, ESP]))
def test_any_text(text: str, protocol: Protocol) -> None:
    try:
        proposal = parse_proposal(protocol, text)
    except ValueError:
        return
    assert parse_proposal(protocol, str(proposal)) == proposal


def test_our_order_decides() -> None:
    configured = [
        ike("aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp256"),
        ike("aes128-sha256-modp2048"),
    ]
    offers = [
        ike("aes128-sha256-modp2048").to_wire(1),
        ike("aes128gcm16-aes256gcm16-prfsha256-ecp256-x25519").to_wire(2),
    ]
    suite, number = select(offers, configured)
    assert (str(suite), number) == ("aes256gcm16-prfsha256-x25519", 2)
    assert (suite.encr, suite.key_bits, suite.prf, suite.integ, suite.group) == (
        Encr.AES_GCM_16,
        256,
        PrfId.HMAC_SHA2_256,
        Integ.NONE,
        Group.CURVE25519,
    )
    suite, number = select(offers, configured, prefer_configured=False)
    assert (str(suite), number) == ("aes128-sha256-modp2048", 1)
    # A KE payload that is here already is used if it may be, but does not make us choose another proposal.
    assert select(offers, configured, prefer_group=Group.ECP_256)[0].group == Group.ECP_256
    assert str(select(offers, configured, prefer_group=Group.MODP_2048)[0]) == "aes256gcm16-prfsha256-x25519"
    assert suite_of(suite.to_wire(1), [ike("aes128-sha256-modp2048")]) == suite


def test_a_weak_group_gets_no_precedence() -> None:
    both = ike("aes128-sha1-modp2048-modp1024")
    assert select([both.to_wire(1)], [both], prefer_group=Group.MODP_1024)[0].group == Group.MODP_2048
    weak = ike("aes128-sha1-modp1024")
    assert select([weak.to_wire(1)], [both], prefer_group=Group.MODP_1024)[0].group == Group.MODP_1024


def test_additional_key_exchanges() -> None:
    ours = ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none")
    theirs = ike("aes128gcm16-prfsha256-x25519-ke1_mlkem1024-ke1_mlkem768-ke2_none")
    suite, _ = select([theirs.to_wire(1)], [ours])
    assert suite.additional_groups == (Group.ML_KEM_768,)
    assert str(suite) == "aes128gcm16-prfsha256-x25519-ke1_mlkem768"
    plain = ike("aes128gcm16-prfsha256-x25519")
    suite, _ = select([plain.to_wire(1)], [ours])  # we allow none
    assert (suite.additional_groups, len(suite.transforms)) == ((), 3)
    with pytest.raises(NoProposalChosen, match="additional key exchange 1 differs"):
        select([ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768").to_wire(1)], [plain])


def test_no_method_twice() -> None:
    """RFC 9370 section 2.2.2: of each exchange another, whatever the order of preference says."""
    same = ike("aes128gcm16-prfsha256-x25519-ecp256-ke1_x25519-ke2_x25519-ke2_ecp384")
    suite, _ = select([same.to_wire(1)], [same])
    assert (suite.group, suite.additional_groups) == (Group.ECP_256, (Group.CURVE25519, Group.ECP_384))
    stuck = ike("aes128gcm16-prfsha256-x25519-ke1_x25519")
    with pytest.raises(NoProposalChosen, match="used once only"):
        select([stuck.to_wire(1)], [stuck])


def test_what_goes_without_saying() -> None:
    none = Transform(type=TransformType.INTEG, id=Integ.NONE)
    ours = esp("aes128gcm16-noesn")
    aead = ours.of(TransformType.ENCR)
    for extra in ((none,), (Transform(type=TransformType.INTEG, id=Integ.HMAC_SHA1_96),), ()):
        offer = OfferedProposal(number=1, protocol=ESP, spi=b"abcd", transforms=(*aead, *extra))
        suite, _ = select([offer], [ours])
        assert (suite.encr, suite.integ, suite.esn) == (Encr.AES_GCM_16, Integ.NONE, False)
    for kind in (TransformType.KE, 13, 200):  # PFS that we do not want, and types that nobody knows
        offer = OfferedProposal(
            number=1, protocol=ESP, transforms=(*ours.transforms, Transform(type=kind, id=31))
        )
        with pytest.raises(NoProposalChosen):
            select([offer], [ours])
    with pytest.raises(NoProposalChosen, match="sequence numbers differs"):
        select([OfferedProposal(number=1, protocol=ESP, transforms=aead)], [esp("aes128gcm16-esn")])


def test_key_length_and_unknown_attributes_count() -> None:
    ours = ike("aes128gcm16-prfsha256-x25519")
    rest = ours.transforms[1:]
    for cipher in (
        Transform(type=TransformType.ENCR, id=Encr.AES_GCM_16),
        Transform(type=TransformType.ENCR, id=Encr.AES_GCM_16, key_bits=129),
        Transform(type=TransformType.ENCR, id=Encr.AES_GCM_16, key_bits=128, unknown_attribute=True),
    ):
        with pytest.raises(NoProposalChosen, match="encryption differs"):
            select([OfferedProposal(number=1, protocol=IKE, transforms=(cipher, *rest))], [ours])


def test_refusal_names_every_difference() -> None:
    assert refusal(
        ["aes256-sha1-modp2048", "aes256gcm16-prfsha256-modp2048"], ["aes128gcm16-prfsha256-x25519"]
    ) == (
        "no proposal chosen: the peer offers 1: aes256-sha1-modp2048; 2: aes256gcm16-prfsha256-modp2048; "
        "connection 'branch' accepts aes128gcm16-prfsha256-x25519; "
        "in 1 encryption differs (offered aes256; accepted aes128gcm16); "
        "pseudorandom function differs (offered prfsha1; accepted prfsha256); "
        "key exchange differs (offered modp2048; accepted x25519); "
        "in 2 encryption differs (offered aes256gcm16; accepted aes128gcm16); "
        "key exchange differs (offered modp2048; accepted x25519); "
        "give both sides a common encryption and key exchange, e.g. aes128gcm16-prfsha256-x25519 on the peer"
    )


@pytest.mark.parametrize(
    ("protocol", "offer", "configured", "difference"),
    [
        (
            IKE,
            "aes256-sha256-x25519",
            "aes128-sha256-x25519",
            "encryption differs (offered aes256; accepted aes128)",
        ),
        (
            IKE,
            "aes128-sha256-prfsha512-x25519",
            "aes128-sha256-x25519",
            "pseudorandom function differs (offered prfsha512; accepted prfsha256)",
        ),
        (
            IKE,
            "aes128-sha384-prfsha256-x25519",
            "aes128-sha256-x25519",
            "integrity differs (offered sha384; accepted sha256)",
        ),
        (
            IKE,
            "aes128-sha256-ecp256",
            "aes128-sha256-x25519",
            "key exchange differs (offered ecp256; accepted x25519)",
        ),
        (
            ESP,
            "aes128gcm16-esn",
            "aes128gcm16",
            "length of sequence numbers differs (offered esn; accepted noesn)",
        ),
        (
            ESP,
            "aes128gcm16-x25519-ke1_mlkem768",
            "aes128gcm16-x25519",
            "additional key exchange 1 differs (offered ke1_mlkem768; accepted none)",
        ),
    ],
)
def test_refusal_for_each_transform(protocol: Protocol, offer: str, configured: str, difference: str) -> None:
    text = refusal([offer], [configured], protocol)
    assert f"in 1 {difference};" in text
    assert text.count("differs") == 1


def test_refusals_stay_short() -> None:
    transforms = tuple(Transform(type=4, id=number) for number in range(255))
    offers = [OfferedProposal(number=number, protocol=1, transforms=transforms) for number in range(1, 256)]
    with pytest.raises(NoProposalChosen) as caught:
        select(offers, default_proposals(IKE))
    assert len(caught.value.text) < 20_000
    assert "and 247 proposals more" in caught.value.text
    with pytest.raises(NoProposalChosen, match="we accept nothing"):
        select(offers, [])
    with pytest.raises(NoProposalChosen, match="the protocol differs"):
        select([esp("aes128gcm16").to_wire(1)], [ike("aes128-sha256-x25519")])


@given(st.integers(0, 2**32))
def test_any_offer(seed: int) -> None:
    offers = any_offers(random.Random(seed))
    for protocol in (IKE, ESP):
        try:
            suite, number = select(offers, default_proposals(protocol, remote_access=True))
        except NoProposalChosen as refused:
            assert refused.text
            continue
        assert set(suite.transforms) <= set(offers[number - 1].transforms)


def test_answers_are_held_against_what_was_sent() -> None:
    sent = [ike("aes256gcm16-aes128gcm16-prfsha256-x25519-ecp256")]
    good = ike("aes128gcm16-prfsha256-ecp256")
    assert str(suite_of(good.to_wire(1), sent)) == "aes128gcm16-prfsha256-ecp256"
    for answer in (
        good.to_wire(2),
        good.to_wire(0),
        sent[0].to_wire(1),  # two of a kind
        ike("aes192gcm16-prfsha256-ecp256").to_wire(1),
        OfferedProposal(number=1, protocol=IKE, transforms=good.transforms[:2]),
        OfferedProposal(number=1, protocol=IKE, transforms=()),
        OfferedProposal(number=1, protocol=ESP, transforms=good.transforms),
    ):
        with pytest.raises(PeerError, match="the peer chose") as caught:
            suite_of(answer, sent)
        assert caught.value.notify == NotifyType.NO_PROPOSAL_CHOSEN


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("aes128gcm16", EspProposal(cipher=Cipher.AES_GCM, key_bits=128)),
        ("chacha20poly1305-esn", EspProposal(cipher=Cipher.CHACHA20_POLY1305, key_bits=256, esn=True)),
        (
            "aes256-sha384",
            EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA2_384),
        ),
        ("aes256-sha1", EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA1)),
        ("null-sha512", EspProposal(cipher=Cipher.NULL, key_bits=0, integrity=Integrity.HMAC_SHA2_512)),
    ],
)
def test_for_the_dataplane(text: str, want: EspProposal) -> None:
    proposal = esp(text)
    assert select([proposal.to_wire(1)], [proposal])[0].to_esp() == want
    with pytest.raises(LocalError, match="the dataplane has no"):
        select([ike("aes128-sha256-x25519").to_wire(1)], [ike("aes128-sha256-x25519")])[0].to_esp()


def test_children_of_ike_auth_have_no_key_exchange() -> None:
    assert str(esp("aes128gcm16-x25519-ke1_mlkem768").without_key_exchanges) == "aes128gcm16"


# What the clients send: Windows 11 by strongSwan's documentation ("Windows Clients"), Android 14 by the source of its
# VpnIkev2Utils. Neither's words are all known here, so these are wire transforms.
def offer(
    number: int, protocol: Protocol, encr: list[tuple[int, int | None]], **others: list[int]
) -> OfferedProposal:
    transforms = [Transform(type=TransformType.ENCR, id=each, key_bits=bits) for each, bits in encr]
    for kind, ids in others.items():
        transforms += [Transform(type=TransformType[kind], id=each) for each in ids]
    return OfferedProposal(number=number, protocol=protocol, transforms=tuple(transforms))


AES = (256, 192, 128)
ANDROID_GROUPS = [Group.MODP_4096, Group.CURVE25519, Group.MODP_3072, Group.MODP_2048]
ANDROID_CBC = [(cipher, bits) for bits in AES for cipher in (Encr.AES_CTR, Encr.AES_CBC)]
ANDROID_AEAD: list[tuple[int, int | None]] = [
    (Encr.CHACHA20_POLY1305, None),
    *((cipher, bits) for bits in AES for cipher in (Encr.AES_GCM_16, Encr.AES_GCM_12, Encr.AES_GCM_8)),
]
ANDROID_INTEG = [14, 13, 12, 5, 8]
CLIENTS = {
    "android": (
        [
            offer(1, IKE, [*ANDROID_CBC], INTEG=ANDROID_INTEG, PRF=[7, 6, 5, 4, 8, 2], KE=ANDROID_GROUPS),
            offer(2, IKE, ANDROID_AEAD, PRF=[7, 6, 5, 4, 8, 2], KE=ANDROID_GROUPS),
        ],
        "aes256gcm16-prfsha384-x25519",
    ),
    "windows": (
        [
            offer(1, IKE, [(Encr.TRIPLE_DES, None)], INTEG=[2], PRF=[2], KE=[Group.MODP_1024]),
            offer(2, IKE, [(Encr.AES_CBC, 256)], INTEG=[2], PRF=[2], KE=[Group.MODP_1024]),
            offer(3, IKE, [(Encr.AES_CBC, 256)], INTEG=[12], PRF=[5], KE=[Group.MODP_1024]),
            offer(4, IKE, [(Encr.AES_CBC, 256)], INTEG=[13], PRF=[6], KE=[Group.MODP_1024]),
        ],
        "aes256-sha256-modp1024",
    ),
    "windows with NegotiateDH2048_AES256": (
        [offer(1, IKE, [(Encr.AES_CBC, 256)], INTEG=[12], PRF=[5], KE=[Group.MODP_2048])],
        "aes256-sha256-modp2048",
    ),
}


# By the logs of charons that such clients met.
WINDOWS_ESP = [
    offer(number, ESP, [cipher], INTEG=[Integ.HMAC_SHA1_96], ESN=[0])
    for number, cipher in enumerate(
        [
            (Encr.AES_CBC, 256),
            (Encr.AES_CBC, 128),
            (Encr.TRIPLE_DES, None),
            (Encr.DES, None),
            (Encr.NULL, None),
        ],
        1,
    )
]


@pytest.mark.parametrize("client", CLIENTS)
def test_built_in_clients(client: str) -> None:
    offers, chosen = CLIENTS[client]
    assert str(select(offers, default_proposals(IKE, remote_access=True))[0]) == chosen


def test_built_in_clients_children() -> None:
    offers = [
        offer(1, ESP, [*ANDROID_CBC], INTEG=ANDROID_INTEG, ESN=[0]),
        offer(2, ESP, ANDROID_AEAD, ESN=[0]),
    ]
    assert str(select(offers, default_proposals(ESP, remote_access=True))[0]) == "aes256gcm16"
    suite, _ = select(WINDOWS_ESP, default_proposals(ESP, remote_access=True))
    assert suite.to_esp() == EspProposal(cipher=Cipher.AES_CBC, key_bits=256, integrity=Integrity.HMAC_SHA1)
    with pytest.raises(NoProposalChosen, match="we accept aes256gcm16"):
        select(WINDOWS_ESP, default_proposals(ESP))


def test_defaults_name_nothing_weak() -> None:
    for proposal in default_proposals(IKE):
        assert not WEAK_GROUPS.intersection(proposal.groups)
        assert "sha1" not in str(proposal)
    assert all(parse_proposal(IKE, str(each)) == each for each in default_proposals(IKE, remote_access=True))
    assert not any("sha1" in str(proposal) for proposal in default_proposals(ESP))
    assert all(parse_proposal(ESP, str(each)) == each for each in default_proposals(ESP, remote_access=True))


def test_every_group_is_one_that_can_be_done() -> None:
    assert all(public_length(group, initiator=True) > 0 for group in GROUPS.values())
