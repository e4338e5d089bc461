from collections.abc import Iterable

from ext.packet import Pool, PortHandle

class PacketPort(PortHandle):
    fanout: str
    def __init__(
        self,
        pool: Pool,
        name: str,
        fd: int,
        role: int = 0,
        mtu: int = 1500,
        addresses: Iterable[object] = (),
        fanout: str = "",
    ) -> None: ...
    def close(self) -> None: ...
