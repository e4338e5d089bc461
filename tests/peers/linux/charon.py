"""strongSwan inside the guest: the same charon as in the namespaces, but its SAs are the kernel's (kernel-netlink).

Steered by vici as well, over TCP: the wire's bridge and the guest have an address each for that alone. The kernel
counts the packets and bytes of its SAs and tells charon when a limit is reached: rekeying by volume is real here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import vici

from control.lab.space import LabError, wait_until
from tests.peers.linux.guest import BRIDGE, Guest
from tests.peers.strongswan import ANSWER_SECONDS, CHARON, PLUGINS, Charon, Section, configuration

READY_SECONDS = 120.0  # a bound, not an expectation: everything in the guest is emulated
VICI_PORT = 4502
WIRE_ADDRESS, GUEST_ADDRESS = "198.18.0.1", "198.18.0.2"
DIRECTORY = "/run/esplanade"


class GuestCharon(Charon):
    """charon in the guest. One at a time."""

    def __init__(self, guest: Guest, *, options: Section | None = None) -> None:
        """Nothing runs before `start`. `options` are added to the section charon of its strongswan.conf."""
        self.guest = guest
        self.space = guest.space
        self.program = None
        self._pid: int | None = None
        plugins = " ".join(name for name in PLUGINS.split() if name != "kernel-libipsec")
        self._text = configuration(plugins, f"tcp://{GUEST_ADDRESS}:{VICI_PORT}", options)

    def begin(self) -> None:
        """Start it; `wait_ready` waits."""
        self.space.ip(f"address replace {WIRE_ADDRESS}/30 dev {BRIDGE}")
        self.guest.ip(f"address replace {GUEST_ADDRESS}/30 dev eth0")
        self.guest.write(f"{DIRECTORY}/strongswan.conf", self._text.encode())
        self.guest.write(self._log_path, b"")
        self._pid = self.guest.start(
            [CHARON], output=self._log_path, environment={"STRONGSWAN_CONF": f"{DIRECTORY}/strongswan.conf"}
        )

    @property
    def _log_path(self) -> str:
        return f"{DIRECTORY}/charon.log"

    def wait_ready(self) -> None:
        """Wait until it answers; LabError with the end of its log when it does not."""
        wait_until(self._serves, timeout=READY_SECONDS, what="charon in the guest answers", interval=0.2)

    def _serves(self) -> bool:
        if self.guest.ask("poll", pid=self._pid) is not None:
            raise LabError(f"charon ended: {self.log(20)}")
        return self._answers()

    def stop(self) -> None:
        """End it (its IKE SAs are deleted on the wire)."""
        self._end(15)

    def kill(self) -> None:
        """End it without a word to its peers; nothing of its SAs stays in the kernel."""
        self._end(9)
        self.guest.ip("xfrm policy flush", "xfrm state flush", "route flush table 220")
        self.guest.run(["rm", "-f", "/run/charon.pid"])

    def _end(self, signal: int) -> None:
        if self._pid is not None:
            self.guest.stop(self._pid, signal)
            self._pid = None

    def log(self, lines: int | None = None) -> str:
        """Its log, or the last lines."""
        text = self.guest.read(self._log_path).rstrip()
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    @contextlib.contextmanager
    def session(self) -> Iterator[vici.Session]:
        """A connection to its vici socket."""
        with self.space.call(socket.socket) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect((GUEST_ADDRESS, VICI_PORT))
            yield vici.Session(sock)

    def cpu_seconds(self) -> float:
        """CPU time that it has used in the guest, user and system."""
        fields = self.guest.read(f"/proc/{self._pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
