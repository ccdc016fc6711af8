"""The losses are their formulas, written out by hand in plain Python; in chunks they are the same in little memory."""

import math
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.trainer import losses
from mint_stream.trainer.examples import Example, Preference, Rollout
from mint_stream.trainer.objectives import Objective, PairObjective, Task, TokenObjective, chunked_loss

DRAW = random.Random(7)
LOGP = [DRAW.uniform(-4, -0.01) for _ in range(9)]
BEHAVIOUR = [one + shift for one, shift in zip(LOGP, (-3.0, -0.3, -0.1, 0.0, 0.05, 0.2, 0.4, 2.0, -0.25), strict=True)]
ADVANTAGES = [1.5, -0.5, 0.0, 2.0, -1.0, 0.7, -0.2, 1.0, -2.0]
WEIGHTS = [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0]


def ratio(row: int) -> float:
    return math.exp(LOGP[row] - BEHAVIOUR[row])


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def clipped(row: int) -> bool:
    """Whether PPO's clamped side is the smaller one, so that the row has no gradient."""
    return clamp(ratio(row), 0.8, 1.2) * ADVANTAGES[row] < ratio(row) * ADVANTAGES[row]


BY_HAND: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "cross_entropy": (lambda i: -LOGP[i], lambda i: -1.0),
    "importance_sampling": (lambda i: -ratio(i) * ADVANTAGES[i], lambda i: -ratio(i) * ADVANTAGES[i]),
    "ppo": (
        lambda i: -min(ratio(i) * ADVANTAGES[i], clamp(ratio(i), 0.8, 1.2) * ADVANTAGES[i]),
        lambda i: 0.0 if clipped(i) else -ratio(i) * ADVANTAGES[i],
    ),
    "cispo": (
        lambda i: -clamp(ratio(i), 0.0, 4.0) * LOGP[i] * ADVANTAGES[i],
        lambda i: -clamp(ratio(i), 0.0, 4.0) * ADVANTAGES[i],
    ),
}
"""By loss: what a token adds to it, and the derivative by its log-probability, before its weight."""


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loss_and_its_gradient_are_the_formulas(name: str) -> None:
    logp = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    columns = [torch.tensor(one, dtype=torch.float64) for one in (WEIGHTS, BEHAVIOUR, ADVANTAGES)]
    loss: Tensor = getattr(losses, name)(logp, *(columns[:1] if name == "cross_entropy" else columns))
    loss.backward()
    term, slope = BY_HAND[name]
    assert loss.item() == pytest.approx(sum(weight * term(row) for row, weight in enumerate(WEIGHTS)))
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([weight * slope(row) for row, weight in enumerate(WEIGHTS)])


def test_ppo_clips_on_both_sides_and_cispo_at_four_or_these_numbers_would_show_nothing() -> None:
    assert {(clipped(row), ADVANTAGES[row] > 0) for row in range(9)} == {(True, True), (True, False), (False, True), (False, False)}
    assert max(ratio(row) for row in range(9)) > 4.0


def test_dpo_is_the_formula_and_at_the_reference_it_is_log_two_a_pair() -> None:
    policy, reference, beta = [(-5.0, -6.0), (-4.0, -2.0)], [(-5.5, -5.0), (-4.0, -4.5)], 0.3
    margins = [(pc - rc) - (pr - rr) for (pc, pr), (rc, rr) in zip(policy, reference, strict=True)]
    expected = sum(-math.log(1 / (1 + math.exp(-beta * margin))) for margin in margins)
    got = losses.dpo(torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64), beta)
    assert got.item() == pytest.approx(expected)
    assert losses.dpo(torch.tensor(reference), torch.tensor(reference), beta).item() == pytest.approx(2 * math.log(2))


def test_grpo_advantages_are_the_groups_standard_scores() -> None:
    rewards = [0.0, 1.0, 1.0, 0.5]
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    assert losses.group_advantages(rewards) == pytest.approx([(one - mean) / (deviation + 1e-6) for one in rewards])
    assert losses.group_advantages([1.0, 1.0]) == (0.0, 0.0) and losses.group_advantages([3.0]) == (0.0,)
    assert losses.group_advantages([]) == ()


def test_a_task_reads_weighted_tokens_only_and_divides_by_the_batch() -> None:
    rollouts = [
        Rollout((1, 2, 3), (0.0, 1.0, 0.0), (0.0, -0.5, 9.0), (0.0, 2.0, 9.0)),
        Rollout((4, 5), (0.0, 1.0), (0.0, -1.0), (0.0, -1.0)),
    ]
    objective = Task("importance_sampling", tuple(rollouts), 4.0).objective(torch.device("cpu"))
    logp = torch.tensor([-0.5, -2.0])
    assert objective(logp, slice(None)).item() == pytest.approx(-(2.0 - math.exp(-1.0)) / 4.0)


def test_a_pair_objective_is_dpo_over_the_sums_of_its_sequences() -> None:
    pair = Preference(Example((1, 2, 3), (0.0, 1.0, 1.0)), Example((1, 4), (0.0, 1.0)))
    objective = Task("dpo", (pair, pair), 8.0, 0.5, {pair: (-1.0, -2.0)}.__getitem__).objective(torch.device("cpu"))
    logp = torch.tensor([-0.2, -0.3, -1.5, -0.1, -0.2, -0.4])
    expected = losses.dpo(torch.tensor([[-0.5, -1.5], [-0.3, -0.4]]), torch.tensor([[-1.0, -2.0]] * 2), 0.5) / 8.0
    assert objective.whole and objective(logp, slice(None)).item() == pytest.approx(expected.item())


def objectives(rows: int) -> dict[str, Objective]:
    draw = torch.Generator().manual_seed(1)
    weights, behaviour, advantages = (torch.rand(rows, generator=draw) for _ in range(3))
    return {
        "cross_entropy": TokenObjective(losses.cross_entropy, (weights,)),
        "cispo": TokenObjective(losses.cispo, (weights, -behaviour, advantages)),
        "dpo": PairObjective(weights, (3, 4, 1, rows - 8), torch.tensor([[-3.0, -2.0], [-1.0, -4.0]]), 0.5, 0.25),
    }


@pytest.mark.parametrize("name", ["cross_entropy", "cispo", "dpo"])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(rows: int, name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=draw, requires_grad=True)
    head = torch.randn(32, 8, generator=draw, requires_grad=True)
    targets = torch.randint(0, 32, (13,), generator=draw)
    objective = objectives(13)[name]
    plain = objective(-functional.cross_entropy(hidden @ head.T, targets, reduction="none"), slice(None))
    expected_hidden, expected_head = torch.autograd.grad(plain, (hidden, head))
    total, gradient = chunked_loss(hidden, lambda chunk, part: chunk @ head.T, targets, objective, rows)
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

    objective = TokenObjective(losses.cross_entropy, (torch.ones(10),))
    chunked_loss(torch.zeros(10, 4), head, torch.zeros(10, dtype=torch.long), objective, rows=4)
    assert seen == [4, 4, 2]
