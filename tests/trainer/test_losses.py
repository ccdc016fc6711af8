"""The chunked loss is the plain one, in little memory."""

import pytest
import torch
from torch.nn import functional

from mint_stream.trainer.losses import chunked_loss


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_chunks_give_the_loss_and_the_gradients_of_plain_cross_entropy(rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=draw, requires_grad=True)
    head = torch.randn(32, 8, generator=draw, requires_grad=True)
    targets = torch.randint(0, 32, (13,), generator=draw)
    weights = torch.rand(13, generator=draw)
    plain = (functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    expected_hidden, expected_head = torch.autograd.grad(plain, (hidden, head))
    total, gradient = chunked_loss(hidden, lambda chunk, part: chunk @ head.T, targets, weights, rows)
    torch.testing.assert_close(total, plain.detach())
    torch.testing.assert_close(gradient, expected_hidden)
    assert head.grad is not None
    torch.testing.assert_close(head.grad, expected_head)


def test_no_chunk_of_logits_is_larger_than_asked() -> None:
    seen: list[int] = []

    def head(chunk: torch.Tensor, part: slice) -> torch.Tensor:
        assert part.stop - part.start == 4
        seen.append(chunk.shape[0])
        return chunk

    chunked_loss(torch.zeros(10, 4), head, torch.zeros(10, dtype=torch.long), torch.ones(10), rows=4)
    assert seen == [4, 4, 2]
