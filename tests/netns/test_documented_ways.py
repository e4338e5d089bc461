"""The ways to run that the documents name do run: a gateway gets the capabilities that stand there, no others.

The sets are read from the documents, so neither these nor what a start takes can change alone.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from control.admin.server import SOCKET_NAME, ask
from control.doctor import Level, host
from control.lab.space import Space
from tests import signals
from tests.peers.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
# What docker leaves to a container's root by itself (https://docs.docker.com/engine/containers/run).
DOCKER_DEFAULT = """AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW
    SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"""
XDP_EXTRA = {"SYS_ADMIN"}  # named beside docker's command, for `xdp` ports after a kill

PORTS = """[gateway]
workers = 1
state_dir = "{{directory}}/state"
run_dir = "{{directory}}/run"

[[port]]
role = "protected"
driver = "{protected}"
interface = "{lan}"

[[port]]
role = "unprotected"
driver = "{unprotected}"
interface = "wan0"

[connections.branch]
remote_addrs = "198.51.100.2"
psk = "correct horse battery staple"
local_ts = "10.1.0.0/24"
remote_ts = "10.2.0.0/24"
"""


def unit() -> list[str]:
    """The lines of the systemd unit."""
    match = re.search(r"```ini\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    assert match
    return match[1].splitlines()


def docker_run(path: Path) -> str:
    """The command that runs a gateway, on one line."""
    text = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
    (command,) = re.findall(r"docker run (?:.|\\\n)*? esplanade run .*", text)
    return " ".join(command.replace("\\\n", " ").split())


def in_the_unit() -> set[str]:
    """Capabilities, without CAP_."""
    (line,) = [line for line in unit() if line.startswith("CapabilityBoundingSet=")]
    return {name.removeprefix("CAP_") for name in line.partition("=")[2].split()}


def in_docker() -> set[str]:
    """Capabilities, docker's own and those that are added."""
    added = re.findall(r"--cap-add (\w+)", docker_run(ROOT / "README.md"))
    return {*DOCKER_DEFAULT.split(), *added}


def limited_to(capabilities: set[str]) -> list[str]:
    """What starts a program that never gets any other."""
    chosen = ",".join(f"+{name.lower()}" for name in sorted(capabilities))
    return ["setpriv", "--no-new-privs", "--bounding-set", f"-all,{chosen}", "--inh-caps", "-all", "--"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("capabilities", "protected", "unprotected"),
    [
        (in_the_unit, "xdp", "xdp"),
        (in_the_unit, "tun", "packet"),
        (in_docker, "tun", "packet"),
        (lambda: in_docker() | XDP_EXTRA, "xdp", "xdp"),
    ],
    ids=["unit-xdp", "unit-packet", "docker-packet", "docker-xdp"],
)
def test_what_the_documents_name_suffices(
    spaces: Callable[..., list[Space]],
    tmp_path: Path,
    capabilities: Callable[[], set[str]],
    protected: str,
    unprotected: str,
) -> None:
    """Start with IKE, be killed, take over what was left, end a worker that hangs: all without a refusal."""
    (space,) = spaces("box")
    for name, address in (("lan0", "10.1.0.1"), ("wan0", "198.51.100.1")):
        space.ip(
            f"link add {name} type veth peer name {name}-far",
            f"addr add {address}/24 dev {name}",
            f"link set {name} up",
            f"link set {name}-far up",
        )
    space.ip("link set lo up")
    base = PORTS.format(
        protected=protected, unprotected=unprotected, lan="esp0" if protected == "tun" else "lan0"
    )
    daemon = Daemon(space, tmp_path, {}, base=base, under=limited_to(capabilities()))
    daemon.start()
    try:
        daemon.kill()
        daemon.start()
        (worker,) = ask(daemon.directory / "run" / SOCKET_NAME, "status")["workers"]
        status = Path(f"/proc/{worker['pid']}/status").read_text()
        assert not re.search(r"^[UG]id:.*\b0\b", status, re.MULTILINE)
        assert re.search(r"^CapPrm:\s*0+$", status, re.MULTILINE)
        assert not worker["memory_lock_error"]
        signals.send(worker["pid"], signal.SIGSTOP)
        assert daemon.program is not None
        assert daemon.program.stop() == 0
        assert "does not stop; killing it" in daemon.log()
        with contextlib.suppress(FileNotFoundError):
            assert "State:\tZ" in Path(f"/proc/{worker['pid']}/status").read_text()
    finally:
        daemon.kill()


@pytest.mark.parametrize(
    "capabilities", [in_the_unit, lambda: in_docker() | XDP_EXTRA], ids=["unit", "docker"]
)
def test_doctor_agrees(capabilities: Callable[[], set[str]]) -> None:
    """Nothing to say about what the documents name, and something about each that is missing."""
    drivers = {"tun", "packet", "xdp"}

    def is_content(names: set[str]) -> bool:
        bits = sum(1 << bit for name, bit in host.CAPABILITIES.items() if name.removeprefix("CAP_") in names)
        least = [host.check_capabilities(bits, drivers, (500,)), host.check_memlock(0, bits)]
        findings = [*least, *host.check_spare_capabilities(bits, drivers)]
        return all(finding.level is Level.OK for finding in findings)

    assert is_content(capabilities())
    for name in (name.removeprefix("CAP_") for name in host.CAPABILITIES):
        assert not is_content(capabilities() - {name, "SYS_ADMIN"}), name


def test_the_dockerfile_and_the_readme_say_the_same() -> None:
    """With the device that a file without ports opens, and the state that no restart may lose."""
    command = docker_run(ROOT / "README.md")
    assert docker_run(ROOT / "Dockerfile") == command
    assert "--device /dev/net/tun " in command and "-v /var/lib/esplanade:/var/lib/esplanade " in command
    for name in ("README.md", "Dockerfile"):
        assert re.search("xdp.*--cap-add SYS_ADMIN", (ROOT / name).read_text()), name


def test_the_unit_goes_on_starting() -> None:
    """No start limit ends a gateway for good, and an error in the configuration waits for its mend."""
    assert {"StartLimitIntervalSec=0", "RestartSec=2", "RestartPreventExitStatus=2"} <= set(unit())


def test_forwarding_of_the_default_port_is_named() -> None:
    """It is a TUN device, behind which the kernel forwards: both places that describe it say so."""
    for name in ("README.md", "docs/configuration.md"):
        text = (ROOT / name).read_text()
        assert "sysctl -w net.ipv4.ip_forward=1" in text and "net.ipv6.conf.all.forwarding" in text
