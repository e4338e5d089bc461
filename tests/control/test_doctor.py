"""Doctor: each finding, from the facts that it is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from control import cli
from control.config import PortConfig, parse
from control.doctor import Level, examine, format_findings, host
from control.doctor import config_checks as checks
from control.doctor.findings import bad, ok
from control.net.kernel import Interface
from control.net.xdpinfo import XdpFeatures
from dataplane.model import Role
from tests.control.config.good import changed

ETH = Interface(name="eth0", index=7, mtu=1500, up=True, ethernet=True, driver="ixgbe", receive_queues=2)
NATIVE = {7: XdpFeatures(native=True, zero_copy=True)}


def port(**values: object) -> PortConfig:
    fields = {"name": "p", "role": Role.PROTECTED, "driver": "xdp", "interface": "eth0", **values}
    return PortConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.18.4", Level.OK),
        ("6.1.0-18-amd64", Level.OK),
        ("5.15.0", Level.WARN),
        ("5.4.0", Level.BAD),
        ("odd", Level.WARN),
    ],
)
def test_kernel(release: str, level: Level) -> None:
    finding = host.check_kernel(release)
    assert finding.level is level and (level is Level.OK or finding.mend)


def test_capabilities() -> None:
    everything = (1 << 41) - 1
    assert host.check_capabilities(everything, {"xdp"}, [500]).level is Level.OK
    without_bpf = everything & ~(1 << 38 | 1 << 39)
    assert host.check_capabilities(without_bpf, {"xdp"}).level is Level.OK  # CAP_SYS_ADMIN stands in
    finding = host.check_capabilities(1 << 12, {"xdp"}, [500])
    assert finding.level is Level.BAD
    for name in ("CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON", "CAP_NET_BIND_SERVICE (IKE's port 500)"):
        assert name in finding.text
    assert "CapabilityBoundingSet=" in finding.mend and "--cap-add PERFMON" in finding.mend
    finding = host.check_capabilities(1 << 12, {"tun"})
    assert "CAP_BPF" not in finding.text and "CAP_NET_BIND_SERVICE" not in finding.text


def test_capabilities_that_a_start_can_do_without() -> None:
    everything = (1 << 41) - 1
    assert host.check_spare_capabilities(everything, {"xdp"}) == []
    assert host.check_spare_capabilities(everything & ~(1 << 21), {"packet"}) == []
    (finding,) = host.check_spare_capabilities(everything & ~(1 << 21), {"xdp"})
    assert finding.level is Level.WARN and "xdp off" in finding.mend
    (finding,) = host.check_spare_capabilities(0, {"tun"})
    assert "CAP_SETUID (workers stay root)" in finding.text and "CAP_KILL" in finding.mend


def test_only_low_ports_of_ike_want_a_capability() -> None:
    connection = {"connections": {"c": {"remote_addrs": "192.0.2.2", "psk": "correct horse battery"}}}
    assert host._low_ports(parse(connection)) == [500]
    assert host._low_ports(parse({**connection, "ike": {"port": 1500}})) == []
    assert host._low_ports(parse(changed("gateway.workers", 1))) == []


def test_memlock() -> None:
    assert host.check_memlock(0, 1 << 14).level is Level.OK
    assert host.check_memlock(-1, 0).level is Level.OK
    assert host.check_memlock(8 << 20, 0).level is Level.BAD


def test_cpu_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu aes avx2\n")
    assert [finding.level for finding in host.check_cpu(info)] == [Level.OK, Level.OK]
    info.write_text("flags : fpu\n")
    assert host.check_cpu(info)[1].level is Level.WARN
    assert host.check_cpu(tmp_path / "missing")[1].level is Level.WARN


def test_devices(tmp_path: Path) -> None:
    assert host.check_tun_device(tmp_path / "tun").level is Level.BAD
    (tmp_path / "tun").write_text("")
    assert host.check_tun_device(tmp_path / "tun").level is Level.OK


def test_xdp_port() -> None:
    assert [finding.level for finding in checks.check_xdp(port(), ETH, 2, NATIVE)] == [Level.OK]
    text = checks.check_xdp(port(), ETH, 2, NATIVE)[0].text
    assert "native, zero-copy" in text and "ixgbe" in text
    generic = {7: XdpFeatures(native=False, zero_copy=False)}
    assert checks.check_xdp(port(), ETH, 2, generic)[0].level is Level.WARN
    assert checks.check_xdp(port(xdp_mode="native"), ETH, 2, generic)[0].level is Level.BAD
    copying = {7: XdpFeatures(native=True, zero_copy=False)}
    assert checks.check_xdp(port(zero_copy="on"), ETH, 2, copying)[0].level is Level.BAD
    few = checks.check_xdp(port(), ETH, 4, NATIVE)[-1]
    assert few.level is Level.BAD and "gateway.workers = 2" in few.mend and "combined 4" in few.mend
    veth = Interface(name="eth0", index=7, mtu=65535, up=True, ethernet=True, driver="", receive_queues=3)
    findings = checks.check_xdp(port(), veth, 2, None)
    assert [finding.level for finding in findings] == [Level.OK, Level.BAD, Level.BAD]
    assert "ip link set eth0 mtu 16050" in findings[1].mend and "numrxqueues 2" in findings[2].mend


def test_jumbo_port() -> None:
    """Several buffers want a kernel that has them, and of a veth pair an other end that sends no super-frames."""
    veth, card = replace(ETH, mtu=9000, driver=""), replace(ETH, mtu=9000)
    assert checks.check_jumbo(card, "port lan", (6, 6)) == []
    (old,) = checks.check_jumbo(card, "port lan", (6, 5))
    assert old.level is Level.BAD and "Linux 6.6" in old.text and old.mend == "ip link set eth0 mtu 3498"
    (offloads,) = checks.check_jumbo(veth, "port lan", (6, 18))
    assert offloads.level is Level.WARN and "tso off" in offloads.mend
    (found,) = checks.check_xdp(port(), replace(ETH, mtu=3498), 2, NATIVE)
    assert found.level is Level.OK


def test_workers() -> None:
    assert checks.check_workers(2, 2).level is Level.OK
    assert checks.check_workers(3, 2).mend == "set gateway.workers = 2"


def test_paths() -> None:
    values = changed("sa.0.local", "127.0.0.1")
    values["sa"][0]["remote"] = "127.0.0.2"
    (finding,) = checks.check_paths(parse(values))
    assert (finding.level is Level.OK and "path MTU 65535" in finding.text) or "65536" in finding.text
    (finding,) = checks.check_paths(parse(changed("sa.0.local", "198.51.100.77")))
    assert finding.level is Level.BAD and "198.51.100.77 is no address of this host" in finding.text


def test_directories(tmp_path: Path) -> None:
    values = changed("gateway.state_dir", str(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    values["gateway"]["run_dir"] = str(tmp_path / "file" / "run")
    state, run = checks.check_directories(parse(values))
    assert state.level is Level.OK and run.level is Level.BAD and "gateway.run_dir" in run.mend


def test_report_and_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert format_findings([ok("a", "fine"), bad("bcd", "broken", "mend it")]).splitlines() == [
        "ok    a    fine",
        "bad   bcd  broken",
        "           -> mend it",
        "1 ok, 0 warn, 1 bad",
    ]
    text = (Path(__file__).parents[2] / "examples" / "site-to-site.toml").read_text()
    path = tmp_path / "x.toml"
    path.write_text(text.replace("eth0", "nosuch0").replace("eth1", "nosuch1"))
    assert cli.main(["doctor", "--config", str(path), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {
        "subject": "port wan",
        "level": "bad",
        "text": "there is no interface nosuch0",
        "mend": "ip link show; then mend port.interface",
    } in findings
    path.write_text(text.replace("spi = 0x1001", "spi = 1"))
    assert cli.main(["doctor", "--config", str(path)]) == 2
    assert "sa[0].spi" in capsys.readouterr().err


def test_every_finding_that_is_not_ok_says_what_mends_it() -> None:
    for finding in examine(parse(changed("port.0.interface", "nosuch0"))):
        assert finding.text and (finding.level is Level.OK) == (not finding.mend), finding
