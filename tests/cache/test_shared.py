"""Work that is shared: one task a name, one result for all who wait, cancelled when nobody does."""

import asyncio

import pytest

from mint_stream.cache.shared import SharedWork


class Oven:
    """Bakes when told; counts what was begun, cancelled and thrown away."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = self.cancelled = 0
        self.thrown: list[str] = []
        self.shared: SharedWork[str] = SharedWork(self.thrown.append)

    async def bake(self) -> str:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"bread {self.begun}"

    def ask(self) -> "asyncio.Task[str]":
        return asyncio.create_task(self.shared.wait("bread", self.bake, str.upper))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_ask_get_what_was_made_once_and_it_ends_when_all_have_it() -> None:
    oven = Oven()
    asked = [oven.ask() for _ in range(10)]
    await settle()
    oven.open.set()
    assert await asyncio.gather(*asked) == ["BREAD 1"] * 10
    assert oven.begun == 1 and oven.thrown == ["bread 1"] and len(oven.shared) == 0


async def test_one_who_gives_up_disturbs_no_other_and_the_last_one_ends_the_work() -> None:
    oven = Oven()
    first, last = oven.ask(), oven.ask()
    await settle()
    first.cancel()
    await settle()
    assert oven.cancelled == 0
    last.cancel()
    await settle()
    assert oven.cancelled == 1 and len(oven.shared) == 0 and not oven.thrown
    oven.open.set()
    assert await oven.ask() == "BREAD 2", "who asks later starts anew"


async def test_who_asks_right_after_the_last_gave_up_does_not_get_a_cancelled_task() -> None:
    oven = Oven()
    last = oven.ask()
    await settle()
    last.cancel()
    asked = oven.ask()
    oven.open.set()
    assert await asked == "BREAD 2"


async def test_a_failure_is_everyones_who_waits_and_nobodys_later() -> None:
    shared: SharedWork[str] = SharedWork()

    async def burn() -> str:
        raise ValueError("burnt")

    outcomes = await asyncio.gather(*(shared.wait("x", burn) for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["burnt"] * 3
    assert len(shared) == 0


async def test_closing_cancels_what_runs() -> None:
    oven = Oven()
    asked = oven.ask()
    await settle()
    await oven.shared.close()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert oven.cancelled == 1
