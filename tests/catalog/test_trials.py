"""Trials by example; tests/laws has them over random commands."""

from typing import Any

import pytest

from mint_stream.catalog.state import Decision
from mint_stream.messages.adapters import AdapterCommand
from mint_stream.messages.gates import Trial
from tests.adapter_commands import GATE, announce, judge, promote, quarantine, retire, roll_back, set_canary, set_rule
from tests.catalog.test_decide import Desk


@pytest.fixture
def desk() -> Desk:
    """Revision 1 is production, and from now on a gate decides."""
    desk = Desk()
    desk.accept(announce("a"), set_rule("a", "gated", gate=GATE))
    return desk


def trial_of(desk: Desk) -> Trial:
    assert desk.head.trial is not None
    return desk.head.trial


def verdict(desk: Desk, verdict: str, **fields: Any) -> Decision:
    """The evaluator's, on the trial as it stands."""
    return desk.accept(judge("a", trial_of(desk), verdict, desk.head.aliases.get("production"), **fields))


def kinds(decision: Decision) -> list[str]:
    return [event.type for event in decision.events]


def test_an_announce_under_a_gate_begins_a_trial_and_moves_only_candidate(desk: Desk) -> None:
    decision = desk.accept(announce("a"))
    assert kinds(decision) == ["revision-announced", "alias-moved", "trial-begun"]
    assert (trial_of(desk).number, trial_of(desk).phase) == (2, "gate")
    assert desk.head.aliases == {"production": 1, "candidate": 2}


def test_through_gate_and_canary_to_production_with_its_numbers_in_every_event(desk: Desk) -> None:
    desk.accept(announce("a"))
    started = verdict(desk, "start-canary", figures={"score": 0.9, "floor": 0.6})
    assert kinds(started) == ["candidate-judged", "canary-set"]
    assert started.events[0].figures == {"score": 0.9, "floor": 0.6}
    assert (desk.head.canary.number, desk.head.canary.share_basis_points, trial_of(desk).phase) == (2, 500, "canary")
    promoted = verdict(desk, "promote")
    assert kinds(promoted) == ["candidate-judged", "alias-moved", "alias-moved", "canary-set"]
    assert (desk.head.aliases["production"], desk.head.aliases["previous"]) == (2, 1)
    assert (desk.head.canary, desk.head.trial, desk.head.rule) == (None, None, "gated")
    assert promoted.events[1].cause == "judge"


def test_a_rejected_candidate_is_not_tried_again_until_the_rule_is_set_again(desk: Desk) -> None:
    desk.accept(announce("a"))
    assert kinds(verdict(desk, "reject")) == ["candidate-judged"]
    assert (desk.head.trial, desk.head.aliases) == (None, {"production": 1, "candidate": 2})
    assert "trial-begun" not in kinds(desk.accept(promote("a", 1, alias="stable")))
    assert kinds(desk.accept(set_rule("a", "gated"))) == ["rule-set", "trial-begun"]
    assert desk.head.gate == GATE, "what it asks stays as it was"


def test_a_canary_rolled_back_leaves_production_and_the_rule_as_they_were(desk: Desk) -> None:
    desk.accept(announce("a"))
    verdict(desk, "start-canary")
    assert kinds(verdict(desk, "roll-back")) == ["candidate-judged", "canary-set"]
    assert (desk.head.aliases["production"], desk.head.canary, desk.head.trial, desk.head.rule) == (1, None, None, "gated")


def test_a_trial_goes_on_however_fast_one_publishes_and_the_newest_candidate_is_next(desk: Desk) -> None:
    desk.accept(announce("a"))
    assert not [kind for kind in kinds(desk.accept(announce("a"))) if kind.startswith("trial")]
    assert (trial_of(desk).number, trial_of(desk).phase) == (2, "gate")
    verdict(desk, "start-canary")
    desk.accept(announce("a"))
    assert (trial_of(desk).number, trial_of(desk).phase) == (2, "canary")
    ended = verdict(desk, "promote")
    assert kinds(ended)[-1] == "trial-begun"
    assert (desk.head.aliases["production"], trial_of(desk).number) == (2, 4)


