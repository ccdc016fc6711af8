"""The engine keeps its promises to the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.engine import Engine
from mint_stream.engine.generation import Generation, GenerationEngine
from mint_stream.errors import AdapterUnloadable, BaseMismatch, Cancelled, DeadlineExceeded, EngineFailed, InvalidRequest, PromptTooLong
from mint_stream.kernels import LoraWeights
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.model.passes import AdapterSet, pack
from tests.factories import random_weights, tiny_base

BUDGETS = Budgets(max_num_seqs=4, max_num_batched_tokens=16, max_adapters=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ResidentBase:
    return load_base(tiny_base(tmp_path_factory.mktemp("base") / "llama"), dtype=torch.float32)


@pytest.fixture
async def engine(base: ResidentBase) -> AsyncIterator[Engine]:
    engine = Engine(base, BUDGETS)
    await engine.start()
    yield engine
    await engine.stop()


def _asks(
    name: str = "r", text: str = "hello", block: AdapterBlock | None = None, deadline_at_s: float | None = None, **sampling: Any
) -> Generation:
    options = {"max_tokens": 8, "ignore_eos": True} | sampling
    return Generation(name, tuple(text.encode()), Sampling(**options), seed=11, adapter=block, deadline_at_s=deadline_at_s)


def _block(base: ResidentBase, seed: int) -> AdapterBlock:
    return AdapterBlock.build(random_weights(base.linears, seed=seed))


async def test_a_row_gets_the_same_tokens_alone_and_in_a_mixed_batch(engine: GenerationEngine, base: ResidentBase) -> None:
    asked = [_asks(str(n), "some prompt"[: n + 1], _block(base, n % 3) if n % 4 else None, temperature=n % 2 * 0.8) for n in range(9)]
    alone = [await engine.run(generation) for generation in asked]
    together = await asyncio.gather(*(engine.run(generation) for generation in asked))
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert engine.max_adapters_in_step >= 2 and engine.load.running == engine.load.waiting == 0


async def test_an_adapter_changes_the_answer_and_another_revision_changes_it_again(engine: GenerationEngine, base: ResidentBase) -> None:
    answers = [await engine.run(_asks(block=block)) for block in (None, _block(base, 1), _block(base, 2))]
    assert len({answer.tokens for answer in answers}) == 3


async def test_the_streamed_pieces_join_to_the_text_on_the_event_loops_thread(engine: GenerationEngine) -> None:
    pieces: list[str] = []
    loop = asyncio.get_running_loop()

    def shown(piece: str) -> None:
        assert asyncio.get_running_loop() is loop
        pieces.append(piece)

    completion = await engine.run(_asks(max_tokens=40, temperature=2.0), shown)
    assert "".join(pieces) == completion.text and len(pieces) > 1
    assert (await engine.run(_asks(max_tokens=40, temperature=2.0))).text == completion.text


async def test_a_stop_string_ends_the_text_before_it(engine: GenerationEngine) -> None:
    whole = await engine.run(_asks(max_tokens=40, temperature=2.0))
    stop = whole.text[7:9]
    cut = await engine.run(_asks(max_tokens=40, temperature=2.0, stop=(stop,)))
    assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.index(stop)]
    assert whole.finish_reason == "length" and len(whole.tokens) == 40


async def test_the_end_of_sequence_token_ends_it_and_shows_no_text(base: ResidentBase) -> None:
    plain = Engine(base, BUDGETS)
    await plain.start()
    first = (await plain.run(_asks(max_tokens=3))).tokens[0]
    await plain.stop()
    ending = Engine(replace(base, eos_tokens=frozenset({first})), BUDGETS)
    await ending.start()
    completion = await ending.run(_asks(max_tokens=3, ignore_eos=False))
    assert (completion.tokens, completion.text, completion.finish_reason) == ((first,), "", "stop")
    assert len((await ending.run(_asks(max_tokens=3, ignore_eos=True))).tokens) == 3
    await ending.stop()


async def test_what_does_not_fit_the_context_is_refused(engine: GenerationEngine) -> None:
    with pytest.raises(PromptTooLong, match="256 fit in all"):
        await engine.run(_asks(text="x" * 250))
    for prompt in ((), (-1,), (10_000,)):
        with pytest.raises(InvalidRequest):
            await engine.run(replace(_asks(), prompt_tokens=prompt))


async def test_an_adapter_of_another_base_is_refused(engine: GenerationEngine) -> None:
    with pytest.raises(BaseMismatch, match="down_proj does not fit"):
        await engine.run(_asks(block=AdapterBlock.build(random_weights())))


async def test_a_cancelled_generation_ends_and_frees_its_place(engine: GenerationEngine) -> None:
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(engine.run(_asks("long", max_tokens=200), lambda piece: first.done() or first.set_result(piece)))
    await first
    assert engine.cancel("long", "enough") and not engine.cancel("unknown", "")
    with pytest.raises(Cancelled, match="enough"):
        await running
    assert engine.load.running + engine.load.waiting == 0


async def test_cancelling_the_waiting_task_frees_its_place(engine: Engine) -> None:
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(engine.run(_asks(max_tokens=200), lambda piece: first.done() or first.set_result(piece)))
    await first
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await engine.run(_asks())
    assert engine._runner.cache.free_slots == BUDGETS.max_num_seqs


async def test_a_deadline_ends_a_generation_that_waits_or_runs(engine: GenerationEngine) -> None:
    with pytest.raises(DeadlineExceeded, match="after 0 generated"):
        await engine.run(_asks(deadline_at_s=time.monotonic() - 1))
    with pytest.raises(DeadlineExceeded):
        await engine.run(_asks(max_tokens=240, deadline_at_s=time.monotonic() + 0.02))


async def test_an_adapter_that_overflows_fails_its_own_rows_only(engine: GenerationEngine, base: ResidentBase) -> None:
    block = _block(base, 1)
    block.flat.fill_(1e30)
    neighbours = [_asks(str(number)) for number in range(3)]
    expected = [(await engine.run(one)).tokens for one in neighbours]
    results = await asyncio.gather(*(engine.run(one) for one in [_asks(block=block), *neighbours]), return_exceptions=True)
    assert isinstance(results[0], AdapterUnloadable)
    assert [getattr(one, "tokens", one) for one in results[1:]] == expected


async def test_stopping_cancels_what_runs_and_refuses_what_comes(base: ResidentBase) -> None:
    engine = Engine(base, BUDGETS)
    with pytest.raises(EngineFailed, match="not running"):
        await engine.run(_asks())
    await engine.start()
    running = asyncio.create_task(engine.run(_asks(max_tokens=200)))
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(Cancelled):
        await running
    await engine.watch()
    with pytest.raises(EngineFailed):
        await engine.run(_asks())


async def test_a_crash_of_the_thread_reaches_everyone_who_waits(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"), dtype=torch.float32)
    engine = Engine(base, BUDGETS)
    await engine.start()
    base.model.model.norm.weight.data = torch.zeros(3)
    results = await asyncio.gather(*(engine.run(_asks(str(number))) for number in range(3)), return_exceptions=True)
    assert all(isinstance(result, EngineFailed) for result in results)
    with pytest.raises(EngineFailed, match="RuntimeError"):
        await engine.watch()
    with pytest.raises(EngineFailed):
        await engine.run(_asks())


async def test_a_prompt_that_was_computed_before_is_read_from_the_cache_and_answered_alike(engine: Engine, base: ResidentBase) -> None:
    for block in (None, _block(base, 1)):
        first = await engine.run(_asks(text="the same beginning", block=block))
        again = await engine.run(_asks(text="the same beginning", block=block))
        longer = await engine.run(_asks(text="the same beginning, and more", block=block))
        assert (first.reused_tokens, again.reused_tokens, longer.reused_tokens) == (0, 17, 18)
        assert first.tokens == again.tokens


async def test_what_one_revision_computed_is_never_read_by_another_or_by_the_base(engine: Engine, base: ResidentBase) -> None:
    makers = [None, _block(base, 1), _block(base, 2)]
    answers = [await engine.run(_asks(text="the same beginning", block=block)) for block in makers]
    assert [answer.reused_tokens for answer in answers] == [0, 0, 0]
    twins = [await engine.run(_asks(text="the same beginning", block=block)) for block in (None, _block(base, 1), _block(base, 2))]
    assert [twin.reused_tokens for twin in twins] == [17, 17, 17], "equal content has an equal digest, wherever it lies in memory"
    assert [twin.tokens for twin in twins] == [answer.tokens for answer in answers]


async def test_log_probabilities_are_those_of_the_whole_text_computed_at_once(engine: Engine, base: ResidentBase) -> None:
    block = _block(base, 1)
    asked = _asks(text="how likely is this", block=block, logprobs=3, prompt_logprobs=2, temperature=0.7, max_tokens=5)
    quiet = _asks("q", text="how likely is this", block=block, max_tokens=5)
    answer, silent = await asyncio.gather(engine.run(asked), engine.run(quiet))
    tokens = [*asked.prompt_tokens, *answer.tokens]
    adapters = AdapterSet([{path: LoraWeights(layer.A, layer.Bt) for path, layer in block.layers.items()}])
    with torch.inference_mode():
        whole = base.packed.forward(pack([(tokens, 0)], adapters=adapters)).log_softmax(-1)
    assert silent.logprobs is None and silent.prompt_logprobs is None
    assert answer.logprobs is not None and answer.prompt_logprobs is not None
    scored = [*answer.prompt_logprobs, *answer.logprobs]
    assert [one.token for one in scored] == tokens[1:] and [len(one.top) for one in scored] == [2] * 17 + [3] * 5
    for position, one in enumerate(scored):
        assert one.logprob == pytest.approx(float(whole[position, one.token]), abs=1e-4)
        best = whole[position].topk(len(one.top))
        assert [likely.token for likely in one.top] == best.indices.tolist()
        assert [likely.logprob for likely in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_a_scored_prompt_is_computed_whole_even_if_the_cache_has_it(engine: Engine) -> None:
    await engine.run(_asks(text="the same beginning"))
    scored = await engine.run(_asks(text="the same beginning", prompt_logprobs=0, max_tokens=1))
    assert scored.reused_tokens == 0 and scored.prompt_logprobs is not None and len(scored.prompt_logprobs) == 17
