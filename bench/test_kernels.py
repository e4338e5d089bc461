"""Kernels under pytest-benchmark: one round is one slice of batches, and before it comes a slice of the bare cipher.

    ./run bench kernels                      all of it, as rows, JSON and plots (bench/kernels.py)
    python -m pytest bench/test_kernels.py   the same measurement in pytest-benchmark's own table and comparisons

The clock that pytest-benchmark reads is Stopwatch: it stands still except for the timed region, which is
`ext.kernelbench`'s "look-up to finish", and it counts nanoseconds per packet as seconds, so the table shows ns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.tunnels import Tunnels, inner_packet, parse_suite, text_size, tunnels
from ext.kernelbench import measure

ALGORITHMS = (
    "aes128gcm16",
    "aes192gcm16",
    "aes256gcm16",
    "chacha20poly1305",
    "aes128-sha256",
    "aes256-sha256",
    "aes256-sha384",
    "aes256-sha512",
    "null-sha256",
    "aes128gcm16iiv",
    "aes128gmac",
    "aes128ccm16",
    "aes128ctr-sha256",
    "aes128-aescmac",
    "ah-sha256",
    "ah-sha512",
    "ah-aes128gmac",
)
DIRECTIONS = ("out", "in")
SIZES = (64, 256, 512, 1024, 1420)  # bytes of inner packet
WARM_UP = 3  # slices


class Stopwatch:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, nanoseconds: float) -> None:
        """Let `nanoseconds` pass."""
        self.seconds += nanoseconds / 1e9

    def read(self) -> float:
        """What pytest-benchmark asks."""
        return self.seconds


WATCH = Stopwatch()


@pytest.fixture(scope="module")
def make_tunnel(request: pytest.FixtureRequest) -> Iterator[dict[str, Tunnels]]:
    """One tunnel per algorithm, made when it is first asked for."""
    with ExitStack() as stack:

        class Made(dict[str, Tunnels]):
            def __missing__(self, algorithm: str) -> Tunnels:
                engine = request.config.getoption("--engine")
                proposal, protocol = parse_suite(algorithm)
                made = tunnels(proposal, engine=engine, protocol=protocol)
                self[algorithm] = stack.enter_context(made)
                return self[algorithm]

        yield Made()


@pytest.mark.benchmark(timer=WATCH.read, disable_gc=True)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernel(benchmark, request, make_tunnel, algorithm: str, direction: str, size: int) -> None:
    """One figure: the walk from look-up to finish beside the bare cipher call on the same bytes."""
    tunnel = make_tunnel[algorithm]
    proposal, protocol = parse_suite(algorithm)
    packet = inner_packet(size)
    batches = request.config.getoption("--batches")
    walk: list[float] = []  # ns per packet, a slice each
    parse: list[float] = []
    bare: list[float] = []

    def bare_slice() -> None:
        bare.append(
            tunnel.engine.bare(
                *(int(proposal.cipher), int(proposal.integrity), proposal.key_bits),
                *(
                    text_size(proposal, size, protocol),
                    batches * 64 - 1,
                    "seal" if direction == "out" else "open",
                    1,
                ),
            )
        )

    def slice_() -> None:
        timing = measure(tunnel.view, tunnel.engine, packet, batches)
        walk.append(timing.out if direction == "out" else timing.into)
        parse.append(timing.out_parse if direction == "out" else timing.in_parse)
        WATCH.add(walk[-1])

    benchmark.group = f"{algorithm} {direction}"
    benchmark.pedantic(
        slice_, setup=bare_slice, rounds=request.config.getoption("--slices"), warmup_rounds=WARM_UP
    )
    benchmark.extra_info.update(
        algorithm=algorithm,
        direction=direction,
        size=size,
        engine=tunnel.engine.name,
        walk=walk[WARM_UP:],
        parse=parse[WARM_UP:],
        bare=bare[WARM_UP:],
    )
