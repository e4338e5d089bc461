from ext.crypto_mb import MbEngine

def bare(
    engine: MbEngine,
    cipher: int,
    integrity: int,
    key_bits: int,
    size: int,
    packets: int,
    direction: str = "seal",
    repeats: int = 5,
    stride: int = 2048,
) -> float: ...
