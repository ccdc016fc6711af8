"""Puts the chunks of one streamed answer in order. Pure but for the queue they wait in."""

import asyncio
from dataclasses import dataclass

from mint_stream.messages.inference import InferenceChunk, InferenceResult


@dataclass(frozen=True)
class StreamRestart:
    """Everything yielded so far is void: `attempt` began the answer anew."""

    attempt: int


class ChunkStream:
    """The pieces of one answer. Law: the texts since the last restart are a prefix of the newest attempt's text."""

    def __init__(self, request_id: str, tenant: str = "default") -> None:
        self._request_id = request_id
        self._tenant = tenant
        self._queue: asyncio.Queue[InferenceChunk | StreamRestart | None] = asyncio.Queue()
        self._pending: dict[int, InferenceChunk] = {}
        self._attempt: int | None = None
        self._sequence = 0
        self._text = ""
        self._finished = False

    def add(self, chunk: InferenceChunk) -> None:
        """A chunk arrived, in any order, perhaps again, perhaps of an older attempt. After `finish` it is left to `remainder`."""
        if self._finished:
            return
        if self._attempt is None or chunk.attempt > self._attempt:
            self._begin(chunk.attempt)
        if chunk.attempt == self._attempt and chunk.sequence >= self._sequence:
            self._pending[chunk.sequence] = chunk
            self._flush()

    def finish(self) -> None:
        """The result is known: nothing more is waited for."""
        self._finished = True
        self._queue.put_nowait(None)

    async def next(self) -> InferenceChunk | StreamRestart | None:
        """The next piece in order; None when the result is known."""
        return await self._queue.get()

    def remainder(self, result: InferenceResult) -> list[InferenceChunk | StreamRestart]:
        """What is missing to the result's text: nothing for an error, the rest, or all of it after a restart."""
        text = result.text
        if text is None or text == self._text:
            return []
        if text.startswith(self._text):
            return [self._chunk(result.attempt, self._sequence, text[len(self._text) :])]
        return [StreamRestart(result.attempt), self._chunk(result.attempt, 0, text)]

    def _begin(self, attempt: int) -> None:
        if self._attempt is not None and self._text:
            self._queue.put_nowait(StreamRestart(attempt))
        self._attempt, self._sequence, self._text = attempt, 0, ""
        self._pending.clear()

    def _flush(self) -> None:
        while (chunk := self._pending.pop(self._sequence, None)) is not None:
            self._sequence += 1
            self._text += chunk.text
            self._queue.put_nowait(chunk)

    def _chunk(self, attempt: int, sequence: int, text: str) -> InferenceChunk:
        return InferenceChunk(request_id=self._request_id, tenant=self._tenant, attempt=attempt, sequence=sequence, text=text)
