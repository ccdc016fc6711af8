"""How aliases move. Each function takes an adapter's aliases and gives them as they are afterwards.

`production` is what a bare name means. `previous` is what production was before its last move, `candidate` the newest announced revision.
Law: no alias ever points at a revision that is retired or quarantined.
"""

from collections.abc import Mapping
from typing import Literal

from mint_stream.messages.adapters import AdapterCommand, AliasMoved

PRODUCTION, PREVIOUS, CANDIDATE = "production", "previous", "candidate"

Cause = Literal["announce", "promote", "roll-back", "quarantine", "retire", "judge"]
Aliases = dict[str, int]


def moved(aliases: Mapping[str, int], alias: str, number: int) -> Aliases:
    """`alias` points at `number`; when production leaves a revision, previous stays with that one."""
    after = {**aliases, alias: number}
    before = aliases.get(PRODUCTION)
    if alias == PRODUCTION and before is not None and before != number:
        after[PREVIOUS] = before
    return after


def without(aliases: Mapping[str, int], number: int) -> Aliases:
    """Nothing points at `number`; production falls back to previous, or is gone when that is the same or there is none."""
    after = {alias: target for alias, target in aliases.items() if target != number}
    if aliases.get(PRODUCTION) == number and PREVIOUS in after:
        after[PRODUCTION] = after.pop(PREVIOUS)
    return after


def moves(
    command: AdapterCommand, cause: Cause, before: Mapping[str, int], after: Mapping[str, int], now_ms: int, first: str = PRODUCTION
) -> tuple[AliasMoved, ...]:
    """An event for each alias that points elsewhere, that of `first` at the front and always there when it points anywhere at all."""
    told = sorted({*before, *after}, key=lambda alias: (alias != first, alias))
    return tuple(
        AliasMoved(
            command_id=command.command_id,
            adapter_id=command.adapter_id,
            at_ms=now_ms,
            alias=alias,
            number=after.get(alias),
            previous_number=before.get(alias),
            cause=cause,
        )
        for alias in told
        if before.get(alias) != after.get(alias) or (cause == "promote" and alias == first)
    )
