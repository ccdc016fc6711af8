"""The canary: a candidate that answers a share of production's requests, judged by what serving workers count, as often as one likes.

Laws:
- a candidate within both limits (error rate, slow share; see below) is ever rolled back for one of them with probability at most
  1 - confidence, however often one looks: each limit has half of that, see `evidence`;
- nothing passes before `min_requests`, nor with an observed rate above a limit, nor with scores that would fail at the gate;
- whatever has not passed after `max_seconds` has failed;
- one error more among as many requests, or a completion that is slower, never turns a failure into a pass;
- the judgement depends on nothing but terms and counts.

Latency: with T = max_latency_ratio x production's latency at the percentile q, a completion is slow when it surely took longer than T, and
the limit of the slow share is 1 - q: "at q the candidate is slower than T" and "more than 1 - q of its completions take longer than T" are
one statement. It is judged once production has answered enough itself; T is an estimate, and the first law holds for it as estimated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mint_stream.messages.gates import LATENCY_BUCKETS, ArmTally, CanaryTerms, GateTerms
from mint_stream.promotion.evidence import against_rate, needed
from mint_stream.promotion.gate import Scores
from mint_stream.promotion.gate import judge as judge_scores
from mint_stream.promotion.verdict import Judgement

_PER_DOUBLING = 4


@dataclass(frozen=True)
class Seen:
    """What was counted since the canary began. `scores` are those of the canary's own dataset, once they are there."""

    canary: ArmTally
    production: ArmTally
    seconds: float
    scores: Scores | None = None


@dataclass(frozen=True)
class _Rate:
    """How many of how many, beside what is allowed."""

    name: str
    hits: int
    of: int
    limit: float
    enough: float

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else 0.0

    @property
    def evidence(self) -> float:
        return against_rate(self.hits, self.of, self.limit)

    @property
    def figures(self) -> dict[str, float]:
        name = self.name
        return {f"{name}_rate": self.value, f"max_{name}_rate": self.limit, f"{name}_evidence": self.evidence}


def judge(gate: GateTerms, terms: CanaryTerms, seen: Seen) -> Judgement:
    """Passed, failed, or to be looked at again."""
    rates = _rates(gate, terms, seen)
    figures = _figures(gate, terms, seen, rates)
    for rate in rates:
        if rate.evidence >= rate.enough:
            return Judgement("failed", f"{rate.name} rate {rate.value:.4f} is above {rate.limit:g}", figures)
    if seen.scores is not None:
        scored = judge_scores(gate, seen.scores)
        figures |= {f"canary_{name}": value for name, value in scored.figures.items()}
        if scored.outcome == "failed":
            return Judgement("failed", scored.reason, figures)
    if _whole(terms, seen) and all(rate.value <= rate.limit for rate in rates):
        return Judgement("passed", f"{seen.canary.requests} requests within every limit", figures)
    if seen.seconds >= terms.max_seconds:
        return Judgement("failed", f"after {seen.seconds:.0f} s it has not shown itself within every limit", figures)
    return Judgement("undecided", f"{seen.canary.requests} of {terms.min_requests} requests so far", figures)


def _whole(terms: CanaryTerms, seen: Seen) -> bool:
    return seen.canary.requests >= terms.min_requests and (terms.dataset_uri is None or seen.scores is not None)


def _rates(gate: GateTerms, terms: CanaryTerms, seen: Seen) -> tuple[_Rate, ...]:
    enough = 2 * needed(gate.confidence)
    errors = _Rate("error", seen.canary.errors, seen.canary.requests, terms.max_error_rate, enough)
    limit_ms = latency_limit_ms(terms, seen.production)
    if limit_ms is None:
        return (errors,)
    slow, completions = slower_than(seen.canary.latency_ms, limit_ms), sum(seen.canary.latency_ms.values())
    return errors, _Rate("slow", slow, completions, 1 - terms.latency_percentile / 100, enough)


def _figures(gate: GateTerms, terms: CanaryTerms, seen: Seen, rates: tuple[_Rate, ...]) -> dict[str, float]:
    figures = {
        "requests": float(seen.canary.requests),
        "min_requests": float(terms.min_requests),
        "errors": float(seen.canary.errors),
        "production_requests": float(seen.production.requests),
        "seconds": seen.seconds,
        "evidence_needed": 2 * needed(gate.confidence),
    }
    for rate in rates:
        figures |= rate.figures
    for name, arm in (("latency_ms", seen.canary), ("production_latency_ms", seen.production)):
        if (at := percentile_ms(arm.latency_ms, terms.latency_percentile)) is not None:
            figures[name] = at
    return figures


def latency_limit_ms(terms: CanaryTerms, production: ArmTally) -> float | None:
    """Longer than this is slow; None while production has too few completions of its own to say."""
    least = min(terms.min_requests, math.ceil(1 / (1 - terms.latency_percentile / 100)))
    at = percentile_ms(production.latency_ms, terms.latency_percentile)
    return None if at is None or sum(production.latency_ms.values()) < least else terms.max_latency_ratio * at


def bucket_of(latency_ms: float) -> int:
    """The bucket that counts this time."""
    return 0 if latency_ms < 1 else min(LATENCY_BUCKETS - 1, math.floor(_PER_DOUBLING * math.log2(latency_ms)))


def percentile_ms(buckets: Mapping[int, int], percentile: float) -> float | None:
    """A time that at least `percentile` per cent of the counted do not exceed: the upper edge of a bucket, so at most 19 % too long."""
    total = sum(buckets.values())
    if not total:
        return None
    passed = 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed * 100 >= percentile * total:
            break
    return float(2 ** ((bucket + 1) / _PER_DOUBLING))


def slower_than(buckets: Mapping[int, int], limit_ms: float) -> int:
    """How many surely took longer: those of buckets that begin at or above the limit."""
    return sum(count for bucket, count in buckets.items() if 2 ** (bucket / _PER_DOUBLING) >= limit_ms)
