"""The catalog: a fold of `adapter-revisions` into LMDB, asked by name, number, alias and position.

LogReader ─► apply(partition, records, next offset) ─► one LMDB transaction: rows, step index, position
                                                   └─► waiters of `reached`, subscribers
"""

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from mint_stream.catalog.aliases import PRODUCTION
from mint_stream.catalog.barrier import Barrier
from mint_stream.catalog.canary import Chosen, falls_to
from mint_stream.catalog.changes import Change
from mint_stream.catalog.fold import CatalogRecord, LogRecord, fold, fold_unwatched, plain_production, read_row
from mint_stream.catalog.reference import Reference, servable
from mint_stream.catalog.rows import Rows, position_of, value_of
from mint_stream.messages.adapters import Head, Revision, SpentNumbers, head_key, revision_key, spent_key
from mint_stream.messages.inference import RequestName
from mint_stream.messages.shared import CatalogPosition

R = TypeVar("R", Head, Revision, SpentNumbers)

Batch = tuple[int, Sequence[LogRecord], int]
"""(partition, records in order, next offset to read)."""

_REMEMBERED = 8192
"""Decoded records kept, so that a busy adapter is resolved without reading JSON again."""


_LONGEST_NAME = 128
"""Of an adapter_id, see messages.shared.Name."""


class Unseen(NamedTuple):
    """What a batch brings that is new."""

    partition: int
    records: Sequence[LogRecord]
    next_offset: int


