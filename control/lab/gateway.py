"""Esplanade itself in the laboratory: a configuration file per gateway, `esplanade run`, its status.

Tunnels are of IKE, with a CA and certificates made on the spot, or of SAs with keys by hand. Keys are made anew for
every `IkeTunnel` and `Tunnel`. Configuration, state and status socket lie in the lab's directory and go with it, so a
restarted gateway finds the high-water marks of the one before (and a new lab has new keys).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import control
from control.admin.server import SOCKET_NAME, StatusError, ask, follow
from control.ike.identity import Identity
from control.lab.space import LabError, Program
from control.lab.topology import FAR_LAN, NEAR_LAN, PEER, SEGMENTS, Lab, address
from control.pki.make import Issued, issue, make_authority

DRIVERS = ("xdp", "packet", "tun")
PROPOSAL = "aes128gcm16-esn"
KEY_BYTES = 20  # AES-128 and salt
AH_PROPOSAL = "sha256-esn"
AH_KEY_BYTES = 32
READY_SECONDS = 60.0  # a bound, not an expectation: a first start on a busy machine is slow
SOURCE_ROOT = Path(control.__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """The pair of SAs between the gateways: outbound SPI and key of each, by gateway. AH or ESP."""

    spis: Mapping[str, int] = field(default_factory=lambda: {"gwa": 0x1001, "gwb": 0x1002})
    keys: Mapping[str, str] = field(
        default_factory=lambda: {name: secrets.token_hex(KEY_BYTES) for name in PEER}, repr=False
    )
    protocol: str = "esp"

    @classmethod
    def of_ah(cls) -> Tunnel:
        """AH with HMAC-SHA2-256."""
        return cls(protocol="ah", keys={name: secrets.token_hex(AH_KEY_BYTES) for name in PEER})


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Transport mode between the gateways themselves, both families, with keys by hand: SPIs and keys by host.

    `driver` is the unprotected port's; the hosts' own traffic comes by a TUN device. `protocol`, `port`: of the peer's
    service, where not everything is protected.
    """

    spis: Mapping[str, int] = field(default_factory=lambda: {"gwa": 0x2001, "gwb": 0x2002})
    keys: Mapping[str, str] = field(
        default_factory=lambda: {
            f"{name}{version}": secrets.token_hex(KEY_BYTES) for name in PEER for version in (4, 6)
        },
        repr=False,
    )
    proposal: str = PROPOSAL
    protocol: str = ""
    port: int = 0  # of the service on gwb

    def config(self, host: str, driver: str) -> str:
        """The ports, SAs and policies of one host."""
        text = _table("[port]", name="host", role="protected", driver="tun", interface="esp0")
        interface = {"interface": "wan0"} if driver in ("xdp", "packet") else {}
        text += _table("[port]", name="wan", role="unprotected", driver=driver, **interface)
        for version in (4, 6):
            ends = {
                "local": str(address(host, "wan0", version)),
                "remote": str(address(PEER[host], "wan0", version)),
            }
            for direction, sender in (("out", host), ("in", PEER[host])):
                text += _table(
                    "[sa]",
                    name=f"from-{sender}-{version}",
                    direction=direction,
                    mode="transport",
                    spi=self.spis[sender] + 16 * version,
                    proposal=self.proposal,
                    encryption_key=self.keys[f"{sender}{version}"],
                    encap=driver == "udp",
                    **ends,
                )
            service: dict[str, str | int] = {"protocol": self.protocol} if self.protocol else {}
            if self.port:
                service["remote_port" if host == "gwa" else "local_port"] = self.port
            names = {"out": f"from-{host}-{version}", "in": f"from-{PEER[host]}-{version}"}
            text += _table("[policy]", name=f"hosts-{version}", **ends, **service, **names)
        return text


