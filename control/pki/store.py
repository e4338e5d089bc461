"""`Credentials`: every key, certificate and secret of a gateway, loaded and ready to be asked.

Walk of an authentication: `certificate_requests` (what our CERTREQ says) -> `key_for` (our key, our chain, the ID
they prove) or `find_psk` -> `verify_peer` (the peer's chain, and the public key that its AUTH must fit).
Nothing here opens a file or a socket; the clock is handed in, because a certificate's dates are wall-clock time.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.crypto.auth import PrivateKey, key_name
from control.ike.identity import PERFECT_MATCH, Identity
from control.pki import names, verify
from control.pki.crl import CrlStore, Standing, distribution_points
from control.pki.errors import CredentialError
from control.pki.settings import EapSecret, PostquantumKey, PresharedKey

if TYPE_CHECKING:
    from control.ike.settings import AuthSettings


_REMEMBERED = 256  # verified chains of peers, so that one who returns costs no signature checks


@dataclass(frozen=True, kw_only=True)
class LoadedCertificate:
    """A certificate of the configuration: ours when the key is there, else a peer's that is trusted for itself."""

    name: str
    certificate: x509.Certificate
    key: PrivateKey | None = field(default=None, repr=False)
    chain: tuple[x509.Certificate, ...] = ()  # what came along, in any order


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A trusted CA of the configuration; several certificates when it was renewed, or the file is a bundle."""

    name: str
    certificates: tuple[x509.Certificate, ...]
    crl_urls: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What we authenticate with: the key, the certificates to send, and the identity that they prove."""

    name: str
    identity: Identity
    private_key: PrivateKey = field(repr=False)
    # DER: our certificate, then intermediate CAs towards the root, which is left out.
    chain: tuple[bytes, ...]
    certificate: x509.Certificate


