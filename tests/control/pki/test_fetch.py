"""Revocation lists from a real web server and from files: fetched, renewed, retried, and never in the way."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.pki import fetch
from control.pki.crl import CrlError, CrlStore, Standing, parse_crl
from control.pki.fetch import CrlFetcher, FetchError, download
from control.pki.make import issue, make_authority, make_crl

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
ROOT = make_authority("Root", now=NOW)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


class Pages(BaseHTTPRequestHandler):
    """Answers with what the test put there."""

    pages: ClassVar[dict[str, bytes]] = {}

    enough: ClassVar[threading.Event] = threading.Event()  # of trickling

    def do_GET(self) -> None:
        if self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            while not self.enough.wait(0.02):
                self.wfile.write(b"x")
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/ca.crl")
            self.end_headers()
            return
        page = self.pages.get(self.path)
        self.send_response(200 if page is not None else 404)
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    Pages.pages = {}
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def crl(*serials: int, number: int = 1, days: float = 10, now: datetime.datetime = NOW) -> bytes:
    made = make_crl(ROOT, [(serial, now) for serial in serials], number=number, days=days, now=now)
    return made.public_bytes(Encoding.DER)


def test_fetch_renew_and_retry(web: str) -> None:
    url, log, clock = f"{web}/ca.crl", list[str](), Clock()
    own = issue(ROOT, "gw", crl_url=url, now=NOW)
    store = CrlStore()

    async def walk() -> None:
        fetcher = CrlFetcher(store, log=log.append, clock=clock)
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.UNKNOWN
        store.want(own.certificate)
        await fetcher.fetch_due()  # 404: remembered for the refusal, and tried again a minute later
        assert store.check(own.certificate, ROOT.certificate, NOW).text == (
            f"no revocation list of CN=Root; it names {url} (the server answers 404 Not Found)"
        )
        Pages.pages["/ca.crl"] = crl()
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.UNKNOWN
        clock.now += 61
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.GOOD
        Pages.pages["/ca.crl"] = crl(own.certificate.serial_number, now=NOW + datetime.timedelta(hours=20))
        clock.now += 86401  # at least once a day
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.REVOKED
        # A list that nobody signed takes no other's place, whatever date it bears.
        forged = make_authority("Root", now=NOW)
        Pages.pages["/ca.crl"] = make_crl(forged, now=NOW + datetime.timedelta(days=9)).public_bytes(
            Encoding.PEM
        )
        clock.now += 86401
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.REVOKED

    asyncio.run(walk())
    assert log == [
        f"revocation list {url} cannot be had: the server answers 404 Not Found; trying again every so often",
        f"revocation list {url} is here",
    ]


def test_a_clock_that_is_set_back(web: str) -> None:
    """A machine that began in the wrong year fetches again when its clock is right, and not in that year."""
    url, clock = f"{web}/ca.crl", Clock()
    own = issue(ROOT, "gw", crl_url=url, now=NOW)
    store = CrlStore([url])

    async def walk() -> None:
        fetcher = CrlFetcher(store, log=lambda line: None, clock=clock)
        clock.now += 400 * 86400
        Pages.pages["/ca.crl"] = crl()
        await fetcher.fetch_due()
        clock.now -= 400 * 86400
        Pages.pages["/ca.crl"] = crl(own.certificate.serial_number, now=NOW + datetime.timedelta(hours=1))
        await fetcher.fetch_due()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.REVOKED

    asyncio.run(walk())


class Told(CrlStore):
    """Tells when a list has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()

    def add(self, data: bytes, source: str) -> x509.CertificateRevocationList:
        found = super().add(data, source)
        self.arrived.set()
        return found


def test_run_fetches_what_turns_up(web: str) -> None:
    Pages.pages["/ca.crl"] = crl()
    own = issue(ROOT, "gw", crl_url=f"{web}/ca.crl", now=NOW)

    async def walk() -> None:
        store = Told()
        task = asyncio.create_task(CrlFetcher(store, log=lambda line: None, clock=Clock()).run())
        await asyncio.sleep(0)
        store.want(own.certificate)
        await asyncio.wait_for(store.arrived.wait(), 60)
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.GOOD
        task.cancel()

    asyncio.run(walk())


@pytest.mark.parametrize("path", ["/none", "/elsewhere"])
def test_download_refused(web: str, path: str) -> None:
    with pytest.raises(FetchError, match=r"404 Not Found|ftp"):
        asyncio.run(download(web + path))


def test_download_from_nowhere_and_too_much(
    monkeypatch: pytest.MonkeyPatch, web: str, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match="refused"):
        asyncio.run(download("http://127.0.0.1:1/ca.crl"))
    with pytest.raises(FetchError, match="No such file"):
        asyncio.run(download(f"file://{tmp_path}/none"))
    with pytest.raises(FetchError, match="unknown url type"):
        asyncio.run(download("ldap://127.0.0.1/cn=ca"))
    monkeypatch.setattr(fetch, "MAX_BYTES", 10)
    Pages.pages["/big"] = bytes(11)
    with pytest.raises(FetchError, match="more than 10 bytes"):
        asyncio.run(download(f"{web}/big"))
    (tmp_path / "a b.crl").write_bytes(b"list")
    assert asyncio.run(download(f"file://{tmp_path}/a%20b.crl")) == b"list"


def test_a_trickle_is_given_up(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then never meets a time limit between two bytes."""
    monkeypatch.setattr(fetch, "TOTAL", 0.2)
    Pages.enough.clear()
    try:
        with pytest.raises(FetchError, match="not all there after 0 s"):
            asyncio.run(download(f"{web}/trickle"))
    finally:
        Pages.enough.set()


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    path, log = tmp_path / "ca.crl", list[str]()
    own = issue(ROOT, "gw", now=NOW)
    path.write_bytes(crl())
    store = CrlStore(files=[path])
    store.add(path.read_bytes(), str(path))

    async def walk() -> None:
        fetcher = CrlFetcher(store, log=log.append)
        fetcher.read_files()
        assert not log
        path.write_bytes(crl(own.certificate.serial_number, number=2, now=NOW + datetime.timedelta(hours=2)))
        fetcher.read_files()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.REVOKED
        path.unlink()
        fetcher.read_files()
        assert store.check(own.certificate, ROOT.certificate, NOW).standing is Standing.REVOKED

    asyncio.run(walk())
    assert log == [
        f"read the revocation list {path} again",
        f"revocation list {path}: No such file or directory; the previous one stays",
    ]


def test_lists_that_are_not_taken() -> None:
    with pytest.raises(CrlError, match="5 bytes that are no revocation list: "):
        parse_crl(b"12345")
    with pytest.raises(CrlError, match="a revocation list of 33554433 bytes, want at most 33554432"):
        parse_crl(bytes((32 << 20) + 1))
    # Found by fuzzing: a name that the library parses only when it is asked for.
    broken = crl().replace(b"\x06\x03\x55\x04\x03", b"\x00\x03\x55\x04\x03")
    with pytest.raises(CrlError, match="that are no revocation list: error parsing asn1 value"):
        parse_crl(broken)
