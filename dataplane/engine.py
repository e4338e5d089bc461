"""Which crypto engine this host uses: libipsec-mb where it can run, else OpenSSL's libcrypto, and why.

Control opens one to expand keys into the tables, every worker opens one of the same kind to use them
(`TablesHeader.engine` holds its number), so "auto" is for control; workers are told the name that it came to.
"""

from __future__ import annotations

from ext.crypto import EngineHandle

NAMES = ("ipsec-mb", "openssl")  # by number in TablesHeader.engine


class EngineUnavailableError(RuntimeError):
    """An engine cannot run on this host; the message says why."""


def open_engine(name: str = "auto") -> EngineHandle:
    """Open the engine called "ipsec-mb" or "openssl", or for "auto" the fastest that runs here.

    Its `name`, `number` and `reason` (why this one) tell which it is. An engine belongs to the process that opened
    it. Raises EngineUnavailableError for one that was named and cannot run, ValueError for any other name.
    """
    if name == "ipsec-mb":
        engine = _open_ipsec_mb()
        engine.reason = "named in the configuration"
    elif name == "openssl":
        engine = _open_openssl()
        engine.reason = "named in the configuration"
    elif name == "auto":
        try:
            engine = _open_ipsec_mb()
            engine.reason = "the fastest where the CPU has AES-NI"
        except EngineUnavailableError as unavailable:
            engine = _open_openssl()
            engine.reason = f"ipsec-mb cannot run here: {unavailable}"
    else:
        raise ValueError(f"engine is {name!r}; it is 'auto', 'ipsec-mb' or 'openssl'")
    return engine


def _open_ipsec_mb() -> EngineHandle:
    try:
        from ext.crypto_mb import MbEngine
    except ImportError as error:  # not x86-64, or the library is not installed
        raise EngineUnavailableError(str(error)) from None
    try:
        return MbEngine()
    except RuntimeError as error:
        raise EngineUnavailableError(str(error)) from None


def _open_openssl() -> EngineHandle:
    from ext.crypto_evp import EvpEngine

    try:
        return EvpEngine()
    except RuntimeError as error:
        raise EngineUnavailableError(str(error)) from None
