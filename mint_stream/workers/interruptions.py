"""Cancelling a request wherever it waits: for the catalog, for its adapter, in the engine."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from mint_stream.errors import Cancelled
from mint_stream.messages.inference import RequestName


class Interruptions:
    """The tasks that work on requests right now."""

    def __init__(self) -> None:
        self._working: dict[RequestName, list[asyncio.Task[None]]] = {}
        self._reasons: dict[asyncio.Task[None], str] = {}

    @contextmanager
    def interruptible(self, request: RequestName) -> Iterator[None]:
        """Within this block `cancel` ends the task's wait with Cancelled(reason)."""
        task = asyncio.current_task()
        assert task is not None
        self._working.setdefault(request, []).append(task)
        try:
            yield
        except asyncio.CancelledError:
            reason = self._reasons.get(task)
            if reason is None:
                raise
            task.uncancel()
            raise Cancelled(f"request {request[1]} was cancelled: {reason}") from None
        finally:
            self._reasons.pop(task, None)
            self._forget(request, task)

    def cancel(self, request: RequestName, reason: str) -> bool:
        """End whatever is being done for this request. False when nothing is."""
        tasks = [task for task in self._working.get(request, ()) if task not in self._reasons]
        for task in tasks:
            self._reasons[task] = reason
            task.cancel()
        return bool(tasks)

    def _forget(self, request: RequestName, task: asyncio.Task[None]) -> None:
        left = [other for other in self._working[request] if other is not task]
        if left:
            self._working[request] = left
        else:
            del self._working[request]
