"""The demo's books: every request sent, and every terminal result that stands in the log for it, duplicates included."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mint_stream import contracts
from mint_stream.bus.table import Apply, LogReader, LogRecord
from mint_stream.client import Client
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.inference import InferenceResult
from mint_stream.workers.clock import now_ms

STATUS_WAIT_S = 30.0
"""Workers report every few seconds; one that is silent for so long is gone."""


@dataclass(frozen=True)
class Counts:
    """Requests sent, those with a result, those without, and results beyond the first."""

    sent: int
    visible: int
    lost: int
    duplicates: int


class Tally:
    """Hands out request ids and afterwards reads the reply log to see what became of them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._run = uuid.uuid4().hex[:8]
        self._sent: list[str] = []
        self._seen: Counter[str] = Counter()
        self._largest = 0
        self._asked_at_ms = 0
        self._reported = asyncio.Event()

    def next_id(self) -> str:
        """A request_id of this run."""
        self._sent.append(f"demo-{self._run}-{len(self._sent)}")
        return self._sent[-1]

    async def count(self) -> Counts:
        """What the log of replies holds for the ids handed out."""
        self._seen.clear()
        await self._read(contracts.INFERENCE_REPLIES.name(), self._take_replies)
        visible = sum(1 for request_id in self._sent if self._seen[request_id])
        extra = sum(max(0, self._seen[request_id] - 1) for request_id in self._sent)
        return Counts(sent=len(self._sent), visible=visible, lost=len(self._sent) - visible, duplicates=extra)

    async def largest_batch(self) -> int:
        """The most adapters that shared a step of any serving worker, once one has reported since this was called."""
        self._asked_at_ms = now_ms()
        async with self._reading(contracts.WORKER_STATUS.name(), self._take_status), asyncio.timeout(STATUS_WAIT_S):
            await self._reported.wait()
        return self._largest

    async def _read(self, topic: str, take: Apply) -> None:
        async with self._reading(topic, take) as reader:
            await reader.caught_up()

    @asynccontextmanager
    async def _reading(self, topic: str, take: Apply) -> AsyncIterator[LogReader]:
        reader = LogReader(self._client.connection, topic, take)
        await reader.start()
        try:
            yield reader
        finally:
            await reader.stop()

    def _take_replies(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        for record in records:
            self._seen[InferenceResult.decode(record.value).request_id] += 1

    def _take_status(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        for record in records:
            if record.value:
                self._hear(WorkerStatus.decode(record.value))

    def _hear(self, status: WorkerStatus) -> None:
        self._largest = max(self._largest, status.max_adapters_in_step)
        if status.role == "serve" and status.at_ms >= self._asked_at_ms:
            self._reported.set()