class Catalog:
    """A local copy of the catalog. Call it on the event loop's thread only; its directory is its own; `path` None is a temporary one."""

    def __init__(self, path: Path | None, partitions: int) -> None:
        self.partitions = partitions
        self._temporary = tempfile.TemporaryDirectory(prefix="mint-catalog-") if path is None else None
        self._rows = Rows(Path(self._temporary.name) / "catalog" if self._temporary else path or Path())
        self._barrier = Barrier(self._rows.positions())
        self._decoded: OrderedDict[bytes, tuple[CatalogRecord, bytes]] = OrderedDict()
        self._subscribers: list[Callable[[Change], None]] = []

    def close(self) -> None:
        """Close the file; a temporary one is removed."""
        self._rows.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, topic_id: str, delete_retention_ms: int, now_ms: int, partitions: Collection[int] | None = None) -> dict[int, int]:
        """Drop what cannot be continued of these partitions (None: all), and say from which offset to read each.

        A copy of another topic id is emptied. A partition not known to have been current within `delete_retention_ms`
        may have missed tombstones, which Kafka has since dropped: it is replayed from its start."""
        if not self._rows.is_of(topic_id):
            self._rows.wipe(topic_id)
        fresh = self._rows.fresh_at_ms()
        asked = [partition for partition in self._rows.positions() if partitions is None or partition in partitions]
        self._rows.forget([partition for partition in asked if fresh.get(partition, 0) + delete_retention_ms <= now_ms])
        self._decoded.clear()
        self._barrier.positions = self._rows.positions()
        return self.positions()

    def mark_current(self, now_ms: int, partitions: Iterable[int] | None = None) -> None:
        """Note that these partitions (None: all) were read to their end at `now_ms`. Say so whenever the reader has caught up.

        It may be said as well of one that is begun at its start at `now_ms`: a tombstone of what is then read was not yet cleaned."""
        self._rows.mark_fresh(range(self.partitions) if partitions is None else partitions, now_ms)

    def apply(self, partition: int, records: Sequence[LogRecord], next_offset: int) -> None:
        """Fold a partition's records and its new position in one transaction, then wake and tell. What was seen before is passed over."""
        self.apply_all([(partition, records, next_offset)])

    def apply_all(self, batches: Sequence[Batch]) -> None:
        """As `apply` of each, in one transaction: many at once cost less each."""
        new = [batch for given in batches if (batch := self._unseen(given))]
        changes: list[Change] = []
        with self._rows.writing() as writer:
            if self._subscribers:
                changes.extend(change for batch in new for record in batch.records for change in fold(writer, batch.partition, record))
            else:
                fold_unwatched(writer, ((batch.partition, batch.records) for batch in new))
            for batch in new:
                writer.move_to(batch.partition, batch.next_offset)
        for batch in new:
            self._forget_decoded(batch.records)
            self._barrier.advance(batch.partition, batch.next_offset)
        self._tell(changes)

    def _unseen(self, batch: Batch) -> Unseen | None:
        """Without what was applied before; None when all of it was."""
        partition, records, next_offset = batch
        known = self._barrier.at(partition)
        if next_offset <= known:
            return None
        overlaps = bool(records) and records[0].offset < known
        return Unseen(partition, [record for record in records if record.offset >= known] if overlaps else records, next_offset)

    def _forget_decoded(self, records: Iterable[LogRecord]) -> None:
        if self._decoded:
            for record in records:
                self._decoded.pop(record.key or b"", None)

    def positions(self) -> dict[int, int]:
        """The next offset to apply, of every partition that anything was applied of."""
        return dict(self._barrier.positions)

    async def reached(self, position: CatalogPosition) -> None:
        """Wait until the record at `position` has been applied."""
        await self._barrier.reached(position)

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call `callback` with every change applied from now on; calling the result ends that. Subscribe after the first replay."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def resolve(self, reference: str) -> Revision:
        """The revision that `adapter`, `adapter@7` or `adapter@alias` means.

        Raises UnknownAdapter, UnknownRevision, NoProductionRevision, RevisionRetired or RevisionQuarantined."""
        if (plain := self._plain(reference)) is not None:
            return plain.revision
        wanted = Reference.parse(reference)
        return self._meant(wanted, wanted.known(self.head(wanted.adapter_id)))

    def choose(self, reference: str, request: RequestName) -> Chosen:
        """As `resolve`, and a request for production may fall to the adapter's canary. Raises what `resolve` raises."""
        if (plain := self._plain(reference)) is not None:
            return plain
        wanted = Reference.parse(reference)
        head = wanted.known(self.head(wanted.adapter_id))
        if wanted.alias == PRODUCTION and head.canary is not None and falls_to(head.canary, request):
            candidate = self.revision(wanted.adapter_id, head.canary.number)
            if candidate is not None and candidate.state == "announced":
                return Chosen(candidate, True, head.spread)
        return Chosen(self._meant(wanted, head), False, head.spread)

    def _meant(self, wanted: Reference, head: Head) -> Revision:
        number = wanted.number_in(head)
        return servable(head, number, self.revision(wanted.adapter_id, number))

    def _plain(self, name: str) -> Chosen | None:
        """What a bare name means most of the time, without decoding a head, which costs more than all else; None: look closer."""
        if "@" in name or len(name) > _LONGEST_NAME:
            return None
        with self._rows.view() as view:
            head = view.get(head_key(name))
            plain = plain_production(head) if head is not None else None
            if plain is None:
                return None
            key = revision_key(name, plain[0])
            known = self._decoded.get(key)
            stored = view.get(key) if known is None else known[1]
        found = known or self._read(key, stored)
        revision = found[0] if found is not None else None
        return Chosen(revision, False, plain[1]) if isinstance(revision, Revision) and revision.state == "announced" else None

    def head(self, adapter_id: str) -> Head | None:
        """The adapter's head."""
        found = self._located(head_key(adapter_id), Head)
        return found[0] if found else None

    def head_position(self, adapter_id: str) -> CatalogPosition | None:
        """Where the adapter's head stands: what compare-and-set compares."""
        found = self._located(head_key(adapter_id), Head)
        return position_of(found[1]) if found else None

    def revision(self, adapter_id: str, number: int) -> Revision | None:
        """One revision, retired stubs included."""
        found = self._located(revision_key(adapter_id, number), Revision)
        return found[0] if found else None

    def revisions(self, adapter_id: str) -> list[Revision]:
        """All revisions of an adapter by number, retired stubs included."""
        found = (read_row(key, value) for key, value in self._rows.prefixed(f"{adapter_id}/".encode()))
        return sorted((record for record in found if isinstance(record, Revision)), key=lambda revision: revision.number)

    def spent(self, partition: int) -> SpentNumbers:
        """The numbers that deleted adapters of a partition had."""
        found = self._located(spent_key(partition), SpentNumbers)
        return found[0] if found else SpentNumbers(next_numbers={})

    def number_of_step(self, adapter_id: str, job_id: str, step: int) -> int | None:
        """The revision that a job's step was announced as."""
        number = self._rows.number_of_step(adapter_id, job_id, step)
        revision = self.revision(adapter_id, number) if number is not None else None
        return number if revision is not None and (revision.job_id, revision.step) == (job_id, step) else None

    def __len__(self) -> int:
        """How many records it holds."""
        return self._rows.count()

    def adapters(self) -> Iterator[str]:
        """Every adapter_id that has a head, each once, in no promised order."""
        return (owner for owner in self._rows.owners() if self._rows.stored(head_key(owner)) is not None)

    def _located(self, key: bytes, kind: type[R]) -> tuple[R, bytes] | None:
        """The record at `key` and its row as it is stored."""
        known = self._decoded.get(key) or self._read(key, self._rows.stored(key))
        if known is None:
            return None
        found, stored = known
        return (found, stored) if isinstance(found, kind) else None

    def _read(self, key: bytes, stored: bytes | None) -> tuple[CatalogRecord, bytes] | None:
        """A row decoded, and remembered: one goes as one comes, for objects that stay call for a garbage collection that takes longest."""
        record = read_row(key, value_of(stored)) if stored is not None else None
        if stored is None or record is None:
            return None
        if len(self._decoded) >= _REMEMBERED:
            self._decoded.popitem(last=False)
        self._decoded[key] = record, stored
        return record, stored

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            for subscriber in tuple(self._subscribers):
                subscriber(change)
