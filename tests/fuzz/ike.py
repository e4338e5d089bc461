"""Invariant: whatever bytes a peer sends, they are parsed, or refused by a PeerError with a notify (by a CryptoError,
which becomes one), in bounded time and memory; and what is parsed comes out of the builder as it went in.

    ./run fuzz ike --inputs 5000000 --jobs 2

Well-formed inputs (tests/fuzz/ike_targets.py) are mutated and parsed; now and then one is left as it is and must be
taken. Whole endpoints are among the targets (tests/fuzz/ike_responder.py). A seed and an input's number make the same
input again: --seed S --first N --inputs 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # started as a file: the tree's root is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.fuzz.ike_mutate import mutate
from tests.fuzz.ike_responder import Broken
from tests.fuzz.ike_targets import REFUSALS, TARGETS, Target

SAMPLES = 120  # well-formed inputs of each target
UNTOUCHED = 0.01  # part of the inputs that are left as they are
HANG_SECONDS = 120
WARM_UP = 50_000  # inputs after which memory may not grow any more
GROWTH = 16 << 20  # bytes by which it may all the same


class Finding(Exception):
    """The invariant does not hold."""


class Fuzzer:
    """The targets' samples, and what became of the inputs so far."""

    def __init__(self, seed: int, targets: tuple[Target, ...] = TARGETS, samples: int = SAMPLES) -> None:
        self.seed = seed
        self.targets = targets
        self.weights = [target.weight for target in targets]
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.slowest = 0.0
        chance = random.Random(seed)
        self.samples = {target.name: [target.make(chance) for _ in range(samples)] for target in targets}

    def input(self, number: int) -> tuple[Target, bytes, bool]:
        """Target and bytes of an input, and whether they were mutated."""
        chance = random.Random(self.seed << 40 | number)
        target = chance.choices(self.targets, self.weights)[0]
        samples = self.samples[target.name]
        sample = chance.choice(samples)
        if chance.random() < UNTOUCHED:
            return target, sample, False
        return target, mutate(sample, chance, samples), True

    def run(self, number: int) -> None:
        """One input; raises Finding."""
        target, data, mutated = self.input(number)
        begun = time.process_time()
        try:
            target.run(data)
            outcome = "taken"
        except REFUSALS as refused:
            outcome = str(getattr(getattr(refused, "notify", None), "name", type(refused).__name__))
            if not mutated and target.must_take:
                raise Finding(f"{target.name} refuses what is well-formed: {refused}") from refused
        except Broken as broken:
            raise Finding(f"{target.name}: {broken}") from broken
        except Exception as error:
            raise Finding(f"{target.name} raises {type(error).__name__}: {error}") from error
        seconds = time.process_time() - begun
        self.slowest = max(self.slowest, seconds)
        if seconds > target.slow:
            raise Finding(f"{target.name} takes {seconds:.2f} s of CPU; want {target.slow} at most")
        self.outcomes[target.name, outcome] += 1


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main(argv: list[str] | None = None) -> int:
    """Fuzz until the inputs or the seconds are used up; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this time at the latest"
    )
    parser.add_argument("--seed", type=int, default=None, help="(default: at random; it is printed)")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="the first input")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the inputs")
    arguments = parser.parse_args(argv)
    seed = random.SystemRandom().getrandbits(31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    if arguments.jobs > 1:
        return _share(arguments, seed)
    faulthandler.enable()
    fuzzer = Fuzzer(seed)
    begun = shown = time.monotonic()
    number, end, before = arguments.first, arguments.first + arguments.inputs, None
    try:
        while number < end and time.monotonic() < begun + arguments.seconds:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            for _ in range(min(1000, end - number)):
                fuzzer.run(number)
                number += 1
            if before is None and number - arguments.first >= WARM_UP:
                before = resident()
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                rate = (number - arguments.first) / (shown - begun)
                print(f"{number - arguments.first:,} inputs, {rate:,.0f} a second", flush=True)
    except Finding as finding:
        traceback.print_exception(finding.__cause__)
        print(f"FINDING: {finding}", file=sys.stderr)
        print(f"input: {fuzzer.input(number)[1].hex()}", file=sys.stderr)
        print(f"again: --seed {seed} --first {number} --inputs 1", file=sys.stderr)
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
    count, seconds = number - arguments.first, time.monotonic() - begun
    print(f"{count:,} inputs in {seconds:.0f} s; the slowest took {1000 * fuzzer.slowest:.0f} ms of CPU")
    for (target, outcome), times in sorted(fuzzer.outcomes.items()):
        print(f"  {target:14} {outcome:30} {times:>12,}")
    if before is not None and (grown := resident() - before) > GROWTH:
        print(f"FINDING: {grown:,} bytes more are in memory than after {WARM_UP:,} inputs", file=sys.stderr)
        return 1
    print("no finding")
    return 0


def _share(arguments: argparse.Namespace, seed: int) -> int:
    """The same in several processes, each with a part of the inputs; the worst of their results."""
    part = -(-arguments.inputs // arguments.jobs)
    processes = []
    try:
        for job in range(arguments.jobs):
            count = min(part, arguments.inputs - job * part)
            command = [sys.executable, __file__, f"--seed={seed}", f"--seconds={arguments.seconds}"]
            command += [f"--first={arguments.first + job * part}", f"--inputs={max(count, 0)}"]
            processes.append(subprocess.Popen(command))
        return max(process.wait() for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()


if __name__ == "__main__":
    sys.exit(main())
