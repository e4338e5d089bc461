"""What the host offers: kernel, capabilities, CPU, memory limits, devices."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from control.config import Config
from control.doctor.findings import Finding, bad, ok, warn
from control.net.kernel import sysctl
from dataplane import probe

AF_XDP = 44
KERNEL_LEAST, KERNEL_GOOD = (5, 10), (6, 1)
# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
MEMLOCK_WANTED = 64 << 20  # bytes: frames and keys of one worker


def check_host(config: Config | None) -> list[Finding]:
    """Findings that do not depend on any one port; `config` narrows them to the drivers in use."""
    drivers = {port.driver for port in config.ports} if config is not None else {"xdp", "packet", "tun"}
    findings = [check_kernel(platform.release()), *check_cpu(Path("/proc/cpuinfo"))]
    findings += check_libraries(probe.modules(), probe.libbpf_version(), drivers)
    findings.append(check_engine(probe.engine(config.gateway.engine if config is not None else "auto")))
    effective = _effective_capabilities()
    low_ports = _low_ports(config) if config is not None else (500,)
    findings.append(check_capabilities(effective, drivers, low_ports))
    if os.geteuid() == 0:
        findings += check_spare_capabilities(effective, drivers)
    if "xdp" in drivers:
        findings.append(check_af_xdp())
    if "tun" in drivers:
        findings.append(check_tun_device(Path("/dev/net/tun")))
    findings.append(check_memlock(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], effective))
    return findings


def check_kernel(release: str) -> Finding:
    """The kernel's version against what AF_XDP and BPF links need."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        return warn("kernel", f"release {release!r} is not understood", "uname -r")
    version = (int(match[1]), int(match[2]))
    text = f"{release}"
    if version < KERNEL_LEAST:
        return bad(
            "kernel",
            f"{text}; want 5.10 or newer for AF_XDP with need-wakeup and BPF links",
            "install a newer kernel, e.g. apt-get install linux-image-amd64",
        )
    if version < KERNEL_GOOD:
        return warn(
            "kernel",
            f"{text}; may work, but 6.1 or newer is what is tested",
            "install a newer kernel, e.g. apt-get install linux-image-amd64",
        )
    return ok("kernel", text)


def check_cpu(cpuinfo: Path) -> list[Finding]:
    """CPUs we may run on, and the instructions that make ciphers fast."""
    usable = len(os.sched_getaffinity(0))
    findings = [ok("cpus", f"{usable} of {os.cpu_count()} may be used")]
    try:
        match = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is None:
        return [
            *findings,
            warn(
                "cpu flags",
                "unknown: no x86 flags in /proc/cpuinfo; the OpenSSL engine is used",
                "nothing to do on this architecture",
            ),
        ]
    flags = set(match[1].split())
    shown = [flag for flag in ("aes", "avx2", "vaes", "avx512f", "sha_ni") if flag in flags]
    if "aes" not in flags:
        findings.append(
            warn(
                "cpu flags",
                "no AES instructions: AES costs many times as much",
                'use proposal = "chacha20poly1305", or let the hypervisor pass the CPU through (-cpu host)',
            )
        )
    else:
        findings.append(ok("cpu flags", " ".join(shown)))
    return findings


def check_libraries(modules: Sequence[probe.ModuleState], libbpf: str, drivers: set[str]) -> list[Finding]:
    """The compiled parts load, and with them the libraries that they need."""
    findings = []
    for module in modules:
        if not module.error:
            continue
        text = f"{module.name} cannot be loaded: {module.error}"
        mend = (
            f"./run build; apt-get install {module.packages}"
            if module.packages != "nothing"
            else "./run build"
        )
        optional = module.name.startswith("ext.crypto_") or not drivers & {"xdp", "packet"}
        needed = module.name == "ext.loop" or not optional
        findings.append((bad if needed else warn)("libraries", text, mend))
    if not findings:
        findings.append(ok("libraries", f"all load; libbpf {libbpf.removeprefix('v') or 'unknown'}"))
    return findings


def check_engine(engine: probe.EngineState) -> Finding:
    """The crypto engine that the gateway would take."""
    if not engine.name:
        return bad(
            "engine", engine.reason, 'set gateway.engine = "auto", or apt-get install libipsec-mb1 libssl3'
        )
    text = f"{engine.name} ({engine.library}): {engine.reason}"
    return ok("engine", f"{text}; {engine.details}" if engine.details else text)


