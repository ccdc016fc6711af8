"""The losses of training, each a sum over tokens (DPO: over pairs) that is minimised.

w weight, logp current and q behaviour log-probability, A advantage, r = exp(logp - q), sg stop-gradient.

    cross-entropy         -Σ w·logp
    importance sampling   -Σ w·r·A
    PPO                   -Σ w·min(r·A, clamp(r, 0.8, 1.2)·A)
    CISPO                 -Σ w·sg[clamp(r, 0, 4)]·logp·A
    DPO                   -Σ log σ(β[(logπ_chosen - logref_chosen) - (logπ_rejected - logref_rejected)])
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PPO_RANGE = (0.8, 1.2)
CISPO_LIMIT = 4.0
GROUP_EPSILON = 1e-6


def logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits_i)[t_i] in fp32, for logits [N, V] and targets [N]."""
    wide = logits.float()
    return wide.gather(1, targets[:, None]).squeeze(1) - torch.logsumexp(wide, dim=1)


def cross_entropy(logp: Tensor, weights: Tensor) -> Tensor:
    """-Σ w·logp"""
    return -(logp * weights).sum()


def importance_sampling(logp: Tensor, weights: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor:
    """-Σ w·r·A"""
    return -(weights * torch.exp(logp - behaviour) * advantages).sum()


def ppo(logp: Tensor, weights: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor:
    """-Σ w·min(r·A, clamp(r, 0.8, 1.2)·A)"""
    ratio = torch.exp(logp - behaviour)
    return -(weights * torch.minimum(ratio * advantages, ratio.clamp(*PPO_RANGE) * advantages)).sum()


def cispo(logp: Tensor, weights: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor:
    """-Σ w·sg[clamp(r, 0, 4)]·logp·A"""
    ratio = torch.exp(logp.detach() - behaviour).clamp(0.0, CISPO_LIMIT)
    return -(weights * ratio * logp * advantages).sum()


def dpo(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-Σ log σ(β·margin), for the summed log-probabilities [pairs, (chosen, rejected)] of the policy and of the reference."""
    gained = policy - reference
    return -functional.logsigmoid(beta * (gained[:, 0] - gained[:, 1])).sum()


def group_advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """GRPO's advantages of the answers to one prompt: (reward - mean) / (std + 1e-6), std over n - 1. A single answer has 0."""
    if len(rewards) < 2:
        return (0.0,) * len(rewards)
    group = torch.tensor(rewards, dtype=torch.float64)
    return tuple(((group - group.mean()) / (group.std() + GROUP_EPSILON)).tolist())
