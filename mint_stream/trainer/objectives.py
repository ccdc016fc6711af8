"""What a micro-batch minimises, as a function of its rows' log-probabilities, and its gradient in little memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mint_stream.trainer import losses
from mint_stream.trainer.examples import Learnable, Preference

ROWS_PER_CHUNK = 256
"""At a vocabulary of 49,152 a chunk's fp32 logits take 48 MiB."""

POLICY_LOSSES: dict[str, Callable[..., Tensor]] = {
    "importance_sampling": losses.importance_sampling,
    "ppo": losses.ppo,
    "cispo": losses.cispo,
}
"""By method: what is learned from Rollouts."""


class Objective(Protocol):
    """The loss of rows `part`, given their log-probabilities. `whole`: rows depend on each other, so `part` has to be all of them."""

    @property
    def whole(self) -> bool: ...

    def __call__(self, logp: Tensor, part: slice) -> Tensor: ...


@dataclass(frozen=True)
class TokenObjective:
    """A loss in which every row stands for itself; `columns` [N] are what it is given beside the log-probabilities."""

    loss: Callable[..., Tensor]
    columns: tuple[Tensor, ...]
    whole: bool = False

    def __call__(self, logp: Tensor, part: slice) -> Tensor:
        """The sum over rows `part`."""
        return self.loss(logp, *(column[part] for column in self.columns))


@dataclass(frozen=True)
class PairObjective:
    """DPO. Rows are those of chosen, rejected, chosen, ...: `lengths[i]` of the i-th sequence."""

    weights: Tensor
    lengths: tuple[int, ...]
    reference: Tensor
    """[pairs, 2]"""
    beta: float
    share: float
    """What a pair counts in its batch."""
    whole: bool = True

    def __call__(self, logp: Tensor, part: slice) -> Tensor:
        """The sum over all pairs."""
        sums = [piece.sum() for piece in torch.split(logp * self.weights, list(self.lengths))]
        return losses.dpo(torch.stack(sums).view(-1, 2), self.reference, self.beta) * self.share


@dataclass(frozen=True)
class Task:
    """Everything of a micro-batch besides its tokens: how it is judged. `reference` has a pair's (chosen, rejected) sums."""

    method: str
    examples: tuple[Learnable, ...]
    batch_weight: float
    beta: float = 0.1
    reference: Callable[[Preference], tuple[float, float]] | None = None

    def objective(self, device: torch.device) -> Objective:
        """On `device`; rows are the weighted tokens of all sequences, in their order."""
        weights = self._column("weights", device)
        if self.method == "dpo":
            return self._pairs(weights)
        if self.method == "sft":
            return TokenObjective(losses.cross_entropy, (weights / self.batch_weight,))
        columns = (weights / self.batch_weight, self._column("behaviour", device), self._column("advantages", device))
        return TokenObjective(POLICY_LOSSES[self.method], columns)

    def _pairs(self, weights: Tensor) -> PairObjective:
        assert self.reference is not None, "DPO compares with a reference"
        pairs = [one for one in self.examples if isinstance(one, Preference)]
        lengths = tuple(sum(map(bool, one.weights)) for pair in pairs for one in pair.sequences)
        known = torch.tensor([self.reference(pair) for pair in pairs], device=weights.device)
        return PairObjective(weights, lengths, known, self.beta, 1.0 / self.batch_weight)

    def _column(self, name: str, device: torch.device) -> Tensor:
        numbers = [
            number
            for example in self.examples
            for sequence in example.sequences
            for number, weight in zip(getattr(sequence, name), sequence.weights, strict=True)
            if weight
        ]
        return torch.tensor(numbers, dtype=torch.float32, device=device)


def chunked_loss(
    hidden: Tensor,
    head: Callable[[Tensor, slice], Tensor],
    targets: Tensor,
    objective: Objective,
    rows: int = ROWS_PER_CHUNK,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The loss (a scalar, fp32) and `scale` times its gradient for `hidden` ([N, H], in its dtype); `targets` [N].

    `head` gets a chunk of hidden states and which rows they are. Backward runs chunk by chunk here, so one chunk's logits live at a
    time; adapters inside `head` get their gradients on the way. An objective of whole batches costs one more sweep over the head when
    there are several chunks.
    """
    parts = [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
    gradient = torch.empty_like(hidden)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    if objective.whole and len(parts) > 1:
        total, objective = _linearised(hidden, head, targets, objective, parts)
    for part in parts:
        chunk = hidden[part].detach().requires_grad_(True)
        loss = objective(losses.logprobs(head(chunk, part), targets[part]), part)
        (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        gradient[part] = cast(Tensor, chunk.grad)
        total = total if isinstance(objective, _Linearised) else total + loss.detach()
    return total, gradient


@dataclass(frozen=True)
class _Linearised:
    """Has the gradient that an objective has at one place, row by row."""

    slopes: Tensor
    whole: bool = False

    def __call__(self, logp: Tensor, part: slice) -> Tensor:
        return (logp * self.slopes[part]).sum()


def _linearised(hidden: Tensor, head: Any, targets: Tensor, objective: Objective, parts: Sequence[slice]) -> tuple[Tensor, _Linearised]:
    with torch.no_grad():
        logp = torch.cat([losses.logprobs(head(hidden[part], part), targets[part]) for part in parts])
    logp.requires_grad_(True)
    total = objective(logp, slice(None))
    (slopes,) = torch.autograd.grad(total, logp)
    return total.detach(), _Linearised(slopes)
