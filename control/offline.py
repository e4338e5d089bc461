"""`esplanade pcap`: pass a capture file through the kernels, offline and without root."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from control.config import Config
from dataplane.api import DataPlaneError
from dataplane.model import Direction
from dataplane.offline import CaptureError, CaptureSummary, Offline, transform_capture

DIRECTIONS = {"auto": None, "in": Direction.IN, "out": Direction.OUT}
_VERBS = {Direction.OUT: "encrypt", Direction.IN: "decrypt"}


class OfflineError(Exception):
    """The capture cannot be worked on; the text says why."""


def transform(config: Config, source: Path, target: Path, direction: str) -> str:
    """Read `source`, write `target` (only whole: it is replaced at the end), and return a summary to print."""
    try:
        offline = Offline(config.sas, config.policies, engine=config.gateway.engine)
    except DataPlaneError as error:
        raise OfflineError(f"{config.source}: {error}") from None
    try:
        with open(source, "rb") as capture:
            with _whole_file(target) as sink:
                summary = transform_capture(offline, capture, sink, DIRECTIONS[direction])
    except OSError as error:
        raise OfflineError(f"{error.filename}: {error.strerror}") from None
    except (CaptureError, ValueError) as error:
        raise OfflineError(f"{source}: {error}") from None
    finally:
        offline.close()
    return format_summary(summary, target)


@contextlib.contextmanager
def _whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `target` only when all went well; devices and pipes are written as they are."""
    if target.exists() and not target.is_file():
        with open(target, "wb") as sink:
            yield sink
        return
    target = target.resolve()  # what a link points to is replaced, not the link
    descriptor, unfinished = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as sink:
            yield sink
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def format_summary(summary: CaptureSummary, target: Path) -> str:
    """One line per direction and verdict, most first."""
    lines = [f"{summary.read} packets read, {summary.written} written to {target}"]
    counts = sorted(summary.verdicts.items(), key=lambda entry: (-entry[1], entry[0][0].value, entry[0][1]))
    lines += [f"  {count:>8}  {_VERBS[way]}: {verdict}" for (way, verdict), count in counts]
    return "\n".join(lines)
