"""A packet generator that costs next to nothing: the kernel's XDP test run with live frames.

    python -m bench.generator INTERFACE SECONDS CPU FRAME_HEX

A four-instruction XDP program redirects each frame to INTERFACE; BPF_PROG_TEST_RUN with
BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18) runs it on copies of one frame, in batches, until SECONDS are over. On a
veth the peer must have NAPI: an XDP program on it, or GRO switched on. Frames that the peer has no room for
are dropped there; the receiver's count is what matters.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
import struct
import sys

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD = 5
BPF_PROG_TEST_RUN = 10
BPF_PROG_TYPE_XDP = 6
LIVE_FRAMES = 1 << 1
BATCH = 64
ENDLESS = 0xFFFFFFFF  # frames; the timer comes first


def load_redirect(ifindex: int) -> int:
    """Load the program `return bpf_redirect(ifindex, 0)`; returns its file descriptor. OSError if refused."""
    instructions = b"".join(
        struct.pack("=BBhi", *instruction)
        for instruction in (
            (0xB7, 0x01, 0, ifindex),  # r1 = ifindex
            (0xB7, 0x02, 0, 0),  # r2 = flags
            (0x85, 0x00, 0, 23),  # call bpf_redirect
            (0x95, 0x00, 0, 0),  # return its verdict
        )
    )
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    return _bpf(
        BPF_PROG_LOAD,
        struct.pack(
            "=IIQQIIQII16sII",
            *(
                BPF_PROG_TYPE_XDP,
                len(instructions) // 8,
                ctypes.addressof(code),
                ctypes.addressof(license_text),
            ),
            *(0, 0, 0, 0, 0, b"generate", 0, 0),
        ),
    )


def generate(program: int, frame: bytes, seconds: float) -> None:
    """Offer copies of `frame` for `seconds`."""
    data = ctypes.create_string_buffer(frame, len(frame))
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII4x",
        *(program, 0, len(frame), 0, ctypes.addressof(data), 0, ENDLESS, 0),
        *(0, 0, 0, 0, LIVE_FRAMES, 0, BATCH),
    )
    # One call for all of it: each ends with a wait for the kernel's RCU, which costs more than a thousand frames.
    # A signal ends the call.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(InterruptedError):
        _bpf(BPF_PROG_TEST_RUN, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = libc.syscall(BPF_SYSCALL[platform.machine()], command, held, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf command {command}: {os.strerror(number)}")
    return result


def main(argv: list[str]) -> int:
    """Pin to a CPU and generate."""
    interface, seconds, cpu, frame = argv
    os.sched_setaffinity(0, {int(cpu)})
    program = load_redirect(socket.if_nametoindex(interface))
    generate(program, bytes.fromhex(frame), float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
