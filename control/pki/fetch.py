"""Keep revocation lists fresh: fetch those of URLs before they run out, read files again when they change.

`CrlFetcher.run` is a task of the gateway. A list is fetched when its URL first turns up (in the configuration, in
our certificates, in a peer's that was verified), then when nine tenths of its time are over, at least once a day
and at most once a minute. A source that fails is tried again after one minute, then two, four, up to an hour.
A download lives in a thread of its own that the process does not wait for, so a dead server delays no stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from control.pki.crl import MAX_BYTES, CrlError, CrlStore

TIMEOUT = 20.0  # seconds without a byte
TOTAL = 120.0  # seconds for all of a list
FIRST_RETRY, LAST_RETRY = 60.0, 3600.0  # seconds
SHORTEST, LONGEST = 60.0, 86400.0  # seconds between two good fetches
FILE_INTERVAL = 30.0  # seconds between looks at the files

# No ftp, no data: http and https, and what they redirect to, and nothing else.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
):
    _OPENER.add_handler(_handler())


class FetchError(Exception):
    """A source gave no list; the text says why."""


async def download(url: str) -> bytes:
    """The bytes behind an http, https or file URL; FetchError says why there are none."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes | FetchError] = loop.create_future()

    def tell(result: bytes | FetchError) -> None:
        if not done.done():
            done.set_result(result)

    def work() -> None:
        result = _read(url)
        with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=work, name="crl", daemon=True).start()
    try:
        result = await asyncio.wait_for(done, TOTAL)
    except TimeoutError:  # byte by byte: the others shall not wait for it
        raise FetchError(f"not all there after {TOTAL:.0f} s") from None
    if isinstance(result, FetchError):
        raise result
    return result


def _read(url: str) -> bytes | FetchError:
    try:
        if url.startswith("file://"):
            with open(unquote(urlsplit(url).path), "rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with _OPENER.open(url, timeout=TIMEOUT) as response:
                data = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        return FetchError(f"the server answers {error.code} {error.reason}")
    except urllib.error.URLError as error:
        return FetchError(f"{error.reason}")
    except Exception as error:  # http.client has many; a fetch that fails ends nothing
        return FetchError(f"{error or type(error).__name__}")
    return data if len(data) <= MAX_BYTES else FetchError(f"more than {MAX_BYTES} bytes")


class CrlFetcher:
    """Fetches for one store; `log` takes one line for each success after a failure, and for each new failure."""

    def __init__(
        self,
        store: CrlStore,
        *,
        log: Callable[[str], None],
        fetch: Callable[[str], Awaitable[bytes]] = download,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._fetch = fetch
        self._clock = clock
        self._due: dict[str, float] = {}
        self._retry: dict[str, float] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._wake = asyncio.Event()
        self.replace(store)

    def replace(self, store: CrlStore) -> None:
        """Go on with the store of a new configuration."""
        self.store = store
        store.on_wanted = self._wake.set
        self._seen = {path: _state(path) for path in store.files}  # read when the configuration was
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            self.read_files()
            await self.fetch_due()
            pause = min([FILE_INTERVAL, *(due - self._clock() for due in self._due.values())])
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(1.0, pause))

    def read_files(self) -> None:
        """Read the files that have changed."""
        for path in self.store.files:
            state = _state(path)
            if state == self._seen.get(path):
                continue
            self._seen[path] = state
            try:
                self.store.add(path.read_bytes(), str(path))
                self._log(f"read the revocation list {path} again")
            except (OSError, CrlError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self.store.failed(str(path), str(reason))
                self._log(f"revocation list {path}: {reason}; the previous one stays")

    async def fetch_due(self) -> None:
        """Fetch every URL whose time has come, at the same time."""
        now = self._clock()
        # What is due later than any fetch can be was put off by a clock that has been set back since.
        due = [url for url in self.store.wanted_urls() if not now < self._due.get(url, now) <= now + LONGEST]
        await asyncio.gather(*(self._fetch_one(url) for url in due))

    async def _fetch_one(self, url: str) -> None:
        try:
            self.store.add(await self._fetch(url), url)
        except (FetchError, CrlError) as error:
            wait = min(self._retry.get(url, FIRST_RETRY / 2) * 2, LAST_RETRY)
            if url not in self._retry:
                self._log(f"revocation list {url} cannot be had: {error}; trying again every so often")
            self.store.failed(url, str(error))
            self._retry[url] = wait
            self._due[url] = self._clock() + wait
            return
        if self._retry.pop(url, None) is not None:
            self._log(f"revocation list {url} is here")
        self._due[url] = self._clock() + self._lasts(url)

    def _lasts(self, url: str) -> float:
        until = self.store.next_update(url)
        left = 0.9 * (until.timestamp() - self._clock()) if until else LONGEST
        return min(max(left, SHORTEST), LONGEST)


def _state(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
