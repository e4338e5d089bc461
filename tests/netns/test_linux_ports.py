"""Our ports on the oldest kernel that they are to serve: Debian's, in the guest, where our own code runs for once.

Linux takes a run of UDP datagrams (GSO_UDP_L4) in a virtio_net_hdr from 6.2 on; before, it refuses the run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.peers.linux import runs
from tests.peers.linux.guest import Guest
from tests.peers.linux.kernel import python

pytestmark = pytest.mark.root


def test_runs_of_udp_arrive(linux: Guest) -> None:
    """A batch of one UDP flow by `tun` and by `packet`: all of it, byte for byte, whatever the kernel takes at once."""
    said = json.loads(linux.run([python(), str(Path(runs.__file__).resolve())], timeout=120))
    assert said["offloads"] == ["tso"], "the guest's kernel is newer than what this is about"
    assert len(said["results"]) == 6
    count = len(runs.PAYLOADS)
    for found in said["results"]:
        assert found["same"], found
        assert (found["arrived"], found["packets"], found["frames"]) == (count, count, runs.FRAMES), found
        assert found["errors"] == 0, found
