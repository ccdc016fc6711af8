"""The registrar's rules, pure: the state of an adapter and a command give what is written, or why not.

Laws: numbers are dense and never reused; neither an alias nor a canary is a retired or quarantined revision; a command repeated while it is
remembered changes nothing; an attempt once passed stays passed; a rejected command changes nothing, so it is not remembered either.
"""

from mint_stream.catalog import aliases, trials
from mint_stream.catalog.announcing import announce
from mint_stream.catalog.canary import settled
from mint_stream.catalog.case import Case, Refusal, Repetition
from mint_stream.catalog.deletion import delete
from mint_stream.catalog.state import AdapterState, Decision
from mint_stream.messages.adapters import (
    AdapterCommand,
    Announce,
    CanarySet,
    Claim,
    ClaimGranted,
    CommandRejectedEvent,
    CommandRepeated,
    CurrentClaim,
    Delete,
    Promote,
    Quarantine,
    Retire,
    Revision,
    RevisionQuarantined,
    RevisionRetired,
    RollBack,
    RuleSet,
    SetCanary,
    SetRule,
    SetSpread,
    SpreadSet,
)
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.gates import Judge

MAX_ALIASES = 256
"""An adapter's aliases ride in every head record, which has to fit a Kafka record."""
MAX_ANNOUNCE_AGE_MS = 24 * 3600 * 1000
"""An announce older than this is refused: files that nothing refers to are swept after twice as long."""
_REASON_CHARACTERS = 1000


def decide(
    state: AdapterState, command: AdapterCommand, base: PoolBase | None, now_ms: int, max_announce_age_ms: int = MAX_ANNOUNCE_AGE_MS
) -> Decision:
    """What `command` leads to. `base` is the base of the pool an announce names, None when that pool has none."""
    case = Case(state, command, now_ms)
    try:
        case.check_repetition()
        return trials.settled(case, settled(case, _decided(case, base, max_announce_age_ms)))
    except Repetition as known:
        return Decision((CommandRepeated(**case.stamp, number=known.number, attempt=known.attempt),))
    except Refusal as refusal:
        attempt = state.head.attempt if state.head is not None else 0
        current = attempt if isinstance(command, Claim | Announce) else None
        return Decision((CommandRejectedEvent(**case.stamp, command=command.type, reason=str(refusal), current_attempt=current),))


def _decided(case: Case, base: PoolBase | None, max_announce_age_ms: int) -> Decision:
    match case.command:
        case Claim() as command:
            return _claim(case, command)
        case Announce() as command:
            return announce(case, command, base, max_announce_age_ms)
        case Promote() as command:
            return _promote(case, command)
        case RollBack() as command:
            return _roll_back(case, command)
        case Quarantine() as command:
            return _quarantine(case, command)
        case Retire() as command:
            return _retire(case, command)
        case SetRule() as command:
            return _set_rule(case, command)
        case SetCanary() as command:
            return _set_canary(case, command)
        case SetSpread() as command:
            return _set_spread(case, command)
        case Delete() as command:
            return delete(case, command)
        case Judge() as command:
            return trials.judge(case, command)


def _claim(case: Case, command: Claim) -> Decision:
    head = case.head_in(command.pool)
    case.check_pool(head, command.pool)
    granted = head.attempt + 1
    if command.expected_attempt != granted:
        raise Refusal(f"attempt {command.expected_attempt} was expected and {granted} would be next: watch whoever holds {head.attempt}")
    claimed = case.remembering(head, attempt=granted).model_copy(
        update={"attempt": granted, "claim": CurrentClaim(job_id=command.job_id, attempt=granted)}
    )
    return Decision((ClaimGranted(**case.stamp, job_id=command.job_id, attempt=granted),), head=claimed)


