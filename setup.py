"""What is compiled, with which libraries and flags: the Cython modules and the XDP program.

Generated C and annotated HTML go to build/cython. ESPLANADE_SANITIZE=1 makes a build with AddressSanitizer,
UBSan and Cython's bounds checks instead (generated C in build/sanitize/cython); `./run fuzz` uses it.
"""

import os
import platform
import subprocess
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("ESPLANADE_SANITIZE") == "1"

FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-strict-aliasing"]
LINK: list[str] = []
if SANITIZE:
    LINK = ["-fsanitize=address,undefined"]
    FLAGS = ["-O1", "-g", "-fno-strict-aliasing", "-fno-sanitize-recover=undefined", *LINK]

MODULES = {  # module of ext: libraries it links
    "counters": [],
    "packet": [],
    "sa": [],
    "layout": [],
    "policy": [],
    "acquire": [],
    "follow": [],
    "replay": [],
    "wire": [],
    "crypto": [],
    "crypto_mb": ["IPSec_MB"],
    "crypto_evp": ["crypto"],
    "bare_mb": ["IPSec_MB"],
    "bare_evp": ["crypto"],
    "ah": [],
    "esp_out": [],
    "esp_in": [],
    "deal": [],
    "idle": [],
    "icmp": [],
    "dummy": [],
    "fragment": [],
    "quoted": [],
    "loop": [],
    "steering": ["bpf"],
    "xsk": ["xdp", "bpf"],
    "packetsock": [],
    "rawsock": [],
    "tunio": [],
    "udpio": [],
    "segment": [],
    "coalesce": [],
    "memory": [],
    "porttool": [],
    "portbench": [],
    "kernelbench": [],
    "traffic": [],
}
if platform.machine() != "x86_64":
    # libipsec-mb is written for x86-64; crypto_evp serves everywhere.
    del MODULES["crypto_mb"], MODULES["bare_mb"]

BPF_SOURCE = Path("ext/bpf/steer.bpf.c")
BPF_OBJECT = Path("ext/bpf/steer.bpf.o")


class BuildExt(build_ext):
    """The extension modules, and the XDP program beside them."""

    def run(self) -> None:
        """Compile what is stale, into the tree or into the build directory."""
        root = Path() if self.inplace else Path(self.build_lib)
        self.build_bpf(root / BPF_OBJECT)
        super().run()

    def build_bpf(self, target: Path) -> None:
        """Compile the XDP program with clang, whose BPF back end writes the BTF that libbpf wants."""
        if target.exists() and target.stat().st_mtime > BPF_SOURCE.stat().st_mtime and not self.force:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        command = ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Werror"]
        # Where Debian keeps <asm/types.h>, which clang does not look for when its target is BPF.
        multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
        command += [f"-I/usr/include/{multiarch}", "-c", str(BPF_SOURCE), "-o", str(target)]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit("clang is not installed, the XDP program needs it (package clang)") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"clang failed on {BPF_SOURCE}: exit status {error.returncode}") from None


def extensions() -> list[Extension]:
    """Every module of ext as C, translated where its .pyx or a .pxd has changed."""
    modules = [
        Extension(
            f"ext.{name}",
            [f"ext/{name}.pyx"],
            libraries=libraries,
            include_dirs=["ext"],
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
            define_macros=[("CYTHON_CCOMPLEX", "0")],
        )
        for name, libraries in MODULES.items()
    ]
    return cythonize(
        modules,
        build_dir="build/sanitize/cython" if SANITIZE else "build/cython",
        nthreads=os.cpu_count() or 1,
        annotate=not SANITIZE,
        compiler_directives={
            "language_level": 3,
            "boundscheck": SANITIZE,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "show_performance_hints": True,
        },
    )


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildExt},
        options={"build_ext": {"parallel": os.cpu_count()}},
    )
