"""What of the compiled parts and libraries this host can load, and which engine it would take. For `doctor`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module

from dataplane.engine import EngineUnavailableError, open_engine

# compiled module -> what it needs beside Python
MODULES = {
    "ext.loop": "nothing",
    "ext.crypto_mb": "libipsec-mb1",
    "ext.crypto_evp": "libssl3",
    "ext.xsk": "libxdp1 libbpf1",
    "ext.steering": "libbpf1",
}


@dataclass(frozen=True, kw_only=True)
class ModuleState:
    """Whether a compiled module can be imported."""

    name: str
    error: str  # "" when it can
    packages: str  # Debian packages that it needs


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """The crypto engine that a name comes to on this host."""

    name: str  # "" when there is none
    reason: str  # why this one, or why none
    library: str
    details: str  # code path and CPU flags that the library uses


def modules() -> list[ModuleState]:
    """Try every compiled module."""
    found = []
    for name, packages in MODULES.items():
        try:
            import_module(name)
            error = ""
        except ImportError as failure:
            error = str(failure)
        found.append(ModuleState(name=name, error=error, packages=packages))
    return found


def engine(name: str = "auto") -> EngineState:
    """Open the engine as the gateway would, and let it go."""
    try:
        handle = open_engine(name)
    except (EngineUnavailableError, ValueError) as error:
        return EngineState(name="", reason=str(error), library="", details="")
    features = handle.features()
    flags = features.get("cpu")
    shown = [str(features.get("architecture", "")), *(map(str, flags) if isinstance(flags, list) else [])]
    return EngineState(
        name=handle.name,
        reason=handle.reason,
        library=str(features.get("library", "")),
        details=" ".join(part for part in shown if part),
    )


def libbpf_version() -> str:
    """libbpf's version; "" where the library cannot be loaded."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        return bytes(library.libbpf_version_string()).decode()
    except (OSError, AttributeError):
        return ""
