"""EAP, sans-IO: how remote clients prove themselves by password or by a TLS certificate (RFC 3748).

    server.py, client.py   one conversation (conversation.py): EAP packets in, EAP packets and a verdict out
    method.py              what a method is             mschapv2.py, md4.py   by password (RFC 2759)
    tls.py                 by certificates (RFC 5216, RFC 9190)

Packets travel in IKE_AUTH (RFC 7296 section 2.16), which repeats and orders them, so nothing is repeated here. What a
peer sends raises PeerError, or ends in a verdict with its reason; methods hand out the MSK that AUTH is made with.
"""
