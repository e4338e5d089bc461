"""The xdp driver's opening and its refusals, on veth pairs inside one namespace."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from control.lab.space import Space, free_tag, make_spaces
from dataplane.model import PortSpec, Role
from dataplane.ports import drivers, xdp
from dataplane.ports.errors import PortError
from ext.packet import Pool


def spec(interface: str, role: Role = Role.PROTECTED, **fields: object) -> PortSpec:
    """A port on an interface, named after it."""
    return PortSpec(
        **{"name": f"port-{interface}", "role": role, "driver": "xdp", "interface": interface, **fields}
    )


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A namespace with a veth pair of two queues (two0) and one of a single queue (one0)."""
    (made,) = make_spaces([f"esp-{free_tag()}-ports"], tmp_path_factory.mktemp("space"))
    try:
        one, two = (f"numrxqueues {count} numtxqueues {count}" for count in (1, 2))
        made.ip(
            f"link add two0 {two} type veth peer two1 {two}",
            f"link add one0 {one} type veth peer one1 {one}",
            *[f"link set {name} up" for name in ("two0", "two1", "one0", "one1")],
        )
        yield made
    finally:
        made.close()


@pytest.mark.root
def test_queues_must_be_as_many_as_workers(space: Space) -> None:
    """One queue per worker passes; any other number is refused with the command that mends it."""
    assert space.call(lambda: xdp.channels("two0")) == xdp.Channels(receive=2, receive_most=2, combined=False)
    assert space.call(lambda: xdp.channels("one0")).receive_most == 1
    assert space.call(lambda: xdp.channels("lo")) == xdp.Channels(receive=1, receive_most=1, combined=False)
    space.call(lambda: xdp.check_interface(spec("two0"), 2))
    space.call(lambda: xdp.check_interface(spec("one0"), 1))
    for interface, workers, message in (
        ("two0", 1, "port-two0: two0 has 2 receive queues for 1 workers; .*: ethtool -L two0 rx 1 tx 1"),
        (
            "two0",
            3,
            "can have 2 at most: set workers to 2 .*ip link add two0 numrxqueues 3 numtxqueues 3 type veth",
        ),
        ("one0", 2, "can have 1 at most"),
        ("two0", 300, "serves 256 at most"),
    ):
        with pytest.raises(PortError, match=message):
            space.call(
                lambda interface=interface, workers=workers: xdp.check_interface(spec(interface), workers)
            )
    space.run(["ethtool", "-L", "two0", "rx", "1"])
    with pytest.raises(PortError, match="two0 has 1 receive queues for 2 workers: ethtool -L two0 rx 2 tx 2"):
        space.call(lambda: xdp.check_interface(spec("two0"), 2))
    space.run(["ethtool", "-L", "two0", "rx", "2"])
    with pytest.raises(OSError, match="ask none0 for its queues"):
        space.call(lambda: xdp.channels("none0"))


def test_frame_size_follows_the_largest_mtu() -> None:
    """The smallest frames that carry all packets, an error with the command where none does, and fewer large ones."""
    for most, size in ((1714, 2048), (3762, 4096), (7858, 8192), (16050, 16384)):
        assert xdp.largest_mtu(size) == most
        assert xdp.frame_size_for([spec("a"), spec("b", mtu=most)]) == size
        if most < 16050:
            assert xdp.frame_size_for([spec("a"), spec("b", mtu=most + 1)]) == 2 * size
    with pytest.raises(
        PortError, match=r"port-b: b has an MTU of 65535; .* 16050 at most: ip link set dev b mtu 16050"
    ):
        xdp.frame_size_for([spec("a"), spec("b", mtu=65535)])
    assert drivers.frame_count([spec("a"), spec("b")]) == 512 + 2 * 4096
    assert drivers.frame_count([spec("a"), spec("b", mtu=9000)]) == 512 + 2 * 2048


@pytest.mark.root
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_attach_and_open_all(space: Space, mode: str) -> None:
    """Two workers open their queues of two ports, each on one UMEM of its own; closing frees all."""
    specs = [spec("two0", xdp_mode=mode), spec("two1", Role.UNPROTECTED, xdp_mode=mode)]
    for _ in range(2):
        open_and_close(space, specs, mode)


def open_and_close(space: Space, specs: list[PortSpec], mode: str) -> None:
    """Attach to every port, open both queues, fail to open one again, close all."""
    local, remote = [ip_address("10.0.0.1"), ip_address("fd00::1")], [ip_network("10.2.0.0/16")]
    steerings = [
        space.call(lambda one=one: xdp.attach(one, addresses=local, remotes=remote)) for one in specs
    ]
    assert [steering.mode for steering in steerings] == [mode, mode]
    attachments = [xdp.Attachment(xsks_fd=one.xsks_fd, mode=one.mode) for one in steerings]
    pairs = list(zip(specs, attachments, strict=True))
    opened = [space.call(lambda k=k: xdp.open_ports(pairs, k, Pool(512), ring=128)) for k in (0, 1)]
    assert [[port.mode for port in ports] for ports in opened] == [[f"{mode}/copy"] * 2] * 2
    assert [[port.name for port in ports] for ports in opened] == [["port-two0", "port-two1"]] * 2
    with pytest.raises(OSError) as caught:
        space.call(lambda: xdp.open_ports(pairs[:1], 0, Pool(512)))
    assert caught.value.errno == errno.EBUSY
    for ports in opened:
        for port in ports:
            port.close()
    for steering in steerings:
        steering.close()


@pytest.mark.root
def test_zero_copy_is_one_choice(space: Space) -> None:
    """Ports that share frames share the mode; veth can only copy, and says so when asked for more."""
    steering = space.call(lambda: xdp.attach(spec("one0")))
    attachment = xdp.Attachment(xsks_fd=steering.xsks_fd, mode=steering.mode)
    choices = [(spec("one0", zero_copy=choice), attachment) for choice in ("on", "off")]
    with pytest.raises(PortError, match=r"one choice for all xdp ports.*port-one0 on, port-one0 off"):
        xdp.open_ports(choices, 0, Pool(64))
    with pytest.raises(OSError, match="one0 queue 0: zero-copy: Operation not supported"):
        space.call(lambda: xdp.open_ports(choices[:1], 0, Pool(64)))
    (port,) = space.call(lambda: xdp.open_ports(choices[1:], 0, Pool(64)))
    port.close()
    steering.close()


def test_object_is_where_the_package_is() -> None:
    """The compiled program lies beside the extension modules."""
    assert xdp.STEER_OBJECT.is_file()
    assert xdp.STEER_OBJECT.parent.parent == Path(xdp.ext.__file__).parent
