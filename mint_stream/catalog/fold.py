"""One record of `adapter-revisions` folded into the copy. Law: the copy depends only on the last record of each key."""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from mint_stream.catalog.changes import Change, head_changes, revision_changes
from mint_stream.catalog.rows import Writer, pack_row, step_row
from mint_stream.errors import InvalidRecord
from mint_stream.messages.adapters import SPENT_PREFIX, Head, Revision, SpentNumbers, head_key, revision_key
from mint_stream.messages.shared import CatalogPosition

log = logging.getLogger(__name__)

T = TypeVar("T", Head, Revision)
CatalogRecord = Head | Revision | SpentNumbers


_JOB_AND_STEP = re.compile(rb'"job_id":"([^"\\\\]+)","step":(\d+)')

_PRODUCTION_BEGINS = b'"production":'
_PRODUCTION = re.compile(_PRODUCTION_BEGINS + rb'(\d+)[^{}]*\},"rule":"[a-z]+","spread":(\d+)')
"""In a head without a canary, which would stand between rule and spread."""


class LogRecord(Protocol):
    """What a fold reads of a record of the log."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def offset(self) -> int: ...


class Entry(NamedTuple):
    """A record for `Catalog.apply` made by hand: by the registrar from what it has just committed, and by tests."""

    key: bytes | None
    value: bytes | None
    offset: int


def fold(writer: Writer, partition: int, record: LogRecord) -> Sequence[Change]:
    """Store the record and say what it changed. A record that is not the catalog's is passed over."""
    key = record.key or b""
    if not record.value:
        return _remove(writer, key, partition, record.offset)
    new = _decoded(key, partition, record)
    if new is None:
        return ()
    stored = writer.get(key)
    old = read_row(key, stored) if stored else None
    changes = tuple(_changes(old, new, CatalogPosition(partition=partition, offset=record.offset)))
    writer.put_all({key: pack_row(partition, record.offset, record.value)})
    if (step := _step(new)) is not None:
        writer.index_steps([step])
    return changes


def fold_unwatched(writer: Writer, batches: Iterable[tuple[int, Iterable[LogRecord]]]) -> None:
    """As `fold` of each record of each partition where nobody wants to know the changes; written at once. Law: the copy is the same."""
    rows: dict[bytes, bytes] = {}  # bytes and nothing else, of which the garbage collector need not look at hundreds of thousands
    steps: dict[bytes, tuple[bytes, bytes]] = {}
    gone: set[bytes] = set()
    for partition, records in batches:
        for record in records:
            key, value = record.key or b"", record.value
            if not value:
                rows.pop(key, None)
                gone.add(key)
            elif _begins_as_ours(key, value) or _decoded(key, partition, record) is not None:
                rows[key] = pack_row(partition, record.offset, value)
                if not key.endswith(b"/head") and (at := value.find(b'"job_id":')) > 0 and (step := _step_in(key, value, at)) is not None:
                    steps[key] = step
    for key in gone:
        _remove(writer, key, 0, 0)
    writer.put_all(rows)
    writer.index_steps(step for key, step in steps.items() if key in rows)


def _begins_as_ours(key: bytes, value: bytes) -> bool:
    """Whether the registrar may have written this. To make sure costs as much as all else about a record; readers of the row do."""
    owner, _, part = key.rpartition(b"/")
    begins = b'{"adapter_id":"%b","pool":"' % owner if part == b"head" else b'{"adapter_id":"%b","number":%b,"state":"' % (owner, part)
    return value.startswith(begins) and value.endswith(b"}")


def _step_in(key: bytes, value: bytes, at: int) -> tuple[bytes, bytes] | None:
    """As `_step` of the record in `value`, of which no more is read than what stands at `at`, unless that is anything unusual."""
    adapter_id, _, part = key.decode(errors="replace").rpartition("/")
    found = _JOB_AND_STEP.match(value, at)
    if found is None or not part.isdecimal():
        record = read_row(key, value)
        return _step(record) if record is not None else None
    return step_row(adapter_id, found[1].decode(), int(found[2]), int(part))


def _step(record: CatalogRecord) -> tuple[bytes, bytes] | None:
    """The row of the index by which a job's revision is found."""
    if type(record) is Revision and record.job_id is not None and record.step is not None:
        return step_row(record.adapter_id, record.job_id, record.step, record.number)
    return None


def plain_production(stored: bytes) -> tuple[int, int] | None:
    """From a stored head that has no canary: the number that production points at, and the spread.

    Aliases come before any text that somebody was free to choose. None: decode it."""
    at = stored.find(_PRODUCTION_BEGINS)
    found = _PRODUCTION.match(stored, at) if at > 0 else None
    return (int(found[1]), int(found[2])) if found is not None else None


def read_row(key: bytes, value: bytes) -> CatalogRecord | None:
    """A row of the copy; None, and said, when it is no record of the catalog after all."""
    try:
        return decode_row(key, value)
    except InvalidRecord as error:
        log.warning("adapter-revisions: the record at %r is passed over, it is not one of the catalog: %s", key, error)
        return None


def decode_row(key: bytes, value: bytes) -> CatalogRecord:
    """The record at `key`. Raises InvalidRecord, also when the key is not the record's own."""
    if key.startswith(SPENT_PREFIX):
        return SpentNumbers.decode(value)
    if key.endswith(b"/head"):
        head = Head.decode(value)
        return _own(head, key, head_key(head.adapter_id))
    revision = Revision.decode(value)
    return _own(revision, key, revision_key(revision.adapter_id, revision.number))


def _decoded(key: bytes, partition: int, record: LogRecord) -> CatalogRecord | None:
    try:
        return decode_row(key, record.value or b"")
    except InvalidRecord as error:
        log.warning("adapter-revisions %d:%d passed over, it is not a record of the catalog: %s", partition, record.offset, error)
        return None


def _own(record: T, key: bytes, expected: bytes) -> T:
    if key != expected:
        raise InvalidRecord(f"its key is {key!r} where its value says {expected!r}")
    return record


def _changes(old: CatalogRecord | None, new: CatalogRecord, position: CatalogPosition) -> Iterable[Change]:
    if isinstance(new, SpentNumbers):
        return ()
    if isinstance(new, Head):
        return head_changes(old if isinstance(old, Head) else None, new, position)
    return revision_changes(old if isinstance(old, Revision) else None, new, position)


def _remove(writer: Writer, key: bytes, partition: int, offset: int) -> Sequence[Change]:
    stored = writer.get(key)
    if stored is None:
        return ()
    writer.delete(key)
    old = read_row(key, stored)
    if old is None:
        return ()
    if isinstance(old, Head):
        return (Change("deleted", old.adapter_id, CatalogPosition(partition=partition, offset=offset)),)
    if (step := _step(old)) is not None:
        writer.forget_step(step[0])
    return ()
