"""What the registrar knows of one adapter while it decides: the copy of the log beneath, and what was decided since on top."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from mint_stream.messages.adapters import AdapterEvent, Head, Revision
from mint_stream.messages.shared import CatalogPosition


class RevisionLog(Protocol):
    """The revisions that are in the log. A Catalog is one."""

    def revision(self, adapter_id: str, number: int) -> Revision | None: ...

    def number_of_step(self, adapter_id: str, job_id: str, step: int) -> int | None: ...


class EmptyLog:
    """A log without revisions."""

    def revision(self, adapter_id: str, number: int) -> Revision | None:
        """None."""
        return None

    def number_of_step(self, adapter_id: str, job_id: str, step: int) -> int | None:
        """None."""
        return None


@dataclass(frozen=True)
class Decision:
    """What one command leads to. Written in this order: revisions, then the head, then the events; the first event is the answer.

    Without a head, or one that is deleted, nothing changes."""

    events: tuple[AdapterEvent, ...]
    revisions: tuple[Revision, ...] = ()
    head: Head | None = None
    deleted: Head | None = None
    """The head of an adapter that ends: a tombstone for each revision, its spent numbers, and last a tombstone for the head."""

    @property
    def changes(self) -> bool:
        """Whether anything is different afterwards."""
        return self.head is not None or self.deleted is not None


@dataclass(frozen=True)
class AdapterState:
    """One adapter as it stands. `head` None: it does not exist yet."""

    adapter_id: str
    head: Head | None = None
    position: CatalogPosition | None = None
    """Where the head's record stands."""
    log: RevisionLog = field(default_factory=EmptyLog)
    written: Mapping[int, Revision] = field(default_factory=dict)
    """Revisions decided since the log was read."""
    first_number: int = 1
    """Where the numbers begin of an adapter that is made now."""

    def revision(self, number: int) -> Revision | None:
        """The revision of this number."""
        return self.written.get(number) or self.log.revision(self.adapter_id, number)

    def number_of_step(self, job_id: str, step: int) -> int | None:
        """The revision that a job's step was announced as."""
        for revision in self.written.values():
            if (revision.job_id, revision.step) == (job_id, step):
                return revision.number
        return self.log.number_of_step(self.adapter_id, job_id, step)

    def after(self, decision: Decision, position: CatalogPosition | None) -> "AdapterState":
        """The state once the decision is written, its head at `position`."""
        if decision.deleted is not None:
            return AdapterState(self.adapter_id, first_number=max(self.first_number, decision.deleted.next_number))
        if decision.head is None:
            return self
        written = {**self.written, **{revision.number: revision for revision in decision.revisions}}
        return replace(self, head=decision.head, position=position, written=written)
