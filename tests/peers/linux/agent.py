"""Inside the guest: does what the host asks for, one line of JSON per request and per answer.

Runs alone (`python -I -S agent.py DEVICE`), with the standard library and `traffic.py` beside it. A request is
{"id": n, "do": name, ...}; its answer {"id": n, "result": ...} or {"id": n, "error": text}. Each is worked on by a
thread of its own, so a program that hangs keeps nobody from asking why.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import traffic

UDP_ENCAP, UDP_ENCAP_ESPINUDP = 100, 2  # linux/udp.h
IP_XFRM_POLICY, IPV6_XFRM_POLICY = 17, 35  # linux/in.h, linux/in6.h


class Agent:
    """What can be asked: the methods without underscore; their arguments are the request's."""

    def __init__(self) -> None:
        self._programs: dict[int, subprocess.Popen[bytes]] = {}
        self._echo: traffic.Echo | None = None
        self._encap: list[socket.socket] = []

    def hello(self) -> dict[str, Any]:
        """Who this is."""
        return {"release": os.uname().release, "python": sys.version.split()[0]}

    def run(self, argv: list[str], text: str = "", timeout: float = 30.0) -> dict[str, Any]:
        """Run a program to its end; standard input is `text`."""
        done = subprocess.run(argv, check=False, input=text.encode(), capture_output=True, timeout=timeout)
        return {
            "status": done.returncode,
            "out": done.stdout.decode(errors="replace"),
            "err": done.stderr.decode(errors="replace"),
        }

    def start(self, argv: list[str], output: str, environment: dict[str, str] | None = None) -> int:
        """Start a program that runs on; both its outputs go to the file `output`. Returns its pid."""
        with open(output, "ab") as file:
            program = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._programs[program.pid] = program
        return program.pid

    def poll(self, pid: int) -> int | None:
        """The exit status of a started program; None while it runs."""
        return self._programs[pid].poll()

    def stop(self, pid: int, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """End a started program, by force if it does not heed `number`; its exit status."""
        program = self._programs.pop(pid)
        if program.poll() is None:
            program.send_signal(number)
            try:
                program.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(pid, signal.SIGKILL)
        return program.wait()

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write base64 `content` to a file, which is made, with the directories above it, where it is missing."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "wb") as file:
            file.write(base64.b64decode(content))

    def read(self, path: str, offset: int = 0) -> str:
        """What a file holds from `offset` on, base64."""
        # Files of /proc say that their size is 0: read, then cut.
        return base64.b64encode(Path(path).read_bytes()[offset:]).decode()

    def encapsulate(self, port: int) -> None:
        """Have UDP to `port`, IPv4 and IPv6, taken for ESP (RFC 3948), as an IKE daemon asks the kernel to."""
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
            _pass_policies(sock, family)
            sock.bind((address, port))
            self._encap.append(sock)

    def decapsulate(self) -> None:
        """No more of that."""
        while self._encap:
            self._encap.pop().close()

    def echo(self, addresses: list[str]) -> None:
        """Send back what comes to these addresses, and to no others any more, by UDP and TCP."""
        self.silence()
        self._echo = traffic.Echo(addresses)

    def silence(self) -> None:
        """End the echo."""
        if self._echo is not None:
            self._echo.close()
            self._echo = None

    def pings(self, **arguments: Any) -> list[int]:
        """`traffic.pings` from here."""
        return traffic.pings(**arguments)

    def datagrams(self, **arguments: Any) -> list[dict[str, int]]:
        """`traffic.datagrams` from here."""
        return traffic.datagrams(**arguments)

    def behind(self, **arguments: Any) -> int:
        """`traffic.behind` from here."""
        return traffic.behind(**arguments)

    def streams(self, **arguments: Any) -> list[int]:
        """`traffic.streams` from here."""
        return traffic.streams(**arguments)


def _pass_policies(sock: socket.socket, family: socket.AddressFamily) -> None:
    """Exempt a socket from the SPD, as IKE daemons do: in transport mode what is around ESP matches its policy, too."""
    for direction in (0, 1):  # in, out
        # struct xfrm_userpolicy_info of linux/xfrm.h: 40 bytes of selector before its family, 160 before the direction;
        # of what follows that, 0 is "allow".
        info = bytearray(168)
        struct.pack_into("=H", info, 40, family)
        info[160] = direction
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_XFRM_POLICY, bytes(info))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_XFRM_POLICY, bytes(info))


def main(device: str) -> None:
    """Serve until the host closes the channel."""
    agent, lock = Agent(), threading.Lock()
    channel = os.open(device, os.O_RDWR)

    def answer(request: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"id": request.pop("id")}
        try:
            name = request.pop("do")
            if name.startswith("_"):
                raise ValueError(f"{name} is not to be asked for")
            reply["result"] = getattr(agent, name)(**request)
        except BaseException as error:
            reply["error"] = f"{error!r}\n{traceback.format_exc()}"
        line = json.dumps(reply).encode() + b"\n"
        with lock:
            while line:
                line = line[os.write(channel, line) :]

    threading.Thread(target=answer, args=({"id": 0, "do": "hello"},)).start()
    with os.fdopen(os.dup(channel), "rb", buffering=0) as stream:
        pending = b""
        while True:
            piece = stream.read(1 << 16)
            if not piece:
                # Nobody has the other end open yet, or any more.
                threading.Event().wait(0.05)
                continue
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
