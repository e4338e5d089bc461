"""What a configuration asks of this host: interfaces, queues, MTUs, forwarding, directories."""

from __future__ import annotations

import os
import socket

from control.config import Config, PortConfig
from control.doctor.findings import Finding, bad, ok, warn
from control.net.kernel import Interface, interface, sysctl
from control.net.xdpinfo import XdpFeatures, xdp_features
from control.ports import tun_mtu
from dataplane.model import Action, Address, Direction, Role

XDP_MTU_MAX = 16050  # what fits the largest frame with headroom, link header and ESP trailer
XDP_MTU_PLAIN = 3498  # of one buffer; what is larger comes in several, since Linux 6.6


def check_config(config: Config) -> list[Finding]:
    """Findings about each port, each SA's path, forwarding and the directories."""
    findings = [warn("config", str(problem), f"edit {config.source}") for problem in config.warnings]
    if not findings:
        findings.append(
            ok("config", f"{config.source}: {len(config.sas)} SAs, {len(config.policies)} policies")
        )
    features = xdp_features()
    for port in config.ports:
        findings += check_port(port, config, features)
    findings += check_paths(config)
    findings += check_forwarding(config)
    findings += check_directories(config)
    findings.append(check_workers(config.gateway.workers, len(os.sched_getaffinity(0))))
    return findings


def check_workers(workers: int, cpus: int) -> Finding:
    """Workers against the CPUs that they are pinned to."""
    if workers > cpus:
        return warn("workers", f"{workers} workers share {cpus} CPUs", f"set gateway.workers = {cpus}")
    return ok("workers", f"{workers} on {cpus} CPUs")


def check_port(port: PortConfig, config: Config, features: dict[int, XdpFeatures] | None) -> list[Finding]:
    """One port: its interface exists and does what the driver needs."""
    subject = f"port {port.name}"
    if port.driver == "tun":
        found = interface(port.interface)
        if found is not None and found.ethernet:
            return [
                bad(
                    subject,
                    f"{port.interface} exists and is no TUN device",
                    "choose another name for the device",
                )
            ]
        return [
            ok(
                subject,
                f"tun device {port.interface}, MTU {port.mtu or tun_mtu(config.sas, lambda _name: None)}",
            )
        ]
    if port.driver == "udp" and config.ike.connections:
        return [ok(subject, f"UDP sockets on port {port.encap_port}, beside IKE")]  # see ike_checks
    if port.driver == "udp":
        return check_udp_port(port, subject)
    if port.driver == "raw":
        return [ok(subject, "raw sockets")]
    found = interface(port.interface)
    if found is None:
        return [
            bad(subject, f"there is no interface {port.interface}", "ip link show; then mend port.interface")
        ]
    findings = []
    if not found.ethernet:
        findings.append(
            bad(subject, f"{found.name} is no Ethernet interface", 'use driver = "tun", "udp" or "raw"')
        )
    if not found.up:
        findings.append(bad(subject, f"{found.name} is down", f"ip link set {found.name} up"))
    if port.driver == "xdp":
        findings += check_xdp(port, found, config.gateway.workers, features)
    else:
        findings.append(ok(subject, f"packet on {found.name} ({found.driver or 'virtual'}), MTU {found.mtu}"))
    return findings


def check_xdp(
    port: PortConfig, found: Interface, workers: int, features: dict[int, XdpFeatures] | None
) -> list[Finding]:
    """The driver's modes, its queues against the workers, its MTU against a frame."""
    subject, findings = f"port {port.name}", []
    known = features.get(found.index) if features is not None else None
    modes = "unknown (kernel older than 6.3)"
    if known is not None:
        modes = f"native{', zero-copy' if known.zero_copy else ', copy'}" if known.native else "generic"
    text = f"xdp on {found.name} ({found.driver or 'virtual'}), possible: {modes}, MTU {found.mtu}"
    if known is not None and not known.native:
        if port.xdp_mode == "native":
            findings.append(bad(subject, f'{text}; mode = "native" cannot work', 'set mode = "auto"'))
        else:
            findings.append(
                warn(subject, f"{text}: slow", 'try driver = "packet" and compare (esplanade bench ports)')
            )
    elif known is not None and port.zero_copy == "on" and not known.zero_copy:
        findings.append(bad(subject, f'{text}; zero_copy = "on" cannot work', 'set zero_copy = "auto"'))
    else:
        findings.append(ok(subject, text))
    if found.mtu > XDP_MTU_MAX:
        findings.append(
            bad(
                subject,
                f"MTU {found.mtu} is more than the {XDP_MTU_MAX} that fit an AF_XDP frame",
                f"ip link set {found.name} mtu {XDP_MTU_MAX}",
            )
        )
    elif found.mtu > XDP_MTU_PLAIN:
        findings += check_jumbo(found, subject, _kernel_release())
    queues = found.receive_queues
    if queues != workers:
        what = (
            "a worker without a queue"
            if queues < workers
            else "queues without a worker, whose packets are dropped"
        )
        mend = f"set gateway.workers = {queues}, or ethtool -L {found.name} combined {workers}"
        if found.driver in ("", "veth"):
            mend = (
                f"set gateway.workers = {queues}, or make the pair with numrxqueues {workers} numtxqueues {workers}, "
                f"or ethtool -L {found.name} rx {workers} tx {workers}"
            )
        findings.append(
            bad(subject, f"{found.name} has {queues} receive queues for {workers} workers: {what}", mend)
        )
    return findings


