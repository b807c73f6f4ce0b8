"""Damage in the write-ahead log is found, and a log that a crash has left is accepted."""

import io
import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from proxy.store.sqlite.log_check import find_damage

HEADER = 32
FRAME_HEADER = 24
TORTURE = (pytest.mark.torture, pytest.mark.timeout(1_200))


class Log:
    """The content of a log, as it would be found after a crash at this moment."""

    def __init__(self, path: Path) -> None:
        self.head = path.read_bytes()[:100]
        self.data = bytearray(path.with_name(f"{path.name}-wal").read_bytes())
        [self.page_size] = struct.unpack_from(">I", self.data, 8)

    @property
    def frame_size(self) -> int:
        return FRAME_HEADER + self.page_size

    def start(self, frame: int) -> int:
        """The position of a frame; the first one is 1."""
        return HEADER + (frame - 1) * self.frame_size

    def frames(self) -> int:
        return (len(self.data) - HEADER) // self.frame_size

    def commits(self) -> list[int]:
        """The last frames of the transactions that were written since the log was started."""
        salts = self.data[16:24]
        found = []
        for frame in range(1, self.frames() + 1):
            start = self.start(frame)
            if self.data[start + 8 : start + 16] != salts:
                break
            if any(self.data[start + 4 : start + 8]):
                found.append(frame)
        return found

    def damage(self) -> str:
        return find_damage(io.BytesIO(self.data), self.head)


@contextmanager
def database(path: Path, page_size: int = 4096, cache: int = 0) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        # The same bytes in less time: no test here interrupts the machine.
        db.execute("PRAGMA synchronous = OFF")
        if cache:
            # Larger transactions are written to the log before their commit.
            db.execute(f"PRAGMA cache_size = {cache}")
        db.execute("CREATE TABLE IF NOT EXISTS pieces (number INTEGER PRIMARY KEY, piece BLOB)")
        yield db


