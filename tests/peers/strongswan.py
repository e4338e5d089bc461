"""strongSwan's charon as a real peer in a network namespace, driven by vici.

1 `charon` is started in a private mount namespace whose /run is a directory of ours: its PID file and its vici
socket lie there, and several run beside each other. 2 strongswan.conf is written per daemon (STRONGSWAN_CONF),
with the list of plugins; nothing under /etc is read. 3 Connections, keys, certificates and secrets are Python
dictionaries in swanctl.conf's words and go in by vici; no file of swanctl's is needed.

What Debian's 5.9.8 with kernel-libipsec does, all of it seen here:

- ESP is always in UDP: it sends a false NAT_DETECTION_SOURCE_IP, so each side believes that the other is behind a
  NAT, and both float to port 4500 after IKE_SA_INIT.
- The data path is the TUN device ipsec0 with an MTU of 1400 and routes in table 220; tunnel mode only, IPv4 and
  IPv6 inside. Addresses of the protected networks may simply be on `lo`.
- No extended sequence numbers: it negotiates them where both sides propose them, then fails to install the SA
  ("ESN not supported") and answers NO_PROPOSAL_CHOSEN. Never propose `esn` to it.
- Expiry is in software, by time; volume limits are not counted, replay protection is a window of 32 or as set.
- 8 threads are too few: receivers and senders keep some of them for ever, and vici then does not answer. 16 do.
- A late link-local address on any interface makes it send a MOBIKE address update: `wires.py` leaves those out.
- A new NAT mapping of its peer: kernel-libipsec does not report ESP from another port. Without MOBIKE it follows any
  IKE message that authenticates (so the one behind the NAT needs dpd_delay); with MOBIKE only UPDATE_SA_ADDRESSES,
  which its own initiator does not send for that.
- While it rekeys a child of its own accord a ping may be lost between two charons.
- It has no RFC 9370 and no ML-KEM (strongSwan 6.0), but PPK (RFC 8784), childless (6023), MOBIKE, fragmentation.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vici
import vici.exception

from control.lab.space import LabError, Program, Space, wait_until
from tests.peers.peer import ChildState, IkeState, Peer, PeerRefused

# Another build than the system's (6.x for RFC 9370 and ML-KEM, say); it must have its /run where ours is: piddir=/run.
CHARON = os.environ.get("ESPLANADE_CHARON", "/usr/lib/ipsec/charon")
READY_SECONDS = 30.0
ANSWER_SECONDS = 60.0
# kernel-libipsec must stand before kernel-netlink, which still does addresses and routes.
PLUGINS = (
    "nonce random drbg aes sha1 sha2 md5 md4 hmac kdf mgf1 pem pkcs1 pkcs8 x509 revocation constraints pubkey openssl "
    "gcm ccm chapoly ml sha3 curve25519 gmp xcbc cmac ctr curl kernel-libipsec kernel-netlink socket-default vici "
    "eap-identity eap-mschapv2 eap-md5 eap-tls"
)
_LOG = {"default": 1, "ike": 2, "cfg": 2, "enc": 1, "net": 1, "time_format": "%H:%M:%S", "flush_line": "yes"}

Section = Mapping[str, Any]  # of swanctl.conf: text, numbers, lists of text, or sections


class Charon(Peer):
    """One charon in a namespace. `options` are added to the section charon of its strongswan.conf."""

    def __init__(self, space: Space, directory: Path, *, options: Section | None = None) -> None:
        """Write the configuration; nothing runs before `start`."""
        if not Path(CHARON).exists():
            raise LabError(
                "charon is missing; install it with: apt-get install strongswan libcharon-extra-plugins"
            )
        self.space = space
        self.directory = directory / f"charon-{space.name}"
        self.directory.mkdir(parents=True)
        (self.directory / "run").mkdir()
        self._conf = self.directory / "strongswan.conf"
        self._conf.write_text(configuration(PLUGINS, "unix:///run/charon.vici", options))
        self.program: Program | None = None

    # --- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start it; `wait_ready` waits."""
        enter = f'mount --bind {self.directory}/run /run && exec "$@"'
        self.program = self.space.start(
            ["sh", "-c", enter, "sh", CHARON], environment={"STRONGSWAN_CONF": str(self._conf)}
        )

    def wait_ready(self) -> None:
        """Wait until it answers; LabError with the end of its log when it does not."""
        path = self.directory / "run" / "charon.vici"
        wait_until(lambda: self._listening(path), timeout=READY_SECONDS, what="charon answers", interval=0.05)

    def _listening(self, path: Path) -> bool:
        if self.program is not None and not self.program.running:
            raise LabError(f"charon ended: {self.log(20)}")
        return path.exists() and self._answers()

    def _answers(self) -> bool:
        try:
            with self.session() as session:
                session.version()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it (its IKE SAs are deleted on the wire)."""
        if self.program is not None:
            self.program.stop()
            self.program = None

    def kill(self) -> None:
        """End it without a word to its peers."""
        if self.program is not None:
            self.program.kill()
            self.program = None
        shutil.rmtree(self.directory / "run")
        (self.directory / "run").mkdir()

    def log(self, lines: int | None = None) -> str:
        """Its log, or the last lines."""
        return "" if self.program is None else self.program.log(lines)

    @contextlib.contextmanager
    def session(self) -> Iterator[vici.Session]:
        """A connection to its vici socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(self.directory / "run" / "charon.vici"))
            yield vici.Session(sock)

    # --- configuration -------------------------------------------------------------------------------

    def load(
        self,
        connections: Section,
        *,
        secrets: Sequence[Section] = (),
        keys: Sequence[bytes] = (),
        authorities: Sequence[bytes] = (),
        crls: Sequence[bytes] = (),
        pools: Section | None = None,
    ) -> None:
        """Load connections (in swanctl.conf's words), PSKs and EAP secrets, private keys (PKCS #8), CA certificates.

        A secret is {"type": "IKE" | "EAP" | "PPK", "data": ..., "owners": [identities]}. A connection's `certs` and
        `cacerts` hold DER.
        """
        with self.session() as session:
            for certificate in authorities:
                session.load_cert({"type": "X509", "flag": "CA", "data": certificate})
            for crl in crls:
                session.load_cert({"type": "X509_CRL", "flag": "NONE", "data": crl})
            for key in keys:
                session.load_key({"type": "any", "data": key})
            for number, secret in enumerate(secrets):
                session.load_shared({"id": f"secret-{number}", **secret})
            for name, pool in (pools or {}).items():
                session.load_pool({name: _texts(pool)})
            for name, connection in connections.items():
                session.load_conn({name: _texts({"version": 2, **connection})})

    def unload(self, name: str) -> None:
        """Forget a connection."""
        with self.session() as session:
            session.unload_conn({"name": name})

    # --- what it can be told -------------------------------------------------------------------------

    def initiate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Bring a child (and its IKE SA), or an IKE SA alone, up. Returns what it said; PeerRefused if it failed."""
        wanted = {"child": child, "ike": ike, "timeout": int(timeout * 1000), "loglevel": 1}
        return self._control("initiate", wanted)

    def terminate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Delete children or IKE SAs by name, and wait for the peer's answer."""
        wanted = {"child": child, "ike": ike, "timeout": int(timeout * 1000), "loglevel": 1}
        try:
            return self._control("terminate", wanted)
        except PeerRefused as refused:
            # One that a rekey had replaced went by itself meanwhile.
            if "ID " in str(refused) and "not found" in str(refused):
                return str(refused)
            raise

    def rekey(self, *, child: str | None = None, ike: str | None = None, reauth: bool = False) -> None:
        """Begin to rekey a child or an IKE SA by name; it is under way on return, not done."""
        wanted = {"child": child, "ike": ike, "reauth": "yes" if reauth else None}
        with self.session() as session:
            session.rekey({key: value for key, value in wanted.items() if value is not None})

    def _control(self, command: str, wanted: Section) -> str:
        said: list[str] = []
        with self.session() as session:
            message = {key: value for key, value in wanted.items() if value is not None}
            try:
                for entry in getattr(session, command)(message):
                    said.append(entry["msg"].decode(errors="replace"))
            except vici.exception.CommandException as error:
                raise PeerRefused("\n".join([*said, str(error)])) from None
        return "\n".join(said)

    # --- what it knows -------------------------------------------------------------------------------

    def sas(self) -> list[IkeState]:
        """Its IKE SAs with their children."""
        with self.session() as session:
            return [
                _ike_state(name, sa) for entry in session.list_sas() for name, sa in entry.items()
            ]  # fmt: skip

    def cpu_seconds(self) -> float:
        """CPU time that it has used, user and system."""
        assert self.program is not None
        return self.program.cpu_seconds()


