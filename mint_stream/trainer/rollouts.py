"""From answers and their scores to what a step learns from, and which revision draws for which step. Pure.

A step's answers are a function of the job and the step: which questions, which revision, which seeds. So a job that goes on from a
checkpoint asks for the same answers again, under the same names.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mint_stream.messages.training import TrainingJob
from mint_stream.trainer.examples import Rollout
from mint_stream.trainer.losses import group_advantages


@dataclass(frozen=True)
class Scored:
    """An answer with the log-probability of each of its tokens when it was drawn, and its score."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float

    def learned(self, advantage: float) -> Rollout:
        """What is learned from it: each of its tokens, by the same advantage."""
        before, after = len(self.prompt), len(self.tokens)
        return Rollout(
            tokens=self.prompt + self.tokens,
            weights=(0.0,) * before + (1.0,) * after,
            behaviour=(0.0,) * before + self.logprobs,
            advantages=(0.0,) * before + (advantage,) * after,
        )


def learned(groups: Sequence[Sequence[Scored]]) -> tuple[Rollout, ...]:
    """What the answers to several questions teach, group by group. A group of equal scores teaches nothing and would cost a pass, so it is
    left out; where all are such, one answer stays, and the step is made without a gradient."""
    teaching = [group for group in groups if len({answer.score for answer in group}) > 1]
    if not teaching:
        return tuple(answer.learned(0.0) for group in groups for answer in group)[:1]
    return tuple(
        answer.learned(advantage)
        for group in teaching
        for answer, advantage in zip(group, group_advantages([answer.score for answer in group]), strict=True)
    )


def drawn_at(step: int, every: int, max_staleness: int) -> int:
    """The step at whose revision the answers for `step` (made so far) are drawn, where every `every` steps are published; 0 is the start.

    Law: it is a published step, never later than `step`, and min(all, max_staleness) revisions behind the newest at `step`."""
    return max(0, step // every - max_staleness) * every


def staleness(step: int, every: int, max_staleness: int) -> int:
    """Revisions between the one that draws for `step` and the newest at `step`."""
    return min(step // every, max_staleness)


def seed_of(job: TrainingJob, step: int, place: int, sample: int) -> int:
    """The seed of an answer, in [0, 2^63). Of the job's settings alone: the same job under another id draws the same."""
    drawn = hashlib.blake2b(f"{job.seed}/{step}/{place}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") >> 1
