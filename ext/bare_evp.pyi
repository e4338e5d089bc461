from ext.crypto_evp import EvpEngine

def bare(
    engine: EvpEngine,
    cipher: int,
    integrity: int,
    key_bits: int,
    size: int,
    packets: int,
    direction: str = "seal",
    repeats: int = 5,
    stride: int = 2048,
) -> float: ...
