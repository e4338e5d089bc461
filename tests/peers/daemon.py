"""The whole gateway as a peer: `esplanade run` in a namespace, steered through its status socket.

Port `lan` is a TUN device in host mode (the protected addresses are the namespace's own), `wan` the kernel's UDP
socket, as on a small server. Keys and certificates lie as files beside the configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from control.admin.server import SOCKET_NAME, StatusError, ask, follow
from control.lab.gateway import SOURCE_ROOT
from control.lab.space import LabError, Program, Space
from tests.peers.peer import ChildState, IkeState, Peer, PeerRefused

READY_SECONDS = 60.0
BASE = """[gateway]
workers = 1
state_dir = "{directory}/state"
run_dir = "{directory}/run"

[[port]]
name = "lan"
role = "protected"
driver = "tun"
interface = "esp0"

[[port]]
name = "wan"
role = "unprotected"
driver = "{unprotected}"
"""


def base_with(unprotected: str) -> str:
    """What a configuration begins with; the directory is yet to be filled in."""
    return BASE.replace("{unprotected}", unprotected)


class Daemon(Peer):
    """`esplanade run` with a configuration: `tables` by heading, `files` beside it by name."""

    def __init__(
        self,
        space: Space,
        directory: Path,
        tables: Mapping[str, Mapping[str, Any]],
        files: Mapping[str, bytes] | None = None,
        *,
        base: str | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """Write everything; nothing runs yet.

        `base` is what the configuration begins with, `under` the command that runs it (none: itself).
        """
        self.space = space
        self._under = under
        self._base = base_with("udp") if base is None else base
        self.directory = directory / f"esplanade-{space.name}"
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, content in (files or {}).items():
            self._write(name, content)
        self.configure(tables)
        self.program: Program | None = None
        self._notify: socket.socket | None = None

    def configure(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Write a configuration; `reload` applies it."""
        text = self._base.format(directory=self.directory)
        for heading, values in tables.items():
            # Strings, numbers, booleans and lists of strings are written alike in JSON and TOML.
            text += f"\n[{heading}]\n" + "".join(
                f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
            )
        self._write("esplanade.toml", text.encode())

    def _write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)

    # --- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start it; `wait_ready` waits."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        source = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH", "")]))
        self.program = self.space.start(
            [
                *self._under,
                *(sys.executable, "-m", "control", "run", "-c", str(self.directory / "esplanade.toml")),
            ],
            environment={"NOTIFY_SOCKET": str(path), "PYTHONPATH": source},
        )

    def wait_ready(self) -> None:
        """Wait until it is ready; LabError with the end of its log when it does not get so far."""
        assert self.program is not None
        assert self._notify is not None
        self._notify.settimeout(0.05)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.program.running:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                    return
        raise LabError(f"esplanade is not ready:\n{self.log(20)}")

    def stop(self) -> None:
        """SIGTERM: it deletes its IKE SAs and ends."""
        self._end(Program.stop)

    def kill(self) -> None:
        """SIGKILL: its peers hear nothing."""
        self._end(Program.kill)

    def _end(self, how: Any) -> None:
        if self.program is not None:
            how(self.program)
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def log(self, lines: int | None = None) -> str:
        """Its log, or the last lines."""
        return "" if self.program is None else self.program.log(lines)

    # --- what it can be told -------------------------------------------------------------------------

    def command(self, name: str, arguments: Mapping[str, Any], timeout: float = 30.0) -> str:
        """A command that streams; what it told. PeerRefused when it failed."""
        said: list[str] = []
        try:
            for item in follow(self._socket, name, arguments, wait=timeout):
                said.append(str(item.get("text", item)))
        except StatusError as error:
            raise PeerRefused("\n".join([*said, str(error)])) from None
        return "\n".join(said)

    @property
    def _socket(self) -> Path:
        return self.directory / "run" / SOCKET_NAME

    def initiate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Bring up; see Peer."""
        return self.command("up", {"name": child or ike}, timeout)

    def terminate(self, *, child: str | None = None, ike: str | None = None, timeout: float = 30.0) -> str:
        """Delete; see Peer."""
        return self.command("down", {"name": child or ike}, timeout)

    def rekey(self, *, child: str | None = None, ike: str | None = None, reauth: bool = False) -> None:
        """Rekey; see Peer. (This one waits until it is done.)"""
        self.command("rekey", {"name": child or ike, "what": "child" if child else "ike"})

    # --- what it knows -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The status document."""
        return ask(self._socket, "status", wait=20.0)

    def sas(self) -> list[IkeState]:
        """Its IKE SAs with their children."""
        return [
            IkeState(
                name=sa["connection"],
                state=sa["state"].upper(),
                initiator=sa["initiator"],
                spi_initiator=int(sa["spi_initiator"], 16),
                spi_responder=int(sa["spi_responder"], 16),
                local=sa["local"],
                remote=sa["remote"],
                local_id=sa["local_id"],
                remote_id=sa["remote_id"],
                virtual=(*sa["virtual_local"], *sa["virtual_remote"]),
                children=tuple(
                    ChildState(
                        name=child["name"],
                        state=child["state"].upper(),
                        spi_in=int(child["spi_in"], 16),
                        spi_out=int(child["spi_out"], 16),
                        packets_in=child["packets_in"],
                        packets_out=child["packets_out"],
                        local=tuple(child["local_ts"]),
                        remote=tuple(child["remote_ts"]),
                        encapsulated=child["encapsulated"],
                    )
                    for child in sa["children"]
                ),
            )
            for sa in self.status()["ike"]["ike_sas"]
        ]

    def cpu_seconds(self) -> float:
        """CPU time of the control process, user and system; the workers' is not in it."""
        assert self.program is not None
        return self.program.cpu_seconds()
