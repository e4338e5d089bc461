"""Logs: one line per event on standard error, as text or as JSON. No secret reaches a log.

Under systemd the journal adds time and unit, so lines carry the priority prefix (`<4>`) instead of a time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from functools import lru_cache

from control.text import one_line

ROOTS = ("esplanade", "dataplane")  # the loggers of control, and of what it imports
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning esplanade.netlink: text`, on one line whatever the text holds."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = one_line(_message(record))
        if self._journal:
            return f"<{_priority(record.levelno)}>{record.name}: {text}"
        return f"{_timestamp(record.created)} {record.levelname.lower()} {record.name}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        return json.dumps(line, ensure_ascii=False)


def set_up(*, level: str = "info", as_json: bool = False) -> None:
    """Send our loggers' lines to standard error; call again to change level or form."""
    handler = logging.StreamHandler(sys.stderr)
    journal = os.environ.get("JOURNAL_STREAM", "") == _stream_identity()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(journal=journal))
    # A line costs half as much without what no line of ours shows: thread, process, task and place in the source.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the library's documented switch: it does not walk the stack for each line then
    for name in ROOTS:
        root = logging.getLogger(name)
        root.handlers[:] = [handler]
        root.setLevel(LEVELS[level])
        root.propagate = False


def _stream_identity() -> str:
    """Device and inode of standard error, as JOURNAL_STREAM writes them."""
    try:
        status = os.fstat(2)
    except OSError:
        return "none"
    return f"{status.st_dev}:{status.st_ino}"


def _message(record: logging.LogRecord) -> str:
    """The text, with the exception behind it on the same line."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += " | " + logging.Formatter().formatException(record.exc_info)
    return text


def _timestamp(created: float) -> str:
    return f"{_second(int(created))}.{int(created % 1 * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(created: int) -> str:
    """Lines come in bursts: most share theirs with the line before."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))


def _priority(level: int) -> int:
    """The syslog priority of a level."""
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7
