"""The registrar's rules by example; tests/laws has them over random commands."""

import functools
from typing import Any

import pytest

from mint_stream.catalog.case import REMEMBERED_COMMANDS
from mint_stream.catalog.decide import MAX_ANNOUNCE_AGE_MS, decide
from mint_stream.catalog.state import AdapterState, Decision
from mint_stream.messages.adapters import AdapterCommand, Head, SpentNumbers
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.shared import CatalogPosition
from tests.adapter_commands import (
    BASE,
    NOW_MS,
    announce,
    claim,
    delete,
    manifest,
    promote,
    quarantine,
    retire,
    roll_back,
    set_rule,
    set_spread,
    target,
)


class Desk:
    """Decides one adapter's commands one after the other."""

    def __init__(self) -> None:
        self.state = AdapterState("a")
        self.offset = 0

    def give(self, command: AdapterCommand, base: PoolBase | None = BASE, now_ms: int = NOW_MS) -> Decision:
        decision = decide(self.state, command, base, now_ms)
        self.offset += 1
        self.state = self.state.after(decision, CatalogPosition(partition=0, offset=self.offset))
        return decision

    def accept(self, *commands: AdapterCommand) -> Decision:
        decisions = [self.give(command) for command in commands]
        assert all(decision.head is not None for decision in decisions), [decision.events for decision in decisions]
        return decisions[-1]

    def refuse(self, command: AdapterCommand, **given: Any) -> str:
        decision = self.give(command, **given)
        assert (decision.head, decision.revisions) == (None, ())
        assert decision.events[0].type == "command-rejected"
        return decision.events[0].reason

    @property
    def head(self) -> Head:
        assert self.state.head is not None
        return self.state.head


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_first_announce_makes_the_adapter_and_moves_production(desk: Desk) -> None:
    decision = desk.accept(announce("a"))
    assert [event.type for event in decision.events] == ["revision-announced", "alias-moved", "alias-moved"]
    assert desk.head.aliases == {"production": 1, "candidate": 1}
    assert decision.revisions[0].rank == 4


@pytest.mark.parametrize("rule", ["manual", "gated"])
def test_without_the_auto_rule_an_announce_moves_only_candidate(desk: Desk, rule: str) -> None:
    desk.accept(announce("a", promotion=rule), announce("a", promotion="auto"))
    assert desk.head.aliases == {"candidate": 2}
    assert desk.head.rule == rule


def test_a_claim_before_the_first_announce_leaves_the_rule_to_the_announce(desk: Desk) -> None:
    desk.accept(claim("a", 1), announce("a", job_id="job", attempt=1, step=1, promotion="manual"))
    assert desk.head.rule == "manual"


def test_production_returns_to_previous_and_the_next_announce_does_not_undo_it(desk: Desk) -> None:
    desk.accept(announce("a"), announce("a"))
    decision = desk.accept(roll_back("a"))
    assert (decision.events[0].alias, decision.events[0].number, decision.events[0].cause) == ("production", 1, "roll-back")
    desk.accept(announce("a"))
    assert desk.head.aliases == {"production": 1, "previous": 2, "candidate": 3}


def test_there_must_be_something_to_roll_back_to(desk: Desk) -> None:
    assert "no adapter a" in desk.refuse(roll_back("a"))
    desk.accept(announce("a"))
    assert "promote the one you want" in desk.refuse(roll_back("a"))


def test_a_quarantined_revision_leaves_every_alias_and_never_returns(desk: Desk) -> None:
    desk.accept(announce("a"), announce("a"), promote("a", 2, alias="canary"))
    decision = desk.accept(quarantine("a", 2))
    assert desk.head.aliases == {"production": 1}
    assert [event.type for event in decision.events] == ["revision-quarantined"] + ["alias-moved"] * 4
    assert "quarantined" in desk.refuse(promote("a", 2))
    assert desk.give(quarantine("a", 2)).events[0].type == "command-repeated"


def test_quarantine_without_a_previous_leaves_no_production(desk: Desk) -> None:
    desk.accept(announce("a"), quarantine("a", 1))
    assert desk.head.aliases == {}


