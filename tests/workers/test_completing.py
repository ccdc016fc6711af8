"""The pieces of completing a request: seeds that a replay draws again, time that adds up, tasks whose failure is seen."""

import asyncio
import time

import pytest
from hypothesis import given, settings

from mint_stream.engine.generation import Completion
from mint_stream.errors import EngineFailed
from mint_stream.messages.inference import InferenceRequest, Sampling
from mint_stream.workers.clock import now_ms
from mint_stream.workers.completing import Stopwatch, seed_of
from mint_stream.workers.crew import Crew
from tests.records import records

DONE = Completion("text", (1,), "stop", queued_ms=2.0, prefill_ms=3.0, decode_ms=4.0)


@settings(max_examples=60, deadline=None)
@given(request=records(InferenceRequest))
def test_a_seed_is_the_given_one_or_follows_from_the_request_id_alone(request: InferenceRequest) -> None:
    seed = seed_of(request)
    assert 0 <= seed < 2**63
    if request.sampling.seed is not None:
        assert seed == request.sampling.seed
    else:
        assert seed == seed_of(InferenceRequest(request_id=request.request_id, prompt="anything else", stream=True))


def test_a_seed_that_is_given_as_0_is_given() -> None:
    assert seed_of(InferenceRequest(request_id="r", prompt="p", sampling=Sampling(seed=0))) == 0


def test_requests_draw_different_numbers_and_always_the_same() -> None:
    seeds = [seed_of(InferenceRequest(request_id=f"r-{number}", prompt="p")) for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert seeds[0] == 8274851470211421077, "a replay by another version of the fleet must draw what this one drew"


def test_the_stages_of_a_request_follow_each_other() -> None:
    began = time.perf_counter()
    watch = Stopwatch(now_ms() - 500)
    watch.lap("admit_ms")
    watch.lap("parked_ms")
    timings = watch.timings(DONE)
    spent_ms = (time.perf_counter() - began) * 1000
    assert 500 <= timings.bus_ms < 500 + spent_ms + 2
    assert timings.admit_ms >= 0 and timings.parked_ms >= 0
    assert timings.admit_ms + timings.parked_ms <= spent_ms
    assert timings.bus_ms + timings.admit_ms + timings.parked_ms <= timings.total_ms <= timings.bus_ms + spent_ms
    assert (timings.queued_ms, timings.prefill_ms, timings.decode_ms) == (2.0, 3.0, 4.0)


def test_a_producer_whose_clock_is_ahead_makes_no_negative_time() -> None:
    watch = Stopwatch(now_ms() + 3_600_000)
    watch.lap("admit_ms")
    watch.lap("parked_ms")
    assert watch.timings(DONE).bus_ms == 0.0


def test_the_clock_of_the_records_is_unix_time_in_milliseconds() -> None:
    before = time.time() * 1000
    now = now_ms()
    assert isinstance(now, int)
    assert before - 1 <= now <= time.time() * 1000


async def test_a_crew_counts_its_open_tasks_and_finishes_when_none_is_left() -> None:
    counts: list[int] = []
    crew, gate = Crew(counts.append), asyncio.Event()

    async def work() -> None:
        await gate.wait()

    tasks = [crew.spawn(work()) for _ in range(3)]
    assert (len(crew), counts) == (3, [1, 2, 3])
    gate.set()
    await crew.finish()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert (len(crew), counts) == (0, [1, 2, 3, 2, 1, 0])
    await crew.finish()


async def test_the_first_failure_of_a_crew_ends_its_taking_and_is_raised() -> None:
    crew, taking = Crew(), asyncio.Event()

    async def fails() -> None:
        raise EngineFailed("the engine is gone")

    async def take() -> None:
        crew.spawn(fails())
        try:
            await asyncio.Event().wait()
        finally:
            taking.set()

    with pytest.raises(EngineFailed, match="the engine is gone"):
        await crew.run(take())
    await asyncio.wait_for(taking.wait(), 5)


async def test_a_crew_ends_when_its_taking_does_and_raises_what_it_raised() -> None:
    async def take(error: Exception | None = None) -> None:
        if error is not None:
            raise error

    await Crew().run(take())
    with pytest.raises(ValueError, match="no more"):
        await Crew().run(take(ValueError("no more")))


async def test_a_task_that_is_cancelled_is_no_failure() -> None:
    crew, gate = Crew(), asyncio.Event()

    async def forever() -> None:
        await asyncio.Event().wait()

    async def take() -> None:
        crew.spawn(forever()).cancel()
        await asyncio.sleep(0)
        gate.set()

    await crew.run(take())
    assert gate.is_set()
    await crew.finish()
    assert len(crew) == 0
