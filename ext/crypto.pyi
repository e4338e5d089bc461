from collections.abc import Sequence
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class JobSpec:
    cipher: int
    integrity: int = 0
    key: bytes = ...
    integrity_key: bytes = ...
    nonce: bytes = ...
    aad: bytes = b""
    header: bytes = b""
    text: bytes = b""
    icv: bytes = b""
    icv_length: int | None = None
    index: int | None = None
    id: int | None = None

@dataclass(frozen=True, kw_only=True)
class JobResult:
    ok: bool
    text: bytes
    icv: bytes

class EngineHandle:
    name: str
    number: int
    reason: str
    def expand_at(self, address: int) -> None: ...
    def forget(self, index: int) -> None: ...
    def key_lines(self, opening: bool) -> list[int]: ...
    def run(self, direction: str, jobs: Sequence[JobSpec]) -> list[JobResult]: ...
    def timed(
        self, direction: str, spec: JobSpec, packets: int = 64000, repeats: int = 5, stride: int = 2048
    ) -> float: ...
    def bare(
        self,
        cipher: int,
        integrity: int,
        key_bits: int,
        size: int,
        packets: int,
        direction: str = "seal",
        repeats: int = 5,
        stride: int = 2048,
    ) -> float: ...
    def features(self) -> dict[str, object]: ...
