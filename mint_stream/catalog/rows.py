"""The LMDB file beneath a catalog: rows by record key, an index of announced steps, and per partition how far it has been applied.

The file is a copy of the log and disposable: it is written without waiting for the disk. A killed process loses nothing by that;
a machine that went down may have lost pages, so a file written before the last boot is thrown away and replayed.
"""

import hashlib
import logging
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from mint_stream.messages.shared import CatalogPosition

log = logging.getLogger(__name__)

_MAP_BYTES = 64 * 2**30
"""Address space reserved for the file, which itself is only as large as its rows."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_KEY_BYTES = 511
"""LMDB's limit; no adapter_id makes a longer one."""
_PLACE = struct.Struct(">HQ")
_NUMBER = struct.Struct(">Q")
_POSITION, _FRESH, _TOPIC_ID = b"position/", b"fresh/", b"topic-id"


def pack_row(partition: int, offset: int, value: bytes) -> bytes:
    """A row as it is stored."""
    return _PLACE.pack(partition, offset) + value


def value_of(stored: bytes) -> bytes:
    """The record's value in a stored row."""
    return stored[_PLACE.size :]


def position_of(stored: bytes) -> CatalogPosition:
    """Where the record of a stored row stands in the log."""
    partition, offset = _PLACE.unpack_from(stored)
    return CatalogPosition(partition=partition, offset=offset)


def step_row(adapter_id: str, job_id: str, step: int, number: int) -> tuple[bytes, bytes]:
    """Key and value in the index of steps."""
    return _step_key(adapter_id, job_id, step), _NUMBER.pack(number)


