"""Other people's userspace tunnels between the same gateways: strongSwan with kernel-libipsec, and wireguard-go.

Both are what Debian has, in the gateways' namespaces, with a TUN device and their own encapsulation: ESP in UDP, and
WireGuard. strongSwan negotiates AES-128-GCM, as ours has it; WireGuard knows ChaCha20-Poly1305 only, so a part of
the difference is the cipher's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from control.lab import Lab, LabError
from control.lab.space import wait_until
from control.lab.topology import FAR_LAN, NEAR_LAN, PEER, SEGMENTS, address
from control.lab.traffic import ping
from tests.peers.strongswan import Charon, start_all

SECRET = "a secret for the benchmark alone"
IKE, ESP = "aes128gcm16-prfsha256-x25519", "aes128gcm16"
WIREGUARD_PORT = 51820
READY_SECONDS = 15.0


@contextmanager
def tunnel(name: str, lab: Lab) -> Iterator[None]:
    """The peer's tunnel between the gateways; LabError if a ping does not go through its device."""
    make, device = TUNNELS[name]
    with make(lab):
        ping(lab.client, address("server", "eth0"), count=3)
        shown = lab.spaces["gwa"].run(["ip", "-j", "-s", "link", "show", "dev", device]).output()
        if json.loads(shown)[0]["stats64"]["tx"]["packets"] == 0:
            raise LabError(f"{name}: pings did not go through {device}")
        yield


# ---- strongSwan


@contextmanager
def strongswan(lab: Lab) -> Iterator[None]:
    """charon on both gateways; the child is up on return."""
    hosts = list(PEER)
    charons = {host: Charon(lab.spaces[host], lab.directory) for host in hosts}
    try:
        start_all(*charons.values())
        for host, charon in charons.items():
            side = {"auth": "psk", "id": f"{host}.example"}, {"auth": "psk", "id": f"{PEER[host]}.example"}
            child = {
                "local_ts": [str(SEGMENTS[NEAR_LAN[host]][0])],
                "remote_ts": [str(SEGMENTS[FAR_LAN[host]][0])],
                "esp_proposals": [ESP],
            }
            connection = {
                "local_addrs": [str(address(host, "wan0"))],
                "remote_addrs": [str(address(PEER[host], "wan0"))],
                "proposals": [IKE],
                "local": side[0],
                "remote": side[1],
                "children": {"net": child},
            }
            charon.load({"site": connection}, secrets=[{"type": "IKE", "data": SECRET}])
        charons[hosts[0]].initiate(child="net")
        yield
    finally:
        for charon in charons.values():
            charon.stop()


# ---- wireguard-go


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A WireGuard key pair, in base64."""

    private: str
    public: str

    @classmethod
    def make(cls) -> Keys:
        """A new one."""
        private = _wg(["wg", "genkey"], "")
        return cls(private=private, public=_wg(["wg", "pubkey"], private))


@contextmanager
def wireguard_go(lab: Lab) -> Iterator[None]:
    """wireguard-go on both gateways, each in a mount namespace whose /run is its own: its control socket lies there."""
    for tool in ("wireguard-go", "wg"):
        if shutil.which(tool) is None:
            raise LabError(
                f"{tool} is missing; install it with: apt-get install wireguard-go wireguard-tools"
            )
    keys = {host: Keys.make() for host in PEER}
    with ExitStack() as stack:
        for host in PEER:
            space, run = lab.spaces[host], lab.directory / f"wireguard-{host}"
            (run / "wireguard").mkdir(parents=True)
            enter = f'mount --bind {run} /run && exec "$@"'
            environment = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
            program = space.start(
                ["sh", "-c", enter, "sh", "wireguard-go", "--foreground", "wg0"], environment=environment
            )
            stack.callback(program.kill)
            sock = run / "wireguard" / "wg0.sock"
            wait_until(sock.exists, timeout=READY_SECONDS, what="wireguard-go's socket", interval=0.05)
            config = run / "wg0.conf"
            config.touch(mode=0o600)
            config.write_text(_configuration(host, keys))
            space.run(["sh", "-c", enter, "sh", "wg", "setconf", "wg0", str(config)])
            space.ip("link set wg0 mtu 1420 up", f"route replace {SEGMENTS[FAR_LAN[host]][0]} dev wg0")
        yield


def _configuration(host: str, keys: dict[str, Keys]) -> str:
    far = PEER[host]
    return (
        f"[Interface]\nPrivateKey = {keys[host].private}\nListenPort = {WIREGUARD_PORT}\n"
        f"[Peer]\nPublicKey = {keys[far].public}\nAllowedIPs = {SEGMENTS[FAR_LAN[host]][0]}\n"
        f"Endpoint = {address(far, 'wan0')}:{WIREGUARD_PORT}\n"
    )


def _wg(argv: list[str], text: str) -> str:
    return subprocess.run(
        argv, input=text, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


# name: what makes the tunnel, and the device that it leads through
TUNNELS: dict[str, tuple[Callable[[Lab], AbstractContextManager[None]], str]] = {
    "strongswan": (strongswan, "ipsec0"),
    "wireguard-go": (wireguard_go, "wg0"),
}
