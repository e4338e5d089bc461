"""Who may prove what, and with which key: certificates, their authorities and revocation, and shared secrets.

    settings.py  what the configuration names      store.py   Credentials: all of it, loaded, to be asked
    load.py      files into a store                names.py   an identity and the names in a certificate
    verify.py    a peer's chain, up to our CA      constraints.py  which names a CA may vouch for
    crl.py       revocation lists                  fetch.py   keeps these fresh, from files and URLs
    errors.py    why a credential cannot be used
    make.py      a CA and certificates of one's own, by command.py, which is `esplanade pki`

The protocol asks a `Credentials` and never opens a file; whoever loads one hands it a clock.
"""
