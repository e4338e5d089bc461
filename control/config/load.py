"""From TOML to `Config`: 1 read the file 2 read each table 3 cross-check 4 raise all problems at once.

Nothing else in the project raises ConfigError. Whatever reads a table notes problems in a Report and goes
on, so that one run of the program shows all of them.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from control.config.checks import (
    check_bundles,
    check_encap_ports,
    check_file_mode,
    check_names,
    check_policies,
    check_ports,
    check_sas,
    check_use,
)
from control.config.children import duration
from control.config.ike import read_ike
from control.config.policies import Policy, read_policies
from control.config.problems import ConfigError, Problem, kind, show
from control.config.sas import read_sa
from control.config.schema import DRIVERS, Config, GatewaySettings, PortConfig
from control.config.table import Report, Table, is_name
from control.config.values import parse_address, parse_interface_address
from dataplane.model import Direction, Mode, Protocol, Role, SaSpec, SelectorSpec

T = TypeVar("T")


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in a file; ConfigError names every problem in it."""
    source = os.fspath(path)
    report = Report()
    try:
        with open(source, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except OSError as error:
        raise ConfigError(source, [Problem(path="", message=f"cannot be read: {error.strerror}")]) from None
    try:
        # As Windows' editors write it.
        values = tomllib.loads(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(source, [Problem(path="", message=f"is not UTF-8 at byte {error.start}")]) from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(source, [Problem(path="", message=f"is no valid TOML: {_syntax(error)}")]) from None
    check_file_mode(report, source, mode, values)
    return parse(values, source=source, report=report)


def parse(
    values: Mapping[str, object], *, source: str = "configuration", report: Report | None = None
) -> Config:
    """The configuration in an already decoded TOML document; ConfigError names every problem in it."""
    report = report or Report()
    top = Table(report, "", values)
    gateway = _read_gateway(top.table("gateway"))
    port_tables, sa_tables, policy_tables = _tables(top, "port"), _tables(top, "sa"), _tables(top, "policy")
    if not port_tables and top.values.get("connections") and not top.has("port"):
        port_tables = _default_ports(report)
    nat_port = _nat_port(values)
    ports = [(table, port) for table in port_tables if (port := _read_port(table, nat_port)) is not None]
    unprotected = {port.driver for _, port in ports if port.role is Role.UNPROTECTED}
    ike = read_ike(top, Path(source).absolute().parent, only_udp=unprotected == {"udp"})
    ike = replace(ike, settings=replace(ike.settings, workers=gateway.workers))
    top.finish()
    if ike.connections:
        check_encap_ports(ports, nat_port)
    sas = [(table, sa) for table in sa_tables if (sa := read_sa(table)) is not None]
    # A broken SA is not an unknown one: policies are held against the names as written.
    names = [table.label for table in sa_tables if table.label]
    policies = read_policies(policy_tables, names)
    for tables in (port_tables, sa_tables, policy_tables):
        check_names(tables)
    check_sas(report, sas)
    check_bundles(sas, names, policies)
    check_ports(report, ports, sas, ike=bool(ike.connections))
    check_policies(policies, {sa.name: sa for _, sa in sas})
    check_use(sas, policy_tables)
    if report.problems:
        raise ConfigError(source, report.problems)
    outers = {sa.outer: sa for _, sa in sas if sa.outer is not None}
    hosts = any(sa.mode is Mode.TRANSPORT and sa.name not in outers for _, sa in sas)
    if hosts and not any(port.driver == "tun" for _, port in ports):
        report.warn(
            "port",
            'no port has driver = "tun", which this host\'s own traffic comes by, and SAs in transport mode protect '
            "nothing else",
        )
    return Config(
        source=source,
        gateway=gateway,
        ports=tuple(port for _, port in ports),
        sas=_bundled([sa if sa.name in outers else _with_selectors(sa, policies) for _, sa in sas]),
        policies=tuple(spec for policy in policies for spec in policy.specs),
        ike=ike,
        warnings=tuple(report.warnings),
    )


def _default_ports(report: Report) -> list[Table]:
    """Without any [[port]], tunnels of IKE lead to this host: a TUN device and UDP sockets, which work anywhere."""
    tun = {"name": "tun", "role": "protected", "driver": "tun", "interface": "esplanade0"}
    udp = {"name": "udp", "role": "unprotected", "driver": "udp"}
    return [Table(report, f"port[{index}]", values) for index, values in enumerate((tun, udp))]


def _with_selectors(sa: SaSpec, policies: list[Policy]) -> SaSpec:
    """Give an inbound SA the selectors of the policies that name it (RFC 4301 section 5.2)."""
    if sa.direction is not Direction.IN:
        return sa
    found = [spec.selector for policy in policies if sa.name in policy.inbound for spec in policy.specs]
    return replace(sa, selectors=tuple(dict.fromkeys(found)))


def _bundled(sas: list[SaSpec]) -> tuple[SaSpec, ...]:
    """Tell those in an SA bundle how long their AH is; an inbound AH takes ESP between its ends, and nothing else."""
    known = {sa.name: sa for sa in sas}
    outers = {sa.outer for sa in sas}
    found = []
    for sa in sas:
        if sa.outer is not None:
            sa = replace(sa, outer_length=known[sa.outer].ah_length)
        elif sa.name in outers and sa.direction is Direction.IN:
            inside = SelectorSpec(
                local_first=sa.local,
                local_last=sa.local,
                remote_first=sa.remote,
                remote_last=sa.remote,
                protocol=int(Protocol.ESP),
            )
            sa = replace(sa, selectors=(inside,))
        found.append(sa)
    return tuple(found)


def _tables(top: Table, key: str) -> list[Table]:
    """The tables [[key]], those that are tables."""
    value = top.raw(key)
    if value is None:
        return []
    if not isinstance(value, list):
        top.error(key, f"got {kind(value)}, want tables [[{key}]] (with double brackets)")
        return []
    found = []
    for index, entry in enumerate(value):
        if isinstance(entry, dict):
            found.append(Table(top.report, f"{key}[{index}]", entry))
        else:
            top.error(f"{key}[{index}]", f"got {kind(entry)}, want a table [[{key}]]")
    return found


def _read_gateway(table: Table) -> GatewaySettings:
    cpus = _cpu_list(table)
    usable = len(os.sched_getaffinity(0))
    settings = GatewaySettings(
        workers=table.integer("workers", 1, 64, len(cpus) or min(usable, 64), "processes"),
        cpus=cpus,
        deal=table.boolean("deal", True),
        spin=table.boolean("spin", True),
        engine=table.choice("engine", ("auto", "ipsec-mb", "openssl"), "auto") or "auto",
        state_dir=_directory(table, "state_dir", "/var/lib/esplanade"),
        run_dir=_directory(table, "run_dir", "/run/esplanade"),
        log_level=table.choice("log_level", ("debug", "info", "warning", "error"), "info") or "info",
        log_json=table.boolean("log_json", False),
        path_mtu_age=duration(table, "path_mtu_age", 600.0, least=1.0, never=False),
    )
    table.finish()
    return settings


def _cpu_list(table: Table) -> tuple[int, ...]:
    value = table.raw("cpus")
    if value is None:
        return ()
    want = "a list of different CPU numbers such as [0, 1]"
    if not isinstance(value, list) or not value:
        table.error("cpus", f"got {kind(value)} ({show(value)}), want {want}")
        return ()
    good = [cpu for cpu in value if isinstance(cpu, int) and not isinstance(cpu, bool) and 0 <= cpu < 4096]
    if len(good) != len(value) or len(set(good)) != len(good):
        table.error("cpus", f"got {', '.join(show(cpu) for cpu in value[:16])}, want {want}")
        return ()
    return tuple(good)


def _directory(table: Table, key: str, default: str) -> Path:
    text = table.text(key)
    if text is None:
        return Path(default)
    if not text.startswith("/") or "\0" in text:
        table.error(key, f"got {show(text)}, want an absolute path such as {default}")
        return Path(default)
    return Path(text)


def _nat_port(values: Mapping[str, object]) -> int:
    """[ike] nat_port, which is the ports' encap_port where that is not written; 4500 if it is missing or wrong."""
    ike = values.get("ike")
    port = ike.get("nat_port") if isinstance(ike, dict) else None
    return port if isinstance(port, int) and 1 <= port <= 65535 else 4500


def _read_port(table: Table, nat_port: int) -> PortConfig | None:
    before = len(table.report.problems)
    if not table.has("name"):
        table.label = _port_name(table)
    name = table.name() if table.has("name") or not table.label else table.label
    table.raw("name")
    role = table.choice("role", ("protected", "unprotected"), None)
    driver = table.choice("driver", DRIVERS, None)
    mtu = table.integer("mtu", 576, 65535, None, "bytes of IP packet")
    interface = _interface(table, driver)
    mode, zero_copy = _xdp_mode(table, driver), _zero_copy(table, driver)
    polls = _only(table, "busy_poll", driver, ("xdp",))
    busy_poll = table.integer("busy_poll", 0, 1000, 0, "microseconds") if polls else 0
    encaps = _only(table, "encap_port", driver, ("udp", "xdp", "packet"))
    encap_port = table.integer("encap_port", 1, 65535, nat_port) if encaps else nat_port
    addresses = _addresses(table, "addresses", driver, ("tun",), parse_interface_address)
    bind = _addresses(table, "bind", driver, ("udp", "raw"), parse_address)
    routes = table.boolean("routes", True) if _only(table, "routes", driver, ("tun",)) else True
    table.finish()
    if name is None or role is None or driver is None or len(table.report.problems) > before:
        return None
    return PortConfig(
        name=name,
        role=Role(role),
        driver=driver,
        interface=interface,
        xdp_mode=mode,
        zero_copy=zero_copy,
        busy_poll=busy_poll,
        mtu=mtu,
        encap_port=encap_port,
        addresses=addresses,
        bind=bind,
        routes=routes,
    )


def _port_name(table: Table) -> str:
    """The name of a port that is given none: its interface's, else its driver's."""
    for key in ("interface", "driver"):
        value = table.values.get(key)
        if isinstance(value, str) and is_name(value):
            return value
    return ""


def _interface(table: Table, driver: str | None) -> str:
    """The interface name: needed by xdp, packet and tun; refused where the routes choose."""
    if driver in ("udp", "raw"):
        if table.raw("interface") is not None:
            table.error(
                "interface",
                f"has no meaning for the {driver} driver: the kernel's routes choose; leave it out",
            )
        return ""
    want = "an interface name of 1 to 15 characters" + (" for the device to make" if driver == "tun" else "")
    name = table.text("interface", required=want)
    if name is not None and (len(name.encode()) > 15 or re.search(r"[\s/:%\0]", name) or name in (".", "..")):
        table.error("interface", f"got {show(name)}, want {want}")
        return ""
    return name or ""


def _only(table: Table, key: str, driver: str | None, drivers: tuple[str, ...]) -> bool:
    """True when `key` may be read; a problem when it is written for a driver that has no use for it."""
    if driver is None or driver in drivers:
        return True
    if table.raw(key) is not None:
        table.error(
            key, f"has no meaning for the {driver} driver, only for {' and '.join(drivers)}; leave it out"
        )
    return False


def _addresses(
    table: Table, key: str, driver: str | None, drivers: tuple[str, ...], parse_one: Callable[[str], T]
) -> tuple[T, ...]:
    """An address or a list of them, for the drivers that have a use for it."""
    if not _only(table, key, driver, drivers):
        return ()
    return tuple(table.parsed_list(key, parse_one, want="an address or a list of addresses") or ())


def _xdp_mode(table: Table, driver: str | None) -> str:
    """How the XDP program is attached; auto tries native first."""
    if not _only(table, "mode", driver, ("xdp",)):
        return "auto"
    return table.choice("mode", ("auto", "native", "generic"), "auto") or "auto"


def _zero_copy(table: Table, driver: str | None) -> str:
    """auto, on or off; true and false are understood too."""
    if not _only(table, "zero_copy", driver, ("xdp",)):
        return "auto"
    value = table.raw("zero_copy")
    if isinstance(value, bool):
        return "on" if value else "off"
    return table.choice("zero_copy", ("auto", "on", "off"), "auto") or "auto"


def _syntax(error: Exception) -> str:
    """What tomllib says, which names line and column."""
    if isinstance(error, RecursionError):
        return "its arrays or tables are nested too deeply"
    return str(error) or type(error).__name__