def test_a_retired_revision_keeps_its_number_and_little_else(desk: Desk) -> None:
    desk.accept(announce("a"), announce("a"))
    assert "promote another one first" in desk.refuse(retire("a", 2))
    stub = desk.accept(retire("a", 1)).revisions[0]
    assert (stub.state, stub.uri, stub.metrics, stub.number) == ("retired", None, {}, 1)
    assert "previous" not in desk.head.aliases
    assert "retired" in desk.refuse(promote("a", 1))
    assert "retired" in desk.refuse(quarantine("a", 1))
    assert "retired" in desk.refuse(announce("a", parent=1))
    assert desk.accept(announce("a")).revisions[0].number == 3


@pytest.mark.parametrize("attempt", [1, 3])
def test_only_the_next_attempt_is_granted(desk: Desk, attempt: int) -> None:
    desk.accept(claim("a", 1))
    decision = desk.give(claim("a", attempt, "other"))
    assert decision.head is None
    assert decision.events[0].current_attempt == 1


def test_an_announce_must_match_the_current_claim(desk: Desk) -> None:
    assert "no job holds" in desk.refuse(announce("a", job_id="job", attempt=1, step=1))
    desk.accept(claim("a", 1), announce("a", job_id="job", attempt=1, step=1), claim("a", 2))
    assert "superseded by attempt 2" in desk.refuse(announce("a", job_id="job", attempt=1, step=2))
    assert "job job holds" in desk.refuse(announce("a", job_id="thief", attempt=2, step=2))
    assert "its attempt and its step" in desk.refuse(announce("a", job_id="job", attempt=2))
    assert desk.give(announce("a", job_id="job", attempt=2, step=1)).events[0].number == 1


def test_a_head_that_moved_on_refuses_compare_and_set(desk: Desk) -> None:
    desk.accept(announce("a"), announce("a"))
    here = desk.state.position
    desk.accept(promote("a", 1, expected_position=here))
    assert "stands at 0:3" in desk.refuse(promote("a", 2, expected_position=here))
    assert "stands at 0:3" in desk.refuse(roll_back("a", expected_position=here))


@pytest.mark.parametrize(("alias", "says"), [("previous", "roll back to use it"), ("7", "revision number")])
def test_some_aliases_cannot_be_set(desk: Desk, alias: str, says: str) -> None:
    desk.accept(announce("a"))
    assert says in desk.refuse(promote("a", 1, alias=alias))


