from collections.abc import Iterable

from ext.packet import Pool, PortHandle

class UdpPort(PortHandle):
    def __init__(
        self,
        pool: Pool,
        name: str,
        ipv4_fd: int = -1,
        ipv6_fd: int = -1,
        role: int = 1,
        mtu: int = 1500,
        addresses: Iterable[object] = (),
        seldom: bool = False,
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def too_big(self) -> int: ...

class RawPort(PortHandle):
    def __init__(
        self,
        pool: Pool,
        name: str,
        ipv4_fd: int = -1,
        ipv6_fd: int = -1,
        ah_ipv4_fd: int = -1,
        ah_ipv6_fd: int = -1,
        role: int = 1,
        mtu: int = 1500,
        addresses: Iterable[object] = (),
        seldom: bool = False,
    ) -> None: ...
    def close(self) -> None: ...