def check_jumbo(found: Interface, subject: str, release: tuple[int, int]) -> list[Finding]:
    """Whether this kernel brings packets of several buffers, and what comes with them over a veth pair."""
    if release < (6, 6):
        return [
            bad(
                subject,
                f"MTU {found.mtu} is more than one AF_XDP buffer holds, and several want Linux 6.6",
                f"ip link set {found.name} mtu {XDP_MTU_PLAIN}",
            )
        ]
    if found.driver in ("", "veth"):
        return [
            warn(
                subject,
                f"MTU {found.mtu}: the other end of a veth pair may send super-frames, which are dropped",
                "ethtool -K OTHER_END tso off gso off",
            )
        ]
    return []


def _kernel_release() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


def check_udp_port(port: PortConfig, subject: str) -> list[Finding]:
    """Nobody else may hold the UDP port."""
    family = socket.AF_INET6 if port.bind and port.bind[0].version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(port.bind[0]) if port.bind else "", port.encap_port))
        except OSError as error:
            return [
                bad(
                    subject,
                    f"UDP port {port.encap_port} cannot be bound: {error.strerror}",
                    f"ss -ulpn sport = :{port.encap_port} shows who holds it",
                )
            ]
    return [ok(subject, f"UDP port {port.encap_port} is free")]


def check_paths(config: Config) -> list[Finding]:
    """Each outbound SA: a route to its peer, and what the path leaves for inner packets."""
    findings = []
    protected = [
        found.mtu
        for port in config.ports
        if port.role is Role.PROTECTED
        if (found := interface(port.interface)) is not None
    ]
    for sa in config.sas:
        if sa.direction is not Direction.OUT:
            continue
        path = path_mtu(sa.local, sa.remote)
        if isinstance(path, str):
            findings.append(bad(f"sa {sa.name}", path, f"ip route get {sa.remote} from {sa.local}"))
            continue
        inner = sa.inner_mtu(path)
        text = f"path MTU {path} to {sa.remote} leaves {inner} bytes for inner packets"
        if protected and inner < max(protected) and not sa.mss_clamp:
            findings.append(
                warn(
                    f"sa {sa.name}",
                    f"{text}, and the protected side sends up to {max(protected)}: longer ones "
                    "are answered with ICMP",
                    "set mss_clamp = true, or raise the MTU of the path",
                )
            )
        else:
            findings.append(ok(f"sa {sa.name}", text))
    return findings


def path_mtu(local: Address, remote: Address) -> int | str:
    """The kernel's MTU between two addresses, by a connected socket that sends nothing; or why there is none."""
    family, level, option = (
        (socket.AF_INET, socket.IPPROTO_IP, 14)
        if local.version == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, 24)
    )  # IP_MTU, IPV6_MTU
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(local), 0))
        except OSError:
            return f"{local} is no address of this host"
        try:
            probe.connect((str(remote), 4500))
        except OSError as error:
            return f"no route to {remote}: {error.strerror}"
        return probe.getsockopt(level, option)


def check_forwarding(config: Config) -> list[Finding]:
    """Whether the kernel forwards what the dataplane leaves to it, and does not drop what comes back."""
    versions = {
        policy.selector.local_first.version
        for policy in config.policies
        if policy.action is not Action.DISCARD
    }
    versions |= {
        where.version
        for connection in config.ike.connections
        for child in connection.children
        for selector in child.local
        if (where := selector.network or selector.first) is not None
    }
    tun = [port for port in config.ports if port.driver == "tun"]
    findings = []
    for version, key in ((4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")):
        if version not in versions or (value := sysctl(key)) is None:
            continue
        name = f"net.{key.replace('/', '.')}"
        if value != "0":
            findings.append(ok("forwarding", f"{name} = {value}"))
        elif tun:
            findings.append(
                warn(
                    "forwarding",
                    f"{name} = 0: only this host itself can use the tunnel",
                    f"sysctl -w {name}=1",
                )
            )
        else:
            findings.append(
                ok("forwarding", f"{name} = 0: tunnelled packets do not need it; the rest is not forwarded")
            )
    for port in tun:
        strict = max(int(sysctl(f"ipv4/conf/{where}/rp_filter") or 0) for where in ("all", "default"))
        if strict == 1 and not port.routes:
            findings.append(
                warn(
                    "rp_filter",
                    f"is strict: decrypted packets are dropped unless routes lead back into {port.interface}",
                    "sysctl -w net.ipv4.conf.all.rp_filter=2",
                )
            )
    return findings


def check_directories(config: Config) -> list[Finding]:
    """The state directory can be written: without it no AEAD SA on manual keys may send."""
    findings = []
    for key, path in (("state_dir", config.gateway.state_dir), ("run_dir", config.gateway.run_dir)):
        there = next(part for part in (path, *path.parents) if part.exists())
        if os.access(there, os.W_OK | os.X_OK) and there.is_dir():
            findings.append(ok(key, str(path)))
        else:
            findings.append(
                bad(key, f"{path} cannot be written", f"mkdir -p {path} as root, or set gateway.{key}")
            )
    return findings
