"""What a graph reads is what the step has: every number that differs from step to step is in the tables, and at its place."""

import gc
import weakref
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.adapter_rows import WhereTheyAre
from mint_stream.engine.decode_graphs import DecodeGraphs, Forward
from mint_stream.engine.decode_shapes import Shapes
from mint_stream.engine.decode_tables import DecodeTables
from mint_stream.engine.graphs import EagerGraphs, Graphs, Work
from mint_stream.engine.paged_cache import PAGE_TOKENS, PagedCache
from mint_stream.kernels import Segments
from mint_stream.kernels.attention_plan import PLANE_TOKENS
from mint_stream.kernels.placing import table_key, weight_line
from mint_stream.model.passes import INPUTS, PAGED_SPANS, AdapterSet, Pass, Span
from tests.factories import LINEARS, random_weights

ROWS, TOKENS, WINDOW = 6, 1200, 700
CPU = torch.device("cpu")
LAYERS = [f"model.layers.{layer}" for layer in range(2)]
TOGETHER = [group for at in LAYERS for group in ((f"{at}.self_attn.q_proj", f"{at}.self_attn.v_proj"), (f"{at}.mlp.down_proj",))]
BLOCKS = [AdapterBlock.build(random_weights(LINEARS, rank=rank, seed=rank)) for rank in (3, 40, 16)]


class Reader:
    """A forward that reads what kernels would, from the tables alone: logits [rows, 1] are all ones, `seen` is what was there."""

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache
        self.seen: dict[str, Any] = {}
        self.memory: dict[object, set[int]] = {}
        """Where each of the tables has been."""

    def __call__(self, pass_: Pass) -> Tensor:
        inputs, spans = pass_.scratch[INPUTS], pass_.scratch[PAGED_SPANS]
        rows = inputs.tokens.shape[1]
        self._cache.update(inputs.tokens[:, None, :, None].float(), inputs.positions[:, None, :, None].float(), layer_idx=0)
        bound = pass_.segments.bound
        tables = {"tokens": inputs.tokens, "positions": inputs.positions, "selected": inputs.selected, "places": self._cache._rows}
        tables |= {"items": bound.items} if bound is not None else {}
        tables |= {window: spans.work(2, window, 64, CPU).low for window in (None, WINDOW)}
        for name, table in tables.items():
            self.memory.setdefault(name, set()).add(table.data_ptr())
        self.seen = {
            "tokens": inputs.tokens[0].tolist(),
            "positions": inputs.positions[0].tolist(),
            "work": {window: spans.work(2, window, 64, CPU) for window in (None, WINDOW)},
            "items": [] if bound is None else [line for line in bound.items.tolist() if line[1]],
            "rank": 0 if bound is None else bound.rank,
            "weights": [self._table(pass_.adapters, together) for together in TOGETHER],
        }
        return torch.ones(rows, 1)

    def _table(self, adapters: AdapterSet, together: tuple[str, ...]) -> Tensor | None:
        weights = adapters.slices(together)
        if weights is None:
            return None
        sites = [site for site in weights.sites if site is not None]
        table: Tensor = sites[0].placed[table_key(CPU, False, sites)]  # type: ignore[index]
        return table


def _graphs() -> tuple[DecodeGraphs, Reader, PagedCache]:
    cache = PagedCache(ROWS, TOKENS, torch.float32, CPU)
    reader = Reader(cache)
    return _captured(reader, cache, EagerGraphs()), reader, cache


