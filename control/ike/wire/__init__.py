"""IKE messages as bytes and back (RFC 7296 section 3): `parse_x` takes bytes, `build_x` gives them, in pairs.

    header.py         the 28 bytes before everything      message.py        chains of payloads; SK and SKF around them
    proposal.py       SA: proposals and transforms        selector.py       TSi and TSr
    payloads.py       KE, ID, CERT, AUTH, nonce, notify   configuration.py  CP: addresses asked for and lent
    eap.py            EAP packets (RFC 3748)

Numbers are big-endian. Whatever a parser dislikes is a PeerError that says what was got, what was wanted and
where; time and memory grow with the length of the input, no matter what its fields claim.
"""
