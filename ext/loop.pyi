"""Types of ext.loop; what each does is said there."""

from collections.abc import Sequence

from ext.crypto import EngineHandle
from ext.deal import Team
from ext.packet import PortHandle
from ext.sa import TablesView

class Loop:
    view: TablesView
    def __init__(
        self,
        view: TablesView,
        engine: EngineHandle,
        ports: Sequence[PortHandle],
        kernel: PortHandle | None = None,
        stop_fd: int = -1,
        team: Team | None = None,
        *,
        spin: bool = True,
    ) -> None: ...
    def run(self) -> None: ...
    def step(self, rounds: int = 1) -> int: ...
    def send_dummies(self, now: int) -> int: ...
