"""What a catalog record changed, told to those who prefetch, switch and drain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mint_stream.messages.adapters import Canary, Head, Revision
from mint_stream.messages.shared import CatalogPosition


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that became different at `position`.

    announced, quarantined, retired: `number` and its `revision` as it now is.
    alias-moved: `alias` points at `number` (None: the alias is gone) and pointed at `previous_number` before.
    canary-set: `number` answers a share of production's requests (None: nothing does any more).
    deleted: the adapter's head is gone."""

    kind: Literal["announced", "alias-moved", "canary-set", "quarantined", "retired", "deleted"]
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
    """One change for each alias that points elsewhere, production first; then one for a canary that began, changed its share or ended."""
    before = old.aliases if old is not None else {}
    for alias in sorted({*before, *new.aliases}, key=lambda name: (name != "production", name)):
        if before.get(alias) != new.aliases.get(alias):
            yield Change("alias-moved", new.adapter_id, position, new.aliases.get(alias), before.get(alias), alias)
    canary = old.canary if old is not None else None
    if canary != new.canary:
        yield Change("canary-set", new.adapter_id, position, _number(new.canary), _number(canary))


def _number(canary: Canary | None) -> int | None:
    return canary.number if canary is not None else None
