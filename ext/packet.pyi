from collections.abc import Iterable

class Pool:
    def __init__(
        self,
        frame_count: int,
        frame_size: int = 2048,
        headroom: int = 256,
        *,
        fd: int = -1,
        offset: int = 0,
    ) -> None: ...
    @property
    def free_count(self) -> int: ...
    @property
    def frame_count(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def frame_size(self) -> int: ...

class PortHandle:
    pool: Pool
    name: str
    def __init__(
        self, pool: Pool, name: str, role: int, link: int, mtu: int, addresses: Iterable[object] = ()
    ) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def link(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def mode(self) -> str: ...
