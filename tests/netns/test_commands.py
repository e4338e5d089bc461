"""The commands against two running gateways: up, rekey, status, log, keys, reload, down."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control import cli
from control.lab import Lab
from control.lab.gateway import Gateway, IkeTunnel
from control.lab.topology import address
from control.lab.traffic import ping

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def gateways() -> Iterator[tuple[Lab, Gateway, Gateway]]:
    """Two gateways with a connection that waits; B allows the export of keys."""
    with Lab(routed=False) as lab:
        tunnel = IkeTunnel.make(lab.directory, start={"gwa": "none", "gwb": "none"})
        a, b = Gateway(lab, "gwa", "tun", tunnel), Gateway(lab, "gwb", "tun", tunnel)
        b.config_path.write_text(b.config_path.read_text() + "\n[ike]\nexport_keys = true\n")
        try:
            for gateway in (a, b):
                gateway.start()
            for gateway in (a, b):
                gateway.wait_ready()
            yield lab, a, b
        finally:
            for gateway in (a, b):
                gateway.close()


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to."""

    status: int
    out: str
    err: str


def command(gateway: Gateway, verb: str, *arguments: str) -> Done:
    """`esplanade VERB` for a gateway; its socket is a file, so the namespace does not matter."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([verb, "-c", str(gateway.config_path), *arguments])
    return Done(status=status, out=out.getvalue(), err=err.getvalue())


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until it is so; the time is a bound, not an expectation."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def child(gateway: Gateway) -> dict[str, Any]:
    """The newest child SA that a gateway has."""
    ike = gateway.status()["ike"]
    children = [each for sa in ike["ike_sas"] for each in sa["children"] if each["state"] == "installed"]
    return max(children, key=lambda each: each["id"])


def reload(gateway: Gateway) -> None:
    """SIGHUP, and wait until it is done."""
    before = gateway.status()["gateway"]["reloads"]
    os.kill(gateway.status()["gateway"]["pid"], signal.SIGHUP)
    wait_for(lambda: gateway.status()["gateway"]["reloads"] > before)


def test_no_process_leaves_a_core(gateways: tuple[Lab, Gateway, Gateway]) -> None:
    """Control has the secrets, IKE's keys and a private key; workers have those of ESP."""
    for gateway in gateways[1:]:
        status = gateway.status()
        for pid in (status["gateway"]["pid"], *(worker["pid"] for worker in status["workers"])):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]


def test_commands(gateways: tuple[Lab, Gateway, Gateway], tmp_path: Path) -> None:
    lab, a, b = gateways
    # Nothing is up, and nothing is called that.
    for verb in ("down", "rekey"):
        done = command(a, verb, "sites")
        assert done.status == 1 and "sites is not up" in done.err
    done = command(a, "up", "site")
    assert done.status == 1 and 'did you mean "sites"?; there are sites' in done.err
    # Up.
    capture = lab.spaces["gwb"].start(
        [
            "tcpdump",
            "--immediate-mode",
            "-i",
            "wan0",
            "-U",
            "-w",
            str(tmp_path / "wan.pcap"),
            "udp",
            "port",
            "500",
            "or",
            "4500",
        ]
    )
    wait_for(lambda: "listening on" in capture.log())
    done = command(a, "up", "sites")
    assert done.status == 0, done.err
    assert "IKE SA established with 'gwb.esplanade.example'" in done.out
    assert "child net{" in done.out and "10.1.0.0/24, 2001:db8:a::/64 === 10.2.0.0/24" in done.out
    assert "child net is up already" in command(a, "up", "sites").out
    assert ping(lab.client, address("server", "eth0"), count=5).lost == 0
    _check_status(a)
    shown = lab.spaces["gwa"].run(a.status_command()).output()  # as a program of its own, once
    assert "ike sa" in shown and "10.1.0.0/24, 2001:db8:a::/64 === 10.2.0.0/24" in shown
    _check_rekey(lab, a, b)
    _check_log(a)
    capture.stop()
    _check_keys(a, b, tmp_path / "wireshark")
    _check_wireshark(tmp_path / "wan.pcap", tmp_path / "wireshark")
    _check_reload(lab, a)
    # Down, on both sides.
    done = command(a, "down", "sites")
    assert done.status == 0 and "IKE SA gone: closed by us" in done.out
    wait_for(lambda: b.status()["ike"]["connections"][0]["state"] == "down")


