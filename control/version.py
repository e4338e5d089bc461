"""Which Esplanade this is."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version of the installed distribution; "unknown" in a tree that was never installed."""
    try:
        return version("esplanade")
    except PackageNotFoundError:
        return "unknown"
