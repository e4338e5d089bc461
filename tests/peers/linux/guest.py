"""A whole Linux in qemu as a peer: Debian's kernel on the host's own files, its network card on a cable of ours.

1 `Guest` makes a tap device and a bridge in a namespace, and starts qemu there: emulation (TCG), no disk image, the
host's / read-only by 9p under a tmpfs (`init.sh`, `start.sh`). 2 The agent (`agent.py`) says hello on a serial port
of virtio: about ten seconds. 3 `attach` lays a cable from any namespace to the bridge. 4 `run`, `ip`, `start`,
`echo` and the rest act inside. It ends with the namespace; nothing of it stays.

The network card does no checksum and cuts no packet, so the kernel makes every bit that is on the wire. All of its
work is emulated: tens of megabits through IPsec, and latencies of milliseconds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from control.lab.space import PREFIX, LabError, Space, free_tag, make_spaces, wait_until
from tests.peers.linux.kernel import find_kernel, python, write_initramfs

QEMU = "qemu-system-x86_64"
BOOT_SECONDS = 180.0  # a bound, not an expectation
MEMORY = "1G"
# Without the instructions for ciphers: the kernel's plain C runs faster than those do when emulated.
CPU = "max,la57=off,-aes,-pclmulqdq,-avx,-avx2,-sha-ni"
LINK_MTU = 9216  # an inner packet of 9000 bytes fits, whatever goes around it
MAC = "02:00:00:00:00:71"
NEAR_MAC = "02:00:00:00:00:70"  # of whoever is attached: the guest's neighbour entries outlive them
BRIDGE, TAP = "br0", "tap0"
MODULES = (
    *("esp4", "esp6", "ah4", "ah6", "xfrm_user", "xfrm4_tunnel", "xfrm6_tunnel", "af_key"),
    *(
        "authenc",
        "authencesn",
        "seqiv",
        "echainiv",
        "gcm",
        "ccm",
        "ctr",
        "cbc",
        "ecb",
        "crypto_null",
        "ghash_generic",
    ),
    *("chacha20poly1305", "chacha_generic", "poly1305_generic", "cmac", "xcbc", "sha512_generic"),
    *("sha1_generic", "sha256_generic", "aes_generic", "hmac", "ansi_cprng"),
    *("tun", "veth", "af_packet"),  # for ports of ours in there
)
# Shorter or quieter ways through the kernel's start; nothing here touches IPsec.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable audit=0 apparmor=0 "
    "init_on_alloc=0 random.trust_cpu=on net.ifnames=0 rdinit=/init"
)
NETWORK_CARD = (
    f"virtio-net-pci,netdev=cable,mac={MAC},host_mtu={LINK_MTU},romfile=,csum=off,gso=off,guest_csum=off,"
    "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"
)


class GuestError(LabError):
    """The guest could not do what was asked; the text is what it said."""


class Guest:
    """One running guest. All methods may be called from one thread at a time."""

    def __init__(self, space: Space, directory: Path) -> None:
        """Start it in `space`, which becomes the wire that it hangs on; `wait_ready` waits."""
        if shutil.which(QEMU) is None:
            raise LabError(f"{QEMU} is missing; install it with: apt-get install qemu-system-x86")
        self.space = space
        self._lock = threading.Lock()
        self._next = 1
        self._pending = b""
        self._wires = 0
        self._console = directory / "console.log"
        self._channel_path = directory / "agent"
        space.ip(
            f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0",
            f"tuntap add dev {TAP} mode tap",
            f"link set {TAP} mtu {LINK_MTU} master {BRIDGE} addrgenmode none up",
            f"link set {BRIDGE} mtu {LINK_MTU} addrgenmode none up",
        )
        self.kernel = find_kernel()
        archive = directory / "initramfs"
        settings = {
            "PYTHON": python(),
            "AGENT": str(Path(__file__).with_name("agent.py")),
            "MODULES": "" if self.kernel.installed else str(self.kernel.modules),
        }
        write_initramfs(archive, self.kernel, settings=settings)
        self._program = space.start(self._command(archive))
        self._channel: socket.socket | None = None

    def _command(self, archive: Path) -> list[str]:
        """qemu's command line."""
        return [
            *(QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-m", MEMORY),
            *("-kernel", str(self.kernel.image), "-initrd", str(archive), "-append", COMMAND_LINE),
            *("-serial", f"file:{self._console}"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-netdev", f"tap,id=cable,ifname={TAP},script=no,downscript=no", "-device", NETWORK_CARD),
            *("-chardev", f"socket,id=agent,path={self._channel_path},server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"),
            *("-device", "virtio-rng-pci"),
        ]

    def wait_ready(self) -> None:
        """Wait for the agent; LabError with what the console shows when the guest does not get so far."""
        deadline = time.monotonic() + BOOT_SECONDS
        wait_until(self._connect, timeout=30, what=f"qemu's socket; {self._program.log(5)}", interval=0.05)
        assert self._channel is not None
        self._channel.settimeout(0.5)
        while True:
            try:
                self.hello = self._receive(0)
                break
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise LabError(f"the guest is not up; its console:\n{self.console(30)}") from None
                self._check_alive()
        self._load_modules()
        self.ip(f"link set eth0 mtu {LINK_MTU} up", "link set eth0 addrgenmode none")

    def _load_modules(self) -> None:
        """Load everything that a test may want, and keep the kernel from looking for more.

        For every algorithm it would start modprobe a few times in vain, half a second each.
        """
        self.run(["modprobe", "-a", *MODULES], timeout=120)
        self.write("/proc/sys/kernel/modprobe", b"\n")

    def _connect(self) -> bool:
        self._check_alive()
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(str(self._channel_path))
        except OSError:
            channel.close()
            return False
        self._channel = channel
        return True

    def _check_alive(self) -> None:
        if not self._program.running:
            raise LabError(f"qemu ended: {self._program.log(5)}\n{self.console(30)}")

    def console(self, lines: int = 40) -> str:
        """The last lines of the guest's console."""
        if not self._console.exists():
            return ""
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End it at once; it has nothing to lose."""
        if self._channel is not None:
            self._channel.close()
        self._program.kill()

    # --- the channel ---------------------------------------------------------------------------------

    def ask(self, do: str, *, wait: float = 60.0, **arguments: Any) -> Any:
        """Have the agent do something; GuestError when it fails or has not answered within `wait` seconds."""
        assert self._channel is not None
        with self._lock:
            number, self._next = self._next, self._next + 1
            request = json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n"
            self._channel.settimeout(wait)
            try:
                self._channel.sendall(request)
                return self._receive(number)
            except TimeoutError:
                self._check_alive()
                raise GuestError(
                    f"the guest did not answer {do} within {wait:g} s; its console:\n{self.console()}"
                ) from None

    def _receive(self, number: int) -> Any:
        """The answer to request `number`; those to requests given up before are passed over."""
        assert self._channel is not None
        while True:
            line, newline, rest = self._pending.partition(b"\n")
            if not newline:
                piece = self._channel.recv(1 << 16)
                if not piece:
                    self._check_alive()
                    raise GuestError(f"the guest closed its channel; its console:\n{self.console()}")
                self._pending += piece
                continue
            self._pending = rest
            answer = json.loads(line)
            if answer["id"] == number:
                if "error" in answer:
                    raise GuestError(answer["error"])
                return answer["result"]

    # --- programs ------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0, check: bool = True) -> str:
        """Run a program to its end and return its output; GuestError (`check`) when it fails."""
        done = self.ask("run", wait=timeout + 30, argv=list(argv), text=text, timeout=timeout)
        if check and done["status"] != 0:
            said = (done["err"] or done["out"]).strip()
            raise GuestError(f"{' '.join(argv)}: exit status {done['status']}: {said}")
        return str(done["out"])

    def ip(self, *commands: str) -> None:
        """Run `ip` commands (each without the leading "ip") in one process; GuestError names the first that failed."""
        text = "\n".join(commands) + "\n"
        done = self.ask("run", wait=150.0, argv=["ip", "-batch", "-"], text=text, timeout=120.0)
        if done["status"] != 0:
            match = re.search(r"Command failed -:(\d+)", done["err"])
            command = commands[int(match[1]) - 1] if match else "; ".join(commands)
            raise GuestError(f"ip {command}: {done['err'].strip()}")

    def start(self, argv: Sequence[str], *, output: str, environment: Mapping[str, str] | None = None) -> int:
        """Start a program that runs on, its output in the file `output` of the guest; returns its pid there."""
        return int(self.ask("start", argv=list(argv), output=output, environment=dict(environment or {})))

    def stop(self, pid: int, number: int = signal.SIGTERM) -> int:
        """End a started program by a signal, by force if it does not heed it; its exit status."""
        return int(self.ask("stop", pid=pid, number=number))

    def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Make a file in the guest."""
        self.ask("write", path=path, content=base64.b64encode(content).decode(), mode=mode)

    def read(self, path: str) -> str:
        """The text of a file in the guest."""
        return base64.b64decode(self.ask("read", path=path)).decode(errors="replace")

    # --- network -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def attached(self, space: Space, interface: str, *, queues: int = 1) -> Iterator[None]:
        """A cable from `interface`, made in `space`, to the bridge meanwhile."""
        self._wires += 1
        end = f"wire{self._wires}"
        self.space.ip(
            f"link add {end} mtu {LINK_MTU} type veth peer name {interface} mtu {LINK_MTU} "
            f"address {NEAR_MAC} numrxqueues {queues} numtxqueues {queues} netns {space.name}",
            f"link set {end} master {BRIDGE} addrgenmode none up",
        )
        try:
            yield
        finally:
            # The other end may have gone with its namespace.
            with contextlib.suppress(LabError):
                self.space.ip(f"link delete {end}")

    @contextlib.contextmanager
    def encapsulating(self, port: int = 4500) -> Iterator[None]:
        """ESP in UDP is taken at a port meanwhile; afterwards an IKE daemon may have it."""
        self.ask("encapsulate", port=port)
        try:
            yield
        finally:
            self.ask("decapsulate")

    def xfrm_errors(self) -> dict[str, int]:
        """The counters of /proc/net/xfrm_stat, all of which count packets that IPsec dropped."""
        pairs = (line.split() for line in self.read("/proc/net/xfrm_stat").splitlines())
        return {name: int(count) for name, count in pairs}


@contextlib.contextmanager
def booted() -> Iterator[Guest]:
    """A guest with a wire of its own meanwhile."""
    with contextlib.ExitStack() as stack:
        tag = free_tag()
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{tag}-guest-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        space: Space
        (space,) = make_spaces([f"{PREFIX}-{tag}-linux"], directory)
        stack.callback(space.close)
        guest = Guest(space, directory)
        stack.callback(guest.close)
        guest.wait_ready()
        yield guest
