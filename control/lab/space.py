"""Network namespaces, and programs that run in them.

A namespace: made by `ip netns add` under a name that holds our pid -> programs are started in it, each in a
session of its own -> `close` ends exactly those programs and removes the name. What a killed run left
behind is found by its dead pid (`sweep`). Every program dies with its starter (PR_SET_PDEATHSIG), however
that ends.

Not here: users, PID or file-system isolation; programs see the host's files, with /sys mounted anew so that
/sys/class/net shows the namespace's interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
PREFIX = "esp"
STOP_SECONDS = 5.0
CLONE_NEWNET = 0x40000000
_tags = itertools.count(1)

# Run inside the new mount namespace. A mount that fails (a chroot whose root is no mount point, no bpf in
# the kernel) must not keep the program from running: it then sees the host's /sys.
ENTER = (
    "mount --make-rslave / 2>/dev/null && mount -t sysfs sysfs /sys 2>/dev/null "
    '&& mount -t bpf bpf /sys/fs/bpf 2>/dev/null; exec "$@"'
)


class LabError(RuntimeError):
    """The laboratory could not do what was asked; the text says which command and what it answered."""


class Program:
    """One running program; its output goes to two files that outlive it (until the lab is closed)."""

    def __init__(self, *, name: str, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        """Take charge of `process`, which must be the leader of its own session."""
        self.name = name
        self.process = process
        self.stdout_path = stdout
        self.stderr_path = stderr

    @property
    def pid(self) -> int:
        """Process id, as seen from here."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """True until the program has ended."""
        return self.process.poll() is None

    def cpu_seconds(self) -> float:
        """CPU time that it has used, user and system; its children's is not in it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def output(self) -> str:
        """What the program has written to standard output so far."""
        return self.stdout_path.read_text(errors="replace")

    def log(self, lines: int | None = None) -> str:
        """What the program has written to standard error so far, or its last `lines` lines."""
        text = self.stderr_path.read_text(errors="replace")
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def wait(self, timeout: float) -> int:
        """Wait `timeout` seconds for the end and return the exit status; LabError if it runs on."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: still running after {timeout:g} s\n{self.log(10)}") from None

    def kill(self) -> None:
        """End the program and all its children at once (SIGKILL to its process group)."""
        self._signal_group(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Ask it to end (SIGTERM), kill its group if it has not after `timeout` s; returns the status."""
        if self.running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        # Children that outlive their leader share its group: none may stay behind.
        self.kill()
        return self.process.returncode

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Space:
    """One network namespace by name."""

    def __init__(self, name: str, directory: Path) -> None:
        """Refer to the namespace `name`, which `make_spaces` made; output files go to `directory`."""
        self.name = name
        self._directory = directory
        self._programs: list[Program] = []
        self._started = 0

    def ip(self, *commands: str) -> None:
        """Run `ip` commands (each without the leading "ip") in this namespace, in one process."""
        # Not `ip -n`: that wants "/" to be a mount point, which it is not in a plain chroot.
        ip_batch(commands, "nsenter", f"--net={NETNS_DIRECTORY / self.name}", "--")

    def command(self, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs `argv` in this namespace; every step of it execs, so pids stay."""
        return [
            *("setpriv", "--pdeathsig", "SIGKILL", "--"),
            *("nsenter", f"--net={NETNS_DIRECTORY / self.name}", "--"),
            *("unshare", "--mount", "--propagation", "unchanged", "--"),
            *("sh", "-c", ENTER, "sh"),
            *argv,
        ]

    def start(
        self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Program:
        """Start a program here. It is ended with the namespace at the latest."""
        self._started += 1
        name = f"{self.name.rpartition('-')[2]}:{Path(argv[0]).name}"
        stem = f"{self.name}.{self._started}.{Path(argv[0]).name}"
        stdout, stderr = self._directory / f"{stem}.out", self._directory / f"{stem}.err"
        with open(stdout, "wb") as out, open(stderr, "wb") as err:
            process = subprocess.Popen(
                self.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if environment is None else {**os.environ, **environment},
                cwd=cwd,
                start_new_session=True,
            )
        program = Program(name=name, process=process, stdout=stdout, stderr=stderr)
        self._programs.append(program)
        return program

    def run(self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True) -> Program:
        """Run a program to its end. LabError if it takes longer than `timeout` s or (`check`) fails."""
        program = self.start(argv)
        try:
            status = program.wait(timeout)
        finally:
            program.kill()
            self._programs.remove(program)
        if check and status != 0:
            said = (program.log(10) or program.output()[-1000:]).strip()
            raise LabError(f"{self.name}: {' '.join(argv)}: exit status {status}: {said}")
        return program

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on a thread that is inside this namespace, and return its result.

        Sockets made there stay in the namespace whoever uses them later; /proc/sys/net is the namespace's.
        """

        def enter() -> T:
            enter_namespace(NETNS_DIRECTORY / self.name)
            return function()

        # A thread of its own: setns() moves the calling thread only, and this one ends here.
        with ThreadPoolExecutor(1, thread_name_prefix=self.name) as pool:
            return pool.submit(enter).result()

    def sysctl(self, **values: int) -> None:
        """Set sysctls under /proc/sys/net; in the keyword `__` stands for a slash."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys/net", *key.split("__")).write_text(f"{value}\n")

        self.call(write)

    def close(self) -> None:
        """End what was started here, youngest first, and remove the namespace."""
        for program in reversed(self._programs):
            program.stop()
        self._programs.clear()
        subprocess.run(["ip", "netns", "del", self.name], check=False, stderr=subprocess.DEVNULL)


def make_spaces(names: Sequence[str], directory: Path) -> list[Space]:
    """Make one namespace per name, loopback up."""
    ip_batch([f"netns add {name}" for name in names])
    return [Space(name, directory) for name in names]


def sweep() -> list[str]:
    """Remove namespaces and directories of ours whose maker is dead; returns their names. Live runs stay."""
    swept = []
    for directory in (NETNS_DIRECTORY, Path(tempfile.gettempdir())):
        for path in sorted(directory.glob(f"{PREFIX}-*")):
            match = re.match(rf"{PREFIX}-(\d+)(\.\d+)?-", path.name)
            if not match or Path("/proc", match[1]).exists():
                continue
            if directory == NETNS_DIRECTORY:
                subprocess.run(["ip", "netns", "del", path.name], check=False, stderr=subprocess.DEVNULL)
            else:
                shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept


def free_tag() -> str:
    """The part of a lab's names that is ours alone: the pid, with a number from the second on; never twice."""
    number = next(_tags)
    return f"{os.getpid()}" if number == 1 else f"{os.getpid()}.{number}"


def ip_batch(commands: Sequence[str], *through: str) -> None:
    """Run several `ip` commands in one process (by the command `through`); LabError names the first that failed."""
    done = subprocess.run(
        [*through, "ip", "-batch", "-"],
        check=False,
        input="\n".join(commands) + "\n",
        text=True,
        capture_output=True,
        timeout=30,
    )
    if done.returncode != 0:
        match = re.search(r"Command failed -:(\d+)", done.stderr)
        command = commands[int(match[1]) - 1] if match else "; ".join(commands)
        raise LabError(f"{' '.join(through)} ip {command}: {done.stderr.strip()}".strip())


def enter_namespace(path: Path) -> None:
    """Move the calling thread into the network namespace at `path`."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}", str(path))
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.01) -> None:
    """Poll `condition` until it holds; LabError with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)
