"""The disk tier: verified blocks as files of one directory of this machine, for all its workers, under one byte budget.

    <path>/lock                   who holds it may change what is here; inside: how often each shard has changed
    <path>/new/<random>           being written, locked by its writer; without one it is swept
    <path>/<2 hex>/<name>         whole: it came by a rename

A block gets here after its digest was verified against what was published, so the name says what it computes. On later opens a CRC-32 over
the whole file is enough: it sees what disks and crashes do (a page not written, a bit gone), and who may write into this directory runs as
the worker does anyway. So nothing is synced: kill -9 leaves the page cache whole, and what a power cut leaves is seen.
"""

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mint_stream.adapter import AdapterBlock, BlockForm
from mint_stream.adapter.block_file import block_name, block_parts, read_block
from mint_stream.cache.residents import Residents
from mint_stream.cache.tally import Tally
from mint_stream.errors import CorruptObject

log = logging.getLogger(__name__)

SHARDS = 256
PLAIN = BlockForm()
_CHANGES = struct.Struct(f"<{SHARDS}Q")


class DiskTier:
    """Blocks of one form. May be called from any thread; other processes may use the same directory. Everything blocks.

    Laws: what `read` gives is whole. All files together stay within the budget. A file that somebody reads is not removed. A disk that
    fails or is full costs a load from the store, never a request.
    """

    def __init__(self, path: Path, budget_bytes: int, form: BlockForm = PLAIN, tally: Tally | None = None) -> None:
        self.path, self._dtype, self._pin = path, form.dtype, form.pinned
        self._residents: Residents[str] = Residents(budget_bytes)
        self._shards: defaultdict[str, set[str]] = defaultdict(set)
        self._seen: tuple[int, ...] = (-1,) * SHARDS
        self._turn = threading.Lock()
        self.tally = tally or Tally("disk")
        self.tally.budget_bytes = budget_bytes
        (path / "new").mkdir(parents=True, exist_ok=True)
        self._lock = os.fdopen(os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
        self._sweep()

    def close(self) -> None:
        """Let go of the directory; what is in it stays."""
        self._lock.close()

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, as far as this process has seen."""
        return self._residents.used_bytes

    def __contains__(self, digest: str) -> bool:
        return self._file(block_name(digest, self._dtype)).exists()

    def read(self, digest: str) -> AdapterBlock | None:
        """The block, read at once into memory of its own; None when it is not here or not whole any more."""
        name = block_name(digest, self._dtype)
        begun = time.perf_counter()
        block = self._read(name, digest)
        self.tally.looked(found=block is not None)
        if block is not None:
            self.tally.loaded(time.perf_counter() - begun)
            with self._turn:
                self._residents.touch(name)
        return block

    def write(self, block: AdapterBlock) -> bool:
        """Let a block in, evicting others; whether it is here now. One that cannot be let in evicts nothing."""
        name = block_name(block.digest, self._dtype)
        aside = self.path / "new" / uuid.uuid4().hex
        try:
            with self._written(aside, block) as size_bytes, self._changing():
                return self._let_in(name, aside, size_bytes)
        except (OSError, ValueError) as error:
            log.warning("disk tier digest=%s not written: %s", block.digest, error)
            return False

    def _read(self, name: str, digest: str) -> AdapterBlock | None:
        file_path = self._file(name)
        try:
            with file_path.open("rb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return read_block(file, digest, self._dtype, self._pin)
        except FileNotFoundError:
            return None
        except (CorruptObject, OSError, ValueError, LookupError, TypeError) as error:
            log.warning("disk tier digest=%s removed: %s", digest, error)
            self._remove(name)
            return None

    @contextlib.contextmanager
    def _written(self, aside: Path, block: AdapterBlock) -> Iterator[int]:
        """The whole file under another name; gives its size. It is locked, so that no sweep takes it for a leftover."""
        with aside.open("xb", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                for part in block_parts(block):
                    _write_all(file.fileno(), memoryview(part))
                yield os.fstat(file.fileno()).st_size
            finally:
                aside.unlink(missing_ok=True)

    def _let_in(self, name: str, aside: Path, size_bytes: int) -> bool:
        if name in self._residents:
            if self._file(name).exists():
                return True
            self._forget(name)  # somebody removed it who is no worker, and counted no change
        if not self._make_room(size_bytes):
            return False
        self._count_change(name)
        self._file(name).parent.mkdir(exist_ok=True)
        aside.rename(self._file(name))
        self._admit(name, size_bytes)
        return True

    def _make_room(self, size_bytes: int) -> bool:
        """Evict until there is room, passing over what is being read. Nothing is evicted for what can never be let in."""
        if not self._residents.fits(size_bytes):
            return False
        read_now: list[tuple[str, int]] = []
        while self._residents.free_bytes() < size_bytes and (name := self._residents.evict_one()) is not None:
            self._shards[name[:2]].discard(name)
            if (held_bytes := self._unlinked(name)) is not None:
                read_now.append((name, held_bytes))
        for name, held_bytes in read_now:
            self._admit(name, held_bytes)
        return self._residents.free_bytes() >= size_bytes

    def _unlinked(self, name: str) -> int | None:
        """Remove a file; when somebody reads it, for he has it locked, give its size instead."""
        with contextlib.suppress(FileNotFoundError), self._file(name).open("rb", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.fstat(file.fileno()).st_size
            self._count_change(name)
            self._file(name).unlink()
            self.tally.evicted()
        return None

    def _admit(self, name: str, size_bytes: int) -> None:
        self._residents.admit(name, size_bytes)
        self._shards[name[:2]].add(name)
        self.tally.used_bytes = self.used_bytes

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError), self._changing():
            self._count_change(name)
            self._file(name).unlink(missing_ok=True)
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._residents.discard(name)
        self._shards[name[:2]].discard(name)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone among all threads and processes, knowing every file that is here."""
        with self._turn:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                self._catch_up()
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Look again into the shards that others have changed."""
        now = self._changes()
        for shard in (number for number in range(SHARDS) if now[number] != self._seen[number]):
            self._look_into(f"{shard:02x}")
        self._seen = now

    def _look_into(self, shard: str) -> None:
        found = _sizes(self.path / shard)
        for name in self._shards[shard] - found.keys():
            self._forget(name)
        for name in found.keys() - self._shards[shard]:
            self._admit(name, found[name])

    def _changes(self) -> tuple[int, ...]:
        written = os.pread(self._lock.fileno(), _CHANGES.size, 0)
        return _CHANGES.unpack(written.ljust(_CHANGES.size, b"\0"))

    def _count_change(self, name: str) -> None:
        """Before the change, so that one cut short is looked for, too; this process knows it already."""
        shard, changes = int(name[:2], 16), list(self._changes())
        changes[shard] += 1
        os.pwrite(self._lock.fileno(), _CHANGES.pack(*changes), 0)
        self._seen = tuple(changes)

    def _file(self, name: str) -> Path:
        return self.path / name[:2] / name

    def _sweep(self) -> None:
        """Remove what writers left that are gone: nobody holds its lock."""
        for leftover in (self.path / "new").iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError), leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def _sizes(shard: Path) -> dict[str, int]:
    """Every file of a shard with its size in bytes."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(shard) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat().st_size
    return found


def _write_all(number: int, piece: memoryview) -> None:
    """The system writes at most 2 GiB at a time."""
    while piece:
        piece = piece[os.write(number, piece) :]