def _captured(forward: Forward, cache: PagedCache, recorder: Graphs) -> DecodeGraphs:
    shapes = Shapes(ROWS, -(-TOKENS // PLANE_TOKENS))
    tables = DecodeTables(shapes.most_rows, shapes.most_planes, list(LINEARS), ROWS, CPU)
    graphs = DecodeGraphs(forward, cache, tables, shapes, recorder)
    graphs.capture()
    return graphs


def _step(cache: PagedCache, lengths: list[int], chosen: list[int]) -> Pass:
    """Decode rows of sequences that have so many tokens, each with one of BLOCKS (-1: none), rows in the order of their adapters."""
    adapters, slots = WhereTheyAre().place([BLOCKS[number] for number in sorted({*chosen} - {-1})])
    of_rows = sorted(-1 if number < 0 else slots[id(BLOCKS[number])] for number in chosen)
    spans = []
    for row, length in enumerate(lengths):
        found = cache.take(tokens=[row] * length)
        assert found is not None
        spans.append(Span(row, row + 1, length - 1, found.slot))
    tokens = tuple(100 + row for row in range(len(lengths)))
    return Pass(tokens, tuple(spans), tuple(range(len(lengths))), Segments.of_slots(of_rows), adapters)


steps = st.lists(st.tuples(st.integers(1, TOKENS), st.integers(-1, 2)), min_size=1, max_size=ROWS)


@settings(max_examples=25)
@given(st.lists(steps, min_size=1, max_size=3))
def test_each_replay_reads_its_own_step_from_the_tables(history: list[list[tuple[int, int]]]) -> None:
    graphs, reader, cache = _graphs()
    for number, step in enumerate(history):
        pass_ = _step(cache, [length for length, _ in step], [adapter for _, adapter in step])
        logits = graphs.logits(pass_)
        assert logits is not None and len(logits) == len(step) and graphs.replayed == number + 1
        _check(reader.seen, pass_, cache)
        for span in pass_.spans:
            cache.release(span.slot)
    assert len(reader.memory) == 7 and all(len(places) == 1 for places in reader.memory.values()), "all of it stays where it is"


def _check(seen: dict[str, Any], pass_: Pass, cache: PagedCache) -> None:
    rows = len(pass_.tokens)
    assert seen["tokens"] == [*pass_.tokens, *[0] * (len(seen["tokens"]) - rows)]
    assert seen["positions"] == [*pass_.positions, *[0] * (len(seen["tokens"]) - rows)]
    for window, work in seen["work"].items():
        _check_attention(work, pass_, window, cache.nobodys_slot)
    assert [(start, start + count, slot) for start, count, slot, _ in seen["items"]] == [
        (item.start, item.end, item.slot) for item in pass_.segments.items
    ]
    if seen["items"]:
        _check_weights(seen, pass_)
    stored = cache.layer(0)
    for span in pass_.spans:
        page = stored.table[span.slot, span.position // PAGE_TOKENS]
        assert stored.keys[page, span.position % PAGE_TOKENS].item() == pass_.tokens[span.start], "its key went to its own place"


def _check_attention(work: Any, pass_: Pass, window: int | None, nobody: int) -> None:
    """Each row's keys are covered once, by planes in order, and the rows that are nobody's look at one token of nobody's page."""
    lines = [line for line in work.low.tolist() if line[1]]
    assert not len(work.tall) and all(count == 1 and plane < work.planes for _, count, _, _, _, _, plane, _ in lines)
    for row, planes in work.rows.tolist():
        mine = [line for line in lines if line[0] == row]
        span = pass_.spans[row] if row < len(pass_.spans) else Span(row, row + 1, 0, nobody)
        assert [line[6] for line in mine] == list(range(planes)) and {line[7] for line in mine} == {row}
        assert {(line[2], line[3]) for line in mine} == {(span.slot, span.position)}
        assert [line[4] for line in mine[1:]] == [line[5] for line in mine[:-1]] and mine[-1][5] == span.length
        assert mine[0][4] <= max(0, span.length - (window or TOKENS))


def _check_weights(seen: dict[str, Any], pass_: Pass) -> None:
    assert seen["rank"] >= max(lora.rank for layers in pass_.adapters.layers for lora in layers.values())
    for together, table in zip(TOGETHER, seen["weights"], strict=True):
        for at, path in enumerate(together):
            for slot, layers in enumerate(pass_.adapters.layers):
                assert tuple(table[at, slot].tolist()) == weight_line(layers[path])


def test_what_no_graph_holds_is_left_to_be_asked_for() -> None:
    graphs, _, cache = _graphs()
    whole = _step(cache, [5, 9], [0, -1])
    chunk = Pass((1, 2), (Span(0, 2, 3, whole.spans[0].slot),), (1,), Segments((), 2))
    scored = Pass(whole.tokens, whole.spans, (1,), whole.segments, whole.adapters)
    elsewhere, _ = WhereTheyAre().place([AdapterBlock.build(random_weights({"lm_head": (16, 300)}))])
    headed = Pass(whole.tokens, whole.spans, whole.selected, Segments.of_slots([0, -1]), elsewhere)
    assert [graphs.logits(one) for one in (chunk, scored, headed)] == [None, None, None] and graphs.replayed == 0
    assert graphs.logits(whole) is not None


def test_adapters_that_stay_are_looked_up_where_they_are_and_copied_once() -> None:
    graphs, reader, cache = _graphs()
    pass_ = _step(cache, [5, 9], [0, 1])
    graphs.logits(pass_)
    table = reader.seen["weights"][0]
    table[0, 0] = 0
    graphs.logits(pass_)
    assert not table[0, 0].any(), "the same set again: nothing was written"
    graphs.logits(Pass(pass_.tokens, pass_.spans, pass_.selected, pass_.segments, AdapterSet(pass_.adapters.layers)))
    assert table[0, 0].any()


class Recorded:
    """As CUDA's graphs: the work is done at once, and what replays it holds nothing of it."""

    def captured(self, work: Work) -> Work:
        """Nothing to do again."""
        work()
        return lambda: None


def test_what_a_graphs_pass_placed_on_the_device_stays_as_long_as_the_graph() -> None:
    passes: list[weakref.ref[Pass]] = []

    def forward(pass_: Pass) -> Tensor:
        passes.append(weakref.ref(pass_))
        return torch.ones(pass_.scratch[INPUTS].tokens.shape[1], 1)

    graphs = _captured(forward, PagedCache(ROWS, TOKENS, torch.float32, CPU), Recorded())
    gc.collect()
    assert len(graphs) == len(passes) and all(one() is not None for one in passes)
