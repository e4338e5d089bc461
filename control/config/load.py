"""From TOML to `Config`: 1 read the file 2 read each table 3 cross-check 4 raise all problems at once.

Nothing else in the project raises ConfigError. Whatever reads a table notes problems in a Report and goes
on, so that one run of the program shows all of them.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from control.config.checks import (
    check_encap_ports,
    check_file_mode,
    check_names,
    check_policies,
    check_ports,
    check_sas,
    check_use,
)
from control.config.ike import read_ike
from control.config.policies import Policy, read_policies
from control.config.problems import ConfigError, Problem, kind, show
from control.config.proposal import EXAMPLES, format_proposal, parse_proposal
from control.config.schema import DRIVERS, Config, GatewaySettings, PortConfig
from control.config.table import Report, Table, is_name
from control.config.values import parse_address, parse_hex, parse_interface_address, parse_spi
from dataplane.model import Df, Direction, Encap, EspProposal, Role, SaSpec

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
        values = tomllib.loads(data.decode("utf-8"))
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
    gateway = _read_gateway(_table(top, "gateway"))
    port_tables, sa_tables, policy_tables = _tables(top, "port"), _tables(top, "sa"), _tables(top, "policy")
    if not port_tables and top.values.get("connections") and not top.has("port"):
        port_tables = _default_ports(report)
    nat_port = _nat_port(values)
    ports = [(table, port) for table in port_tables if (port := _read_port(table, nat_port)) is not None]
    unprotected = {port.driver for _, port in ports if port.role is Role.UNPROTECTED}
    ike = read_ike(top, Path(source).absolute().parent, only_udp=unprotected == {"udp"})
    top.finish()
    if ike.connections:
        check_encap_ports(ports, nat_port)
    sas = [(table, sa) for table in sa_tables if (sa := _read_sa(table)) is not None]
    # A broken SA is not an unknown one: policies are held against the names as written.
    policies = read_policies(policy_tables, [table.label for table in sa_tables if table.label])
    for tables in (port_tables, sa_tables, policy_tables):
        check_names(tables)
    check_sas(report, sas)
    check_ports(report, ports, sas)
    check_policies(policies, {sa.name: sa for _, sa in sas})
    check_use(sas, policy_tables)
    if report.problems:
        raise ConfigError(source, report.problems)
    return Config(
        source=source,
        gateway=gateway,
        ports=tuple(port for _, port in ports),
        sas=tuple(_with_selectors(sa, policies) for _, sa in sas),
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


def _table(top: Table, key: str) -> Table:
    """The table [key]; an empty one when it is absent or no table."""
    value = top.raw(key)
    if value is not None and not isinstance(value, dict):
        top.error(key, f"got {kind(value)}, want a table [{key}]")
    return Table(top.report, key, value if isinstance(value, dict) else {})


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
        engine=table.choice("engine", ("auto", "ipsec-mb", "openssl"), "auto") or "auto",
        state_dir=_directory(table, "state_dir", "/var/lib/esplanade"),
        run_dir=_directory(table, "run_dir", "/run/esplanade"),
        log_level=table.choice("log_level", ("debug", "info", "warning", "error"), "info") or "info",
        log_json=table.boolean("log_json", False),
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


def _read_sa(table: Table) -> SaSpec | None:
    before = len(table.report.problems)
    name = table.name()
    direction = table.choice("direction", ("in", "out"), None)
    spi = _spi(table)
    local = table.parsed("local", parse_address, required="this gateway's outer address")
    remote = table.parsed("remote", parse_address, required="the peer's outer address")
    if local is not None and remote is not None and local.version != remote.version:
        table.error(
            "remote", f"got an IPv{remote.version} address and local is IPv{local.version}, want one family"
        )
    proposal = table.parsed("proposal", parse_proposal, required=f"ESP algorithms such as {EXAMPLES}")
    encryption_key = _key(table, "encryption_key", proposal)
    integrity_key = _key(table, "integrity_key", proposal)
    largest = 2**64 - 2 if proposal is not None and proposal.esn else 2**32 - 1
    sequence = table.integer("sequence", 1, largest, 1, "the first number to send or expect")
    window = _window(table)
    encap = _encap(table)
    dscp = _dscp(table)
    ttl = table.integer("ttl", 1, 255, 64, "hops")
    df = table.choice("df", tuple(df.value for df in Df), "copy") or "copy"
    mss_clamp = table.boolean("mss_clamp", False)
    table.finish()
    if len(table.report.problems) > before:
        return None
    if (
        name is None
        or direction is None
        or spi is None
        or local is None
        or remote is None
        or proposal is None
    ):
        return None
    return SaSpec(
        name=name,
        direction=Direction(direction),
        spi=spi,
        local=local,
        remote=remote,
        proposal=proposal,
        encryption_key=encryption_key,
        integrity_key=integrity_key,
        encap=encap,
        replay_window=window,
        sequence=sequence,
        df=Df(df),
        dscp=dscp,
        ttl=ttl,
        mss_clamp=mss_clamp,
    )


def _spi(table: Table) -> int | None:
    """An SPI as number or string; 1 to 255 are reserved and 0 never goes on the wire (RFC 4303 section 2.1)."""
    want = 'want an SPI from 256 to 4294967295, such as 4097 or "0x1001"'
    value = table.raw("spi")
    if value is None:
        table.error("spi", f"is missing; {want}")
        return None
    try:
        spi = parse_spi(value) if isinstance(value, str) else value
    except ValueError as error:
        table.error("spi", f"got {show(value)}, {error}")
        return None
    if isinstance(spi, bool) or not isinstance(spi, int):
        table.error("spi", f"got {kind(value)} ({show(value)}), {want}")
        return None
    if not 256 <= spi <= 0xFFFFFFFF:
        table.error("spi", f"got {show(value)}, {want}")
        return None
    return spi


def _key(table: Table, key: str, proposal: EspProposal | None) -> bytes:
    """Key material in hex, of the length that the proposal wants; its bytes never enter a message."""
    text = table.text(key, secret=True)
    if proposal is None:
        return b""
    encryption = key == "encryption_key"
    length = proposal.encryption_key_length if encryption else proposal.integrity_key_length
    suite = format_proposal(proposal)
    parts = (
        f": {length - proposal.salt_length} key + {proposal.salt_length} salt"
        if encryption and proposal.is_aead
        else ""
    )
    want = f"{2 * length} hex digits ({length} bytes{parts}) for {suite}"
    if text is None:
        if length and not table.has(key):
            table.error(key, f"is missing; it wants {want}")
        return b""
    if length == 0:
        table.error(key, f"has no place with {suite}; leave it out")
        return b""
    try:
        material = parse_hex(text)
    except ValueError as error:
        table.error(key, f"got {error}, want {want}")
        return b""
    if len(material) != length:
        table.error(key, f"got {2 * len(material)} hex digits ({len(material)} bytes), want {want}")
    elif not any(material):
        table.error(
            key, f"got all zeros, want {want} from a random source, such as `openssl rand -hex {length}`"
        )
    return material


def _window(table: Table) -> int:
    window = table.integer("replay_window", 0, 4096, 1024, "numbers")
    if 0 < window < 64:
        table.error("replay_window", f"got {window}, want 0 (off) or a number from 64 to 4096")
    return window


def _encap(table: Table) -> Encap | None:
    """`true` for port 4500 both ways, or the two ports."""
    value = table.raw("encap")
    if value is None or value is False:
        return None
    if value is True:
        return Encap()
    if not isinstance(value, dict):
        table.error(
            "encap",
            f"got {kind(value)} ({show(value)}), want true, false or "
            "{ source_port = 4500, destination_port = 4500 }",
        )
        return None
    ports = Table(table.report, table.key("encap"), value)
    ports.label = table.label
    encap = Encap(
        source_port=ports.integer("source_port", 1, 65535, 4500),
        destination_port=ports.integer("destination_port", 1, 65535, 4500),
    )
    ports.finish()
    return encap


def _dscp(table: Table) -> int | None:
    """ "copy" (the default) or a fixed code point (RFC 4301 section 5.1.2.1)."""
    if table.values.get("dscp") == "copy":
        table.raw("dscp")
        return None
    return table.integer("dscp", 0, 63, None, 'code point, or "copy"')


def _syntax(error: Exception) -> str:
    """What tomllib says, which names line and column."""
    if isinstance(error, RecursionError):
        return "its arrays or tables are nested too deeply"
    return str(error) or type(error).__name__
