"""The proof at start that packed passes of this base compute what the stock model does: for kinds nobody has read the source of."""

from typing import Any, Protocol

import torch
from torch import Tensor

from mint_stream.errors import BaseUnusable
from mint_stream.kernels import Segments
from mint_stream.model import attention
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import KeyValues, Pass, Span

LENGTHS = (20, 9)
STEPS = (((0, 0, 8),), ((0, 8, 19), (1, 0, 8)), ((0, 19, 20), (1, 8, 9)))
"""(sequence, from, to) of the spans of each pass: a chunk, its end beside another beginning, a decode row of each."""
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.15}
"""Of the largest logit. A wrong mask or a missing past is off by about 1; narrow floats may send a token to another expert."""


class PlacedCache(KeyValues, Protocol):
    """A cache that is told what comes."""

    def place(self, pass_: Pass) -> None:
        """Where the rows of the next pass are written."""


def check_packing(packed: PackedModel, cache: PlacedCache) -> None:
    """Two sequences in chunks through the first two slots, and each alone through the stock model. Raises BaseUnusable by name."""
    name = type(packed.model).__name__
    vocabulary = int(packed.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    sequences = [[(5 + 7 * at + 31 * key) % min(250, vocabulary) for at in range(length)] for key, length in enumerate(LENGTHS)]
    expected = [_stock(packed, tokens) for tokens in sequences]
    try:
        errors = [error for step in STEPS for error in _errors(packed, cache, step, sequences, expected)]
    except BaseUnusable:
        raise
    except Exception as error:
        raise BaseUnusable(f"{name} cannot be computed in packed passes: {type(error).__name__}: {error}") from error
    exact = expected[0].dtype == torch.float32
    worst = max(errors) if exact else sorted(errors)[len(errors) // 2]
    if not worst <= TOLERANCE[expected[0].dtype]:
        raise BaseUnusable(f"{name} answers otherwise in packed passes, by {worst:.2g} of its largest logit: choose another base")


def _stock(packed: PackedModel, tokens: list[int]) -> Tensor:
    """[tokens, vocabulary]"""
    model: Any = packed.model
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            logits: Tensor = model(input_ids=torch.tensor([tokens], device=packed.device), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(attention.NAME)
    return logits


def _errors(
    packed: PackedModel, cache: PlacedCache, step: tuple[tuple[int, int, int], ...], sequences: list[list[int]], expected: list[Tensor]
) -> list[float]:
    """How far each row of the pass is from its expected logits, in parts of the largest of these."""
    tokens: list[int] = []
    spans: list[Span] = []
    wanted: list[Tensor] = []
    for key, begin, end in step:
        spans.append(Span(len(tokens), len(tokens) + end - begin, begin, key))
        tokens.extend(sequences[key][begin:end])
        wanted.append(expected[key][begin:end])
    pass_ = Pass(tuple(tokens), tuple(spans), tuple(range(len(tokens))), Segments((), len(tokens)))
    cache.place(pass_)
    whole = torch.cat(wanted)
    off = (packed.forward(pass_, cache) - whole).abs().amax(1) / whole.abs().max()
    return [float(error) for error in off]