class Credentials:
    """The credential store of a gateway; read-only but for revocation lists that arrive."""

    def __init__(
        self,
        *,
        preshared_keys: Sequence[PresharedKey] = (),
        eap_secrets: Sequence[EapSecret] = (),
        postquantum_keys: Sequence[PostquantumKey] = (),
        certificates: Sequence[LoadedCertificate] = (),
        authorities: Sequence[Authority] = (),
        crls: CrlStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.preshared_keys = tuple(preshared_keys)
        self.certificates = tuple(certificates)
        self.authorities = tuple(authorities)
        self.crls = crls or CrlStore()
        self.clock = clock
        # Positions of keys, by each identity that is no pattern.
        self._psk_exact: dict[Identity, list[int]] = {}
        self._psk_patterns: list[int] = []
        for position, key in enumerate(self.preshared_keys):
            for identity in key.identities:
                self._psk_exact.setdefault(identity, []).append(position)
            if not key.identities or any(identity.is_pattern for identity in key.identities):
                self._psk_patterns.append(position)
        self._chains: dict[str, list[x509.Certificate]] = {}
        # Paths of peers that were verified, the least used first.
        self._paths: OrderedDict[object, tuple[x509.Certificate, ...]] = OrderedDict()
        self._eap = {secret.identity: secret.secret for secret in eap_secrets}
        self._postquantum = {key.id: key.secret for key in postquantum_keys}

    # ---- shared secrets -------------------------------------------------------------------------------------

    def find_psk(
        self,
        local: Identity | None,
        remote: Identity | None,
        is_ours: Callable[[Identity], bool] | None = None,
    ) -> PresharedKey | None:
        """The preshared key whose identities fit these two ends best; the peer's identity counts before ours.

        A key fits when either end fits one of its identities, or when it has none. With `is_ours`, which knows the
        names of this side, a key that names someone else as well is for peers that it names: another's is no proof.
        """
        best: PresharedKey | None = None
        best_quality = (0, 0, 0, 0)
        for position in itertools.chain(self._psk_of(remote), self._psk_of(local), self._psk_patterns):
            key = self.preshared_keys[position]
            ours = max((_quality(local, pattern) for pattern in key.identities), default=0)
            peers = max((_quality(remote, pattern) for pattern in key.identities), default=0)
            if key.identities and not ours and not peers:
                continue
            if is_ours is not None and not peers and not all(map(is_ours, key.identities)):
                continue
            if ours == peers == PERFECT_MATCH:
                return key  # the peer's come first and in their order: there is none better
            quality = (1 + (ours > 0) + (peers > 0), peers, ours, -position)
            if best is None or quality > best_quality:
                best, best_quality = key, quality
        return best

    def _psk_of(self, identity: Identity | None) -> Sequence[int]:
        return self._psk_exact.get(identity, ()) if identity is not None else ()

    def missing_psk(self, local: Identity | None, remote: Identity | None) -> CredentialError:
        """The error of two ends for whom `find_psk` finds nothing."""
        known = [" and ".join(map(str, key.identities)) for key in self.preshared_keys]
        have = f"the keys are for {_list(known)}" if known else "no preshared key is configured"
        return CredentialError(
            "no_preshared_key",
            f"no preshared key for {local or '%any'} (us) and {remote or '%any'} (the peer): {have}",
            "add a secret for one of these identities on this side",
        )

    def eap_secret(self, identity: str) -> bytes | None:
        """The password of an EAP identity in UTF-8; None where there is none."""
        return self._eap.get(identity)

    def ppk(self, ppk_id: str) -> bytes | None:
        """The post-quantum preshared key of a PPK_ID (RFC 8784); None where there is none."""
        return self._postquantum.get(ppk_id)

    # ---- our own certificates -------------------------------------------------------------------------------

    def certificate_requests(self, auth: AuthSettings | None = None) -> list[bytes]:
        """What our CERTREQ holds: the SHA-1 of the public key info of each CA that we trust (RFC 7296 section 3.7).

        With `auth`, the settings of the peer's side, only of those that its chain must lead to.
        """
        trusted = self.trusted(auth.authorities if auth else ())
        return list(dict.fromkeys(key_hash(certificate) for certificate in trusted))

    def trusted(self, wanted: Sequence[str] = ()) -> tuple[x509.Certificate, ...]:
        """The certificates of the CAs of these names; of all CAs for ()."""
        chosen = [authority for authority in self.authorities if not wanted or authority.name in wanted]
        return tuple(certificate for authority in chosen for certificate in authority.certificates)

    def key_for(
        self,
        auth: AuthSettings,
        identity: Identity | None = None,
        authorities: Iterable[bytes] = (),
        usable: Callable[[PrivateKey], bool] = lambda key: True,
    ) -> Credential:
        """What we prove `identity` with (default: that of `auth`, else the certificate's subject).

        Of the certificates that `auth` names, or of all, the first whose chain leads to one of the `authorities`
        that the peer's CERTREQ asked for, else the first at all: the peer may know more than it asks for.
        `usable` tells which keys the peer can verify (an Ed25519 key wants RFC 8420). Raises CredentialError.
        """
        identity = identity or auth.identity
        if identity is not None and identity.is_pattern:
            identity = None
        fitting = self._fitting(auth, identity)
        able = [one for one in fitting if one.key is not None and usable(one.key)]
        if not able:
            kinds = ", ".join(sorted({describe_key(one.certificate) for one in fitting}))
            raise CredentialError(
                "no_private_key",
                f"the peer cannot verify a signature of our key ({kinds})",
                "use a certificate with an ECDSA P-256 or RSA key for this connection",
            )
        wanted = frozenset(authorities)
        chains = [(one, self.chain_of(one)) for one in able]
        chosen, chain = next(
            ((one, chain) for one, chain in chains if wanted & {key_hash(issuer) for issuer in chain[1:]}),
            chains[0],
        )
        assert chosen.key is not None
        return Credential(
            name=chosen.name,
            identity=identity or _own_identity(chosen.certificate),
            private_key=chosen.key,
            chain=tuple(
                certificate.public_bytes(Encoding.DER)
                for index, certificate in enumerate(chain)
                if index == 0 or certificate.subject != certificate.issuer
            ),
            certificate=chosen.certificate,
        )

    def _fitting(self, auth: AuthSettings, identity: Identity | None) -> list[LoadedCertificate]:
        """Our certificates that `auth` allows and that have `identity`."""
        named = [one for one in self.certificates if not auth.certificates or one.name in auth.certificates]
        ours = [one for one in named if one.key is not None]
        if not ours:
            what = f"named {_list(auth.certificates)}" if auth.certificates else "at all"
            raise CredentialError(
                "no_private_key",
                f"we have no certificate with a private key {what} to prove {identity or 'who we are'} with",
                "give [certificates.NAME] a certificate and its key",
            )
        fitting = [one for one in ours if identity is None or names.has_identity(one.certificate, identity)]
        if fitting or identity is None:
            return fitting
        have = "; ".join(f"{one.name} has {names.describe_names(one.certificate)}" for one in ours[:4])
        raise CredentialError(
            "id_mismatch",
            f"our identity {identity} ({identity.kind_name}) is in none of our certificates: {have}",
            "set local.id to one of these names, or make a certificate that has it",
        )

    def chain_of(self, own: LoadedCertificate) -> list[x509.Certificate]:
        """The certificate, then its issuers as far as they are known, the root included."""
        if own.name in self._chains:
            return self._chains[own.name]
        pool = [*own.chain, *self.trusted(), *(more for one in self.certificates for more in one.chain)]
        chain = [own.certificate]
        while len(chain) < 10 and chain[-1].subject != chain[-1].issuer:
            issuer = next((one for one in pool if _issued(chain[-1], one)), None)
            if issuer is None or issuer in chain:
                break
            chain.append(issuer)
        self._chains[own.name] = chain
        return chain

    # ---- the peer's certificate -----------------------------------------------------------------------------

    def verify_peer(
        self,
        auth: AuthSettings,
        identity: Identity,
        certificates: Sequence[bytes],
        crls: Sequence[bytes] = (),
    ) -> verify.VerifiedPeer:
        """The public key that speaks for `identity`, by the DER of the peer's CERT payloads, its own first.

        `auth` is what the connection demands of the peer: particular certificates, or particular CAs, and how
        much must be known of revocation; `crls` are those that came in CERT payloads. Raises CredentialError.
        """
        peer, now = f"peer {identity}", self.now()
        key = (
            tuple(certificates),
            auth.authorities,
            auth.certificates,
            identity if not certificates else None,
        )
        path = self._paths.get(key)
        if path is None:
            path = self._peer_path(auth, peer, identity, verify.parse_certificates(certificates), now)
            verify.check_leaf(peer, path[0])
            self._paths[key] = path
            if len(self._paths) > _REMEMBERED:
                self._paths.popitem(last=False)
        else:
            # What was found once holds as long as the clock is within its dates; a set of CAs never changes here.
            self._paths.move_to_end(key)
            for certificate in path:
                verify.check_dates(peer, certificate, now)
        verify.check_identity(peer, path[0], identity)
        notes = self._revocation(auth.revocation, peer, path, crls, now) if len(path) > 1 else ()
        return verify.VerifiedPeer(
            identity=identity,
            public_key=path[0].public_key(),  # type: ignore[arg-type]  # the path's strength check allows no other
            path=path,
            notes=notes,
        )

    def now(self) -> datetime.datetime:
        """The wall-clock time that certificates are held against."""
        return datetime.datetime.fromtimestamp(self.clock(), datetime.UTC)

    def _peer_path(
        self,
        auth: AuthSettings,
        peer: str,
        identity: Identity,
        sent: list[x509.Certificate],
        now: datetime.datetime,
    ) -> tuple[x509.Certificate, ...]:
        """The path from the peer's certificate to a CA of the connection; a pinned certificate is its own path."""
        if auth.certificates:
            leaf = self._pinned(auth, peer, identity, sent)
            verify.check_dates(peer, leaf, now)
            verify.check_strength(peer, leaf)
            return (leaf,)
        anchors = {
            certificate: authority.name
            for authority in self.authorities
            if not auth.authorities or authority.name in auth.authorities
            for certificate in authority.certificates
        }
        if not sent and not anchors:
            raise CredentialError(
                "unknown_authority",
                f"{peer} sent no certificate; we trust no CA, and so asked it for none",
                "add the CA of its certificate to [authorities]",
            )
        if not sent:
            raise CredentialError(
                "no_certificate",
                f"{peer} sent no certificate",
                "let it send one (send_cert = always), or name it in remote.certs here",
            )
        pool = [*sent[1:], *(more for one in self.certificates for more in one.chain)]
        path = verify.find_path(peer, sent[0], pool, anchors, now)
        verify.ask_library(peer, path, now)
        return path

    def _pinned(
        self, auth: AuthSettings, peer: str, identity: Identity, sent: list[x509.Certificate]
    ) -> x509.Certificate:
        """The peer's certificate, which must be one that the connection names."""
        pinned = [one.certificate for one in self.certificates if one.name in auth.certificates]
        if sent and sent[0] in pinned:
            return sent[0]
        accepted = _list(
            [
                f"{one.name} ({names.subject(one.certificate)})"
                for one in self.certificates
                if one.name in auth.certificates
            ]
        )
        if sent:
            raise CredentialError(
                "unknown_authority",
                f"certificate {names.subject(sent[0])} of {peer} is none of those that the connection accepts: "
                f"{accepted or 'none'}",
                "put the peer's present certificate there, or drop remote.certs to accept its CA",
            )
        found = next((one for one in pinned if names.has_identity(one, identity)), None)
        if found is None:
            raise CredentialError(
                "no_certificate",
                f"{peer} sent no certificate, and those that the connection accepts do not have this identity: "
                f"{accepted or 'none'}",
                "let the peer send its certificate",
            )
        return found

    def _revocation(
        self,
        policy: str,
        peer: str,
        path: tuple[x509.Certificate, ...],
        crls: Sequence[bytes],
        now: datetime.datetime,
    ) -> tuple[str, ...]:
        """Refuse what is revoked, and what `policy` wants to know and does not; the rest is worth a note."""
        for data in crls[:4]:
            self.crls.add_signed(data, peer, path[1:])
        notes = []
        for certificate, issuer in itertools.pairwise(path):
            self.crls.want(certificate)
            answer = self.crls.check(certificate, issuer, now)
            if answer.standing is Standing.GOOD or (
                policy == "relaxed" and answer.standing is Standing.UNKNOWN
            ):
                continue
            what = f"certificate {names.subject(certificate)} of {peer}"
            if answer.standing is Standing.REVOKED:
                raise CredentialError("revoked", f"{what} is {answer.text}", "issue a new one for this peer")
            demanded = policy == "strict" or (policy == "ifuri" and bool(distribution_points(certificate)))
            if demanded:
                raise CredentialError(
                    "revocation_unknown",
                    f"{what} may have been revoked, and revocation = {policy}: {answer.text}",
                    "make the list available, or set revocation = relaxed",
                )
            if answer.standing is Standing.STALE:
                notes.append(f"{what}: {answer.text}")
        return tuple(notes)


def _own_identity(certificate: x509.Certificate) -> Identity:
    """The subject; of a certificate with an empty one, its first other name."""
    found = names.identities(certificate)
    return found[0] if found else names.subject(certificate)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # the library raises several kinds; none of them makes this an issuer
        return False
    return True


@functools.lru_cache(maxsize=128)
def key_hash(certificate: x509.Certificate) -> bytes:
    """SHA-1 of a certificate's SubjectPublicKeyInfo: a CA's name in CERTREQ (RFC 7296 section 3.7); 20 bytes."""
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha1(info, usedforsecurity=False).digest()


def describe_key(certificate: x509.Certificate) -> str:
    """A certificate's key in words: "RSA 2048", "ECDSA secp256r1"."""
    try:
        return key_name(certificate.public_key())  # type: ignore[arg-type]
    except Exception:  # a key of a kind, or with parameters, that the library does not know
        return "an unknown key"


def _quality(identity: Identity | None, pattern: Identity) -> int:
    return identity.match_quality(pattern) if identity is not None else 0


def _list(words: Sequence[str]) -> str:
    shown = ", ".join(word or "%any" for word in words[:5])
    return shown + (f" and {len(words) - 5} more" if len(words) > 5 else "")