def test_promoting_what_is_promoted_still_answers(desk: Desk) -> None:
    desk.accept(announce("a"))
    [event] = desk.accept(promote("a", 1)).events
    assert (event.number, event.previous_number) == (1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_digest": "e" * 64}, "was made for base eeee"),
        ({"targets": (target(pattern="model.layers.*.nothing"),)}, "is no layer of LlamaForCausalLM"),
        ({"targets": (target(in_features=8),)}, "8 x 16 in the adapter and 16 x 16 in the base"),
        ({"targets": (target(out_features=8),)}, "16 x 8"),
        ({"targets": (target(rank=9),)}, "serves ranks 1 to 8"),
        ({"targets": (target(rank=0),)}, "serves ranks 1 to 8"),
        ({"targets": (target(count=3),)}, "has 3 layers"),
        ({"targets": (target(count=1, rank=2), target(count=2))}, "has 3 layers"),
        ({"metrics": {f"metric-{n:05d}": 0.5 for n in range(20_000)}}, "262144"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_shapes(desk: Desk, change: dict[str, Any], says: str) -> None:
    assert says in desk.refuse(announce("a", manifest=manifest(**change)))


def test_ranks_may_differ_within_a_pattern(desk: Desk) -> None:
    desk.accept(announce("a", manifest=manifest(target(count=1, rank=2), target(count=1, rank=8))))
    assert desk.state.revision(1).rank == 8


def test_an_unknown_pool_and_a_foreign_pool_are_refused(desk: Desk) -> None:
    assert "start a serving worker" in desk.refuse(announce("a", pool="none"), base=None)
    desk.accept(announce("a"))
    assert "belongs to pool tiny" in desk.refuse(announce("a", pool="other"))
    assert "belongs to pool tiny" in desk.refuse(claim("a", 1, pool="other"))


def test_an_old_announce_is_refused_because_its_files_may_be_swept(desk: Desk) -> None:
    assert "announce again" in desk.refuse(announce("a"), now_ms=NOW_MS + MAX_ANNOUNCE_AGE_MS + 1)
    assert desk.give(announce("a"), now_ms=NOW_MS + MAX_ANNOUNCE_AGE_MS).head is not None


def test_what_does_not_exist_is_named(desk: Desk) -> None:
    for command in (promote("a", 1), quarantine("a", 1), retire("a", 1), set_rule("a", "auto")):
        assert "there is no adapter a" in desk.refuse(command)
    desk.accept(announce("a"))
    for command in (promote("a", 5), quarantine("a", 5), retire("a", 5), announce("a", parent=5)):
        assert "has no revision 5, its last is 1" in desk.refuse(command)


def test_a_spread_is_set_and_stays(desk: Desk) -> None:
    assert "there is no adapter a" in desk.refuse(set_spread("a", 4))
    desk.accept(announce("a"))
    assert desk.head.spread == 1
    event = desk.accept(set_spread("a", 4)).events[0]
    assert (event.type, event.spread) == ("spread-set", 4)
    desk.accept(announce("a"), roll_back("a"))
    assert desk.head.spread == 4


def test_the_last_commands_are_remembered_and_older_ones_are_not(desk: Desk) -> None:
    first = set_rule("a", "manual")
    desk.accept(announce("a"), first, *(set_rule("a", "auto") for _ in range(REMEMBERED_COMMANDS - 1)))
    assert desk.give(first).events[0].type == "command-repeated"
    desk.accept(set_rule("a", "auto"))
    assert desk.give(first).events[0].type == "rule-set"


def test_a_refused_command_is_judged_anew(desk: Desk) -> None:
    desk.accept(announce("a"))
    early = promote("a", 2)
    desk.refuse(early)
    desk.accept(announce("a"), early)


def test_a_long_reason_is_cut(desk: Desk) -> None:
    desk.accept(announce("a"))
    assert len(desk.accept(quarantine("a", 1, reason="x" * 10_000)).revisions[0].reason) == 1000


def test_an_adapter_in_use_is_deleted_only_by_force_and_where_it_was_seen(desk: Desk) -> None:
    desk.accept(announce("a", promotion="manual"))
    seen = desk.state.position
    desk.accept(claim("a", 1))
    assert "stands at 0:2" in desk.refuse(delete("a", seen, force=True))
    assert "job job claimed it under attempt 1" in desk.refuse(delete("a", desk.state.position))
    desk.accept(promote("a", 1))
    assert "production points at revision 1" in desk.refuse(delete("a", desk.state.position))
    head = desk.head
    assert desk.give(delete("a", desk.state.position, force=True)).deleted == head
    assert "there is no adapter a" in desk.refuse(delete("a", seen))


def test_what_begins_under_a_deleted_name_shares_nothing_with_it(desk: Desk) -> None:
    desk.accept(claim("a", 1), announce("a", job_id="job", attempt=1, step=1), announce("a", promotion="manual"))
    first = set_rule("a", "gated")
    desk.accept(first)
    desk.give(delete("a", desk.state.position, force=True))
    assert "no job holds the claim" in desk.refuse(announce("a", job_id="job", attempt=1, step=2))
    decision = desk.accept(announce("a", promotion="manual"))
    assert (decision.revisions[0].number, desk.head.rule, desk.head.aliases) == (3, "manual", {"candidate": 3})
    desk.accept(first, claim("a", 1, "another"))
    assert "has no revision 2" in desk.refuse(promote("a", 2))
    assert desk.accept(announce("a", job_id="another", attempt=1, step=1)).revisions[0].number == 4


def test_numbers_are_spent_for_a_name_and_for_few_others() -> None:
    spent = SpentNumbers(next_numbers={}).after("a", 8).after("b", 3).after("a", 5)
    assert (spent.first_number("a"), spent.first_number("b")) == (8, 3)
    assert sum(spent.first_number(f"name-{n}") > 1 for n in range(1000)) < 5
    crowded = functools.reduce(lambda known, n: known.after(f"name-{n}", n + 2), range(20_000), spent)
    assert len(crowded.encode()) < 60_000, "however many are deleted, it fits a record"
    assert all(crowded.first_number(f"name-{n}") >= n + 2 for n in range(20_000))
