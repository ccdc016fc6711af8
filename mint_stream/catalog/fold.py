"""One record of `adapter-revisions` folded into the copy. Law: the copy depends only on the last record of each key."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from mint_stream.catalog.changes import Change, head_changes, revision_changes
from mint_stream.catalog.rows import Row, Writer
from mint_stream.errors import InvalidRecord
from mint_stream.messages.adapters import SPENT_PREFIX, Head, Revision, SpentNumbers, head_key, revision_key
from mint_stream.messages.shared import CatalogPosition

log = logging.getLogger(__name__)

T = TypeVar("T", Head, Revision)
CatalogRecord = Head | Revision | SpentNumbers


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


def fold(writer: Writer, partition: int, record: LogRecord, watched: bool) -> Sequence[Change]:
    """Store the record and, when anybody watches, say what it changed. A record that is not the catalog's is passed over."""
    key = record.key or b""
    if not record.value:
        return _remove(writer, key, partition, record.offset)
    try:
        new = decode_row(key, record.value)
    except InvalidRecord as error:
        log.warning("adapter-revisions %d:%d passed over, it is not a record of the catalog: %s", partition, record.offset, error)
        return ()
    changes = _changes(writer.get(key), new, CatalogPosition(partition=partition, offset=record.offset)) if watched else ()
    writer.put(key, Row(record.value, partition, record.offset))
    if isinstance(new, Revision) and new.job_id is not None and new.step is not None:
        writer.index_step(new.adapter_id, new.job_id, new.step, new.number)
    return tuple(changes)


def decode_row(key: bytes, value: bytes) -> CatalogRecord:
    """The record at `key`. Raises InvalidRecord, also when the key is not the record's own."""
    if key.startswith(SPENT_PREFIX):
        return SpentNumbers.decode(value)
    if key.endswith(b"/head"):
        head = Head.decode(value)
        return _own(head, key, head_key(head.adapter_id))
    revision = Revision.decode(value)
    return _own(revision, key, revision_key(revision.adapter_id, revision.number))


def _own(record: T, key: bytes, expected: bytes) -> T:
    if key != expected:
        raise InvalidRecord(f"its key is {key!r} where its value says {expected!r}")
    return record


def _changes(stored: bytes | None, new: CatalogRecord, position: CatalogPosition) -> Iterable[Change]:
    if isinstance(new, Head):
        return head_changes(Head.decode(stored) if stored else None, new, position)
    if isinstance(new, SpentNumbers):
        return ()
    return revision_changes(Revision.decode(stored) if stored else None, new, position)


def _remove(writer: Writer, key: bytes, partition: int, offset: int) -> Sequence[Change]:
    stored = writer.get(key)
    if stored is None:
        return ()
    writer.delete(key)
    old = decode_row(key, stored)
    if isinstance(old, Head):
        return (Change("deleted", old.adapter_id, CatalogPosition(partition=partition, offset=offset)),)
    if isinstance(old, Revision) and old.job_id is not None and old.step is not None:
        writer.index_step(old.adapter_id, old.job_id, old.step, None)
    return ()
