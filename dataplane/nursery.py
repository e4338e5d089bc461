"""The process that workers are forked from: everything is imported here once, so a worker is there in milliseconds.

    control --"spawn" + the worker's channel--> nursery --fork--> worker
            <--"spawned", pid, pidfd-----------
            <--"exited", pid, wait status------

It is single-threaded, holds no key and no socket but its own, and ends when control does (end of file). Its own
death costs no packet: workers go on, and control starts another nursery.

Not multiprocessing's forkserver: that one imports the caller's main module into every child, which alone can
take longer than a worker may be away, and keeps the pidfd and the signal that ended a worker to itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import traceback

from dataplane import confine
from dataplane.channel import Channel, ChannelClosedError


def main(fd: int) -> None:
    """Serve control's requests until it is gone; `fd` is this end of the channel."""
    from dataplane import worker

    confine.set_name("esplanade-fork")
    confine.no_core_dumps()
    # Control decides when anything ends; a Ctrl-C in its terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.preload()
    gc.collect()
    gc.freeze()  # children share these pages for good: no collector touches them
    channel = Channel.from_fd(fd)
    children: dict[int, int] = {}  # pidfd -> pid
    channel.send({"type": "nursery"})
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            try:
                if ready == channel.fileno():
                    _serve(channel, children, poll)
                else:
                    _reap(channel, children, poll, ready)
            except ChannelClosedError:
                return


def _serve(channel: Channel, children: dict[int, int], poll: select.poll) -> None:
    """One request: fork a worker and give its pidfd back."""
    received = channel.receive()
    if received is None:
        return
    message, descriptors = received
    worker_fd = descriptors[0]
    pid = os.fork()
    if pid == 0:
        _become_worker(channel, children, worker_fd)
    os.close(worker_fd)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = pid
    poll.register(pidfd, select.POLLIN)
    channel.send({"type": "spawned", "request": message["request"], "pid": pid}, [pidfd])


def _reap(channel: Channel, children: dict[int, int], poll: select.poll, pidfd: int) -> None:
    """A worker has ended: tell how."""
    poll.unregister(pidfd)
    os.close(pidfd)
    pid = children.pop(pidfd)
    _, status = os.waitpid(pid, 0)
    channel.send({"type": "exited", "pid": pid, "status": status})


def _become_worker(channel: Channel, children: dict[int, int], fd: int) -> None:
    """The child's side of the fork; never returns."""
    from dataplane import worker

    code = 1
    try:
        channel.close()
        for pidfd in children:
            os.close(pidfd)
        code = worker.main(Channel.from_fd(fd))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