class Writer:
    """One LMDB transaction: everything in it becomes visible at once, or nothing."""

    def __init__(self, rows: "Rows", transaction: Any) -> None:
        self._rows = rows
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        """The value at `key` as this transaction sees it."""
        stored = self._transaction.get(key, db=self._rows.table) if 0 < len(key) <= _LONGEST_KEY_BYTES else None
        return None if stored is None else stored[_PLACE.size :]

    def put_all(self, rows: Mapping[bytes, bytes]) -> None:
        """Replace packed rows, in the order of keys: so that many touch each page of the file once."""
        self._transaction.cursor(db=self._rows.table).putmulti(sorted(rows.items()))

    def delete(self, key: bytes) -> None:
        """Drop the row at `key`, if there is one."""
        self._transaction.delete(key, db=self._rows.table)

    def index_steps(self, steps: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember which revisions jobs' steps became."""
        self._transaction.cursor(db=self._rows.steps).putmulti(sorted(steps))

    def forget_step(self, key: bytes) -> None:
        """As if it had not been indexed."""
        self._transaction.delete(key, db=self._rows.steps)

    def move_to(self, partition: int, next_offset: int) -> None:
        """Record how far the partition has been applied."""
        self._transaction.put(_POSITION + b"%d" % partition, _NUMBER.pack(next_offset), db=self._rows.meta)


class Rows:
    """The open file. One process and one thread write; the directory belongs to this process."""

    def __init__(self, path: Path) -> None:
        _discard_unless_of_this_boot(path)
        self._environment = _open(path)
        self.table: Any = self._environment.open_db(b"rows")
        self.steps: Any = self._environment.open_db(b"steps")
        self.meta: Any = self._environment.open_db(b"meta")

    def close(self) -> None:
        """Close the file."""
        self._environment.close()

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """One transaction, committed at the end of the block and dropped when the block raises."""
        with self._environment.begin(write=True) as transaction:
            yield Writer(self, transaction)

    def count(self) -> int:
        """How many rows there are."""
        with self._environment.begin() as transaction:
            return int(transaction.stat(self.table)["entries"])

    def view(self) -> Any:
        """A context manager whose `get(key)` gives rows as they are stored, all as of one moment. Keys are no longer than LMDB takes."""
        return self._environment.begin(self.table)

    def stored(self, key: bytes) -> bytes | None:
        """The row at `key` as it is stored."""
        if len(key) > _LONGEST_KEY_BYTES:
            return None
        with self._environment.begin(self.table) as transaction:
            found: bytes | None = transaction.get(key)
        return found

    def number_of_step(self, adapter_id: str, job_id: str, step: int) -> int | None:
        """The revision a job's step became."""
        with self._environment.begin() as transaction:
            stored = transaction.get(_step_key(adapter_id, job_id, step), db=self.steps)
        return None if stored is None else int(_NUMBER.unpack(stored)[0])

    def prefixed(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Key and value of all rows whose key begins with `prefix`."""
        found: list[tuple[bytes, bytes]] = []
        with self._environment.begin() as transaction, transaction.cursor(db=self.table) as cursor:
            alive = cursor.set_range(prefix)
            while alive and cursor.key().startswith(prefix):
                found.append((cursor.key(), cursor.value()[_PLACE.size :]))
                alive = cursor.next()
        return found

    def owners(self) -> Iterator[str]:
        """Every adapter_id with rows, once each, stepping from adapter to adapter over their revisions."""
        with self._environment.begin() as transaction, transaction.cursor(db=self.table) as cursor:
            alive = cursor.first()
            while alive:
                owner = cursor.key().partition(b"/")[0]
                yield owner.decode()
                alive = cursor.set_range(owner + b"0")

    def positions(self) -> dict[int, int]:
        """The next offset to apply, by partition."""
        return self._numbers(_POSITION)

    def fresh_at_ms(self) -> dict[int, int]:
        """When each partition was last known to be current."""
        return self._numbers(_FRESH)

    def mark_fresh(self, partitions: Iterable[int], now_ms: int) -> None:
        """Set when these partitions were last known to be current."""
        with self._environment.begin(write=True) as transaction:
            for partition in partitions:
                transaction.put(_FRESH + b"%d" % partition, _NUMBER.pack(now_ms), db=self.meta)

    def is_of(self, topic_id: str) -> bool:
        """Whether the copy was made from the topic of this id."""
        with self._environment.begin() as transaction:
            return bool(transaction.get(_TOPIC_ID, db=self.meta) == topic_id.encode())

    def wipe(self, topic_id: str) -> None:
        """Empty the copy; what comes next is of this topic."""
        with self._environment.begin(write=True) as transaction:
            for table in (self.table, self.steps, self.meta):
                transaction.drop(table, delete=False)
            transaction.put(_TOPIC_ID, topic_id.encode(), db=self.meta)

    def forget(self, partitions: Sequence[int]) -> None:
        """Drop the rows of these partitions and how far they were. Reads the whole file once, when there is anything to drop."""
        prefixes = {_PLACE.pack(partition, 0)[:2] for partition in partitions}
        if not prefixes:
            return
        with self._environment.begin(write=True) as transaction, transaction.cursor(db=self.table) as cursor:
            alive = cursor.first()
            while alive:
                alive = cursor.delete() if cursor.value()[:2] in prefixes else cursor.next()
            for partition in partitions:
                transaction.delete(_POSITION + b"%d" % partition, db=self.meta)
                transaction.delete(_FRESH + b"%d" % partition, db=self.meta)

    def _numbers(self, kind: bytes) -> dict[int, int]:
        found: dict[int, int] = {}
        with self._environment.begin() as transaction, transaction.cursor(db=self.meta) as cursor:
            alive = cursor.set_range(kind)
            while alive and cursor.key().startswith(kind):
                found[int(cursor.key()[len(kind) :])] = int(_NUMBER.unpack(cursor.value())[0])
                alive = cursor.next()
        return found


def _step_key(adapter_id: str, job_id: str, step: int) -> bytes:
    return f"{adapter_id}/{hashlib.sha256(f'{step}/{job_id}'.encode()).hexdigest()[:40]}".encode()


def _open(path: Path) -> Any:
    try:
        return _environment(path)
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        log.warning("the catalog copy in %s is unreadable (%s): replaying it from the log", path, error)
        for file in path.glob("*.mdb"):
            file.unlink()
        return _environment(path)


def _environment(path: Path) -> Any:
    return lmdb.open(str(path), map_size=_MAP_BYTES, max_dbs=3, sync=False, metasync=False)


def _discard_unless_of_this_boot(path: Path) -> None:
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    mark = path / "boot"
    if path.exists() and (not boot or not mark.exists() or mark.read_text() != boot):
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    mark.write_text(boot)
