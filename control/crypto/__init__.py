"""Cryptography of IKE, thin over the `cryptography` package: no algorithm of its own, every rule of use of the RFCs."""
