"""Asking until somebody answers, and what of the answers a policy may learn from."""

from uuid import uuid4

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.requests import RequestReply
from mint_stream.errors import DeadlineExceeded, ReplyTimeout
from mint_stream.messages.gates import Trial
from mint_stream.messages.inference import InferenceRequest, InferenceResult, ServedBy, TokenLogprob
from mint_stream.messages.shared import CatalogPosition, ErrorBody
from mint_stream.promotion.items import Item
from mint_stream.workers.asking import Asking
from mint_stream.workers.insisting import AskingLimits, Insisting
from mint_stream.workers.open_trials import OpenTrial
from mint_stream.workers.rollouts import Drawn
from tests.adapter_commands import GATE
from tests.provisioned import ensure_topics


@pytest.mark.kafka
async def test_a_pool_that_stays_silent_is_asked_as_often_as_said_and_then_given_up(connection: Connection) -> None:
    pool = f"silent-{uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    producer = Producer(connection, "test")
    replies = RequestReply(connection, producer)
    await producer.start()
    await replies.start()
    try:
        insisting = Insisting(replies, AskingLimits(timeout_s=0.05, silences=3))
        request = InferenceRequest(request_id=uuid4().hex, prompt="?")
        (answer,) = await insisting.answers(pool, [request])
        assert isinstance(answer, ErrorBody) and answer.code == ReplyTimeout.code
        trial = Trial(trial_id="t", number=1, since_ms=0)
        of = OpenTrial("a", pool, trial, GATE, None, CatalogPosition(partition=0, offset=0))
        with pytest.raises(DeadlineExceeded, match=f"not answered in time.*serve pool {pool}"):
            await Asking(insisting).answers(of, 1, [Item(prompt="?", answer="!")], "gate")
    finally:
        await replies.stop()
        await producer.stop()


def result(number: int | None, tokens: tuple[int, ...] = (5, 6), logprobs: tuple[int, ...] | None = (5, 6)) -> InferenceResult:
    return InferenceResult(
        request_id="r",
        tenant="t",
        request_digest="d" * 64,
        status="ok",
        tokens=tokens,
        logprobs=None if logprobs is None else tuple(TokenLogprob(token=token, logprob=-1.0) for token in logprobs),
        served_by=ServedBy(number=number, base_digest="b" * 64, worker_id="w"),
        completed_at_ms=1,
    )


def test_only_whole_answers_of_the_revision_asked_are_learned_from() -> None:
    good = result(7)
    others = (result(6), result(None), result(7, logprobs=None), result(7, logprobs=(5,)), result(7, (), ()))
    drawn = Drawn(7, (), (good, *others, ErrorBody(code="x", message="no")))
    assert drawn.usable(range(7)) == [good] and drawn.usable(range(1, 7)) == []
    assert Drawn(None, (), (result(None),)).usable(range(1)) == [result(None)]


def test_a_complaint_names_each_reason_once_the_most_frequent_first() -> None:
    errors = [ErrorBody(code=code, message=f"{code}!") for code in ("late", "long", "long")]
    assert Drawn(1, (), tuple(errors)).complaint == "2 x long, e.g. long!; 1 x late, e.g. late!"
    assert Drawn(1, (), (result(2),)).complaint == "none had log-probabilities"
