"""Runs one step: packs the rows of many sequences into a pass, and draws the next tokens."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_stream.engine.adapter_rows import Placing, SideBySide, Slots, WhereTheyAre
from mint_stream.engine.batcher import Rows
from mint_stream.engine.decode_graphs import DecodeGraphs
from mint_stream.engine.decode_shapes import Shapes
from mint_stream.engine.decode_tables import DecodeTables
from mint_stream.engine.graphs import Graphs
from mint_stream.engine.kv_cache import SlottedCache
from mint_stream.engine.logprobs import token_logprobs
from mint_stream.engine.paged_cache import PagedCache
from mint_stream.engine.sampler import choose
from mint_stream.engine.sequence import RunningSequence
from mint_stream.engine.sequence_cache import SequenceCache
from mint_stream.kernels import Segments, triton_on
from mint_stream.kernels.bound_attention import planes_of
from mint_stream.kernels.readable import through_torch
from mint_stream.kernels.warming import warm
from mint_stream.model.base import ResidentBase
from mint_stream.model.passes import AdapterSet, Pass, Span
from mint_stream.model.trial import LENGTHS, check_packing

log = logging.getLogger(__name__)

WARM_ROWS = 33
"""More than any tile for decode rows has, so that kernels for longer chunks are compiled too."""


class Runner:
    """The model, its cache, and the adapter sets in use. Lives on the engine's thread."""

    def __init__(
        self, base: ResidentBase, slots: int, slot_tokens: int, kv_cache_bytes: int | None = None, graphs: Graphs | None = None
    ) -> None:
        """`kv_cache_bytes`: keys and values in pages of no more than that (from `warm_up` on), as devices want them; None: in slots.

        `graphs` record decode steps of bases whose layers are all fused, where Triton's kernels compute; None: every step is asked for.
        """
        self._base, self._graphs, self._slot_tokens = base, graphs, slot_tokens
        self.decode_graphs: DecodeGraphs | None = None
        self._packed = base.packed
        self._dtype, self._kv_cache_bytes = base.dtype, kv_cache_bytes
        self.cache: SequenceCache = self._cache_of(slots, slot_tokens)
        self._placing: Placing = SideBySide(slots) if kv_cache_bytes is None and base.device.type == "cpu" else WhereTheyAre()
        self._through_torch: tuple[str, ...] = ()
        self.max_adapters_in_step = 0

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Two sequences, a prefill and a decode step: libraries choose their kernels, the cache's memory is mapped, Triton's kernels are
        compiled for all that passes may ask of them, and graphs of decode steps are captured.

        Raises BaseUnusable when packed passes of this base are not what the stock model computes."""
        trial = self._cache_of(len(LENGTHS), max(LENGTHS))
        for _ in LENGTHS:
            trial.take()
        check_packing(self._packed, trial)
        if isinstance(self.cache, PagedCache) and isinstance(trial, PagedCache) and self._kv_cache_bytes is not None:
            self.cache.limit(self._kv_cache_bytes // trial.page_bytes)
        warm(self._packed.device, self._dtype)
        rows = min(WARM_ROWS, self._slot_tokens - 1)
        slots = [found.slot for _ in range(2) if (found := self.cache.take(length=rows + 1)) is not None]
        for count, position in ((rows, 0), (1, rows)):
            spans = tuple(Span(at * count, (at + 1) * count, position, slot) for at, slot in enumerate(slots))
            selected = tuple(span.end - 1 for span in spans)
            pass_ = Pass((0,) * count * len(slots), spans, selected, Segments((), count * len(slots)))
            self.cache.place(pass_)
            self._packed.forward(pass_, self.cache)
        for slot in slots:
            self.cache.advance(slot, rows + 1)
            self.cache.release(slot)
        self._through_torch = self._unread()
        for part in self._through_torch:
            log.warning("%s: through torch, which is slower, for Triton's kernels cannot read it: %s", self._base.architecture, part)
        self._capture()

    def _unread(self) -> tuple[str, ...]:
        """What of this base Triton's kernels would compute and cannot read."""
        if not triton_on(self._packed.device):
            return ()
        paths = self._packed.sites.paths.union(self._base.parameters)
        shapes = {path: shape for path, shape in self._base.layers.items() if path in paths}
        heads = self.cache.head_widths(self._packed.latent) if isinstance(self.cache, PagedCache) else frozenset()
        return through_torch(heads, shapes, self._dtype)

    def _capture(self) -> None:
        """Graphs of decode steps, where there may be any: of what the kernels compute, all of it."""
        cache, base, device = self.cache, self._base, self._packed.device
        if self._graphs is None or not isinstance(cache, PagedCache) or not (triton_on(device) and self._packed.fused):
            return
        if self._through_torch:
            log.warning("%s: decode steps have no graphs", base.architecture)
            return
        paths = [path for path in base.linears if path != base.output_head]
        shapes = Shapes(cache.slots, planes_of(cache.slot_tokens))
        tables = DecodeTables(shapes.most_rows, shapes.most_planes, paths, cache.slots, device)
        self.decode_graphs = DecodeGraphs(lambda pass_: self._packed.forward(pass_, cache), cache, tables, shapes, self._graphs)
        self.decode_graphs.capture()

    def _cache_of(self, slots: int, slot_tokens: int) -> SequenceCache:
        kind = SlottedCache if self._kv_cache_bytes is None else PagedCache
        return kind(slots, slot_tokens, self._dtype, self._packed.device)

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Rows, RunningSequence]]) -> list[tuple[RunningSequence, int | None]]:
        """Compute the rows of one step. For each sequence that samples: its next token, None when its logits are not finite.

        Log-probabilities that sequences asked for are added to them."""
        chosen, logits = self.logits(work)
        drawing = [row for row, one in enumerate(chosen) if one.draws]
        drawn = logits if len(drawing) == len(chosen) else logits[drawing]
        tokens = choose(drawn, [chosen[row].sequence.draw() for row in drawing]) if drawing else []
        following = dict(zip(drawing, tokens, strict=True))
        self._score(chosen, logits, following)
        if not chosen and self._packed.device.type == "cuda":  # nothing was read from the device, and a block it reads may be let go now
            torch.cuda.current_stream(self._packed.device).synchronize()
        return [(chosen[row].sequence, token) for row, token in following.items()]

    def _score(self, chosen: "Sequence[Chosen]", logits: Tensor, drawn: Mapping[int, int | None]) -> None:
        """Add to each sequence the log-probabilities of the tokens that follow its rows, where it asked for them."""
        scored = [(row, one, token, top) for row, one in enumerate(chosen) for token, top in one.scores(drawn.get(row))]
        rows = [row for row, _, _, _ in scored]
        found = token_logprobs(logits[rows], [token for _, _, token, _ in scored], [top for _, _, _, top in scored]) if scored else []
        for (_, one, _, _), logprob in zip(scored, found, strict=True):
            (one.sequence.logprobs if one.draws else one.sequence.prompt_logprobs).append(logprob)

    @torch.inference_mode()
    def logits(self, work: Sequence[tuple[Rows, RunningSequence]]) -> "tuple[list[Chosen], Tensor]":
        """Compute the rows of one step: the rows that somebody needs logits of, in the order of the logits [chosen, vocabulary]."""
        blocks = {id(block): block for _, sequence in work if (block := sequence.generation.adapter) is not None}
        adapters, slots = self._placing.place(tuple(blocks.values()))
        placed = sorted(work, key=lambda item: _slot_of(item[1], slots))
        chosen = [one for rows, sequence in placed for one in _chosen(rows, sequence)]
        pass_ = _pack(placed, slots, adapters)
        self.max_adapters_in_step = max(self.max_adapters_in_step, len(blocks))
        logits = None if self.decode_graphs is None else self.decode_graphs.logits(pass_)
        if logits is None:
            self.cache.place(pass_)
            logits = self._packed.forward(pass_, self.cache)
        for rows, sequence in placed:
            self.cache.advance(sequence.slot, rows.start + rows.count)
        return chosen, logits


