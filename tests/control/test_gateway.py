"""The whole gateway, as `esplanade run` starts it, between namespaces with real traffic."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.lab.gateway import Gateway, Gateways, Tunnel, make_lab
from control.lab.space import wait_until
from control.lab.topology import Lab
from tests.bundles import bundled

pytestmark = pytest.mark.root

SERVER = ("10.2.0.2", "2001:db8:b::2")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with make_lab("xdp") as built:
        yield built


@pytest.fixture(scope="module")
def gateways(lab: Lab) -> Iterator[Gateways]:
    with Gateways(lab, "xdp") as running:
        yield running


def ping(lab: Lab, target: str, count: int = 3) -> None:
    """Fails unless every ping is answered."""
    lab.client.run(["ping", "-c", str(count), "-i", "0.05", "-W", "2", target])


def log_has(gateway: Gateway, pattern: str) -> bool:
    return re.search(pattern, gateway.log(1000)) is not None


def reload(gateway: Gateway, text: str, expected: str) -> None:
    """Write a new configuration, send SIGHUP, and wait for a line of the log."""
    assert gateway.program is not None
    before = gateway.log(10000).count("\n")
    gateway.config_path.write_text(text)
    os.kill(gateway.program.pid, signal.SIGHUP)
    wait_until(
        lambda: re.search(expected, "\n".join(gateway.log(10000).split("\n")[before:])) is not None,
        timeout=5,
        what=f"log line {expected!r}; it says:\n{gateway.log(20)}",
    )


def test_traffic_and_status(lab: Lab, gateways: Gateways) -> None:
    for target in SERVER:
        ping(lab, target)
    status = gateways.a.status()
    assert set(status) == {"gateway", "ports", "workers", "ike", "sas", "drops", "events"}
    assert [(port["name"], port["mode"], port["link"]) for port in status["ports"]] == [
        ("lan", "native/copy", "up"),
        ("wan", "native/copy", "up"),
    ]
    assert all(port["rx_packets"] > 0 and port["tx_packets"] > 0 for port in status["ports"])
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
    out, inbound = status["sas"]
    assert out["packets"] >= 6 and inbound["packets"] >= 6 and out["sequence"] == out["packets"] + 1
    assert inbound["sequence"] >= 6 and inbound["replay_window"] == 4096 and out["path"].startswith("wan ")
    assert out["inner_mtu"] == 1446 and out["path_mtu"] == 1500 and not sum(out["drops"].values())
    assert set(inbound["drops"]) < set(status["drops"])
    table = lab.spaces["gwa"].run(gateways.a.status_command()).output()
    assert "from-gwb" in table and "native/copy" in table and "0x00001001" in table
    # Nobody else may read or ask.
    run = gateways.a.directory / "run"
    assert (run / "status.sock").stat().st_mode & 0o777 == 0o600


def test_bundles_come_and_go(lab: Lab, gateways: Gateways) -> None:
    """AH around the ESP that runs, another key for the AH, and ESP alone again, by reloads of both sides."""
    plain = {gateway: gateway.config_path.read_text() for gateway in (gateways.a, gateways.b)}
    course = (
        ("5", "2 SAs added, 2 SAs replaced"),
        ("6", "2 SAs replaced"),
        (None, "2 SAs replaced, 2 SAs removed"),
    )
    for key, changes in course:
        for gateway, text in plain.items():
            reload(gateway, text if key is None else bundled(text, key), f"reloaded: {changes}$")
        for target in SERVER:
            ping(lab, target)
        sas = {sa["name"]: sa for sa in gateways.a.status()["sas"]}
        assert ("ah-from-gwa" in sas) == (key is not None)
        if key is not None:
            assert sas["from-gwa"]["outer"] == "ah-from-gwa"
            assert sas["from-gwa"]["inner_mtu"] == 1446 - sum((12, 16))
            for name in ("ah-from-gwa", "ah-from-gwb"):
                assert sas[name]["packets"] >= 6 and not sum(sas[name]["drops"].values())
        else:
            assert sas["from-gwa"]["outer"] is None


def test_kernel_is_asked_first_and_then_left_alone(lab: Lab, gateways: Gateways) -> None:
    """A packet to a host without neighbour entry goes to the kernel, which resolves it, and we learn."""
    ping(lab, SERVER[0])
    lab.spaces["gwb"].ip("neigh flush dev lan0")
    time.sleep(0.2)
    before = gateways.b.status()["events"]
    ping(lab, SERVER[0], 10)
    events = gateways.b.status()["events"]
    assert 0 < events["to_kernel"] - before["to_kernel"] < 5 and events["pass"] - before["pass"] >= 15


def test_neighbour_changes_its_mac(lab: Lab, gateways: Gateways) -> None:
    ping(lab, SERVER[0])
    lab.server.ip(
        "link set eth0 down",
        "link set eth0 address 02:00:00:00:77:77",
        "link set eth0 up",
        "address add 2001:db8:b::2/64 dev eth0",
        "route replace default via 10.2.0.1",
        "route replace default via 2001:db8:b::1",
    )
    lab.server.run(["ping", "-c", "1", "-W", "2", "10.2.0.1"])
    began = time.monotonic()
    wait_until(
        lambda: lab.client.run(["ping", "-c", "1", "-W", "1", SERVER[0]], check=False).wait(0) == 0,
        timeout=10,
        what="traffic to the new MAC",
    )
    assert time.monotonic() - began < 3


def test_own_interface_changes_its_mac(lab: Lab, gateways: Gateways) -> None:
    """Packets are sent from the new address at once: a peer that filters by it would notice."""
    ping(lab, SERVER[0])
    gateway = lab.spaces["gwa"]
    # Some drivers must be down for it, veth need not: no route is lost.
    gateway.ip("link set lan0 address 02:00:00:00:66:66")
    wait_until(
        lambda: log_has(gateways.a, r"the MAC address of lan0 is 02:00:00:00:66:66 now"),
        timeout=3,
        what="log line",
    )
    lab.client.ip("neigh flush dev eth0")
    sniffer = lab.client.start(["tcpdump", "-nei", "eth0", "-c", "1", "icmp[icmptype] == icmp-echoreply"])
    wait_until(lambda: "listening on" in sniffer.log(), timeout=5, what="tcpdump")
    ping(lab, SERVER[0])
    assert sniffer.wait(5) == 0 and "02:00:00:00:66:66 >" in sniffer.output()


def test_interface_goes_down_and_comes_back(lab: Lab, gateways: Gateways) -> None:
    ping(lab, SERVER[0])
    gateway = lab.spaces["gwa"]
    gateway.ip("link set lan0 down")
    wait_until(lambda: log_has(gateways.a, r"port lan: interface lan0 is down"), timeout=3, what="log line")
    assert gateways.a.status()["ports"][0]["link"] == "down"
    gateway.ip("link set lan0 up")
    wait_until(lambda: log_has(gateways.a, r"port lan: interface lan0 is up"), timeout=3, what="log line")
    wait_until(
        lambda: lab.client.run(["ping", "-c", "1", "-W", "1", SERVER[0]], check=False).wait(0) == 0,
        timeout=10,
        what="traffic after the interface came back",
    )


def test_reload(lab: Lab, gateways: Gateways) -> None:
    a = gateways.a
    text = a.config_path.read_text()
    ping(lab, SERVER[0])
    before = {sa["name"]: sa for sa in a.status()["sas"]}
    reload(a, text, r"reloaded: nothing changed")
    # A file with errors: all are named, nothing changes.
    reload(
        a,
        text.replace("spi = 4097", "spi = 1").replace('proposal = "aes', 'proposal = "aess'),
        r"not loaded; the gateway goes on as it was",
    )
    assert log_has(a, r"sa\[0\]\.spi") and log_has(a, r"sa\[1\]\.proposal")
    reload(a, "[[[", r"is no valid TOML")
    ping(lab, SERVER[0])
    # One more SA, one changed, policies narrowed; the tunnel's numbers go on.
    extra = (
        text + '\n[[sa]]\nname = "spare"\ndirection = "in"\nspi = 0x2002\nlocal = "198.51.100.1"\n'
        f'remote = "198.51.100.2"\nproposal = "chacha20poly1305"\nencryption_key = "{os.urandom(36).hex()}"\n'
        '[[policy]]\nname = "more"\naction = "protect"\nremote = "10.77.0.0/16"\nout = "from-gwa"\nin = "spare"\n'
    )
    extra = extra.replace("workers = 2", "workers = 1").replace(
        'direction = "out"', 'direction = "out"\nttl = 33'
    )
    reload(a, extra, r"reloaded: 1 SA added, 1 SA replaced, policies replaced$")
    assert log_has(a, r"a restart is needed for changes of gateway\.workers")
    ping(lab, SERVER[0])
    after = {sa["name"]: sa for sa in a.status()["sas"]}
    assert set(after) == {"from-gwa", "from-gwb", "spare"}, a.log(20)
    assert after["from-gwa"]["sequence"] > before["from-gwa"]["sequence"]
    assert after["from-gwb"]["sequence"] > before["from-gwb"]["sequence"]
    narrowed = extra.replace('"10.2.0.0/24"', '"10.2.0.0/31"')
    reload(a, narrowed, r"reloaded: 1 SA replaced, policies replaced")
    refused = a.status()["sas"]
    assert lab.client.run(["ping", "-c", "1", "-W", "1", SERVER[0]], check=False).wait(0) != 0
    reload(a, text, r"reloaded: 2 SAs replaced, 1 SA removed, policies replaced")
    ping(lab, SERVER[0])
    assert "spare" in {sa["name"] for sa in refused}
    assert "spare" not in {sa["name"] for sa in a.status()["sas"]}


def test_two_gateways_cannot_share_a_directory(lab: Lab, gateways: Gateways) -> None:
    a = gateways.a
    other = lab.spaces["gwa"].run([*a.command("run", "-c", str(a.config_path))], check=False, timeout=20)
    assert other.wait(0) == 1 and "belongs to a gateway that runs" in other.log()
    ping(lab, SERVER[0])


def test_no_secret_shows_and_the_end_is_clean(lab: Lab, gateways: Gateways) -> None:
    """Last of those that share the two gateways."""
    a = gateways.a
    ping(lab, SERVER[0])
    status = json.dumps(a.status())
    started = time.monotonic()
    assert a.stop() == 0
    assert time.monotonic() - started < 4
    assert not (a.directory / "run" / "status.sock").exists()
    keys = re.findall(r'encryption_key = "([0-9a-f]+)"', a.config_path.read_text())
    assert len(keys) == 2 and not any(key in a.log(10000) or key in status for key in keys)
    assert "Traceback" not in a.log(10000) and "interface lan0 is gone" not in a.log(10000)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            ('interface = "lan0"', 'interface = "lan7"'),
            r"port lan: there is no interface lan7; there are .*lan0.*mend port\.interface",
        ),
        (
            ('interface = "lan0"', 'interface = "lo"'),
            r"port lan: lo is no Ethernet interface; use driver = \"tun\", \"udp\" or \"raw\"",
        ),
        (("workers = 2", "workers = 3"), r"lan0 has 2 receive queues for 3 workers.*(ethtool|set workers)"),
        (('/state"', '/notify/x"'), r"state directory|notify/x"),
    ],
)
def test_what_cannot_start_says_why(
    lab: Lab, tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    gateway = Gateway(lab, "gwa", "xdp", Tunnel())
    text = gateway.config_path.read_text()
    assert change[0] in text
    (gateway.directory / "notify").unlink(missing_ok=True)
    (gateway.directory / "notify").write_text("")
    gateway.config_path.write_text(text.replace(*change))
    program = lab.spaces["gwa"].run(
        gateway.command("run", "-c", str(gateway.config_path)), check=False, timeout=30
    )
    assert program.wait(0) == 1 and re.search(complaint, program.log()), program.log()
    assert "Traceback" not in program.log()
    (gateway.directory / "notify").unlink()


def test_an_interface_that_returns_is_opened_anew(lab: Lab) -> None:
    """A cable of its own, which is pulled out and put back; numbers go on behind those that were sent."""
    with make_lab("packet") as own, Gateways(own, "packet") as gateways:
        ping(own, SERVER[0])
        before = gateways.a.status()["sas"][0]["sequence"]
        gateway, client = own.spaces["gwa"], own.client
        gateway.ip("link del lan0")
        wait_until(
            lambda: log_has(gateways.a, r"port lan: interface lan0 is gone"), timeout=3, what="log line"
        )
        assert gateways.a.status()["ports"][0]["link"] == "gone"
        gateway.ip(
            f"link add lan0 type veth peer name eth0 netns {client.name}",
            "address add 10.1.0.1/24 dev lan0",
            "link set lan0 up",
        )
        client.ip("address add 10.1.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.1.0.1")

        def filtered() -> bool:
            shown = subprocess.run(
                ["tc", "-n", gateway.name, "filter", "show", "dev", "wan0", "ingress"],
                capture_output=True,
                check=True,
            )
            return b"steer_tc" in shown.stdout

        # The other port's program drops what it steers all the time: nothing passes in clear meanwhile.
        seen: list[bool] = []
        wait_until(
            lambda: (
                seen.append(filtered()) or len(re.findall(r"2 workers, ports", gateways.a.log(1000))) == 2
            ),
            timeout=15,
            what=f"the second start; {gateways.a.log(10)}",
        )
        assert log_has(gateways.a, r"port lan: interface lan0 is back; starting again")
        assert len(seen) > 5 and all(seen)
        wait_until(
            lambda: client.run(["ping", "-c", "1", "-W", "1", SERVER[0]], check=False).wait(0) == 0,
            timeout=15,
            what=f"traffic after the return; {gateways.a.log(10)}",
        )
        assert gateways.a.status()["sas"][0]["sequence"] > before
        assert gateways.a.stop() == 0
