"""The laboratory itself: does it carry traffic, see what is on the wire, and leave nothing behind?"""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from control.lab import Lab, LabError, sweep
from control.lab.space import NETNS_DIRECTORY
from control.lab.topology import address
from control.lab.traffic import finish_ping, iperf3, ping, start_ping
from control.lab.wiretap import EspRecorder, WireTap, split_esp

pytestmark = pytest.mark.root

SERVER = {version: address("server", "eth0", version) for version in (4, 6)}


def spaces_of(pid: int) -> list[str]:
    """Names of the namespaces that process `pid` made."""
    return [path.name for path in NETNS_DIRECTORY.glob(f"esp-{pid}-*")]


@pytest.mark.parametrize("static", [False, True])
def test_plain_forwarding(static: bool) -> None:
    """Kernel forwarding end to end in both families, and no namespace afterwards."""
    with Lab(static_neighbours=static) as lab:
        for target in SERVER.values():
            assert ping(lab.client, target, count=5).lost == 0
        assert iperf3(lab.client, lab.server, SERVER[4], proto="tcp", seconds=1).gbps > 0.01
        assert iperf3(lab.client, lab.server, SERVER[4], proto="udp", seconds=1, rate="20M").gbps > 0.001
    assert not spaces_of(os.getpid())


def test_lost_pings_are_counted() -> None:
    """An interruption in the middle costs some, a cut line all of them."""
    with Lab() as lab:
        interrupted = start_ping(lab.client, SERVER[4], count=60)
        lab.client.run(["sleep", "0.2"])
        lab.server.ip("link set eth0 down")
        lab.client.run(["sleep", "0.1"])
        lab.server.ip("link set eth0 up", "route replace default via 10.2.0.1")
        lost = finish_ping(interrupted, count=60).lost
        assert 0 < lost < 60
        lab.server.ip("link set eth0 down")
        assert ping(lab.client, SERVER[4], count=10).lost == 10


def test_tap_tells_clear_text_from_esp() -> None:
    """Pings are clear text, protocol 50 and UDP 4500 are ESP, ARP and ND neither; super-frames are split."""
    with Lab(tapped=True) as lab:
        with WireTap(lab) as tap, EspRecorder(lab) as recorder:
            assert ping(lab.client, SERVER[4], count=3).lost == 0
            assert ping(lab.client, SERVER[6], count=2).lost == 0
            counts = tap.counts()
            assert (counts["clear"], counts["esp"]) == (10, 0)
            assert counts["housekeeping"] > 0
            assert "10.1.0.2 > 10.2.0.2 protocol 1, 84 bytes" in tap.clear_samples()[0]
            _send_fake_esp(lab)
            lab.client.run(["sleep", "0.1"])
            counts = tap.counts()
            assert counts["esp"] == 4 + 4 + 1
        assert recorder.missed == 0
        assert sorted(recorder.packets) == [
            *((7, number, 100 + number // 2) for number in range(4) for _ in SERVER),
            *((8, number, 200 + number) for number in range(10)),
        ]
        assert recorder.repeated() == [(7, 100), (7, 101)]


def test_tap_forgives_a_port_that_is_not_open_yet() -> None:
    """Port unreachable about 500 and 4500 is housekeeping; about any other port it is clear text, as is its cause."""
    with Lab(tapped=True) as lab, WireTap(lab) as tap:
        for version in (4, 6):
            assert ping(lab.client, SERVER[version], count=1).lost == 0
            before = tap.counts()
            for port, clear in ((500, 0), (4500, 0), (4501, 2)):
                lab.client.call(partial(_send_datagram, str(SERVER[version]), port))
                time.sleep(0.2)
                assert tap.counts()["clear"] - before["clear"] == clear


def _send_datagram(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(100), (address, port))


def _send_fake_esp(lab: Lab) -> None:
    def esp(spi: int, number: int, iv: int) -> bytes:
        return struct.pack("!IIQ", spi, number, iv) + bytes(32)

    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        raw = lab.client.call(lambda family=family: socket.socket(family, socket.SOCK_RAW, 50))
        with raw:
            for number in range(4):
                raw.sendto(esp(7, number, 100 + number // 2), (str(SERVER[version]), 0))
    udp = lab.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with udp:
        udp.setsockopt(socket.IPPROTO_UDP, 103, len(esp(8, 0, 0)))  # UDP_SEGMENT
        udp.sendto(b"".join(esp(8, number, 200 + number) for number in range(10)), (str(SERVER[4]), 4500))


def test_split_skips_ike() -> None:
    """A zero SPI is the non-ESP marker, not a packet."""
    frame = bytes(10) + bytes(14) + b"\x45" + bytes(8) + b"\x11" + bytes(10) + bytes(8) + bytes(40)
    assert list(split_esp(frame)) == []


def test_failure_inside_leaves_nothing() -> None:
    """A program that fails is reported with what it said; the lab is gone."""
    with (
        pytest.raises(LabError, match=r"server: cat /nowhere: exit status 1: cat: /nowhere: No such file"),
        Lab() as lab,
    ):
        lab.server.run(["cat", "/nowhere"])
    assert not spaces_of(os.getpid())


MAKER = """
import sys, time
from control.lab import Lab
with Lab() as lab:
    program = lab.server.start(["sleep", "60"])
    print(program.pid, flush=True)
    time.sleep(60)
"""


def start_maker() -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lab with one program in it; returns it and the program's pid."""
    root = Path(__file__).parents[2]
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True, cwd=root)
    assert maker.stdout is not None
    return maker, int(maker.stdout.readline())


def gone(pid: int) -> bool:
    """True when no such process runs (a zombie has ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_takes_all_down(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM unwind: programs ended, namespaces removed."""
    maker, program = start_maker()
    assert spaces_of(maker.pid)
    maker.send_signal(number)
    maker.wait(10)
    assert not spaces_of(maker.pid)
    assert gone(program)


def test_kill_is_swept_up() -> None:
    """After kill -9 programs die with their maker; the next lab removes its namespaces, live labs stay."""
    maker, program = start_maker()
    other, _ = start_maker()
    try:
        maker.kill()
        maker.wait(10)
        deadline = time.monotonic() + 5
        while not gone(program) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(program)
        assert len(spaces_of(maker.pid)) == 4
        assert len(sweep()) == 5  # four namespaces and a directory
        assert not spaces_of(maker.pid)
        assert spaces_of(other.pid)
    finally:
        other.terminate()
        other.wait(10)
