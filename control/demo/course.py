"""Between whom the demo tries what: the two ends, the gateways between them, and pings along the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from control.lab.gateway import Gateways, IkeTunnel, Tunnel
from control.lab.space import LabError, Program, Space, wait_until
from control.lab.topology import Address, Lab, address
from control.lab.traffic import finish_ping, start_ping

UP_SECONDS = 30.0  # a bound for the tunnel to come up, not an expectation


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is tried: "tunnel", from the client to the server, or "transport", from gateway A to gateway B.

    ESP by IKE, or AH with keys by hand.
    """

    mode: str = "tunnel"
    protocol: str = "esp"

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP."""
        return (4, 6) if self.mode == "tunnel" else (4,)

    def spaces(self, lab: Lab) -> tuple[Space, Space]:
        """The two ends."""
        return (lab.client, lab.server) if self.mode == "tunnel" else (lab.spaces["gwa"], lab.spaces["gwb"])

    def targets(self, version: int = 4) -> tuple[Address, Address]:
        """Their addresses."""
        if self.mode == "tunnel":
            return address("client", "eth0", version), address("server", "eth0", version)
        return address("gwa", "wan0", version), address("gwb", "wan0", version)


TUNNEL = Course()


@contextmanager
def tunnel(lab: Lab, driver: str, course: Course = TUNNEL) -> Iterator[Gateways]:
    """Both gateways, with a new CA or, for AH, new keys, and the child SAs between them up."""
    if course.protocol == "ah":
        with Gateways(lab, driver, Tunnel.of_ah()) as gateways:
            yield gateways
        return
    with Gateways(lab, driver, IkeTunnel.make(lab.directory, mode=course.mode)) as gateways:
        for gateway in (gateways.a, gateways.b):
            try:
                wait_until(gateway.children_up, timeout=UP_SECONDS, what="the tunnel comes up")
            except LabError as error:
                raise LabError(f"{error}; the log of {gateway.host} ends with:\n{gateway.log()}") from None
        yield gateways


def ping_all(lab: Lab, count: int, course: Course = TUNNEL) -> tuple[int, int]:
    """Ping from both ends in both families at once; returns (sent, lost)."""
    return finish_pings(start_pings(lab, count, course), count)


def start_pings(lab: Lab, count: int, course: Course = TUNNEL) -> list[Program]:
    """From both ends in each family."""
    near, far = course.spaces(lab)
    found = []
    for version in course.versions:
        near_address, far_address = course.targets(version)
        found.append(start_ping(near, far_address, count=count))
        found.append(start_ping(far, near_address, count=count))
    return found


def finish_pings(running: Sequence[Program], count: int) -> tuple[int, int]:
    """Wait for them; returns (sent, lost)."""
    done = [finish_ping(program, count=count) for program in running]
    return sum(pings.sent for pings in done), sum(pings.lost for pings in done)


def warm_up(lab: Lab, course: Course = TUNNEL) -> None:
    """Let neighbours and path MTU be learned before anything is measured."""
    ping_all(lab, 3, course)
