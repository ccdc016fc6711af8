"""Work that is done once however many wait for it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedWork(Generic[T]):
    """Tasks by name. Whoever asks for a name while its task runs waits for that one; when the last who waits gives up, it is cancelled."""

    def __init__(self, ended: Callable[[T], None] = lambda _result: None) -> None:
        """`ended` gets each result once nobody waits for it any longer."""
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._waiting: dict[asyncio.Task[T], int] = {}
        self._ended = ended

    def __len__(self) -> int:
        return len(self._tasks)

    async def wait(self, name: str, work: Callable[[], Coroutine[Any, Any, T]], then: Callable[[T], T] = lambda result: result) -> T:
        """The result of the task of this name, started by `work` if none runs. Raises what it raises.

        `then` makes of the result what this caller gets, before `ended` can be told that nobody waits."""
        task = self._tasks.get(name) or self._started(name, work)
        self._waiting[task] += 1
        try:
            return then(await asyncio.shield(task))
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task] and not task.done():
                self._forget(name, task)  # who asks from now on starts anew
                task.cancel()
            self._let_go(task)

    async def close(self) -> None:
        """Give up what runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _started(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> "asyncio.Task[T]":
        task = self._tasks[name] = asyncio.create_task(work())
        self._waiting[task] = 0

        def done(_task: object) -> None:
            self._forget(name, task)
            self._let_go(task)

        task.add_done_callback(done)
        return task

    def _forget(self, name: str, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]

    def _let_go(self, task: "asyncio.Task[T]") -> None:
        """Once it is done and nobody waits. A failure that nobody waits for is looked at, so that asyncio does not complain."""
        if task.done() and self._waiting.get(task) == 0:
            del self._waiting[task]
            if not task.cancelled() and task.exception() is None:
                self._ended(task.result())
