"""Runs one step: packs the rows of many sequences into a pass, and draws the next tokens."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.batcher import Rows
from mint_stream.engine.kv_cache import SlottedCache
from mint_stream.engine.sampler import choose
from mint_stream.engine.sequence import RunningSequence
from mint_stream.kernels import LoraWeights, Segments
from mint_stream.model.base import ResidentBase
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import AdapterSet, Pass, Span

REMEMBERED_SETS = 4
"""Sets of adapters whose batched weights are kept: a running batch changes its set seldom."""


class Runner:
    """The model, its cache, and the adapter sets in use. Lives on the engine's thread."""

    def __init__(self, base: ResidentBase, slots: int, slot_tokens: int) -> None:
        self._packed = PackedModel(base.model, base.linears, base.output_head)
        self.cache = SlottedCache(slots, slot_tokens, base.dtype, base.device)
        self._sets: OrderedDict[tuple[int, ...], tuple[tuple[AdapterBlock, ...], AdapterSet]] = OrderedDict()
        self.max_adapters_in_step = 0

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Two sequences, a prefill and a decode step: libraries choose their kernels and the cache's memory is mapped."""
        slots = [self.cache.take(), self.cache.take()]
        for rows, position in ((8, 0), (1, 8)):
            spans = tuple(Span(at * rows, (at + 1) * rows, position, slot) for at, slot in enumerate(slots))
            pass_ = Pass((0,) * rows * 2, spans, (rows - 1, 2 * rows - 1), Segments((), 2 * rows))
            self.cache.place(pass_)
            self._packed.forward(pass_, self.cache)
        for slot in slots:
            self.cache.release(slot, 9)

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Rows, RunningSequence]]) -> list[tuple[RunningSequence, int | None]]:
        """Compute the rows of one step. For each sequence that samples: its next token, None when its logits are not finite."""
        sampling, logits = self.logits(work)
        return list(zip(sampling, choose(logits, [sequence.draw() for sequence in sampling]), strict=True)) if sampling else []

    @torch.inference_mode()
    def logits(self, work: Sequence[tuple[Rows, RunningSequence]]) -> tuple[list[RunningSequence], Tensor]:
        """Compute the rows of one step: the sequences that sample, in the order of their logits [sampling, vocabulary]."""
        blocks = {id(block): block for _, sequence in work if (block := sequence.generation.adapter) is not None}
        order = {key: slot for slot, key in enumerate(sorted(blocks))}
        placed = sorted(work, key=lambda item: _slot_of(item[1], order))
        pass_ = _pack(placed, order, self._adapters(tuple(blocks[key] for key in sorted(blocks))))
        self.max_adapters_in_step = max(self.max_adapters_in_step, len(blocks))
        self.cache.place(pass_)
        logits = self._packed.forward(pass_, self.cache)
        return [sequence for rows, sequence in placed if rows.samples], logits

    def _adapters(self, blocks: tuple[AdapterBlock, ...]) -> AdapterSet:
        """The set of these blocks, remembered with them, so that an id is not another block's while it is a key."""
        key = tuple(id(block) for block in blocks)
        if key not in self._sets:
            layers = [{path: LoraWeights(layer.A, layer.Bt) for path, layer in block.layers.items()} for block in blocks]
            self._sets[key] = (blocks, AdapterSet(layers))
        self._sets.move_to_end(key)
        while len(self._sets) > REMEMBERED_SETS:
            self._sets.popitem(last=False)
        return self._sets[key][1]


def _slot_of(sequence: RunningSequence, order: dict[int, int]) -> int:
    return -1 if sequence.generation.adapter is None else order[id(sequence.generation.adapter)]


def _pack(placed: Sequence[tuple[Rows, RunningSequence]], order: dict[int, int], adapters: AdapterSet) -> Pass:
    tokens: list[int] = []
    spans: list[Span] = []
    selected: list[int] = []
    slots: list[int] = []
    for rows, sequence in placed:
        begin = len(tokens)
        tokens.extend(sequence.tokens[rows.start : rows.start + rows.count])
        spans.append(Span(begin, len(tokens), rows.start, sequence.slot))
        slots.extend([_slot_of(sequence, order)] * rows.count)
        if rows.samples:
            selected.append(len(tokens) - 1)
    return Pass(tuple(tokens), tuple(spans), tuple(selected), Segments.of_slots(slots), adapters)
