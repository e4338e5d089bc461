"""Types of ext.deal; what each does is said there."""

from collections.abc import Sequence

from ext.packet import Pool

def team_size(workers: int, frame_count: int, frame_size: int) -> int: ...

class Team:
    pool: Pool
    def __init__(
        self,
        fd: int,
        index: int,
        workers: int,
        wake_fds: Sequence[int],
        *,
        frame_count: int,
        frame_size: int,
        headroom: int = 256,
        always: bool = False,
    ) -> None: ...
    def judge(self, packets: int, full: bool, idle: int, helped: int, now: int) -> bool: ...
    @property
    def dealing(self) -> bool: ...
