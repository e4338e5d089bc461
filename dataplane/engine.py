"""Which crypto engine runs: libipsec-mb where the CPU can, OpenSSL's libcrypto anywhere else.

Control and every worker of one gateway must open the same one: the layout of expanded keys differs.
"""

from __future__ import annotations

from importlib import import_module

from ext.crypto import EngineHandle

#: name in the configuration -> (module, class); "auto" is the first that works
ENGINES = {
    "ipsec-mb": ("ext.crypto_mb", "MbEngine"),
    "openssl": ("ext.crypto_evp", "EvpEngine"),
}


def open_engine(name: str = "auto") -> EngineHandle:
    """The engine of that name. ValueError for an unknown name, RuntimeError where it cannot run here."""
    if name == "auto":
        problems = []
        for candidate in ENGINES:
            try:
                return open_engine(candidate)
            except RuntimeError as error:
                problems.append(f"{candidate}: {error}")
        raise RuntimeError(f"no crypto engine runs on this machine: {'; '.join(problems)}")
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}; there are auto, {', '.join(ENGINES)}")
    module, kind = ENGINES[name]
    try:
        handle: EngineHandle = getattr(import_module(module), kind)()
    except ImportError as error:
        raise RuntimeError(f"{module} cannot be loaded: {error}") from error
    return handle
