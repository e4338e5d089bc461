"""IKE without input or output: bytes, addresses and `now` go in; datagrams, timers and past-tense events come out.

    endpoint.py     all IKE SAs of a gateway: the way in and out
    settings.py     what a connection is configured with        events.py     what happened, for the rest of control
    wire/           bytes <-> messages                          v2/           IKEv2 (RFC 7296)
    proposal.py     algorithms, offers and choices, with keywords.py, matching.py, refusal.py and defaults.py
    selectors.py    traffic selectors and their narrowing       ends.py       where an IKE SA of ours goes to, and from
    identity.py     who the two ends say they are, dn.py        pools.py      addresses lent, by configuration.py
    numbers.py      IANA's numbers                              errors.py     the peer's fault, and ours
    snapshot.py     IKE SAs as the status shows them            record.py     dataclasses that are quick to make

No socket, clock, file or dataplane is reached from here; randomness and secrets come from what is handed in.
"""
