from collections.abc import Iterable, Sequence

from ext.packet import Pool, PortHandle

class MemoryPort(PortHandle):
    discard: bool
    tight: int
    def __init__(
        self,
        pool: Pool,
        name: str = "memory",
        role: int = 0,
        link: int = 1,
        mtu: int = 1500,
        addresses: Iterable[object] = (),
        capacity: int = 4096,
        discard: bool = False,
    ) -> None: ...
    def inject(self, packets: Sequence[bytes], partial_checksum: bool = False) -> None: ...
    def collect(self, limit: int | None = None) -> list[bytes]: ...
    def replay(self, packets: Sequence[bytes], limit: int = ..., partial_checksum: bool = False) -> None: ...
    @property
    def waiting(self) -> int: ...
    @property
    def received(self) -> tuple[int, int]: ...
    @property
    def transmitted(self) -> tuple[int, int]: ...
