"""How fast a roll-back takes effect: from its command to the first result of the previous revision, under a steady stream of requests.

    command ─► event at the client            event_ms
            ─► in force: no request sent from here on is answered by the revision that was left            in_force_ms
            ─► the first result of the previous revision to a request sent after the command            effect_ms

Two revisions take turns: production rolls back from one to the other and back. The stream has a pace that the worker keeps up with:
above it the requests' own queue would be timed, and below it the wait for the next request. So what a request takes alone is told beside.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from mint_stream.app.measure import machine, percentiles, versions
from mint_stream.bench.fleet import Fleet, fleet
from mint_stream.bench.wrong import WrongResult
from mint_stream.client import Client
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.settings import Settings

ONE_TOKEN = Sampling(max_tokens=1, ignore_eos=True)
PATIENCE_S = 30.0
ALONE = 20
"""Requests one after the other before the stream begins."""


@dataclass(frozen=True)
class Size:
    """How much: roll-backs, a request every so many milliseconds, rank of the revisions, tokens of the prompt."""

    rollbacks: int = 30
    every_ms: float = 50.0
    rank: int = 8
    prompt_tokens: int = 16
    adapter: str = "rolled-back"

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the prompt, letters in every vocabulary."""
        return tuple(65 + place * 7 % 50 for place in range(self.prompt_tokens))


@dataclass(frozen=True)
class Answered:
    """A request of the stream: the revision that answered it, and when it was sent and answered (seconds of one clock)."""

    number: int
    sent: float
    received: float


@dataclass(frozen=True)
class Effect:
    """One roll-back, in milliseconds from its command on."""

    event: float
    in_force: float
    result: float


async def run(settings: Settings, size: Size) -> dict[str, Any]:
    """Measure. Raises WrongResult when a request fails, or is answered by other bytes than its revision was announced with."""
    async with fleet(settings) as running:
        events = [await running.publish(size.adapter, size.rank, seed) for seed in (1, 2)]
        digests = {event.number: event.digest for event in events}
        for number in digests:
            await running.client.generate(size.prompt, f"{size.adapter}@{number}", sampling=ONE_TOKEN)
        stream = Stream(running.client, size, digests)
        alone_ms = [await stream.ask() for _ in range(ALONE)]
        async with stream.going():
            effects = [await _roll_back(running, stream, size) for _ in range(size.rollbacks + 1)][1:]
    return _report(size, effects, stream, alone_ms)


class Stream:
    """Requests for production at a steady pace, whatever becomes of those before."""

    def __init__(self, client: Client, size: Size, digests: Mapping[int, str]) -> None:
        self._client = client
        self._size = size
        self._digests = digests
        self._open: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._seen = asyncio.Condition()
        self.answered: list[Answered] = []

    @asynccontextmanager
    async def going(self) -> AsyncIterator[Self]:
        """Send while the block runs; at its end everything is answered. Raises WrongResult for what was answered wrongly."""
        sending = asyncio.create_task(self._send())
        try:
            begun = time.perf_counter()
            await self.until(lambda: bool(self.since(begun)))
            yield self
        finally:
            sending.cancel()
            await asyncio.gather(sending, *self._open, return_exceptions=True)
        self._raise_failure()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a result makes the condition true. Raises WrongResult, or TimeoutError after half a minute."""
        async with asyncio.timeout(PATIENCE_S), self._seen:
            await self._seen.wait_for(lambda: self._failure is not None or condition())
        self._raise_failure()

    def since(self, moment: float) -> list[Answered]:
        """What was sent from this moment on and is answered. Who was sent earlier may come late, with the revision of then."""
        return [answer for answer in self.answered if answer.sent >= moment]

    async def settled(self) -> None:
        """Wait until everything that was sent before is answered."""
        await asyncio.gather(*self._open)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send(self) -> None:
        while True:
            task = asyncio.create_task(self._ask())
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            await asyncio.sleep(self._size.every_ms / 1000)

    async def ask(self) -> float:
        """One request; gives its milliseconds. Raises WrongResult."""
        sent = time.perf_counter()
        result = await self._client.generate(self._size.prompt, self._size.adapter, sampling=ONE_TOKEN)
        self.answered.append(Answered(self._checked(result), sent, time.perf_counter()))
        return (self.answered[-1].received - sent) * 1000

    async def _ask(self) -> None:
        try:
            await self.ask()
        except Exception as error:
            self._failure = error
        async with self._seen:
            self._seen.notify_all()

    def _checked(self, result: InferenceResult) -> int:
        served = result.served_by
        if served is None or served.number is None or served.revision_digest != self._digests.get(served.number):
            raise WrongResult(f"a request was answered by {served}, of {dict(self._digests)}: {result.error}")
        return served.number


async def _roll_back(running: Fleet, stream: Stream, size: Size) -> Effect:
    """One roll-back in the middle of the stream, after which the stream is left to settle."""
    await stream.settled()
    left = max(stream.answered, key=lambda answer: answer.sent).number
    begun = time.perf_counter()
    command = asyncio.create_task(_answered(running, size))
    await stream.until(lambda: any(answer.number != left for answer in stream.since(begun)))
    heard = await command
    await stream.settled()
    return effect_of(stream.since(begun), left, begun, heard)


def effect_of(answers: Sequence[Answered], left: int, begun: float, heard: float) -> Effect:
    """What a roll-back from revision `left` came to, of the answers to what was sent since its command."""
    last_of_left = max((answer.sent for answer in answers if answer.number == left), default=begun)
    moved = [answer for answer in answers if answer.number != left]
    in_force = min((answer.sent for answer in moved if answer.sent > last_of_left), default=last_of_left)
    result = min(answer.received for answer in moved)
    return Effect(*((moment - begun) * 1000 for moment in (heard, in_force, result)))


async def _answered(running: Fleet, size: Size) -> float:
    """When the client heard the event that answers the command."""
    await running.client.rollback(size.adapter)
    return time.perf_counter()


def _report(size: Size, effects: list[Effect], stream: Stream, alone_ms: list[float]) -> dict[str, Any]:
    return {
        "workload": asdict(size),
        "n": len(effects),
        "effect_ms": percentiles([effect.result for effect in effects]),
        "in_force_ms": percentiles([effect.in_force for effect in effects]),
        "event_ms": percentiles([effect.event for effect in effects]),
        "request_ms": percentiles([(answer.received - answer.sent) * 1000 for answer in stream.answered[ALONE:]]),
        "request_alone_ms": percentiles(alone_ms),
        "requests": len(stream.answered) - ALONE,
        "machine": machine(),
        "versions": versions("torch", "aiokafka", "mint-stream"),
    }
