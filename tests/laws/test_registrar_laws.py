"""The laws of the registrar's rules, over random sequences of commands, with the log they write folded into a real Catalog."""

from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mint_stream.catalog import Catalog, Entry
from mint_stream.catalog.decide import decide
from mint_stream.catalog.deletion import revision_keys
from mint_stream.catalog.state import AdapterState, Decision
from mint_stream.messages.adapters import AdapterCommand, Head, head_key, revision_key, spent_key
from mint_stream.messages.gates import Trial
from mint_stream.messages.shared import CatalogPosition
from tests.adapter_commands import (
    BASE,
    GATE,
    NOW_MS,
    announce,
    claim,
    delete,
    judge,
    promote,
    quarantine,
    retire,
    roll_back,
    set_canary,
    set_rule,
)

ADAPTER = "a"
NUMBERS = st.integers(1, 6)
Row = tuple[bytes, bytes | None]
JOBS = st.sampled_from(["job-1", "job-2"])


class Registrar(RuleBasedStateMachine):
    """Decides commands against a state that only ever comes from folding what was decided before."""

    @initialize()
    def empty(self) -> None:
        self.catalog = Catalog(None, 1)
        self.memory = AdapterState(ADAPTER)
        self.offset = 0
        self.numbers: list[int] = []
        self.attempts = 0
        self.done: list[tuple[AdapterCommand, Decision]] = []

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()

    def folded(self) -> AdapterState:
        first = self.catalog.spent(0).first_number(ADAPTER)
        return AdapterState(ADAPTER, self.catalog.head(ADAPTER), self.catalog.head_position(ADAPTER), self.catalog, first_number=first)

    def give(self, command: AdapterCommand) -> Decision:
        decision = decide(self.folded(), command, BASE, NOW_MS)
        assert decision == decide(self.memory, command, BASE, NOW_MS), "the fold of the log and the state in memory decide alike"
        assert decision.events, "no command is met by silence"
        self.write(decision)
        if decision.head is not None:
            self.done.append((command, decision))
        return decision

    def write(self, decision: Decision) -> None:
        if not decision.changes:
            assert not decision.revisions, "without a head nothing changes"
            return
        rows = list(self.buried(decision.deleted) if decision.deleted else self.rows(decision))
        entries = [Entry(key, value, self.offset + n) for n, (key, value) in enumerate(rows)]
        self.catalog.apply(0, entries, self.offset + len(entries) + 1)
        self.memory = self.memory.after(decision, CatalogPosition(partition=0, offset=entries[-1].offset))
        self.offset += len(entries) + 1

    def rows(self, decision: Decision) -> Iterator[Row]:
        for revision in decision.revisions:
            yield revision_key(ADAPTER, revision.number), revision.encode()
        assert decision.head is not None
        yield head_key(ADAPTER), decision.head.encode()

    def buried(self, head: Head) -> Iterator[Row]:
        yield from ((key, None) for key in revision_keys(head))
        yield spent_key(0), self.catalog.spent(0).after(ADAPTER, head.next_number).encode()
        yield head_key(ADAPTER), None

    def aliases(self) -> dict[str, int]:
        head = self.catalog.head(ADAPTER)
        return head.aliases if head is not None else {}

    @rule(promotion=st.sampled_from([None, "auto", "manual", "gated"]), parent=st.none() | NUMBERS)
    def import_revision(self, promotion: Any, parent: int | None) -> None:
        self.note_number(self.give(announce(ADAPTER, promotion=promotion, parent=parent)))

    @rule(job=JOBS, attempt=st.integers(1, 5), step=st.integers(0, 3))
    def announce_step(self, job: str, attempt: int, step: int) -> None:
        known = self.catalog.number_of_step(ADAPTER, job, step)
        decision = self.give(announce(ADAPTER, job_id=job, attempt=attempt, step=step))
        if attempt < self.attempts:
            assert decision.events[0].type == "command-rejected", "an older attempt is rejected for ever"
        if known is not None:
            assert decision.head is None, "one revision a (job, step)"
        self.note_number(decision)

    def note_number(self, decision: Decision) -> None:
        self.numbers.extend(revision.number for revision in decision.revisions)

    @rule(job=JOBS, attempt=st.integers(1, 5))
    def claim_adapter(self, job: str, attempt: int) -> None:
        granted = self.give(claim(ADAPTER, attempt, job)).head is not None
        assert granted == (attempt == self.attempts + 1), "exactly the next attempt is granted"
        self.attempts += granted

    @rule(number=NUMBERS, alias=st.sampled_from(["production", "candidate", "canary"]))
    def point_alias(self, number: int, alias: str) -> None:
        before = self.aliases()
        decision = self.give(promote(ADAPTER, number, alias=alias))
        if decision.head is not None:
            assert self.aliases()[alias] == number
            if alias == "production" and before.get("production") not in (None, number):
                assert self.aliases()["previous"] == before["production"]

    @rule(number=NUMBERS)
    def promote_and_roll_back(self, number: int) -> None:
        before = self.aliases().get("production")
        if self.give(promote(ADAPTER, number)).head is not None and before not in (None, number):
            assert self.give(roll_back(ADAPTER)).head is not None
            assert self.aliases()["production"] == before, "a rollback after a promote restores"
            assert self.catalog.head(ADAPTER).rule == "manual"

    @rule()
    def roll_back(self) -> None:
        previous = self.aliases().get("previous")
        decision = self.give(roll_back(ADAPTER))
        assert (decision.head is None) == (previous is None)

    @rule(number=NUMBERS)
    def quarantine(self, number: int) -> None:
        self.give(quarantine(ADAPTER, number))

    @rule(number=NUMBERS)
    def retire(self, number: int) -> None:
        served = self.aliases().get("production") == number
        decision = self.give(retire(ADAPTER, number))
        assert not (served and decision.head is not None), "production is never retired"

    @rule(chosen=st.sampled_from(["auto", "manual", "gated"]))
    def set_rule(self, chosen: str) -> None:
        self.give(set_rule(ADAPTER, chosen))

    @rule(canary=st.booleans())
    def set_gate(self, canary: bool) -> None:
        self.give(set_rule(ADAPTER, "gated", gate=GATE if canary else GATE.model_copy(update={"canary": None})))

    @rule(verdict=st.sampled_from(["promote", "start-canary", "reject", "roll-back", "give-up"]), compared=st.none() | NUMBERS)
    def judge_the_candidate(self, verdict: str, compared: int | None) -> None:
        head = self.catalog.head(ADAPTER)
        trial = head.trial if head is not None else None
        if head is None or trial is None:
            return
        production = head.aliases.get("production")
        done = self.give(judge(ADAPTER, trial, verdict, compared)).head is not None
        if done and trial.phase == "gate":
            assert compared == production, "a comparison with another production decides nothing"
        if done and verdict == "promote":
            assert self.aliases()["production"] == trial.number
        elif done:
            assert self.aliases() == head.aliases
        if done:
            assert self.give(judge(ADAPTER, trial, verdict, compared)).head is None, "a verdict counts once"

    @rule()
    def judge_a_trial_that_is_over(self) -> None:
        stranger = Trial(trial_id="over", number=1, phase="canary", since_ms=NOW_MS)
        assert self.give(judge(ADAPTER, stranger, "promote")).head is None

    @rule(number=st.none() | NUMBERS)
    def set_canary(self, number: int | None) -> None:
        production = self.aliases().get("production")
        if self.give(set_canary(ADAPTER, number)).head is not None and number is not None:
            assert production not in (None, number)
            assert self.catalog.head(ADAPTER).canary.number == number

    @rule(force=st.booleans(), behind=st.integers(0, 1))
    def delete(self, force: bool, behind: int) -> None:
        head, here = self.catalog.head(ADAPTER), self.catalog.head_position(ADAPTER)
        if head is None or here is None or here.offset < behind:
            return
        meant = CatalogPosition(partition=0, offset=here.offset - behind)
        gone = self.give(delete(ADAPTER, meant, force=force)).deleted is not None
        assert gone == (not behind and (force or ("production" not in head.aliases and head.claim is None)))
        if gone:
            assert self.catalog.head(ADAPTER) is None and not self.catalog.revisions(ADAPTER), "nothing is left of it"
            assert self.catalog.number_of_step(ADAPTER, "job-1", 1) is None
            self.done, self.attempts = [], 0

    @rule(choice=st.randoms(use_true_random=False))
    def repeat(self, choice: Any) -> None:
        if not self.done:
            return
        command, first = choice.choice(self.done[-32:])
        again = self.give(command)
        assert again.head is None, "a repeated command changes nothing"
        assert again.events[0].type == "command-repeated"
        if first.revisions and command.type == "announce":
            assert again.events[0].number == first.revisions[0].number

    @rule(behind=st.integers(1, 3))
    def promote_from_a_position_left_behind(self, behind: int) -> None:
        here = self.catalog.head_position(ADAPTER)
        if here is not None and here.offset >= behind:
            stale = CatalogPosition(partition=0, offset=here.offset - behind)
            assert self.give(promote(ADAPTER, 1, expected_position=stale)).head is None

    @invariant()
    def numbers_are_dense_and_never_reused(self) -> None:
        if not hasattr(self, "catalog"):
            return
        head = self.folded().head
        assert len(set(self.numbers)) == len(self.numbers), "of this adapter and of every one before it under its name"
        if head is not None:
            numbers = range(head.first_number, head.next_number)
            assert [revision.number for revision in self.catalog.revisions(ADAPTER)] == list(numbers)
            assert self.numbers == list(range(1, head.next_number))

    @invariant()
    def aliases_point_at_what_is_served(self) -> None:
        if hasattr(self, "catalog"):
            for alias in self.aliases():
                assert self.catalog.resolve(f"{ADAPTER}@{alias}").state == "announced"

    @invariant()
    def a_trial_is_of_a_servable_revision_that_is_not_production(self) -> None:
        head = self.catalog.head(ADAPTER) if hasattr(self, "catalog") else None
        if head is None or head.trial is None:
            return
        assert head.rule == "gated"
        assert head.gate is not None
        assert self.catalog.revision(ADAPTER, head.trial.number).state == "announced"
        assert head.aliases.get("production", 0) != head.trial.number <= head.tried
        if head.trial.phase == "canary":
            assert head.canary.number == head.trial.number

    @invariant()
    def a_canary_is_served_and_is_not_production(self) -> None:
        head = self.catalog.head(ADAPTER) if hasattr(self, "catalog") else None
        if head is not None and head.canary is not None:
            assert self.catalog.revision(ADAPTER, head.canary.number).state == "announced"
            assert head.aliases["production"] != head.canary.number


Registrar.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRegistrarLaws = Registrar.TestCase
