"""The extension list: what is compiled, with which libraries and flags."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("ESPLANADE_SANITIZE") == "1"

FLAGS = ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-strict-aliasing"]
LINK: list[str] = []
if SANITIZE:
    FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-strict-aliasing"]
    LINK = ["-fsanitize=address,undefined"]

LIBRARIES = {
    "crypto_mb": ["IPSec_MB"],
    "crypto_evp": ["crypto"],
    "xsk": ["xdp", "bpf"],
}
MODULES = [name for name in (
    "counters", "packet", "sa", "layout", "policy", "replay", "wire",
    "crypto_mb", "crypto_evp", "esp_out", "esp_in", "icmp", "loop", "xsk", "packetsock", "rawsock", "tunio", "udpio",
    "segment", "memory", "porttool",
) if os.path.exists(f"ext/{name}.pyx")]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"ext.{name}",
                [f"ext/{name}.pyx"],
                libraries=LIBRARIES.get(name, []),
                extra_compile_args=FLAGS,
                extra_link_args=LINK,
                define_macros=[("CYTHON_CCOMPLEX", "0")],
            )
            for name in MODULES
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": SANITIZE,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "show_performance_hints": True,
        },
        annotate=True,
    ),
    packages=["control", "dataplane", "ext"],
)
