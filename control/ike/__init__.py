"""IKE without input or output: bytes, addresses and `now` go in; datagrams, timers and past-tense events come out.

    settings.py     what a connection is configured with        events.py    what happened, for the rest of control
    endpoint.py     all IKE SAs of a gateway: the way in and out
    wire/           bytes <-> messages                          v2/          IKEv2 (RFC 7296)
    proposal.py     algorithms as keywords, offers and choices  selectors.py traffic selectors and their narrowing
    identity.py     who the two ends say they are               pools.py     addresses lent to remote clients

No socket, clock, file or dataplane is reached from here; randomness and secrets come from what is handed in.
"""