def configuration(plugins: str, vici_socket: str, options: Section | None = None) -> str:
    """A strongswan.conf; `options` are added to its section charon."""
    charon: dict[str, Any] = {
        "load": plugins,  # those that are not there are left out
        "threads": 16,
        "filelog": {"stderr": _LOG},
        "plugins": {"vici": {"socket": vici_socket}},
    }
    return _format({"charon": _merge(charon, options or {})})


def start_all(*daemons: Charon) -> None:
    """Start several side by side: each takes half a second."""
    # Not on threads: a program of the laboratory dies with the thread that started it (PR_SET_PDEATHSIG).
    for daemon in daemons:
        daemon.begin()
    for daemon in daemons:
        daemon.wait_ready()


def _merge(base: Section, extra: Section) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def _format(section: Section, indent: str = "") -> str:
    """strongswan.conf's syntax."""
    text = ""
    for key, value in section.items():
        if isinstance(value, Mapping):
            text += f"{indent}{key} {{\n{_format(value, indent + '  ')}{indent}}}\n"
        else:
            text += f"{indent}{key} = {value}\n"
    return text


def _texts(value: Any) -> Any:
    """What vici takes: text, bytes, lists and sections of them."""
    if isinstance(value, Mapping):
        return {key: _texts(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(each) for each in value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, bytes) else str(value)


def _ike_state(name: str, sa: Section) -> IkeState:
    def text(key: str) -> str:
        return bytes(sa.get(key, b"")).decode(errors="replace")

    return IkeState(
        name=name,
        state=text("state"),
        initiator=text("initiator") == "yes",
        spi_initiator=int(text("initiator-spi"), 16),
        spi_responder=int(text("responder-spi"), 16),
        local=f"{text('local-host')}:{text('local-port')}",
        remote=f"{text('remote-host')}:{text('remote-port')}",
        local_id=text("local-id"),
        remote_id=text("remote-id"),
        virtual=tuple(each.decode() for key in ("local-vips", "remote-vips") for each in sa.get(key, ())),
        children=tuple(_child_state(child) for child in sa.get("child-sas", {}).values()),
    )


def _child_state(child: Section) -> ChildState:
    def number(key: str, base: int = 10) -> int:
        return int(child.get(key, b"0"), base)

    return ChildState(
        name=child["name"].decode(),
        state=child["state"].decode(),
        spi_in=number("spi-in", 16),
        spi_out=number("spi-out", 16),
        packets_in=number("packets-in"),
        packets_out=number("packets-out"),
        local=tuple(each.decode() for each in child.get("local-ts", ())),
        remote=tuple(each.decode() for each in child.get("remote-ts", ())),
        encapsulated=child.get("encap") == b"yes",
    )


def said(log: str, pattern: str) -> bool:
    """True when some line of a log matches."""
    return re.search(pattern, log, re.MULTILINE) is not None
