"""The process that is a gateway: 1 signals 2 start 3 serve 4 stop; and again, where an interface is back.

SIGTERM and SIGINT stop it, SIGHUP has it read its configuration anew. The exit status tells whether it ever ran. Once
it has, it is started again until it runs: tunnels are served by another attempt, not by an exit status.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal

from control.admin import logs
from control.admin.notify import notify
from control.config import Config
from control.gateway import START_ERRORS, Gateway, Requests
from dataplane.api import no_core_dumps

log = logging.getLogger("esplanade")

DONE, FAILED = 0, 1  # exit statuses
# Python's collector counts allocations. Its own thresholds (700, 10, 10) are for scripts: each SA that comes makes
# a few hundred objects that stay, and a fifth of the time of setting up tunnels went into looking at them anew.
# What goes here goes by reference counts; cycles are rare (tracebacks), and these wait a little longer.
COLLECT = (20_000, 20, 50)
RETRY = 2.0  # seconds between attempts to start again after a restart that failed


def run(config: Config, *, log_json: bool = False) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit status."""
    no_core_dumps()  # secrets, private keys and IKE's own keys are in this process's memory
    logs.set_up(level=config.gateway.log_level, as_json=log_json or config.gateway.log_json)
    gc.set_threshold(*COLLECT)
    return asyncio.run(_run(config, log_json))


async def _run(config: Config, log_json: bool) -> int:
    requests = Requests()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, requests.stop.set)
    loop.add_signal_handler(signal.SIGHUP, requests.reload.set)
    ran_before = False
    while True:
        requests.restart.clear()
        gateway = Gateway(config, requests, log_json=log_json)
        try:
            await gateway.start()
            gc.collect()
            gc.freeze()  # modules and tables stay until the end: no collection need look at them
            notify("READY=1", f"STATUS={gateway.summary()}")
            ran_before = True
            await gateway.serve()
        except START_ERRORS as error:
            log.error("cannot start%s: %s", " again" if ran_before else "", error)
            if ran_before:
                # The watchdog must not end what tries again: a new process would begin with "never ran" and exit.
                notify("WATCHDOG=1", f"STATUS=cannot start again: {error}")
            else:
                notify(f"STATUS=cannot start: {error}")
                requests.stop.set()
        finally:
            if requests.stop.is_set():
                notify("STOPPING=1")
            await gateway.stop()
        config = gateway.config
        if not requests.restart.is_set() and not requests.stop.is_set():
            await _pause(requests.stop, RETRY)
        if requests.stop.is_set():
            return DONE if ran_before else FAILED


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait a while, or until a stop is requested."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
