"""The kernel of the guest and the small archive that it starts from.

1 `find_kernel` takes Debian's kernel where it is: installed under /, or unpacked under build/guest, where `./run test`
puts it on machines that do not boot it themselves. 2 `write_initramfs` packs busybox, the start script and the few
modules that lead to the host's file system. Everything else the guest loads from there.

Limits: x86-64, and Debian's kernel packages: /boot/vmlinuz-VERSION, modules.dep, modules plain or compressed by xz.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from control.lab.space import LabError

UNPACKED = Path(__file__).resolve().parents[3] / "build" / "guest"
BUSYBOX = Path("/bin/busybox")
ESP_MODULE = "kernel/net/ipv4/esp4.ko*"
# What it takes to see the host's files and to talk to the agent; virtio itself comes as their dependency.
FIRST_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel image and the directory of its modules."""

    version: str
    image: Path
    modules: Path

    @property
    def installed(self) -> bool:
        """Whether the modules lie where modprobe looks for them without being told."""
        return self.modules == Path("/lib/modules", self.version)


def find_kernel() -> Kernel:
    """The newest Debian kernel that has ESP; LabError where there is none."""
    found = [
        Kernel(version=version, image=image, modules=root / "lib" / "modules" / version)
        for root in (Path("/"), UNPACKED)
        for image in (root / "boot").glob("vmlinuz-*")
        for version in [image.name.removeprefix("vmlinuz-")]
        if any((root / "lib" / "modules" / version).glob(ESP_MODULE))
        and (root / "lib" / "modules" / version / "modules.dep").exists()
    ]
    if not found:
        raise LabError(
            f"no Linux kernel for the guest: neither under /boot nor under {UNPACKED} is a vmlinuz with "
            f"{ESP_MODULE} among its modules; ./run test brings one"
        )
    return max(found, key=lambda kernel: [int(part) for part in re.findall(r"\d+", kernel.version)])


def module_files(kernel: Kernel, names: tuple[str, ...]) -> list[Path]:
    """The files of these modules with all that they depend on, in the order in which they can be loaded."""
    depends: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
        by_name[Path(path).name.partition(".")[0]] = path
    built_in = {
        Path(line).name.partition(".")[0]
        for line in (kernel.modules / "modules.builtin").read_text().splitlines()
    }
    order: list[str] = []

    def visit(path: str) -> None:
        for other in depends[path]:
            visit(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:
            visit(by_name[name])
        elif name not in built_in:
            raise LabError(f"kernel {kernel.version} has no module {name}")
    return [kernel.modules / path for path in order]


def write_initramfs(path: Path, kernel: Kernel, *, settings: dict[str, str]) -> None:
    """Write the archive; `settings` become shell variables of both start scripts."""
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing; install it with: apt-get install busybox-static")
    here = Path(__file__).parent
    modules = module_files(kernel, FIRST_MODULES)
    variables = "".join(f"{key}='{value}'\n" for key, value in settings.items())
    archive = bytearray()
    for name in ("bin", "dev", "proc", "sys", "host", "rw", "root", "modules"):
        archive += _entry(name, b"", stat.S_IFDIR | 0o755)
    archive += _entry("bin/busybox", BUSYBOX.read_bytes(), stat.S_IFREG | 0o755)
    archive += _entry("init", (here / "init.sh").read_bytes(), stat.S_IFREG | 0o755)
    archive += _entry("start", (here / "start.sh").read_bytes(), stat.S_IFREG | 0o755)
    archive += _entry("settings", variables.encode(), stat.S_IFREG | 0o644)
    for number, module in enumerate(modules):
        # insmod loads them in the order of their names.
        content = lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()
        archive += _entry(f"modules/{number:02}.ko", content, stat.S_IFREG | 0o644)
    archive += _entry("TRAILER!!!", b"", 0)
    path.write_bytes(archive)


def _entry(name: str, content: bytes, mode: int) -> bytes:
    """One file of a "newc" cpio archive (the kernel's Documentation/driver-api/early-userspace/buffer-format)."""
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special device (major, minor each), name, check
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    header += bytes(-len(header) % 4)
    return header + content + bytes(-len(content) % 4)


def python() -> str:
    """The interpreter that the guest's agent runs on: this one, as the guest sees it."""
    return os.path.realpath(sys.executable)
