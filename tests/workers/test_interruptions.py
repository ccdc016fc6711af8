"""Cancelling a request wherever it waits, and nothing else."""

import asyncio

import pytest

from mint_stream.errors import Cancelled
from mint_stream.messages.inference import RequestName
from mint_stream.workers.interruptions import Interruptions

R, THEIRS = ("t", "r"), ("theirs", "r")


async def waiting(interruptions: Interruptions, request: RequestName, started: asyncio.Event) -> None:
    with interruptions.interruptible(request):
        started.set()
        await asyncio.get_running_loop().create_future()


async def begun(interruptions: Interruptions, request: RequestName) -> "asyncio.Task[None]":
    started = asyncio.Event()
    task = asyncio.create_task(waiting(interruptions, request, started))
    await started.wait()
    return task


async def test_a_wait_ends_with_the_reason() -> None:
    interruptions = Interruptions()
    task = await begun(interruptions, R)
    assert interruptions.cancel(R, "no longer wanted")
    with pytest.raises(Cancelled, match="no longer wanted"):
        await task


async def test_everything_done_for_the_request_ends_and_nothing_done_for_others() -> None:
    interruptions = Interruptions()
    first, second, *others = [await begun(interruptions, name) for name in (R, R, ("t", "other"), THEIRS)]
    interruptions.cancel(R, "x")
    ends = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(end) for end in ends] == [Cancelled, Cancelled]
    assert not any(other.done() for other in others)
    for other in others:
        other.cancel()


async def test_a_request_that_nobody_works_on_is_not_found_before_or_after() -> None:
    interruptions = Interruptions()
    assert not interruptions.cancel(R, "x")
    task = await begun(interruptions, R)
    interruptions.cancel(R, "x")
    assert not interruptions.cancel(R, "again")
    await asyncio.gather(task, return_exceptions=True)
    assert not interruptions.cancel(R, "late")


async def test_a_task_cancelled_by_its_own_side_stays_cancelled() -> None:
    task = await begun(Interruptions(), R)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_work_that_was_not_interrupted_gives_its_result() -> None:
    with Interruptions().interruptible(R):
        result = await asyncio.sleep(0, "done")
    assert result == "done"