def check_capabilities(effective: int, drivers: set[str], low_ports: Sequence[int] = ()) -> Finding:
    """The capabilities that a start takes; `low_ports` are IKE's that want one. Workers drop all afterwards."""
    wanted = {
        "CAP_NET_ADMIN": "attach programs, read and set interfaces",
        "CAP_NET_RAW": "open raw and AF_XDP sockets",
    }
    if low_ports:
        wanted["CAP_NET_BIND_SERVICE"] = "IKE's port " + " and ".join(str(port) for port in low_ports)
    if drivers & {"xdp", "packet"}:
        wanted["CAP_BPF"] = "load the steering program"
        wanted["CAP_PERFMON"] = "have its verifier take it"
    missing = _missing(effective, wanted)
    if missing:
        why = "; ".join(f"{name} ({wanted[name]})" for name in missing)
        return bad("capabilities", f"missing {why}", f"run as root; {_naming(missing)}")
    return ok("capabilities", " ".join(wanted))


def check_spare_capabilities(effective: int, drivers: set[str]) -> list[Finding]:
    """What root may be without and still start: one warning about what is lost then, or nothing."""
    wanted = {
        "CAP_SETUID": "workers stay root",
        "CAP_SETGID": "workers keep root's group",
        "CAP_KILL": "a worker that hangs cannot be ended",
    }
    mend = ""
    if "xdp" in drivers:
        wanted["CAP_SYS_ADMIN"] = "what a killed gateway left on an interface cannot be taken over"
        mend = "; or, after a kill: ip link set dev NAME xdp off"
    missing = _missing(effective, wanted)
    if not missing:
        return []
    why = "; ".join(f"{name} ({wanted[name]})" for name in missing)
    return [warn("capabilities", f"without {why}", _naming(missing) + mend)]


def _missing(effective: int, wanted: Iterable[str]) -> list[str]:
    """Those of `wanted` that are not there; CAP_SYS_ADMIN stands in for two that were part of it once."""
    has = {name for name, bit in CAPABILITIES.items() if effective >> bit & 1}
    if "CAP_SYS_ADMIN" in has:
        has |= {"CAP_BPF", "CAP_PERFMON"}
    return [name for name in wanted if name not in has]


def _naming(missing: Sequence[str]) -> str:
    """Where capabilities are named. AmbientCapabilities= is for services of other users than root."""
    options = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
    return f"a unit wants {' '.join(missing)} in CapabilityBoundingSet=, docker run {options}"


def _low_ports(config: Config) -> list[int]:
    """IKE's ports that only CAP_NET_BIND_SERVICE opens; none without connections."""
    least = int(sysctl("ipv4/ip_unprivileged_port_start") or 1024)
    return [port for port in config.ike.settings.nat_ports if config.ike.connections and port < least]


def check_af_xdp() -> Finding:
    """Whether the kernel knows AF_XDP at all."""
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return bad("af_xdp", "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS)", 'use driver = "packet"')
        return warn("af_xdp", f"could not be tried: {error.strerror}", "run as root")
    return ok("af_xdp", "supported")


def check_tun_device(device: Path) -> Finding:
    """Whether TUN devices can be made."""
    if not device.exists():
        return bad("tun", f"{device} is missing", f"modprobe tun; in a container: --device {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return bad("tun", f"{device} may not be opened", "run as root")
    return ok("tun", str(device))


def check_memlock(limit: int, effective: int) -> Finding:
    """Frames and keys stay in memory; CAP_IPC_LOCK lifts the limit."""
    if effective >> CAPABILITIES["CAP_IPC_LOCK"] & 1:
        return ok("memlock", "no limit (CAP_IPC_LOCK)")
    if limit == resource.RLIM_INFINITY or limit >= MEMLOCK_WANTED:
        return ok("memlock", "no limit" if limit == resource.RLIM_INFINITY else f"{limit >> 20} MiB")
    return bad(
        "memlock",
        f"at most {limit >> 10} KiB may be locked; AF_XDP frames and keys want {MEMLOCK_WANTED >> 20} MiB",
        "ulimit -l unlimited; for a service: LimitMEMLOCK=infinity",
    )


def _effective_capabilities() -> int:
    """CapEff of this process."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1], 16) if match else 0
