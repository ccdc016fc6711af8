"""What a catalog record changed, told to those who prefetch, switch and drain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mint_stream.messages.adapters import Head, Revision
from mint_stream.messages.shared import CatalogPosition


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that became different at `position`.

    announced, quarantined, retired: `number` and its `revision` as it now is.
    alias-moved: `alias` points at `number` (None: the alias is gone) and pointed at `previous_number` before.
    deleted: the adapter's head is gone."""

    kind: Literal["announced", "alias-moved", "quarantined", "retired", "deleted"]
    adapter_id: str
    position: CatalogPosition
    number: int | None = None
    previous_number: int | None = None
    alias: str | None = None
    revision: Revision | None = None


def revision_changes(old: Revision | None, new: Revision, position: CatalogPosition) -> Iterator[Change]:
    """At most one change: a record that repeats the state it had says nothing."""
    if old is None or old.state != new.state:
        yield Change(new.state, new.adapter_id, position, number=new.number, revision=new)


def head_changes(old: Head | None, new: Head, position: CatalogPosition) -> Iterator[Change]:
    """One change for each alias that points elsewhere, production first."""
    before = old.aliases if old is not None else {}
    for alias in sorted({*before, *new.aliases}, key=lambda name: (name != "production", name)):
        if before.get(alias) != new.aliases.get(alias):
            yield Change("alias-moved", new.adapter_id, position, new.aliases.get(alias), before.get(alias), alias)
