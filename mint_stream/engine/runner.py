"""Runs one step: packs the rows of many sequences into a pass, and draws the next tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.engine.adapter_rows import Placing, SideBySide, Slots, WhereTheyAre
from mint_stream.engine.batcher import Rows
from mint_stream.engine.kv_cache import SlottedCache
from mint_stream.engine.sampler import choose
from mint_stream.engine.sequence import RunningSequence
from mint_stream.kernels import Segments
from mint_stream.model.base import ResidentBase
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import AdapterSet, Pass, Span
from mint_stream.model.trial import LENGTHS, check_packing


class Runner:
    """The model, its cache, and the adapter sets in use. Lives on the engine's thread."""

    def __init__(self, base: ResidentBase, slots: int, slot_tokens: int) -> None:
        self._packed = PackedModel(base.model, base.linears, base.output_head)
        self.cache = SlottedCache(slots, slot_tokens, base.dtype, base.device)
        self._placing: Placing = SideBySide(slots) if base.device.type == "cpu" else WhereTheyAre()
        self._dtype = base.dtype
        self.max_adapters_in_step = 0

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Two sequences, a prefill and a decode step: libraries choose their kernels and the cache's memory is mapped.

        Raises BaseUnusable when packed passes of this base are not what the stock model computes."""
        check_packing(self._packed, SlottedCache(len(LENGTHS), max(LENGTHS), self._dtype, self._packed.device))
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
        adapters, slots = self._placing.place(tuple(blocks.values()))
        placed = sorted(work, key=lambda item: _slot_of(item[1], slots))
        pass_ = _pack(placed, slots, adapters)
        self.max_adapters_in_step = max(self.max_adapters_in_step, len(blocks))
        self.cache.place(pass_)
        logits = self._packed.forward(pass_, self.cache)
        return [sequence for rows, sequence in placed if rows.samples], logits


def _slot_of(sequence: RunningSequence, slots: Slots) -> int:
    return -1 if sequence.generation.adapter is None else slots[id(sequence.generation.adapter)]


def _pack(placed: Sequence[tuple[Rows, RunningSequence]], slots: Slots, adapters: AdapterSet) -> Pass:
    tokens: list[int] = []
    spans: list[Span] = []
    selected: list[int] = []
    of_rows: list[int] = []
    for rows, sequence in placed:
        begin = len(tokens)
        tokens.extend(sequence.tokens[rows.start : rows.start + rows.count])
        spans.append(Span(begin, len(tokens), rows.start, sequence.slot))
        of_rows.extend([_slot_of(sequence, slots)] * rows.count)
        if rows.samples:
            selected.append(len(tokens) - 1)
    return Pass(tuple(tokens), tuple(spans), tuple(selected), Segments.of_slots(of_rows), adapters)
