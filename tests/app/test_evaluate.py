"""The evaluate role over a real broker, registrar and scripted pool: gates, canaries, and what is told of them."""

import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.errors import AdapterNotLoaded, DeadlineExceeded, InvalidAdapter
from mint_stream.messages.adapters import AdapterEvent
from mint_stream.messages.gates import CanaryTerms
from mint_stream.workers.evaluation import Patience
from mint_stream.workers.insisting import AskingLimits
from tests.evaluation_ground import ITEMS, Evaluation, right
from tests.scripted_pool import Said

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(120)]

CANARY = CanaryTerms(share_basis_points=5000, min_requests=20, max_error_rate=0.2)


@pytest.fixture
async def ground(connection: Connection, tmp_path: Path) -> AsyncIterator[Evaluation]:
    async with Evaluation.on(connection, tmp_path) as ground:
        yield ground


def verdict(event: AdapterEvent) -> bool:
    return event.type == "candidate-judged" and event.phase == "canary"


async def test_a_good_revision_passes_gate_and_canary_and_becomes_production(ground: Evaluation) -> None:
    await ground.gate(CANARY)
    ground.skills[2] = right(9)
    async with ground.evaluator():
        await ground.publish()
        gate = await ground.judged(2, "gate")
        assert (gate.verdict, gate.production) == ("start-canary", 1)
        assert gate.figures["items"] == ITEMS
        assert (gate.figures["score"], gate.figures["production_score"]) == pytest.approx((0.9, 0.7), abs=0.02)
        assert gate.figures["evidence"] >= gate.figures["evidence_needed"]
        assert (await ground.view()).head.canary.number == 2
        last = await ground.traffic(verdict)
    assert (last.verdict, last.number) == ("promote", 2)
    assert last.figures["requests"] >= 20 and last.figures["errors"] == 0 and last.figures["production_requests"] > 0
    head = (await ground.view()).head
    assert (head.aliases["production"], head.aliases["previous"], head.canary, head.trial) == (2, 1, None, None)


async def test_the_gate_asks_by_pinned_requests_of_the_bulk_lane(ground: Evaluation) -> None:
    await ground.gate(max_tokens=7)
    async with ground.evaluator():
        await ground.publish()
        assert (await ground.judged(2, "gate")).verdict == "promote", "no canary is asked for"
    asked = ground.serving.pinned
    assert {request.adapter for request in asked} == {f"{ground.name}@1", f"{ground.name}@2"}
    assert len({request.request_id for request in asked}) == 2 * ITEMS
    assert all(request.sampling.max_tokens == 7 and request.sampling.temperature == 0 for request in asked)
    assert all(request.min_catalog_position is not None and request.reply_to is not None for request in asked)


@pytest.mark.parametrize(("share", "words"), [(5, "below the floor"), (6, "not shown")])
async def test_a_bad_revision_is_stopped_at_the_gate(ground: Evaluation, share: int, words: str) -> None:
    """Below the floor, or above it and worse than production."""
    await ground.gate(CANARY, floor=0.55)
    ground.skills[2] = right(share)
    async with ground.evaluator():
        await ground.publish()
        event = await ground.judged(2, "gate")
    assert event.verdict == "reject" and words in event.reason
    assert event.figures["score"] == pytest.approx(share / 10, abs=0.02)
    head = (await ground.view()).head
    assert (head.aliases["production"], head.canary, head.trial) == (1, None, None)


def breaks(prompt: str) -> Said:
    if prompt == "hello":
        raise AdapterNotLoaded("no room")
    return right(9)(prompt)


def dawdles(prompt: str) -> Said:
    return dataclasses.replace(right(9)(prompt), latency_ms=5000.0)


@pytest.mark.parametrize(("skill", "words", "figure"), [(breaks, "error rate", "error_evidence"), (dawdles, "slow rate", "slow_evidence")])
async def test_one_that_fails_only_in_canary_rolls_itself_back(ground: Evaluation, skill: object, words: str, figure: str) -> None:
    await ground.gate(CANARY.model_copy(update={"min_requests": 30}))
    ground.skills[2] = skill
    async with ground.evaluator():
        await ground.publish()
        assert (await ground.judged(2, "gate")).verdict == "start-canary"
        last = await ground.traffic(verdict)
    assert last.verdict == "roll-back" and words in last.reason
    assert last.figures[figure] >= last.figures["evidence_needed"]
    head = (await ground.view()).head
    assert (head.aliases["production"], head.canary, head.trial, head.rule) == (1, None, None, "gated")


