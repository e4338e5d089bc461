"""Types of ext.policy; what each does is said there."""

from collections.abc import Sequence

from ext.sa import TablesView

def lpm_publish(
    view: TablesView,
    which: str,
    entries: Sequence[tuple[int, int, int, int, int]],
    candidates: Sequence[int],
) -> None: ...