def _promote(case: Case, command: Promote) -> Decision:
    head = case.existing_head()
    case.check_position(command.expected_position)
    if command.alias == aliases.PREVIOUS:
        raise Refusal("previous is what production was before its last move and cannot be set: roll back to use it")
    if command.alias.isdigit():
        raise Refusal(f"alias {command.alias} would read as a revision number: choose a name that is not only digits")
    if command.alias not in head.aliases and len(head.aliases) >= MAX_ALIASES:
        raise Refusal(f"adapter {command.adapter_id} has {len(head.aliases)} aliases and may have no more: move one of them")
    case.check_servable(command.number)
    after = aliases.moved(head.aliases, command.alias, command.number)
    events = aliases.moves(command, "promote", head.aliases, after, case.now_ms, first=command.alias)
    return Decision(events, head=case.remembering(head, number=command.number).model_copy(update={"aliases": after}))


def _roll_back(case: Case, command: RollBack) -> Decision:
    head = case.existing_head()
    case.check_position(command.expected_position)
    target = head.aliases.get(aliases.PREVIOUS)
    if target is None:
        raise Refusal("production has no revision it was moved from: promote the one you want")
    after = aliases.moved(head.aliases, aliases.PRODUCTION, target)
    events = aliases.moves(command, "roll-back", head.aliases, after, case.now_ms)
    return Decision(events, head=case.remembering(head, number=target).model_copy(update={"aliases": after, "rule": "manual"}))


def _quarantine(case: Case, command: Quarantine) -> Decision:
    head, revision = case.existing_head(), case.existing_revision(command.number)
    if revision.state == "quarantined":
        raise Repetition(number=command.number)
    if revision.state == "retired":
        raise Refusal(f"revision {command.number} is retired: nothing serves it")
    after, reason = aliases.without(head.aliases, command.number), command.reason[:_REASON_CHARACTERS]
    return Decision(
        (
            RevisionQuarantined(**case.stamp, number=command.number, reason=reason),
            *aliases.moves(command, "quarantine", head.aliases, after, case.now_ms),
        ),
        (revision.model_copy(update={"state": "quarantined", "reason": reason}),),
        case.remembering(head, number=command.number).model_copy(update={"aliases": after}),
    )


def _retire(case: Case, command: Retire) -> Decision:
    head, revision = case.existing_head(), case.existing_revision(command.number)
    if revision.state == "retired":
        raise Repetition(number=command.number)
    if head.aliases.get(aliases.PRODUCTION) == command.number:
        raise Refusal(f"production points at revision {command.number}: promote another one first")
    after = aliases.without(head.aliases, command.number)
    return Decision(
        (RevisionRetired(**case.stamp, number=command.number), *aliases.moves(command, "retire", head.aliases, after, case.now_ms)),
        (_stub(revision),),
        case.remembering(head, number=command.number).model_copy(update={"aliases": after}),
    )


def _set_rule(case: Case, command: SetRule) -> Decision:
    head = case.existing_head()
    gate = command.gate or head.gate
    event = RuleSet(**case.stamp, rule=command.rule, gate=gate if command.rule == "gated" else None)
    after = case.remembering(head).model_copy(update={"rule": command.rule, "gate": gate, "tried": 0})
    return Decision((event,), head=after)


def _set_canary(case: Case, command: SetCanary) -> Decision:
    head, canary = case.existing_head(), command.canary
    case.check_position(command.expected_position)
    if canary is not None:
        case.check_servable(canary.number)
        production = head.aliases.get(aliases.PRODUCTION)
        if production is None:
            raise Refusal(f"adapter {command.adapter_id} has no production revision to take a share from: promote one first")
        if production == canary.number:
            raise Refusal(f"revision {canary.number} is production itself: a canary is another revision")
    event = CanarySet(**case.stamp, canary=canary, previous=head.canary)
    number = canary.number if canary is not None else None
    return Decision((event,), head=case.remembering(head, number=number).model_copy(update={"canary": canary}))


def _set_spread(case: Case, command: SetSpread) -> Decision:
    head = case.existing_head()
    event = SpreadSet(**case.stamp, spread=command.spread)
    return Decision((event,), head=case.remembering(head).model_copy(update={"spread": command.spread}))


def _stub(revision: Revision) -> Revision:
    kept = {"adapter_id", "number", "digest", "pool", "parent", "job_id", "step", "announced_at_ms"}
    return Revision(state="retired", **revision.model_dump(include=kept))
