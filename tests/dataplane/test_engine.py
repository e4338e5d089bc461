"""The choice of crypto engine: by name, by what the host can do, and with the reason."""

from __future__ import annotations

import platform
import sys

import pytest

from dataplane.engine import NAMES, EngineUnavailableError, open_engine


@pytest.mark.parametrize("name", ["ipsec-mb", "openssl"] if platform.machine() == "x86_64" else ["openssl"])
def test_by_name(name: str) -> None:
    """A named engine is that engine, with the number that the tables hold."""
    engine = open_engine(name)
    assert engine.name == name
    assert NAMES[engine.number] == name
    assert engine.reason == "named in the configuration"


def test_auto_falls_back_to_openssl_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ext.crypto_mb was not built."""
    monkeypatch.setitem(sys.modules, "ext.crypto_mb", None)
    engine = open_engine("auto")
    assert engine.name == "openssl"
    assert engine.reason.startswith("ipsec-mb cannot run here: ") and "crypto_mb" in engine.reason
    with pytest.raises(EngineUnavailableError, match="crypto_mb"):
        open_engine("ipsec-mb")


def test_auto_falls_back_where_the_cpu_lacks_aes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is there and the CPU is not up to it."""

    class Refusing:
        def __init__(self) -> None:
            raise RuntimeError("libipsec-mb 1.3.0: this CPU lacks AES-NI")

    class Module:
        MbEngine = Refusing

    monkeypatch.setitem(sys.modules, "ext.crypto_mb", Module)  # type: ignore[arg-type]
    engine = open_engine()
    assert engine.name == "openssl"
    assert engine.reason == "ipsec-mb cannot run here: libipsec-mb 1.3.0: this CPU lacks AES-NI"


def test_unknown_name() -> None:
    """Any other name is a mistake of the caller."""
    with pytest.raises(ValueError, match="'aesni'"):
        open_engine("aesni")
