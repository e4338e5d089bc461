"""Which Esplanade this is."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def installed_version() -> str:
    """The version of the installed distribution, or of the source tree that this is."""
    try:
        return version("esplanade")
    except PackageNotFoundError:
        return str(tomllib.loads(PYPROJECT.read_text())["project"]["version"])