def _check_status(a: Gateway) -> None:
    ike = a.status()["ike"]
    (connection,) = ike["connections"]
    assert (connection["name"], connection["state"], connection["last_error"]) == ("sites", "up", None)
    (sa,) = ike["ike_sas"]
    assert sa["suite"] == "aes256gcm16-prfsha384-x25519-ke1_mlkem768" and sa["state"] == "established"
    assert sa["remote_id"] == "gwb.esplanade.example" and 0 < sa["rekey_in"] <= 14400
    found = child(a)
    assert found["suite"] == "aes128gcm16-esn" and found["encapsulated"]
    wait_for(lambda: child(a)["packets_out"] >= 5 and child(a)["packets_in"] >= 5)
    assert ike["half_open"] == 0 and ike["pools"] == []


def _check_rekey(lab: Lab, a: Gateway, b: Gateway) -> None:
    """Each side in turn; both have the new SPIs then."""
    for gateway, words in ((a, ["sites"]), (b, ["sites/net"]), (a, ["sites", "--what", "ike"])):
        before = a.status()["ike"]["ike_sas"][0]["spi_initiator"], child(a)["spi_in"]
        done = command(gateway, "rekey", *words)
        assert done.status == 0, done.err
        after = a.status()["ike"]["ike_sas"][-1]["spi_initiator"], child(a)["spi_in"]
        assert (after[0] != before[0]) is ("sites" in words), words
        assert (after[1] != before[1]) is ("ike" not in words), words
        wait_for(lambda: child(b)["spi_out"] == child(a)["spi_in"])
    assert ping(lab.client, address("server", "eth0"), count=5).lost == 0


def _check_log(a: Gateway) -> None:
    lines = command(a, "log", "--no-follow", "--json", "-n", "1000").out.splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("ike_established") == 1 and events.count("ike_rekeyed") == 2
    assert events.count("child_established") == 3
    assert len(command(a, "log", "--no-follow", "-n", "2", "sites").out.splitlines()) <= 2


def _check_keys(a: Gateway, b: Gateway, directory: Path) -> None:
    done = command(a, "keys", "--no-follow")
    assert done.status == 1 and "the configuration does not allow it" in done.err and not done.out
    # The same again adds nothing.
    for _ in range(2):
        assert command(b, "keys", "--no-follow", str(directory)).status == 0
        lines = {path.name: path.read_text().splitlines() for path in directory.iterdir()}
        assert len(lines["esp_sa"]) == 6 and len(lines["ikev2_decryption_table"]) >= 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
    # Neither the log nor the status has them.
    keys = [field for line in lines["esp_sa"] for field in line.split('"') if len(field) > 32]
    shown = b.log(1000) + json.dumps(b.status()) + command(b, "log", "--no-follow", "--json").out
    assert keys and not any(key[2:] in shown for key in keys if key.startswith("0x"))


def _check_wireshark(capture: Path, directory: Path) -> None:
    """With the tables that `esplanade keys` wrote, tshark reads identities in IKE and pings in ESP."""
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-o", "esp.enable_encryption_decode:TRUE", "-T", "fields"]
        + ["-e", "isakmp.id.data.fqdn", "-e", "icmp.seq"],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {"gwa.esplanade.example", "gwb.esplanade.example"} <= {
        name for row in rows for name in row[0].split(",") if name
    }
    assert sum(bool(row[1]) for row in rows) >= 20  # two times five pings and their answers


def _check_reload(lab: Lab, a: Gateway) -> None:
    """A connection more, one less, a broken certificate: the tunnel that did not change goes on."""
    before, text = child(a)["spi_in"], a.config_path.read_text()
    more = '\n[connections.other]\nremote_addrs = "198.51.100.77"\npsk = "0123456789abcdef"\nstart_action = "none"\n'
    a.config_path.write_text(text + more)
    reload(a)
    assert [each["name"] for each in a.status()["ike"]["connections"]] == ["sites", "other"]
    a.config_path.write_text(text)
    certificate = lab.directory / "gwa.pem"
    good = certificate.read_bytes()
    certificate.write_bytes(b"no certificate")
    reload(a)
    assert "gwa.pem holds no certificate" in a.log(20)
    assert [each["name"] for each in a.status()["ike"]["connections"]] == ["sites", "other"]
    certificate.write_bytes(good)
    reload(a)
    assert "1 connection removed" in a.log(1)
    assert [each["name"] for each in a.status()["ike"]["connections"]] == ["sites"]
    assert child(a)["spi_in"] == before
    assert ping(lab.client, address("server", "eth0"), count=5).lost == 0
