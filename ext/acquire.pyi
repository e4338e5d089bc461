"""Types of ext.acquire; what each does is said there."""

from ext.sa import TablesView

def take_acquires(view: TablesView) -> list[tuple[int, int, int, int, int, int | None, int | None]]: ...
