"""Types of ext.kernelbench; what each does is said there."""

from dataclasses import dataclass
from mmap import mmap

from ext.crypto import EngineHandle
from ext.sa import TablesView

@dataclass(frozen=True, kw_only=True)
class Timing:
    out_parse: float
    out: float
    in_parse: float
    into: float

STAGES: tuple[str, ...]

def measure(
    view: TablesView,
    engine: EngineHandle,
    packet: bytes,
    batches: int,
    flows: int = 1,
    base: int = 0,
    seed: int = 1,
    slowdown: float = 1.0,
) -> Timing: ...
def profile(
    view: TablesView,
    engine: EngineHandle,
    packet: bytes,
    batches: int,
    flows: int = 1,
    base: int = 0,
    seed: int = 1,
) -> dict[str, float]: ...
def walk_to_be_counted(view: TablesView, engine: EngineHandle, packet: bytes, marks: mmap) -> None: ...
def count_steps(pid: int, marks: mmap) -> dict[str, float]: ...
def gigahertz() -> float: ...
def fetch(
    view: TablesView, engine: EngineHandle, packets: int, sas: int, opening: bool, seed: int = 1
) -> float: ...