def write(db: sqlite3.Connection, chance: random.Random, pieces: int) -> None:
    """Insert and change rows, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for _ in range(pieces):
        if chance.random() < 0.3:
            change = "UPDATE pieces SET piece = ? WHERE number % 7 = ?"
            db.execute(change, (chance.randbytes(50), chance.randrange(7)))
        else:
            piece = chance.randbytes(chance.randrange(1, 6_000))
            db.execute("INSERT INTO pieces (piece) VALUES (?)", (piece,))


def written(path: Path, chance: random.Random, page_size: int = 4096, number: int = 8) -> Log:
    """Return a log of several transactions."""
    with database(path, page_size) as db:
        for _ in range(number):
            write(db, chance, chance.randrange(1, 6))
            db.execute("COMMIT")
        return Log(path)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 200), marks=TORTURE)])
def test_a_log_after_random_transactions_is_accepted(tmp_path: Path, seeds: range) -> None:
    """With rollbacks of transactions that are partly in the log, checkpoints, and recoveries."""
    for seed in seeds:
        chance = random.Random(seed)
        path = tmp_path / f"{seed}-0.db"
        for generation in range(3):
            with database(path, cache=chance.choice([1, 5, 2_000])) as db:
                for _ in range(25):
                    write(db, chance, chance.choice([1, 2, 5, 30]))
                    assert Log(path).damage() == ""
                    db.execute(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
                    assert Log(path).damage() == ""
                    if chance.random() < 0.1:
                        how = chance.choice(["PASSIVE", "RESTART"])
                        db.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
                # The files as a killed process leaves them.
                crashed = tmp_path / f"{seed}-{generation + 1}.db"
                crashed.write_bytes(path.read_bytes())
                crashed.with_name(f"{crashed.name}-wal").write_bytes(Log(path).data)
            path = crashed


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_log_that_was_cut_anywhere_is_accepted(tmp_path: Path, page_size: int) -> None:
    log = written(tmp_path / "a.db", random.Random(1), page_size)
    chance = random.Random(2)
    sizes = [*range(HEADER + FRAME_HEADER), *(chance.randrange(len(log.data)) for _ in range(50))]
    whole = log.data
    for size in sizes:
        log.data = whole[:size]
        assert log.damage() == ""
        log.data = whole[:size] + bytes(len(whole) - size)
        assert log.damage() == ""


def test_a_last_transaction_with_any_missing_frames_is_accepted(tmp_path: Path) -> None:
    """A disk writes the frames of a transaction in any order until the transaction is flushed."""
    chance = random.Random(3)
    with database(tmp_path / "a.db") as db:
        for _ in range(5):
            write(db, chance, 2)
            db.execute("COMMIT")
        write(db, chance, 40)
        db.execute("COMMIT")
        log = Log(tmp_path / "a.db")
    whole = bytes(log.data)
    *_, first, last = log.commits()
    for _ in range(200):
        log.data = bytearray(whole)
        for frame in chance.sample(range(first + 1, last + 1), chance.randrange(1, 9)):
            start = log.start(frame)
            part = chance.choice([log.frame_size, FRAME_HEADER, log.page_size])
            offset = chance.choice([0, log.frame_size - part])
            log.data[start + offset : start + offset + part] = bytes(part)
        assert log.damage() == ""


def test_the_frames_of_an_earlier_log_are_accepted(tmp_path: Path) -> None:
    chance = random.Random(4)
    path = tmp_path / "a.db"
    with database(path) as db:
        for _ in range(20):
            write(db, chance, 5)
            db.execute("COMMIT")
        earlier = Log(path)
        db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        write(db, chance, 1)
        db.execute("COMMIT")
        log = Log(path)
    assert log.frames() == earlier.frames()
    assert log.commits()[-1] < earlier.commits()[-1]
    assert log.damage() == ""
    # The header was written, but not yet the first frame.
    log.data[HEADER:] = earlier.data[HEADER:]
    assert log.damage() == ""


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_changed_byte_before_another_commit_is_found(tmp_path: Path, page_size: int) -> None:
    log = written(tmp_path / "a.db", random.Random(5), page_size)
    chance = random.Random(6)
    *_, second_last, _ = log.commits()
    places = [chance.randrange(log.start(1), log.start(second_last + 1)) for _ in range(150)]
    # Every byte of the second-last commit's header, apart from the mark of the commit itself.
    head = log.start(second_last)
    # The mark of a commit cannot be missing: without it, this would be one transaction.
    places += [head + byte for byte in range(FRAME_HEADER) if byte not in range(4, 8)]
    for place in places:
        before = log.data[place]
        log.data[place] ^= 1 << chance.randrange(8)
        assert "frame" in log.damage(), place - HEADER
        log.data[place] = before


def test_a_changed_byte_of_the_header_is_found(tmp_path: Path) -> None:
    log = written(tmp_path / "a.db", random.Random(7))
    whole = bytes(log.data)
    for byte in range(HEADER):
        log.data = bytearray(whole)
        log.data[byte] ^= 4
        assert "header" in log.damage(), byte


def test_checksums_in_big_endian_order_are_understood(tmp_path: Path) -> None:
    """SQLite writes them on other processors, and reads them on all."""
    path = tmp_path / "a.db"
    with database(path) as db:
        for number in range(20):
            write(db, random.Random(number), 2)
            db.execute("COMMIT")
        db.execute("INSERT INTO pieces (number, piece) VALUES (1000000, 'last')")
        log = Log(path)
        copy = tmp_path / "copy.db"
        copy.write_bytes(path.read_bytes())
    in_big_endian_order(log)
    assert log.damage() == ""
    log.data[log.start(3) + 100] ^= 1
    assert "frame 3 " in log.damage()
    log.data[log.start(3) + 100] ^= 1
    copy.with_name("copy.db-wal").write_bytes(log.data)
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT piece FROM pieces WHERE number = 1000000").fetchall() == [
            ("last",)
        ]


def in_big_endian_order(log: Log) -> None:
    """Write the checksums of a log again, by a plain loop."""

    def add(data: bytes, first: int, second: int) -> tuple[int, int]:
        for left, right in struct.iter_unpack(">II", data):
            first = (first + left + second) & 0xFFFFFFFF
            second = (second + right + first) & 0xFFFFFFFF
        return first, second

    log.data[3] |= 1
    sums = add(bytes(log.data[:24]), 0, 0)
    log.data[24:32] = struct.pack(">II", *sums)
    for frame in range(1, log.frames() + 1):
        start = log.start(frame)
        page = start + FRAME_HEADER
        covered = bytes(log.data[start : start + 8] + log.data[page : page + log.page_size])
        sums = add(covered, *sums)
        log.data[start + 16 : start + 24] = struct.pack(">II", *sums)
