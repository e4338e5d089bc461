"""Types of ext.traffic; what each does is said there."""

from collections.abc import Sequence
from dataclasses import dataclass

from ext.packet import PortHandle

@dataclass(frozen=True, kw_only=True)
class Exchange:
    wanted: int
    sent: int
    nanoseconds: int
    received: int
    reordered: int
    repeated: int
    strange: int
    latencies: bytes

def exchange(
    source: PortHandle,
    frames: Sequence[bytes],
    rate: float,
    seconds: float,
    sink: PortHandle | None = None,
    first_sequence: int = 1,
    settle: float = 0.1,
    burst: int = 32,
    packets: int = 0,
) -> Exchange: ...
