"""What IKE asks of this host: UDP ports, certificates that prove who we are, a right clock, names, ways to peers."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from control.admin.server import SOCKET_NAME, StatusError, ask
from control.config import Config
from control.doctor.findings import Finding, bad, ok, warn
from control.ike.ends import peer_address
from control.ike.settings import Auth, Connection
from control.net.udp import source_address
from control.pki.errors import CredentialError
from control.pki.load import CredentialFileError, load_credentials
from control.pki.settings import CredentialProblem, CredentialSettings
from control.pki.store import Credentials

STA_UNSYNC = 0x40  # linux/timex.h
_TIMEX_BYTES, _TIMEX_STATUS = 256, 40  # struct timex on 64-bit Linux: more than its size, offset of `status`


def check_ike(config: Config) -> list[Finding]:
    """Findings about IKE; none without connections."""
    if not config.ike.connections:
        return []
    findings = check_ports(config.ike.settings.nat_ports, is_running(config.gateway.run_dir))
    found, credentials = check_credentials(config.ike.credentials)
    findings += found
    if credentials is not None:
        findings += check_proofs(config.ike.connections, credentials)
    if config.ike.credentials.certificates or config.ike.credentials.authorities:
        findings.append(check_clock(clock_is_set()))
    findings += check_names(config.ike.credentials)
    findings += [check_peer(connection) for connection in config.ike.connections]
    return findings


def is_running(run_dir: Path) -> bool:
    """Whether a gateway with this run directory runs; its ports are not free then, and need not be."""
    try:
        ask(run_dir / SOCKET_NAME, "status")
    except StatusError:
        return False
    return True


def check_ports(ports: tuple[int, ...], running: bool) -> list[Finding]:
    """Nobody else may hold IKE's UDP ports."""
    if running:
        return [ok("ike", "the gateway of this configuration is running and has its ports")]
    findings = []
    for port in ports:
        refused = {family: _refusal(family, port) for family in (socket.AF_INET, socket.AF_INET6)}
        held = [family for family, code in refused.items() if code == errno.EADDRINUSE]
        if errno.EACCES in refused.values():
            findings.append(
                warn("ike", f"UDP port {port} could not be tried: no CAP_NET_BIND_SERVICE", "run as root")
            )
        elif held:
            names = " and ".join("IPv4" if family == socket.AF_INET else "IPv6" for family in held)
            findings.append(
                bad(
                    "ike",
                    f"UDP port {port} ({names}) is held by another program: another IKE daemon, most likely",
                    f"ss -ulpn sport = :{port} shows who; systemctl disable --now strongswan ipsec",
                )
            )
        else:
            findings.append(ok("ike", f"UDP port {port} is free"))
    return findings


def _refusal(family: int, port: int) -> int:
    """errno of opening this UDP port; 0 where it can be had, or where there is no such family."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("", port))
    except OSError as error:
        return error.errno or 0
    return 0


def check_credentials(settings: CredentialSettings) -> tuple[list[Finding], Credentials | None]:
    """Every file is there, is what it should be, and is valid for a while yet."""
    unwise: list[CredentialProblem] = []
    try:
        credentials = load_credentials(settings, warn=unwise.append)
    except CredentialFileError as error:
        return [
            bad("credentials", str(problem), "esplanade pki show FILE says what is in a file")
            for problem in error.problems
        ], None
    findings = [
        warn("credentials", str(problem), "esplanade pki show FILE; renew it in time") for problem in unwise
    ]
    certificates, authorities = len(settings.certificates), len(settings.authorities)
    text = f"{certificates} certificates, {authorities} authorities, {len(settings.preshared_keys)} preshared keys"
    if not unwise:
        findings.append(ok("credentials", text))
    return findings, credentials


def check_proofs(connections: tuple[Connection, ...], credentials: Credentials) -> list[Finding]:
    """Each connection that proves us by certificate has one for its identity, with its key."""
    findings = []
    for connection in connections:
        if connection.local.auth is not Auth.PUBKEY:
            continue
        subject = f"connection {connection.name}"
        try:
            proof = credentials.key_for(connection.local)
        except CredentialError as error:
            findings.append(bad(subject, error.text, error.advice or "mend local.id or local.certs"))
        else:
            findings.append(ok(subject, f"we are {proof.identity} by certificate {proof.name}"))
    return findings


def check_clock(is_set: bool | None) -> Finding:
    """Certificates are judged by the clock."""
    if is_set is None:
        return warn("clock", "cannot be asked whether it is set", "timedatectl")
    if not is_set:
        return warn(
            "clock",
            "is not synchronised, and certificates are valid only between two dates",
            "apt-get install systemd-timesyncd, or chrony",
        )
    return ok("clock", "is synchronised")


def clock_is_set() -> bool | None:
    """Whether the kernel's clock follows a time server (adjtimex); None where that cannot be asked."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # zeroed: modes = 0 changes nothing
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status = int.from_bytes(timex.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little")
    return not status & STA_UNSYNC


def check_names(
    settings: CredentialSettings, resolve: Callable[..., object] = socket.getaddrinfo
) -> list[Finding]:
    """Hosts of revocation lists have addresses."""
    hosts = {
        host
        for authority in settings.authorities
        for url in authority.crl_urls
        if (host := urlsplit(url).hostname) is not None
    }
    findings = []
    for host in sorted(hosts):
        try:
            resolve(host, 80)
        except OSError as error:
            findings.append(
                bad(
                    "dns",
                    f"{host}, which has a revocation list, is not found: {error}",
                    f"getent hosts {host}",
                )
            )
        else:
            findings.append(ok("dns", f"{host} is found"))
    return findings


def check_peer(connection: Connection) -> Finding:
    """There is a route to the peer, from an address that the connection allows."""
    subject, peer = f"connection {connection.name}", peer_address(connection.remote_addresses)
    if peer is None:
        return ok(subject, "waits for its peers")
    source = source_address(peer)
    if source is None:
        return bad(subject, f"no route to {peer}", f"ip route get {peer}")
    allowed = connection.local_addresses
    fits = any(source == each or (not isinstance(each, type(source)) and source in each) for each in allowed)  # type: ignore[operator]
    if allowed and not fits:
        listed = ", ".join(map(str, allowed))
        return warn(
            subject,
            f"this host reaches {peer} from {source}, and local_addrs has {listed}",
            "mend local_addrs, or leave it out",
        )
    return ok(subject, f"reaches {peer} from {source}")
