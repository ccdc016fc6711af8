"""The null engine keeps an engine's contract."""

import asyncio
import time

import pytest

from mint_stream.engine.generation import Generation, GenerationEngine
from mint_stream.engine.null import EchoEngine, bytes_text
from mint_stream.errors import Cancelled, DeadlineExceeded
from mint_stream.messages.inference import Sampling


def _asks(text: str, max_tokens: int = 64, deadline_at_s: float | None = None) -> Generation:
    return Generation("r1", tuple(text.encode()), Sampling(max_tokens=max_tokens), seed=0, deadline_at_s=deadline_at_s)


async def _held(engine: EchoEngine) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert engine.load.waiting == 1


async def test_the_echo_is_the_prompt_and_the_stream_joins_to_it() -> None:
    engine: GenerationEngine = EchoEngine()
    pieces: list[str] = []
    completion = await engine.run(_asks("héllo"), pieces.append)
    assert completion.text == "héllo" == "".join(pieces)
    assert bytes_text(completion.tokens) == "héllo" and completion.finish_reason == "stop"


async def test_an_echo_cut_by_max_tokens_says_length() -> None:
    completion = await EchoEngine().run(_asks("hello", max_tokens=2))
    assert (completion.text, completion.finish_reason) == ("he", "length")


async def test_a_held_generation_ends_when_cancelled() -> None:
    engine = EchoEngine()
    engine.pause()
    running = asyncio.create_task(engine.run(_asks("x")))
    await _held(engine)
    assert engine.cancel("r1", "changed my mind")
    with pytest.raises(Cancelled, match="changed my mind"):
        await running
    assert not engine.cancel("r1", "again")


async def test_a_passed_deadline_is_not_answered() -> None:
    with pytest.raises(DeadlineExceeded):
        await EchoEngine().run(_asks("x", deadline_at_s=time.monotonic() - 1))


async def test_resume_lets_held_answers_go() -> None:
    engine = EchoEngine()
    engine.pause()
    running = asyncio.create_task(engine.run(_asks("x", deadline_at_s=time.monotonic() + 60)))
    await _held(engine)
    engine.resume()
    assert (await running).text == "x"


async def test_stop_ends_what_is_held_and_whoever_watches() -> None:
    engine = EchoEngine()
    engine.pause()
    running = asyncio.create_task(engine.run(_asks("x")))
    await _held(engine)
    await engine.stop()
    await engine.watch()
    with pytest.raises(Cancelled):
        await running
