"""No number of a manual key is ever given out twice: over restarts, kill -9 in mid-write, damage and full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.model import Cipher, Direction, EspProposal, Integrity, Protocol
from dataplane.reserve import CHUNK, Mark, Reserve, ReserveError, fingerprint
from dataplane.sequence import SequenceKeeper
from dataplane.tables import Tables
from tests.dataplane.make import CBC, GCM_ESN, make_inbound, make_sa

KEY = bytes(range(20))
MANUAL = make_sa("manual", encryption_key=KEY, negotiated=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def keeper(tables: Tables, state: Path) -> Iterator[SequenceKeeper]:
    made = SequenceKeeper(tables, Reserve(state))
    yield made
    made.close()


def add(tables: Tables, keeper: SequenceKeeper, spec=MANUAL) -> int:
    grant = keeper.admit([spec])[0]
    index = tables.add_sa(spec, start=grant.start, limit=grant.limit)
    keeper.attach(index, spec, grant)
    return index


def test_marks_round_trip(state: Path) -> None:
    reserve = Reserve(state)
    assert reserve.read(MANUAL) is None
    mark = Mark(fingerprint=fingerprint(MANUAL), direction=Direction.OUT, number=12345, spi=MANUAL.spi)
    reserve.write([mark])
    assert reserve.read(MANUAL) == mark
    assert [path.name for path in state.iterdir() if path.suffix == ".new"] == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.iterdir())
    reserve.close()


def test_no_file_holds_the_key(state: Path) -> None:
    reserve = Reserve(state)
    reserve.write([Mark(fingerprint=fingerprint(MANUAL), direction=Direction.OUT, number=1, spi=MANUAL.spi)])
    for path in state.iterdir():
        body = path.read_bytes()
        assert KEY[:8] not in body
        assert KEY[:8].hex().encode() not in body
    reserve.close()


def test_fingerprint_follows_the_key_alone() -> None:
    """A new salt or SPI for an old key must not begin again at 1."""
    assert fingerprint(MANUAL) == fingerprint(replace(MANUAL, spi=0x999, encryption_key=KEY[:16] + b"salt"))
    assert fingerprint(MANUAL) != fingerprint(replace(MANUAL, encryption_key=bytes(16) + KEY[16:]))
    assert fingerprint(make_sa(proposal=CBC)) != fingerprint(make_sa(proposal=CBC))


def test_aes_that_counts_is_one_cipher() -> None:
    """GCM, GMAC, CCM and CTR with one key share its numbers; ChaCha20 and other keys have their own."""
    keys = {
        Cipher.AES_GCM: b"salt",
        Cipher.AES_GMAC: b"tlas",
        Cipher.AES_CCM: b"sal",
        Cipher.AES_CTR: b"salt",
        Cipher.CHACHA20_POLY1305: b"salt",
    }
    names = {}
    for cipher, salt in keys.items():
        integrity = Integrity.HMAC_SHA2_256 if cipher is Cipher.AES_CTR else Integrity.NONE
        proposal = EspProposal(cipher=cipher, key_bits=256, integrity=integrity)
        names[cipher] = fingerprint(make_sa(proposal=proposal, encryption_key=bytes(range(32)) + salt))
    of_ah = EspProposal(cipher=Cipher.NULL, key_bits=256, integrity=Integrity.AES_GMAC)
    names[Cipher.NULL] = fingerprint(
        make_sa(
            proposal=of_ah,
            protocol=Protocol.AH,
            encryption_key=b"",
            integrity_key=bytes(range(32)) + b"star",
        )
    )
    other = names.pop(Cipher.CHACHA20_POLY1305)
    assert len(set(names.values())) == 1 and other not in names.values()


def test_ctr_needs_the_state_directory(tables: Tables) -> None:
    """RFC 3686 section 2.1: a counter that begins again gives both texts away."""
    proposal = EspProposal(cipher=Cipher.AES_CTR, key_bits=128, integrity=Integrity.HMAC_SHA2_256)
    with pytest.raises(ReserveError, match="a manually keyed AES_CTR SA needs a state directory"):
        SequenceKeeper(tables, None).admit([make_sa(proposal=proposal, negotiated=False)])


def test_gmac_of_ah_needs_the_state_directory(tables: Tables) -> None:
    """RFC 4543 section 3.1: an IV that comes twice gives the hash key away, and with it every packet to come."""
    proposal = EspProposal(cipher=Cipher.NULL, key_bits=128, integrity=Integrity.AES_GMAC)
    spec = make_sa(proposal=proposal, protocol=Protocol.AH, negotiated=False)
    with pytest.raises(ReserveError, match="a manually keyed AES_GMAC SA needs a state directory"):
        SequenceKeeper(tables, None).admit([spec])


def test_a_directory_where_all_may_write(state: Path) -> None:
    """Whoever removes a file, or puts an old one back, has numbers sent again."""
    state.mkdir()
    for mode in (0o777, 0o1777):
        state.chmod(mode)
        with pytest.raises(
            ReserveError, match=f"has mode {mode:04o}: whoever can write there .* chmod 700 {state}"
        ):
            Reserve(state)
    state.chmod(0o755)
    Reserve(state).close()


def test_two_processes_cannot_hold_one_directory(state: Path) -> None:
    reserve = Reserve(state)
    with pytest.raises(ReserveError, match="in use by another process"):
        Reserve(state)
    reserve.close()
    Reserve(state).close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda body: b"", "truncated, or not JSON"),
        (lambda body: body[:-20], "truncated, or not JSON"),
        (lambda body: body.replace(b"12345", b"1"), "check value does not match"),
        (lambda body: b"[]", "not an object"),
    ],
)
def test_damaged_files_stop_the_sa(state: Path, damage, message: str) -> None:
    reserve = Reserve(state)
    name = fingerprint(MANUAL)
    reserve.write([Mark(fingerprint=name, direction=Direction.OUT, number=12345, spi=MANUAL.spi)])
    path = state / f"out-{name}.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReserveError, match=message) as caught:
        reserve.read(MANUAL)
    assert "Restore the file from a backup, or give the SA a new key" in str(caught.value)
    reserve.close()


def test_renamed_files_are_noticed(state: Path) -> None:
    reserve = Reserve(state)
    other = make_sa("other", negotiated=False)
    reserve.write([Mark(fingerprint=fingerprint(MANUAL), direction=Direction.OUT, number=5, spi=1)])
    (state / f"out-{fingerprint(MANUAL)}.json").rename(state / f"out-{fingerprint(other)}.json")
    with pytest.raises(ReserveError, match="belongs to another key"):
        reserve.read(other)
    reserve.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReserveError, match=r"state directory .*/file/state: Not a directory.*RFC 4106"):
        Reserve(tmp_path / "file" / "state")


def test_aead_without_state_is_refused_and_cbc_is_not(tables: Tables) -> None:
    keeper = SequenceKeeper(tables, None, "the disk is made of cheese")
    with pytest.raises(ReserveError, match=r"'manual'.*RFC 4106 section 2\); the disk is made of cheese"):
        keeper.admit([MANUAL])
    assert keeper.admit([make_sa(proposal=CBC, negotiated=False)])[0].limit == 2**32
    assert keeper.admit([make_inbound(negotiated=False)])[0].start == 1
    assert keeper.admit([make_sa(proposal=GCM_ESN)])[0].limit == 2**64 - 2**32


def test_disk_first_then_limit(tables: Tables, keeper: SequenceKeeper, state: Path) -> None:
    index = add(tables, keeper)
    path = state / f"out-{fingerprint(MANUAL)}.json"
    assert json.loads(path.read_bytes())["number"] == 1 + CHUNK
    assert tables.view.sequence(index) == (1, 1 + CHUNK)
    keeper.renew()
    assert tables.view.sequence(index) == (1, 1 + CHUNK)  # more than half is left
    tables.sas["sequence"]["next"][index] = CHUNK - 100
    keeper.renew()
    assert json.loads(path.read_bytes())["number"] == 1 + 2 * CHUNK
    assert tables.view.sequence(index) == (CHUNK - 100, 1 + 2 * CHUNK)


def test_limit_stays_where_the_disk_fails(
    tables: Tables, keeper: SequenceKeeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = add(tables, keeper)
    tables.sas["sequence"]["next"][index] = CHUNK

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        keeper.renew()
        keeper.renew()
    assert tables.view.sequence(index)[1] == 1 + CHUNK
    assert caplog.text.count("No space left on device") == 1
    keeper.renew()
    assert tables.view.sequence(index)[1] == 1 + 2 * CHUNK


def test_short_numbers_end_at_the_hard_limit(tables: Tables, keeper: SequenceKeeper) -> None:
    spec = replace(MANUAL, sequence=2**32 - CHUNK)
    index = add(tables, keeper, spec)
    assert tables.view.sequence(index)[1] == 2**32
    tables.sas["sequence"]["next"][index] = 2**32 + 50  # workers counted what they refused
    keeper.renew()
    assert tables.view.sequence(index)[1] == 2**32
    tables.view.spi_lookup(1)
    keeper.release(index)
    with pytest.raises(ReserveError, match=r"has used up its sequence numbers .*RFC 4303"):
        keeper.admit([spec])


def test_clean_end_loses_nothing_and_a_crash_a_chunk(tables: Tables, state: Path) -> None:
    keeper = SequenceKeeper(tables, Reserve(state))
    index = add(tables, keeper)
    tables.sas["sequence"]["next"][index] = 1000
    keeper.close()
    keeper = SequenceKeeper(tables, Reserve(state))
    grant = keeper.admit([MANUAL])[0]
    assert (grant.start, grant.limit) == (1000, 1000 + CHUNK)
    keeper._reserve.close()  # type: ignore[union-attr]  # the process dies here: nothing is written any more
    keeper = SequenceKeeper(tables, Reserve(state))
    assert keeper.admit([MANUAL])[0].start == 1000 + CHUNK
    keeper.close()


def test_one_key_in_two_senders_is_refused(tables: Tables, keeper: SequenceKeeper) -> None:
    index = add(tables, keeper)
    twin = replace(MANUAL, name="twin", spi=0x777)
    with pytest.raises(ReserveError, match="'twin' has the key of SA 'manual'"):
        keeper.admit([twin])
    with pytest.raises(ReserveError, match="another one of the same list"):
        fresh = make_sa("x", negotiated=False)
        keeper.admit([fresh, replace(fresh, name="y", spi=0x888)])
    # In place of the old one it may: numbers go on behind everything that one could send.
    grant = keeper.admit([twin], frozenset({index}))[0]
    assert grant.start == 1 + CHUNK
    other = tables.add_sa(twin, start=grant.start, limit=grant.limit)
    keeper.attach(other, twin, grant)
    keeper.release(index)  # must not lower the mark under the new one
    assert keeper._reserve.read(MANUAL).number == 1 + 2 * CHUNK  # type: ignore[union-attr]


def test_inbound_tops_survive(tables: Tables, state: Path) -> None:
    spec = make_inbound("esn", GCM_ESN, negotiated=False)
    keeper = SequenceKeeper(tables, Reserve(state))
    index = add(tables, keeper, spec)
    tables.sas["replay"]["top"][index] = 2**33 + 7
    keeper.renew(now=100.0)
    tables.sas["replay"]["top"][index] = 2**33 + 9
    keeper.renew(now=101.0)  # not every time
    assert keeper._reserve.read(spec).number == 2**33 + 7  # type: ignore[union-attr]
    keeper.close()
    keeper = SequenceKeeper(tables, Reserve(state))
    assert keeper.admit([spec])[0].start == 2**33 + 10
    keeper.close()


WRITER = """
import sys
from pathlib import Path
from dataplane.model import Cipher, Direction, EspProposal, Integrity
from dataplane.reserve import Mark, Reserve
reserve = Reserve(Path(sys.argv[1]))
number = int(sys.argv[3])
while True:
    number += 1
    reserve.write([Mark(fingerprint=sys.argv[2], direction=Direction.OUT, number=number, spi=1)])
    print(number, flush=True)   # "the limit is raised": from here on the number may be used
"""


def test_kill_in_the_middle_of_writing_never_goes_back(state: Path) -> None:
    """Whatever was announced is on disk, and the file is whole, however often the writer is killed."""
    name = fingerprint(MANUAL)
    announced = 0
    for round_ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(state), name, str(announced)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.003 * round_)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split()
        writer.wait()
        announced = max(announced, *(int(line) for line in lines)) if lines else announced
        reserve = Reserve(state)
        mark = reserve.read(MANUAL)
        assert mark is not None
        assert mark.number >= announced
        announced = mark.number
        reserve.close()
    assert announced > 8
