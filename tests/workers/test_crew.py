"""Many records in work: all are seen through, and the first failure ends the whole."""

import asyncio

import pytest

from mint_stream.workers.crew import Crew


async def test_what_is_open_when_the_taking_ends_is_seen_through() -> None:
    crew, released, done = Crew(), asyncio.Event(), []

    async def work(number: int) -> None:
        await released.wait()
        done.append(number)

    async def take() -> None:
        for number in range(3):
            crew.spawn(work(number))

    running = asyncio.create_task(crew.run(take()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not running.done()
    released.set()
    await running
    assert sorted(done) == [0, 1, 2]
    assert len(crew) == 0


async def test_the_first_failure_ends_the_taking() -> None:
    crew, taking = Crew(), asyncio.Event()

    async def fail() -> None:
        raise ValueError("broken")

    async def take() -> None:
        crew.spawn(fail())
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            taking.set()

    with pytest.raises(ValueError, match="broken"):
        await crew.run(take())
    await taking.wait()


async def test_a_failure_while_the_rest_is_finished_is_raised_too() -> None:
    crew, released = Crew(), asyncio.Event()

    async def fail_late() -> None:
        await released.wait()
        raise ValueError("late")

    async def take() -> None:
        crew.spawn(fail_late())
        released.set()

    with pytest.raises(ValueError, match="late"):
        await crew.run(take())


async def test_every_change_of_the_count_is_told() -> None:
    counts: list[int] = []
    crew = Crew(counts.append)

    async def nothing() -> None:
        return None

    async def take() -> None:
        crew.spawn(nothing())
        crew.spawn(nothing())

    await crew.run(take())
    assert counts == [1, 2, 1, 0]