def test_a_verdict_on_what_is_no_longer_so_changes_nothing(desk: Desk) -> None:
    """What a zombie sends: of the phase before, of a trial that is over, beside a production that has moved."""
    desk.accept(announce("a"))
    old = trial_of(desk)
    assert "compared with 7" in desk.refuse(judge("a", old, "promote", 7))
    assert "no verdict of the gate" in desk.refuse(judge("a", old, "roll-back", 1))
    verdict(desk, "start-canary")
    assert "look again" in desk.refuse(judge("a", old, "reject", 1))
    verdict(desk, "promote")
    assert "there is no trial" in desk.refuse(judge("a", old.model_copy(update={"phase": "canary"}), "roll-back"))


def test_a_gate_without_a_canary_starts_none(desk: Desk) -> None:
    desk.accept(set_rule("a", "gated", gate=GATE.model_copy(update={"canary": None})), announce("a"))
    assert "asks for no canary" in desk.refuse(judge("a", trial_of(desk), "start-canary", 1))


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (promote("a", 2), "decided-by-a-person"),
        (promote("a", 1), None),
        (set_rule("a", "manual"), "rule-changed"),
        (retire("a", 2), "out-of-service"),
        (quarantine("a", 2), "out-of-service"),
        (set_canary("a", None), "canary-ended"),
        (quarantine("a", 1), "canary-ended"),
        (roll_back("a"), "rule-changed"),
    ],
    ids=lambda one: getattr(one, "type", one),
)
def test_what_ends_a_trial_in_its_canary(desk: Desk, command: AdapterCommand, cause: str | None) -> None:
    if command.type == "roll-back":
        desk.accept(promote("a", 1, alias="stable"), announce("a"), promote("a", 2), announce("a"))
    desk.accept(announce("a"))
    verdict(desk, "start-canary")
    decision = desk.accept(command)
    ended = [event.cause for event in decision.events if event.type == "trial-ended"]
    assert ended == ([cause] if cause else [])
    assert (desk.head.canary is None) == (cause is not None)


def test_without_production_there_is_no_canary_and_the_candidate_goes_back_to_the_gate(desk: Desk) -> None:
    desk.accept(announce("a"))
    verdict(desk, "start-canary")
    decision = desk.accept(quarantine("a", 1))
    assert [kind for kind in kinds(decision) if kind.startswith("trial")] == ["trial-ended", "trial-begun"]
    assert (trial_of(desk).number, trial_of(desk).phase) == (2, "gate")
    assert "asks for no canary" in desk.refuse(judge("a", trial_of(desk), "start-canary"))
    verdict(desk, "promote")
    assert desk.head.aliases["production"] == 2


def test_the_first_revision_under_a_gate_needs_no_production() -> None:
    desk = Desk()
    desk.accept(announce("a", promotion="gated"), set_rule("a", "gated", gate=GATE))
    assert trial_of(desk).number == 1
    verdict(desk, "promote")
    assert desk.head.aliases["production"] == 1


def test_a_person_who_moves_production_at_the_gate_has_decided_until_the_next_announce(desk: Desk) -> None:
    desk.accept(announce("a"), announce("a"), promote("a", 2))
    assert desk.head.trial is None, "3 was under trial and is not forced upon who chose 2"
    desk.accept(announce("a"))
    assert trial_of(desk).number == 4


def test_a_quarantined_revision_is_never_promoted_by_a_verdict(desk: Desk) -> None:
    desk.accept(announce("a"))
    trial = trial_of(desk)
    desk.accept(quarantine("a", 2))
    assert "no trial" in desk.refuse(judge("a", trial, "promote", 1))
    assert "quarantined" in desk.refuse(promote("a", 2))
