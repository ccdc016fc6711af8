"""Waiting for a position of the catalog's log: woken when it is applied, forgotten when nobody waits any more."""

import asyncio

from mint_stream.catalog.barrier import Barrier
from mint_stream.messages.shared import CatalogPosition

FAR = CatalogPosition(partition=0, offset=10**9)


async def test_whoever_stops_waiting_leaves_nothing_behind() -> None:
    """The partition may never move again, and requests that name such a position come for ever."""
    barrier = Barrier({})
    waiting = [asyncio.create_task(barrier.reached(FAR)) for _ in range(100)]
    await asyncio.sleep(0)
    assert barrier.waiting == 100
    for task in waiting[1:]:
        task.cancel()
    await asyncio.wait(waiting[1:])
    assert barrier.waiting == 1
    barrier.advance(0, FAR.offset + 1)
    await waiting[0]
    assert barrier.waiting == 0


async def test_who_waits_for_more_goes_on_waiting() -> None:
    barrier = Barrier({})
    near, far = (asyncio.create_task(barrier.reached(CatalogPosition(partition=0, offset=offset))) for offset in (4, 5))
    await asyncio.sleep(0)
    barrier.advance(0, 5)
    await near
    assert not far.done() and barrier.waiting == 1
    barrier.advance(0, 6)
    await far
