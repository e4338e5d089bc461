from collections.abc import Iterable
from types import TracebackType
from typing import Self

from ext.packet import Pool, PortHandle

class Umem:
    pool: Pool
    ports: int
    zero_copy: str
    def __init__(self, pool: Pool, zero_copy: str = "auto") -> None: ...

class XskPort(PortHandle):
    umem: Umem
    interface: str
    queue: int
    xdp_mode: str
    def __init__(
        self,
        umem: Umem,
        name: str,
        interface: str,
        queue: int,
        xsks_fd: int,
        *,
        role: int,
        mtu: int,
        addresses: Iterable[object] = (),
        xdp_mode: str = "native",
        ring: int = 2048,
        fill: int = 0,
        retry: float = 1.0,
        busy_poll: int = 0,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def mode(self) -> str: ...
    @property
    def frames_filled(self) -> int: ...
    @property
    def frames_sending(self) -> int: ...
    def statistics(self) -> dict[str, int]: ...
