from ext.packet import Pool, PortHandle

class KernelPort(PortHandle):
    def __init__(
        self, pool: Pool, name: str = "kernel", ipv4_fd: int = -1, ipv6_fd: int = -1, mtu: int = 65535
    ) -> None: ...
    def close(self) -> None: ...
