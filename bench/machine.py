"""What a figure was measured on: CPU, memory, kernel, libraries, and the commit."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# CPU flags that decide which code libipsec-mb and OpenSSL pick.
FLAGS = (
    *("aes", "pclmulqdq", "ssse3", "sse4_1", "avx", "avx2", "bmi2", "sha_ni", "gfni", "vaes", "vpclmulqdq"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_ifma", "hypervisor", "asimd", "sha2", "pmull"),
)
PACKAGES = ("cython", "numpy", "pyroute2")
# library: function that returns its version as a C string
LIBRARIES = {"IPSec_MB": "imb_get_version_str", "crypto": "OpenSSL_version", "bpf": "libbpf_version_string"}


def describe_machine() -> dict[str, object]:
    """The machine as a JSON-able dictionary."""
    cpu = _read("/proc/cpuinfo")
    present = set(_field(cpu, "flags").split()) | set(_field(cpu, "Features").split())
    return {
        "cpu": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in present],
        "cache_kib": _caches(),
        "memory_mib": int(_field(_read("/proc/meminfo"), "MemTotal").split()[0]) // 1024,
        "transparent_hugepages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "kernel": platform.release(),
        "interfaces": _interfaces(),
        "mitigations": _mitigations(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "libraries": {name: _library_version(name, function) for name, function in LIBRARIES.items()},
        "iperf3": _first_line(["iperf3", "--version"]),
        "commit": _first_line(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }


def trace(machine: Mapping[str, object], rows: Sequence[Mapping[str, object]] = ()) -> str:
    """The machine as text, a line per fact; from `rows`, the modes that ports of each driver really ran in."""
    facts = {key: _text(value) for key, value in machine.items()}
    modes: dict[str, list[str]] = {}
    for row in rows:
        if "driver" in row and "mode" in row:
            modes.setdefault(str(row["driver"]), []).append(str(row["mode"]))
    facts |= {f"driver {name}": ", ".join(dict.fromkeys(found)) for name, found in modes.items()}
    width = max(map(len, facts))
    return "\n".join(f"{key:{width}}  {value}" for key, value in facts.items())


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _field(text: str, key: str) -> str:
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _chosen(text: str) -> str:
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def _caches() -> dict[str, int]:
    """KiB of each cache of CPU 0: {"L1 data": 32, ...}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(str(index / name)).strip() for name in ("level", "type", "size"))
        if size.endswith("K"):
            caches[f"L{level} {kind.lower()}"] = int(size[:-1])
    return caches


def _interfaces() -> dict[str, str]:
    """Network interfaces that have a driver, with its name; a laboratory's own are all veth."""
    links = sorted(Path("/sys/class/net").glob("*/device/driver"))
    return {link.parents[1].name: link.resolve().name for link in links}


def _mitigations() -> dict[str, str]:
    """Vulnerabilities that the kernel mitigates at a cost, by name."""
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    texts = {path.name: _read(str(path)).strip() for path in sorted(directory.glob("*"))}
    return {name: text for name, text in texts.items() if text.startswith("Mitigation")}


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _library_version(name: str, function: str) -> str:
    path = ctypes.util.find_library(name)
    if path is None:
        return ""
    call = getattr(ctypes.CDLL(path), function)
    call.restype = ctypes.c_char_p
    return (call(0) or b"").decode()  # OpenSSL_version takes 0 for the whole text; the others take nothing


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()
