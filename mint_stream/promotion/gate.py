"""The gate: a candidate's scores beside production's on the same items, before any request for production reaches the candidate.

Laws:
- a candidate whose mean score is below the floor never passes;
- a candidate whose true mean score is worse than production's by `max_regression` or more passes with probability at most 1 - confidence,
  for any scores in [0, 1] and any number of items (see `evidence`: items are drawn alike, each gives one paired difference);
- a candidate that scores as production does, item by item, passes from `items_needed` items on;
- raising any of the candidate's scores, or lowering any of production's, never turns a pass into a failure;
- the judgement depends on nothing but terms and scores, and not on the order of the items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mint_stream.messages.gates import GateTerms
from mint_stream.promotion.evidence import MOST, against_mean, needed
from mint_stream.promotion.verdict import Judgement, Outcome

MOST_ITEMS = 100_000
"""A gate that no smaller dataset could pass is refused."""


@dataclass(frozen=True)
class Scores:
    """One score in [0, 1] an item, in one order for both. `production` None: there is nothing to compare with."""

    candidate: tuple[float, ...]
    production: tuple[float, ...] | None = None


def judge(terms: GateTerms, scores: Scores) -> Judgement:
    """Whether the candidate passes. There is no third answer: all items are asked before anybody looks."""
    figures = _figures(terms, scores)
    if not scores.candidate:
        return Judgement("failed", "there is nothing to score", figures)
    if figures["score"] < terms.floor:
        return Judgement("failed", f"score {figures['score']:.4f} is below the floor {terms.floor:g}", figures)
    if scores.production is None:
        return Judgement("passed", f"score {figures['score']:.4f}, and there is no production to compare with", figures)
    outcome: Outcome = "passed" if figures["evidence"] >= figures["evidence_needed"] else "failed"
    shown = "shown" if outcome == "passed" else "not shown"
    beside = f"score {figures['score']:.4f} beside production's {figures['production_score']:.4f} over {len(scores.candidate)} items"
    return Judgement(outcome, f"{beside}: no worse by {terms.max_regression:g} is {shown} with confidence {terms.confidence:g}", figures)


def _figures(terms: GateTerms, scores: Scores) -> dict[str, float]:
    figures: dict[str, float] = {"items": len(scores.candidate), "score": mean(scores.candidate), "floor": terms.floor}
    if scores.production is None or not scores.candidate:
        return figures
    return figures | {
        "production_score": mean(scores.production),
        "difference": mean(tuple(ours - theirs for ours, theirs in zip(scores.candidate, scores.production, strict=True))),
        "max_regression": terms.max_regression,
        "evidence": no_worse(scores.candidate, scores.production, terms.max_regression),
        "evidence_needed": needed(terms.confidence),
    }


def no_worse(candidate: Sequence[float], production: Sequence[float], max_regression: float) -> float:
    """The evidence that the mean difference is above -max_regression. Differences in [-1, 1] are laid onto [0, 1]."""
    halves = ((1 + ours - theirs) / 2 for ours, theirs in zip(candidate, production, strict=True))
    return against_mean(halves, (1 - max_regression) / 2) if max_regression < 1 else MOST


def items_needed(max_regression: float, confidence: float) -> int | None:
    """With how many items a candidate passes that ties with production on each; None when MOST_ITEMS are not enough."""
    if not _tie_passes(MOST_ITEMS, max_regression, confidence):
        return None
    low, high = 0, MOST_ITEMS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tie_passes(middle, max_regression, confidence) else (middle, high)
    return high


def mean(values: Sequence[float]) -> float:
    """0 for no values."""
    return math.fsum(values) / len(values) if values else 0.0


def _tie_passes(items: int, max_regression: float, confidence: float) -> bool:
    even = (0.0,) * items
    return no_worse(even, even, max_regression) >= needed(confidence)