@dataclass(frozen=True, kw_only=True)
class IkeTunnel:
    """A tunnel by IKE: its proposals, lifetimes, and a directory with a CA and both gateways' certificates."""

    directory: Path
    ike: str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
    esp: str = PROPOSAL
    rekey_time: str = "1h"  # of children
    start: Mapping[str, str] = field(default_factory=lambda: {"gwa": "start", "gwb": "trap"})
    version: int = 4  # of IP between the gateways
    mode: str = "tunnel"  # "transport": between the gateways themselves, not their networks
    more: str = ""  # further lines of the connection

    @classmethod
    def make(cls, directory: Path, **rest: Any) -> IkeTunnel:
        """Issue the certificates and write them to `directory`."""
        authority = make_authority("Esplanade laboratory")
        _write_certificate(directory / "ca.pem", authority)
        for host in PEER:
            name = f"{host}.esplanade.example"
            issued = issue(authority, name, [Identity.parse(f"@{name}")])
            _write_certificate(directory / f"{host}.pem", issued)
            key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with open(
                os.open(directory / f"{host}.key", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb"
            ) as file:
                file.write(key)
        return cls(directory=directory, **rest)


def _write_certificate(path: Path, issued: Issued) -> None:
    path.write_bytes(issued.certificate.public_bytes(Encoding.PEM))


def build_config(
    host: str,
    driver: str,
    tunnel: Tunnel | IkeTunnel | Hosts,
    *,
    workers: int,
    directory: Path,
    port: Mapping[str, str] | None = None,
) -> str:
    """The esplanade.toml of gateway `host` ("gwa" or "gwb"); `directory` gets its state and its socket.

    `port` are further keys of both ports of a tunnel over `driver`, `tun` excepted.
    """
    text = f'[gateway]\nworkers = {workers}\nstate_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
    if isinstance(tunnel, Hosts):
        return text + tunnel.config(host, driver)
    hosts = isinstance(tunnel, IkeTunnel) and tunnel.mode == "transport"
    if driver == "tun" or hosts:
        text += _table("[port]", name="lan", role="protected", driver="tun", interface="esp0")
    if driver == "tun":
        # AH has no form that goes into UDP.
        bare = isinstance(tunnel, Tunnel) and tunnel.protocol == "ah"
        text += _table("[port]", name="wan", role="unprotected", driver="raw" if bare else "udp")
    elif hosts:
        text += _table("[port]", name="wan", role="unprotected", driver=driver, interface="wan0")
    else:
        for name, role in (("lan", "protected"), ("wan", "unprotected")):
            text += _table(
                "[port]", name=name, role=role, driver=driver, interface=f"{name}0", **(port or {})
            )
    ours = [str(network) for network in SEGMENTS[NEAR_LAN[host]]]
    theirs = [str(network) for network in SEGMENTS[FAR_LAN[host]]]
    if isinstance(tunnel, IkeTunnel):
        return text + _connection(host, tunnel, ours, theirs)
    for direction, sender in (("out", host), ("in", PEER[host])):
        suite: dict[str, str | bool] = (
            {"protocol": "ah", "proposal": AH_PROPOSAL, "integrity_key": tunnel.keys[sender]}
            if tunnel.protocol == "ah"
            else {"proposal": PROPOSAL, "encryption_key": tunnel.keys[sender], "encap": driver == "tun"}
        )
        text += _table(
            "[sa]",
            name=f"from-{sender}",
            direction=direction,
            spi=tunnel.spis[sender],
            local=str(address(host, "wan0")),
            remote=str(address(PEER[host], "wan0")),
            **suite,
        )
    return text + _table(
        "[policy]",
        name="sites",
        local=ours,
        remote=theirs,
        **{"out": f"from-{host}", "in": f"from-{PEER[host]}"},
    )


def _connection(host: str, tunnel: IkeTunnel, ours: list[str], theirs: list[str]) -> str:
    """The tables of one connection with one child."""
    names = {name: f"{name}.esplanade.example" for name in PEER}
    text = _table(
        "connections.sites",
        local_addrs=str(address(host, "wan0", tunnel.version)),
        remote_addrs=str(address(PEER[host], "wan0", tunnel.version)),
        proposals=tunnel.ike,
        **({"mobike": False} if tunnel.mode == "transport" else {}),
    )
    text += f"{tunnel.more}\n" if tunnel.more else ""
    text += _table(
        "connections.sites.local",
        id=f"@{names[host]}",
        certs=str(tunnel.directory / f"{host}.pem"),
        key=str(tunnel.directory / f"{host}.key"),
    )
    text += _table(
        "connections.sites.remote", id=f"@{names[PEER[host]]}", cacerts=str(tunnel.directory / "ca.pem")
    )
    ends: dict[str, str | list[str]] = {"local_ts": ours, "remote_ts": theirs}
    if tunnel.mode == "transport":
        ends = {"mode": "transport"}
    return text + _table(
        "connections.sites.children.net",
        **ends,
        esp_proposals=tunnel.esp,
        rekey_time=tunnel.rekey_time,
        start_action=tunnel.start[host],
    )


def _table(heading: str, **values: str | int | bool | list[str]) -> str:
    return toml_table(heading, values)


def toml_table(heading: str, values: Mapping[str, object]) -> str:
    """A table of TOML: strings, numbers, booleans and lists of strings are written as in JSON."""
    return f"\n[{heading}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


class Gateway:
    """One `esplanade run` in gateway `host` of a lab. `start` does not wait; `wait_ready` does."""

    def __init__(
        self,
        lab: Lab,
        host: str,
        driver: str,
        tunnel: Tunnel | IkeTunnel | Hosts,
        *,
        workers: int = 2,
        port: Mapping[str, str] | None = None,
    ) -> None:
        """Write the configuration; nothing runs yet."""
        self.host = host
        self.driver = driver
        self._space = lab.spaces[host]
        self.directory = lab.directory / host
        self.directory.mkdir(exist_ok=True)
        self.config_path = self.directory / "esplanade.toml"
        text = build_config(host, driver, tunnel, workers=workers, directory=self.directory, port=port)
        self.config_path.touch(mode=0o600)
        self.config_path.write_text(text)
        self.program: Program | None = None
        self._notify: socket.socket | None = None

    def start(self) -> None:
        """Start it, in the lab's namespace, with a socket to say READY=1 to (sd_notify)."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        if self._notify is not None:
            self._notify.close()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        self.program = self._space.start(
            self.command("run", "-c", str(self.config_path)),
            environment={"NOTIFY_SOCKET": str(path), "PYTHONPATH": _python_path()},
        )

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait for READY=1. LabError with the last lines of its log when it ends or takes longer."""
        assert self.program is not None, "start() first"
        assert self._notify is not None
        self._notify.settimeout(0.05)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                if not self.program.running:
                    raise LabError(self._complaint(f"ended with status {self.program.wait(0)}")) from None
        raise LabError(self._complaint(f"was not ready within {timeout:g} s"))

    def check_alive(self) -> None:
        """LabError with the last lines of its log if it has ended."""
        if self.program is not None and not self.program.running:
            raise LabError(self._complaint(f"ended with status {self.program.wait(0)}"))

    def status(self) -> dict[str, Any]:
        """What `esplanade status --json` prints; its socket is a file, so the namespace does not matter."""
        try:
            return ask(self.directory / "run" / SOCKET_NAME, "status", wait=10.0)
        except StatusError as error:
            raise LabError(self._complaint(f"status: {error}")) from None

    def status_command(self, *options: str) -> list[str]:
        """The command that shows this gateway's status."""
        return self.command("status", "-c", str(self.config_path), *options)

    def follow(
        self, command: str, arguments: Mapping[str, str], *, wait: float = 30.0
    ) -> list[dict[str, Any]]:
        """Give a command of the status socket; what it told until it was done. LabError says why it failed."""
        try:
            return list(follow(self.directory / "run" / SOCKET_NAME, command, arguments, wait=wait))
        except StatusError as error:
            raise LabError(self._complaint(f"{command}: {error}")) from None

    def ike(self) -> dict[str, Any]:
        """The status of IKE, asked for without starting a program."""
        try:
            return dict(ask(self.directory / "run" / SOCKET_NAME, "status", wait=10.0)["ike"])
        except StatusError as error:
            raise LabError(self._complaint(str(error))) from None

    def children_up(self) -> bool:
        """Every child of IKE is established."""
        return all(each["state"] == "up" for each in self.ike()["connections"])

    def active_modes(self) -> list[str]:
        """What the ports really run as: "native/copy", say; one entry per different mode."""
        return list(dict.fromkeys(str(port["mode"]) for port in self.status()["ports"]))

    def log(self, lines: int = 10) -> str:
        """The last lines of its log."""
        return "" if self.program is None else self.program.log(lines)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return 0 if self.program is None else self.program.stop()

    def close(self) -> None:
        """Stop it and let go of the notify socket."""
        self.stop()
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """The command line of `esplanade` with these arguments."""
        return [sys.executable, "-m", "control", *arguments]

    def _complaint(self, what: str) -> str:
        said = self.log() or "(it wrote nothing)"
        return f"gateway {self.host} ({self.driver}) {what}; its log ends with:\n{said}"


class Gateways:
    """Both gateways of a lab: started together, ready on entry, stopped on exit."""

    def __init__(
        self,
        lab: Lab,
        driver: str,
        tunnel: Tunnel | IkeTunnel | Hosts | None = None,
        *,
        workers: int = 2,
        port: Mapping[str, str] | None = None,
    ) -> None:
        """Two configurations; without `tunnel`, one of keys by hand, new ones. `port`: further keys of its ports."""
        tunnel = tunnel or Tunnel()
        self.a = Gateway(lab, "gwa", driver, tunnel, workers=workers, port=port)
        self.b = Gateway(lab, "gwb", driver, tunnel, workers=workers, port=port)

    def __enter__(self) -> Self:
        """Start both, then wait for both."""
        try:
            for gateway in (self.a, self.b):
                gateway.start()
            for gateway in (self.a, self.b):
                gateway.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both."""
        self.close()

    def close(self) -> None:
        """Stop both."""
        self.a.close()
        self.b.close()


def make_lab(driver: str, *, tapped: bool = False, workers: int = 2, mode: str = "tunnel") -> Lab:
    """The lab that suits a driver.

    The kernel of a gateway could always forward in clear, by a route or a default route: the gateway must keep
    it from that. For tun it brings a route of its own, so there must be none to the far network before.
    """
    return Lab(queues=workers, routed=driver != "tun" and mode == "tunnel", tapped=tapped)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH", "")]))