async def test_one_that_scores_badly_on_the_canarys_own_items_rolls_itself_back(ground: Evaluation) -> None:
    more = ground.write_items("more.jsonl", "m")
    await ground.gate(CANARY.model_copy(update={"dataset_uri": more}))
    ground.skills = {1: lambda prompt: right(9)(prompt.replace("m", "q")), 2: right(9)}
    async with ground.evaluator():
        await ground.publish()
        last = await ground.heard(verdict)
    assert last.verdict == "roll-back", "no request for production was needed"
    assert (last.figures["canary_score"], last.figures["canary_production_score"]) == pytest.approx((0.0, 0.9), abs=0.02)


async def test_a_canary_that_nobody_asks_ends_by_time(ground: Evaluation) -> None:
    await ground.gate(CANARY.model_copy(update={"max_seconds": 0.5}))
    async with ground.evaluator():
        await ground.publish()
        last = await ground.heard(verdict)
    assert last.verdict == "roll-back" and last.figures["requests"] == 0


async def test_a_trial_that_cannot_be_held_is_given_up_with_the_reason_and_its_neighbour_goes_on(ground: Evaluation) -> None:
    (ground.room / "bad.jsonl").write_text('{"prompt": "q", "answer": "("}\n')
    cannot = [
        (f"{ground.room.as_uri()}/none.jsonl", "contains", "no file"),
        ("file:///etc/passwd", "contains", "uri-not-allowed"),
        (f"{ground.room.as_uri()}/bad.jsonl", "regex", "no pattern"),
    ]
    async with ground.evaluator():
        for number, (uri, grader, words) in enumerate(cannot, start=2):
            await ground.gate(dataset_uri=uri, grader=grader)
            await ground.publish()
            event = await ground.judged(number, "gate")
            assert event.verdict == "give-up" and words in event.reason
        await ground.gate()
        assert (await ground.judged(4, "gate")) is event, "the rule was set again, and with it a trial of the same revision began"
        await ground.heard(lambda one: one.type == "candidate-judged" and one.verdict == "promote" and one.number == 4)


async def test_an_item_that_the_candidate_cannot_answer_scores_nothing(ground: Evaluation) -> None:
    def refuses(prompt: str) -> Said:
        raise InvalidAdapter("broken")

    await ground.gate()
    ground.skills[2] = refuses
    async with ground.evaluator():
        await ground.publish()
        event = await ground.judged(2, "gate")
    assert (event.verdict, event.figures["score"]) == ("reject", 0.0)


async def test_questions_that_a_pool_found_too_late_are_asked_again_and_say_nothing_about_the_candidate(ground: Evaluation) -> None:
    late: Counter[str] = Counter()

    def comes_back(prompt: str) -> Said:
        late[prompt] += 1
        if late[prompt] <= AskingLimits().tries:
            raise DeadlineExceeded("found in the topic after the pool was away")
        return right(9)(prompt)

    ground.patient(request_timeout_s=1.0, requests_at_once=ITEMS)
    await ground.gate()
    ground.skills[2] = comes_back
    async with ground.evaluator():
        await ground.publish()
        event = await ground.judged(2, "gate")
    assert (event.verdict, event.figures["score"]) == ("promote", pytest.approx(0.9, abs=0.02))


def test_what_is_away_for_a_while_is_waited_for() -> None:
    retries = Patience().retries
    assert sum(retries.delay_s(failed, 0.0) for failed in range(1, retries.attempts)) > 1800, "seconds, with the worst luck"


async def test_a_person_who_promotes_during_a_trial_has_decided(ground: Evaluation) -> None:
    await ground.gate(CANARY)
    async with ground.evaluator() as evaluator:
        await ground.publish()
        await ground.judged(2, "gate")
        await ground.client.promote(ground.name, 2)
        ended = await ground.heard(lambda event: event.type == "trial-ended")
        assert (ended.cause, ended.phase) == ("decided-by-a-person", "canary")
        await ground.publish()
        assert (await ground.judged(3, "gate")).production == 2
        assert evaluator.status("ready").running <= 1
    assert not [event for event in ground.events if verdict(event)]
