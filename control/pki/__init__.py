"""Who may prove what, and with which key: certificates, their authorities and revocation, and shared secrets.

    settings.py  what the configuration names      store.py   Credentials: all of it, loaded, to be asked
    load.py      files into a store                names.py   an identity and the names in a certificate
    verify.py    a peer's chain, up to our CA      crl.py     revocation lists, from files and URLs
    make.py      `esplanade pki`: a CA and certificates

The protocol asks a `Credentials` and never opens a file; whoever loads one hands it a clock.
"""
