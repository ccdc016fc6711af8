"""The seam to torch's thread: what torch raises is typed, and a store that is away is waited for."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mint_stream.errors import Cancelled, EngineFailed, StoreUnavailable
from mint_stream.workers.torch_thread import LONGEST_WAIT_S, TorchThread, attended


class Store:
    """Answers after so many failures."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def read(self, name: str) -> str:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        return name


@pytest.fixture
async def thread() -> AsyncIterator[TorchThread]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield TorchThread(executor)


async def test_an_outage_of_any_length_is_waited_for_with_longer_and_longer_pauses(thread: TorchThread) -> None:
    waits: list[float] = []

    async def pause(wait_s: float) -> None:
        waits.append(wait_s)

    assert await thread.patiently(pause, Store(1000).read, "a") == "a"
    assert len(waits) == 1000 and sum(waits) > 6 * 3600
    assert waits[:3] == [0.5, 1.0, 2.0] and waits == sorted(waits) and waits[-1] == LONGEST_WAIT_S


async def test_whoever_pauses_may_end_the_waiting(thread: TorchThread) -> None:
    async def pause(_wait_s: float) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        await thread.patiently(pause, Store(1).read, "a")


async def test_what_torch_raises_is_an_engines_failure(thread: TorchThread) -> None:
    with pytest.raises(EngineFailed, match="KeyError"):
        await thread.run({}.__getitem__, "a")


async def test_what_is_attended_gives_its_result_or_ends_with_what_ends_the_waiting() -> None:
    ended: list[str] = []

    async def work(until: asyncio.Event) -> str:
        try:
            await until.wait()
        except asyncio.CancelledError:
            ended.append("work")
            raise
        return "done"

    async def pause(wait_s: float) -> None:
        assert wait_s == float("inf")
        await interrupted.wait()
        raise Cancelled("enough")

    interrupted, ready = asyncio.Event(), asyncio.Event()
    ready.set()
    assert await attended(work(ready), pause) == "done" and ended == []
    interrupted.set()
    with pytest.raises(Cancelled, match="enough"):
        await attended(work(asyncio.Event()), pause)
    assert ended == ["work"], "nothing goes on behind"
