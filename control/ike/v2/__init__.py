"""IKEv2 (RFC 7296): IKE SAs, what they say to their peers, and when.

    one IKE SA     sa.py, made of parts.py, states.py, window.py, keys.py, handshake.py; shown by status.py, export.py
    its messages   receive.py, send.py, codec.py; what they mean is in tasks/, one act per file, and task.py says how
    its moments    timers.py, lifetimes.py, tasks/renew.py, actions.py
    all of them    host.py, registry.py; strangers.py, contacts.py, cookies.py for new peers; initiation.py for ours

What several acts need: of child SAs negotiate.py, child.py, transport.py, resources.py and rounds.py; of
authentication proof.py, eap.py, eap_rounds.py, ppk.py and unique.py; beside these choice.py (which connection),
configure.py (addresses that are lent) and nat.py.
"""
