"""A flood of spoofed IKE_SA_INIT requests: cookies go out, memory stays flat, and a real peer still gets in."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.peers import wires
from tests.peers.daemon import Daemon
from tests.peers.site import Site
from tests.peers.strongswan import Charon
from tests.peers.traffic import assert_connected
from tests.peers.wires import Wire

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


def memory_kb(daemon: Daemon) -> int:
    """Resident memory of the control process."""
    assert daemon.program is not None
    status = Path(f"/proc/{daemon.program.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def endure(wire: Wire, ours: Daemon, theirs: Charon, rate: int, seconds: float) -> None:
    """The flood from the left, where the real peer is, too."""
    wire.right.ip("route add 198.18.0.0/15 via 192.0.2.1")
    theirs.initiate(child="net")  # all that is ever needed has been loaded
    theirs.terminate(ike="site")
    before = memory_kb(ours)
    argv = [sys.executable, "-m", "tests.peers.flood", "192.0.2.2", str(rate), f"{seconds:g}"]
    flood = wire.left.start(argv, cwd=ROOT)
    time.sleep(seconds / 2)
    begun = time.monotonic()
    theirs.initiate(child="net")
    took = time.monotonic() - begun
    assert flood.running
    assert took < 2.0
    flood.wait(seconds + 20)
    assert memory_kb(ours) - before < 8192
    sent, past = flood.output().split()
    assert int(sent) / float(past) > rate / 2, "this machine is too slow for the flood itself"
    half_open = ours.status()["ike"]["half_open"]
    assert half_open <= 100, f"{half_open} half-open IKE SAs"
    assert ours.status()["ike"]["datagrams"]["cookies"] > 0
    assert_connected(wire)


@pytest.mark.parametrize(
    ("rate", "seconds"), [(4000, 4.0), pytest.param(20000, 30.0, marks=pytest.mark.full)]
)
def test_spoofed_requests(rate: int, seconds: float) -> None:
    """Thousands a second, each one that a responder would answer, from 131,072 addresses; all of a core with --full."""
    site = Site(tables={"remote_addrs": "%any"})
    with wires.direct() as wire:
        ours, theirs = site.daemon(wire, "right"), site.charon(wire, "left")
        theirs.start()
        site.load_charon(theirs, wire, "left")
        ours.start()
        try:
            endure(wire, ours, theirs, rate, seconds)
        except BaseException as error:
            error.add_note(f"---- ours said\n{ours.log(40)}\n---- charon said\n{theirs.log(60)}")
            raise
        finally:
            ours.kill()
            theirs.kill()
