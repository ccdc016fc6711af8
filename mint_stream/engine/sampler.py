"""Choosing tokens: greedy, temperature, top-k, top-p, each row by its own settings and its own numbers.

A row's draw depends on its logits and on (seed, position) alone, so a replay draws the same whoever shares the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_stream.messages.inference import Sampling

CANDIDATES = 1024
"""Rows are first sorted only this deep; a row whose top-p reaches further is sorted whole."""


@dataclass(frozen=True)
class Draw:
    """How one row chooses: `position` counts tokens of its sequence."""

    sampling: Sampling
    seed: int
    position: int


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of its arguments: splitmix64 over both."""
    mixed = _mix(_mix(seed & _MASK) ^ (position * 0x9E3779B97F4A7C15 & _MASK))
    return (mixed >> 11) / float(1 << 53)


_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """One token a row of logits [rows, vocabulary]; None where a row holds a number that is not finite."""
    finite = torch.isfinite(logits.sum(-1)).tolist()
    tokens: list[int | None] = list(logits.max(-1).indices.tolist())
    drawn = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0 and finite[row]]
    for row, token in zip(drawn, _draw(logits[drawn], [draws[row] for row in drawn]) if drawn else (), strict=True):
        tokens[row] = token
    return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    scaled = logits.float() / torch.tensor([[draw.sampling.temperature] for draw in draws], device=logits.device)
    total = scaled.logsumexp(-1, keepdim=True)
    values, tokens = scaled.topk(min(CANDIDATES, scaled.shape[-1]), dim=-1)
    chosen = _pick((values - total).exp(), tokens, draws, whole=values.shape == scaled.shape)
    return [_draw_whole(scaled[row], draws[row]) if token is None else token for row, token in enumerate(chosen)]


def _draw_whole(scaled: Tensor, draw: Draw) -> int:
    """The same choice from all tokens of one row."""
    order = torch.sort(scaled, descending=True, stable=True)
    (token,) = _pick((order.values - scaled.logsumexp(-1)).exp()[None], order.indices[None], [draw], whole=True)
    assert token is not None
    return token


def _pick(probabilities: Tensor, tokens: Tensor, draws: Sequence[Draw], whole: bool) -> list[int | None]:
    """From each row's most probable tokens, descending; None where the choice may lie beyond them (`whole`: nothing does)."""
    width = probabilities.shape[-1]
    mass = probabilities.double().cumsum(-1)
    top_k = torch.tensor([[min(draw.sampling.top_k or width, width)] for draw in draws], device=mass.device)
    kept_by_k = mass.gather(-1, top_k - 1)
    limited = torch.tensor([[bool(draw.sampling.top_k) and draw.sampling.top_k <= width] for draw in draws], device=mass.device)
    everything = kept_by_k if whole else torch.where(limited, kept_by_k, torch.ones_like(kept_by_k))
    top_p = torch.tensor([[draw.sampling.top_p] for draw in draws], dtype=mass.dtype, device=mass.device) * everything
    before = mass - probabilities.double()
    kept = ((before < top_p) & (torch.arange(width, device=mass.device) < top_k)).sum(-1, keepdim=True).clamp(min=1)
    nucleus = mass.gather(-1, kept - 1)
    deeper = torch.tensor([[draw.sampling.top_k > width and not whole] for draw in draws], device=mass.device)
    bounded = limited | (mass[:, -1:] >= top_p) & (top_p < everything) & ~deeper
    numbers = torch.tensor([[uniform(draw.seed, draw.position)] for draw in draws], dtype=mass.dtype, device=mass.device)
    goal = numbers * torch.where(bounded, nucleus, everything)
    index = torch.searchsorted(mass, goal, right=True)
    beyond = deeper | torch.tensor([[draw.sampling.top_p < 1.0] for draw in draws], device=mass.device)
    known = (bounded | (index < width) & ~beyond).squeeze(-1).tolist()
    picked = tokens.gather(-1, torch.minimum(index, kept - 1).clamp(max=width - 1)).squeeze(-1).tolist()
    return [token if sure or whole else None for token, sure in zip(picked, known, strict=True)]
