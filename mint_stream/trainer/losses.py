"""The loss of a language model on weighted tokens, without ever holding the logits of a whole pass.

    loss = -sum_i w_i * log softmax(head(h_i))[t_i] / W        h [N, H], t [N], w [N]

With W the sum of the weights of the job's whole batch, so micro-batches add up to the batch's mean over its weighted tokens.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

ROWS_PER_CHUNK = 256
"""At a vocabulary of 49,152 a chunk's fp32 logits take 48 MiB."""


def chunked_loss(
    hidden: Tensor, head: Callable[[Tensor, slice], Tensor], targets: Tensor, weights: Tensor, rows: int = ROWS_PER_CHUNK
) -> tuple[Tensor, Tensor]:
    """The sum of weighted negative log-likelihoods (a scalar, fp32) and its gradient for `hidden` ([N, H], in its dtype).

    `head` gets a chunk of hidden states and which rows they are. Backward runs chunk by chunk here, so one chunk's logits live at a
    time; adapters inside `head` get their gradients on the way.
    """
    gradient = torch.empty_like(hidden)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        chunk = hidden[part].detach().requires_grad_(True)
        loss = weighted_nll(head(chunk, part), targets[part], weights[part])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        gradient[part] = cast(Tensor, chunk.grad)
        total += loss.detach()
    return total, gradient


def weighted_nll(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """-sum_i w_i * log softmax(logits_i)[t_i] in fp32, for logits [N, V], targets [N], weights [N]."""
    wide = logits.float()
    chosen = wide.gather(1, targets[:, None]).squeeze(1)
    return ((torch.logsumexp(wide, dim=1) - chosen) * weights).sum()
