"""Trials: a candidate of an adapter under the rule `gated` on its way to production. Who measures is elsewhere; here is what follows.

    announced ─► trial at the gate ─► promote │ start-canary ─► trial in the canary ─► promote
                                    └► reject                                         └► roll-back

Laws: a trial is of an announced revision that is not production, under the rule `gated`; in its canary phase that revision is the canary;
a verdict on another trial, another phase, or beside another production changes nothing; a newer candidate waits until the trial is over
(else whoever publishes faster than a gate decides would never pass one), and the newest that was not tried yet has the next trial; a person
who moves production has decided.
"""

import hashlib
from dataclasses import replace
from typing import Any, NoReturn

from mint_stream.catalog import aliases
from mint_stream.catalog.case import Case, Refusal
from mint_stream.catalog.state import Decision
from mint_stream.messages.adapters import (
    AdapterEvent,
    Canary,
    CanarySet,
    Head,
    Promote,
    RollBack,
    SetRule,
)
from mint_stream.messages.gates import CandidateJudged, EndCause, Judge, Trial, TrialBegun, TrialEnded, Verdict

VERDICTS: dict[str, frozenset[Verdict]] = {
    "gate": frozenset({"promote", "start-canary", "reject", "give-up"}),
    "canary": frozenset({"promote", "roll-back", "give-up"}),
}


def judge(case: Case, command: Judge) -> Decision:
    """Carry out a verdict. Raises Refusal when the trial is not where the verdict was made."""
    head = case.existing_head()
    trial = _trial_of(head, command)
    told = CandidateJudged(
        **case.stamp, number=trial.number, **command.model_dump(include={"trial_id", "phase", "verdict", "production", "reason", "figures"})
    )
    remembering = case.remembering(head, number=trial.number)
    if command.verdict == "start-canary":
        return _started(case, remembering, trial, told)
    if command.verdict == "promote":
        return _promoted(case, remembering, trial, told)
    return _ended(case, remembering, trial, told, {})


def _trial_of(head: Head, command: Judge) -> Trial:
    trial = head.trial
    if trial is None or (trial.trial_id, trial.phase) != (command.trial_id, command.phase):
        now = f"trial {trial.trial_id} in its {trial.phase} phase" if trial is not None else "no trial"
        raise Refusal(f"the verdict is on the {command.phase} of trial {command.trial_id}, and there is {now}: look again")
    if command.verdict not in VERDICTS[trial.phase]:
        raise Refusal(f"{command.verdict} is no verdict of the {trial.phase} phase")
    production = head.aliases.get(aliases.PRODUCTION)
    if trial.phase == "gate" and command.production != production:
        raise Refusal(f"the candidate was compared with {command.production}, and production is {production}: compare again")
    return trial


def _started(case: Case, head: Head, trial: Trial, told: CandidateJudged) -> Decision:
    if head.gate is None or head.gate.canary is None or aliases.PRODUCTION not in head.aliases:
        _no_canary(head)
    canary = Canary(number=trial.number, share_basis_points=head.gate.canary.share_basis_points)
    going_on = trial.model_copy(update={"phase": "canary", "since_ms": case.now_ms})
    events = (told, CanarySet(**case.stamp, canary=canary, previous=head.canary))
    return Decision(events, head=head.model_copy(update={"canary": canary, "trial": going_on}))


def _no_canary(head: Head) -> NoReturn:
    raise Refusal(f"the gate of adapter {head.adapter_id} asks for no canary, or there is no production to take a share from: promote it")


def _promoted(case: Case, head: Head, trial: Trial, told: CandidateJudged) -> Decision:
    case.check_servable(trial.number)
    after = aliases.moved(head.aliases, aliases.PRODUCTION, trial.number)
    moves = aliases.moves(case.command, "judge", head.aliases, after, case.now_ms)
    return _ended(case, head, trial, told, {"aliases": after}, moves)


def _ended(
    case: Case, head: Head, trial: Trial, told: AdapterEvent, changes: dict[str, Any], consequences: tuple[AdapterEvent, ...] = ()
) -> Decision:
    """The trial is over, and with it its canary."""
    events = (told, *consequences)
    if head.canary is not None and trial.phase == "canary" and head.canary.number == trial.number:
        events, changes = (*events, CanarySet(**case.stamp, canary=None, previous=head.canary)), {**changes, "canary": None}
    return Decision(events, head=head.model_copy(update={**changes, "trial": None}))


def settled(case: Case, decision: Decision) -> Decision:
    """The decision, the end of a trial that lost what it stands on, and the beginning of the next one."""
    return _begun(case, _without_fallen(case, decision))


def _without_fallen(case: Case, decision: Decision) -> Decision:
    head, trial = decision.head, decision.head.trial if decision.head is not None else None
    if head is None or trial is None:
        return decision
    cause = _why_over(case, decision, head, trial)
    if cause is None:
        return decision
    told = TrialEnded(**case.stamp, trial_id=trial.trial_id, number=trial.number, phase=trial.phase, cause=cause)
    over = _ended(case, head, trial, told, {"tried": _tried_after(head, trial, cause)})
    return replace(decision, events=(*decision.events, *over.events), head=over.head)


def _tried_after(head: Head, trial: Trial, cause: EndCause) -> int:
    """Up to where candidates have had their trial: whoever decides himself has decided about those that wait, too."""
    if cause == "decided-by-a-person":
        return head.aliases.get(aliases.CANDIDATE, head.tried)
    return trial.number - 1 if cause == "canary-ended" and aliases.PRODUCTION not in head.aliases else head.tried


def _why_over(case: Case, decision: Decision, head: Head, trial: Trial) -> EndCause | None:
    before = case.state.head.aliases if case.state.head is not None else {}
    moved = before.get(aliases.PRODUCTION) != head.aliases.get(aliases.PRODUCTION)
    if any(revision.number == trial.number and revision.state != "announced" for revision in decision.revisions):
        return "out-of-service"
    if head.rule != "gated" or isinstance(case.command, SetRule):
        return "rule-changed"
    if head.aliases.get(aliases.PRODUCTION) == trial.number or (moved and isinstance(case.command, Promote | RollBack)):
        return "decided-by-a-person"
    if trial.phase == "canary" and (head.canary is None or head.canary.number != trial.number):
        return "canary-ended"
    return None


def _trial_id(adapter_id: str, number: int, command_id: str) -> str:
    """Nobody else's: command ids are unique for an adapter only."""
    return hashlib.sha256(f"{adapter_id}/{number}/{command_id}".encode()).hexdigest()[:32]


def _begun(case: Case, decision: Decision) -> Decision:
    """A trial of the candidate, when there is none and it was not tried yet. Never of one older than production."""
    head = decision.head
    if head is None or head.trial is not None or head.rule != "gated" or head.gate is None:
        return decision
    number = head.aliases.get(aliases.CANDIDATE, 0)
    if number <= max(head.tried, head.aliases.get(aliases.PRODUCTION, 0)):
        return decision
    trial = Trial(trial_id=_trial_id(head.adapter_id, number, case.command.command_id), number=number, since_ms=case.now_ms)
    begun = TrialBegun(**case.stamp, trial_id=trial.trial_id, number=number)
    return replace(decision, events=(*decision.events, begun), head=head.model_copy(update={"trial": trial, "tried": number}))
