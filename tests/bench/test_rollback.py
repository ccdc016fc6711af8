"""The roll-back benchmark watches a stream over the real system, and refuses answers from anything but the two revisions."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from mint_stream.bench.rollback import Answered, Size, Stream, effect_of, run
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.inference import InferenceResult, ServedBy
from tests.fleets import fleet_settings

DIGESTS = {1: "a" * 64, 2: "c" * 64}


class Fleet:
    """A client that answers at once, by the revision that is `number` now."""

    def __init__(self, digests: Mapping[int, str] = DIGESTS) -> None:
        self.number = 1
        self._digests = digests

    async def generate(self, prompt: Any, adapter: str, sampling: Any) -> InferenceResult:
        digest = self._digests.get(self.number)
        served = ServedBy(adapter_id=adapter, number=self.number, revision_digest=digest, base_digest="b" * 64, worker_id="w")
        return InferenceResult(request_id="r", tenant="t", request_digest="d" * 64, status="ok", served_by=served, completed_at_ms=1)


async def test_a_stream_sees_when_another_revision_answers() -> None:
    fleet = Fleet()
    async with Stream(fleet, Size(every_ms=1), DIGESTS).going() as stream:
        assert {answer.number for answer in stream.answered} == {1}
        fleet.number, moved = 2, time.perf_counter()
        await stream.until(lambda: bool(stream.since(moved)))
        await stream.settled()
    assert {answer.number for answer in stream.since(moved)} == {2}
    assert all(answer.sent <= answer.received for answer in stream.answered)


def test_an_effect_is_the_first_result_of_the_previous_revision_and_in_force_once_nothing_sent_later_is_answered_by_the_other() -> None:
    sent_ms = {101: (2, 180), 120: (1, 210), 130: (2, 190), 140: (1, 150), 150: (2, 170), 160: (2, 165)}
    answers = [Answered(number, sent / 1000, received / 1000) for sent, (number, received) in sent_ms.items()]
    effect = effect_of(answers, left=1, begun=0.1, heard=0.143)
    assert (effect.event, effect.in_force, effect.result) == pytest.approx((43, 50, 65))


def test_where_nothing_sent_after_the_command_is_answered_by_the_revision_left_it_is_in_force_at_the_first_request() -> None:
    effect = effect_of([Answered(2, 0.11, 0.15)], left=1, begun=0.1, heard=0.14)
    assert (effect.in_force, effect.result) == pytest.approx((10, 50))


async def test_a_straggler_of_a_request_sent_before_the_command_is_not_taken_for_the_effect() -> None:
    stream = Stream(Fleet(), Size(), DIGESTS)
    stream.answered += [Answered(1, 0.9, 1.5), Answered(1, 1.1, 1.2)]
    assert [answer.sent for answer in stream.since(1.0)] == [1.1]


@pytest.mark.parametrize("digests", [{1: "f" * 64}, {}], ids=["other bytes", "no digest"])
async def test_an_answer_by_other_bytes_than_were_announced_is_refused(digests: Mapping[int, str]) -> None:
    with pytest.raises(WrongResult, match="was answered by"):
        async with Stream(Fleet(digests), Size(every_ms=1), DIGESTS).going():
            await asyncio.Event().wait()


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_every_roll_back_is_timed_to_its_event_and_to_its_first_result(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    report = await run(settings, Size(rollbacks=4, every_ms=10, rank=2, prompt_tokens=6, adapter=f"a{uuid4().hex[:8]}"))
    assert report["in_force_ms"]["min"] <= report["effect_ms"]["max"]
    assert report["n"] == 4 and report["requests"] >= 4
    for figure in ("effect_ms", "in_force_ms", "event_ms", "request_ms", "request_alone_ms"):
        assert 0 < report[figure]["min"] <= report[figure]["p50"] <= report[figure]["p99"] <= report[figure]["max"]
