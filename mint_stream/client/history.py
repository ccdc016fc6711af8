"""What an adapter was at a moment, folded from its events, which are kept for ever.

Law: at the time of any event the answer is the state that the catalog had once everything said until then was written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mint_stream.messages.adapters import (
    AdapterDeleted,
    AdapterEvent,
    AliasMoved,
    Canary,
    CanarySet,
    ClaimGranted,
    RevisionAnnounced,
)


@dataclass(frozen=True)
class RevisionThen:
    """What an alias pointed at."""

    number: int
    digest: str


@dataclass(frozen=True)
class AdapterThen:
    """An adapter as it was: its aliases, and the canary that took a share of production's requests."""

    adapter_id: str
    aliases: Mapping[str, RevisionThen] = field(default_factory=dict)
    canary: Canary | None = None
    digests: Mapping[int, str] = field(default_factory=dict)
    """Of every revision announced until then."""


def as_of(events: Iterable[AdapterEvent], adapter_id: str, at_ms: int) -> AdapterThen | None:
    """The adapter as it was at `at_ms`, from events in the order of their log; None when there was none yet, or none any more."""
    then: AdapterThen | None = None
    for event in events:
        if event.adapter_id == adapter_id and event.at_ms <= at_ms:
            then = _after(then, event)
    return then


def _after(then: AdapterThen | None, event: AdapterEvent) -> AdapterThen | None:
    known = then or AdapterThen(event.adapter_id)
    match event:
        case AdapterDeleted():
            return None
        case ClaimGranted():
            return known
        case RevisionAnnounced():
            return replace(known, digests={**known.digests, event.number: event.digest})
        case AliasMoved():
            return replace(known, aliases=_moved(known, event))
        case CanarySet():
            return replace(known, canary=event.canary)
        case _:
            return then


def _moved(known: AdapterThen, event: AliasMoved) -> dict[str, RevisionThen]:
    others = {alias: target for alias, target in known.aliases.items() if alias != event.alias}
    if event.number is None:
        return others
    return {**others, event.alias: RevisionThen(event.number, known.digests.get(event.number, ""))}