@dataclass(frozen=True)
class Chosen:
    """A row of a step with logits: that of the token at `position` of its sequence. `draws`: the next token is drawn from them."""

    sequence: RunningSequence
    position: int
    draws: bool

    def scores(self, drawn: int | None) -> Iterator[tuple[int, int]]:
        """(the token that follows, how many alternatives) if the sequence wants to know how likely it was."""
        sampling = self.sequence.generation.sampling
        if self.draws and drawn is not None and sampling.logprobs is not None:
            yield drawn, sampling.logprobs
        elif not self.draws and sampling.prompt_logprobs is not None:
            yield self.sequence.tokens[self.position + 1], sampling.prompt_logprobs


def _chosen(rows: Rows, sequence: RunningSequence) -> Iterator[Chosen]:
    """The rows of a chunk that need logits: the last where a token is drawn, all of them where the prompt is scored."""
    last = rows.start + rows.count - 1
    if sequence.generation.sampling.prompt_logprobs is not None:
        ends = min(last, len(sequence.generation.prompt_tokens) - 1)
        yield from (Chosen(sequence, position, draws=False) for position in range(rows.start, ends + (not rows.samples)))
    if rows.samples:
        yield Chosen(sequence, last, draws=True)


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
        selected.extend(begin + one.position - rows.start for one in _chosen(rows, sequence))
    return Pass(tuple(tokens), tuple(spans), tuple(selected), Segments.of_slots(of_rows), adapters)
