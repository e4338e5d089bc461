"""Messages between control and its processes: one JSON object per packet of a SOCK_SEQPACKET pair, with descriptors.

The kernel keeps the boundaries, so there is no framing to get wrong; end of file says that the other side is
gone, however it went, and that is how a worker learns of control's death. Keys never travel here: they are in
the shared tables.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

#: A message is small; what is longer is a bug, not something to split.
MESSAGE_MAX = 64 * 1024
DESCRIPTORS_MAX = 128

Message = dict[str, Any]


class ChannelClosedError(Exception):
    """The other side is gone."""


class Channel:
    """One end of a pair. Blocking unless told otherwise; owns its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends, both close-on-exec."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Take over a descriptor."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd))

    def fileno(self) -> int:
        """For poll and add_reader."""
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """Whether `receive` waits."""
        self._socket.setblocking(blocking)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send; ChannelClosedError when nobody is there, ValueError for a message that is too long."""
        body = json.dumps(message).encode()
        if len(body) > MESSAGE_MAX or len(descriptors) > DESCRIPTORS_MAX:
            raise ValueError(
                f"message of {len(body)} bytes and {len(descriptors)} descriptors; the channel takes"
                f" {MESSAGE_MAX} and {DESCRIPTORS_MAX}"
            )
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self._socket.sendmsg([body], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError from error
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise ChannelClosedError from error  # this end was closed

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors (now ours, close-on-exec); None when there is none yet.

        ChannelClosedError at the end of file.
        """
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        try:
            body, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ChannelClosedError from error
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not body:
            raise ChannelClosedError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            for fd in descriptors:
                os.close(fd)
            raise ValueError("a message on the channel was cut short")
        message: Message = json.loads(body)
        return message, list(descriptors)

    def close(self) -> None:
        """The other side reads end of file."""
        self._socket.close()
