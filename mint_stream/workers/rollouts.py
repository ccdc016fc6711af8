"""What a job of grpo learns from: answers of its own revisions, drawn by the serving pool like anybody's requests, then graded.

    revision published ─► requests pinned to it ─► answers with log-probabilities ─► scores ─► advantages ─► the step's examples

Answers of the next few steps are asked for as soon as the revision that draws them is published, while others are learned from.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mint_stream.catalog import Catalog
from mint_stream.errors import InvalidJob, MissingExtra, NoRollouts, UnknownRevision
from mint_stream.messages.inference import InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.shared import ErrorBody
from mint_stream.messages.training import RolloutFigures, RolloutTerms, TrainingJob
from mint_stream.promotion.grading import AnsweredItem
from mint_stream.trainer.examples import Question
from mint_stream.trainer.rollouts import Scored, drawn_at, learned, seed_of, staleness
from mint_stream.trainer.run import TrainingRun
from mint_stream.workers.grading import GradingProcess, grading, scores_of
from mint_stream.workers.insisting import Answered, Insisting

AHEAD = 4
"""Steps whose answers may wait to be learned from, besides the one that is."""


@dataclass(frozen=True)
class Policies:
    """Where a job's revisions are found and asked."""

    catalog: Catalog
    catalog_current: Callable[[], Awaitable[None]]
    """Waits until the catalog has everything that was announced before."""
    pool: str

    async def number(self, job: TrainingJob, step: int) -> int | None:
        """The revision of a step of the job; of step 0 its parent, None for the bare base. Raises UnknownRevision."""
        if step == 0:
            return job.parent
        number = self.catalog.number_of_step(job.adapter_id, job.job_id, step)
        if number is None:
            await self.catalog_current()
            number = self.catalog.number_of_step(job.adapter_id, job.job_id, step)
        if number is None:
            raise UnknownRevision(f"job {job.job_id}: the revision of its step {step} is gone, and it was to draw rollouts")
        return number


class Rollouts:
    """Draws for every job of a worker."""

    def __init__(self, insisting: Insisting, policies: Policies) -> None:
        self._insisting = insisting
        self._policies = policies

    async def check(self, run: TrainingRun) -> None:
        """Whether the job's grader takes its questions. Raises InvalidRule, InvalidDataset or InvalidJob; nothing where none is drawn."""
        if (terms := run.job.rollouts) is not None:
            items = [question.item for question in run.dataset.questions]
            try:
                await scores_of(terms.grader, [AnsweredItem(text=item.answer, item=item) for item in items])
            except MissingExtra as error:
                raise InvalidJob(f"job {run.job.job_id}: grader {terms.grader} cannot be used by this trainer: {error}") from error

    @asynccontextmanager
    async def of(self, run: TrainingRun) -> AsyncIterator["Experience | None"]:
        """What the run learns from, for as long as the block runs; None for a job that learns from its dataset."""
        if (terms := run.job.rollouts) is None:
            yield None
            return
        async with grading(terms.grader) as grader:
            experience = Experience(run, terms, self._insisting, self._policies, grader)
            try:
                yield experience
            finally:
                await experience.stop()


class Experience:
    """The answers that one job learns from, step by step."""

    def __init__(self, run: TrainingRun, terms: RolloutTerms, insisting: Insisting, policies: Policies, grader: GradingProcess) -> None:
        self._run = run
        self._job = run.job
        self._terms = terms
        self._insisting = insisting
        self._policies = policies
        self._grader = grader
        self._drawing: dict[int, asyncio.Task[Drawn]] = {}

    async def begin(self) -> RolloutFigures:
        """Begin the run's next step with its answers, once they are there.

        Raises NoRollouts, UnknownRevision, what the grader raised, and what ended the reading of replies."""
        step = self._run.step
        for later in range(step, min(step + 1 + AHEAD, self._job.hyperparameters.steps)):
            if later not in self._drawing and self._drawn_at(later) <= step:
                self._drawing[later] = asyncio.create_task(self._draw(later))
        drawn = await self._drawing.pop(step)
        groups = await self._scored(drawn)
        scores = [answer.score for group in groups for answer in group]
        if not scores:
            raise NoRollouts(f"job {self._job.job_id} got no answer to learn from at step {step + 1}: {drawn.complaint}")
        self._run.begin(learned(groups))
        return RolloutFigures(
            number=drawn.number,
            staleness=staleness(step, self._every, self._terms.max_staleness),
            graded=len(scores),
            dropped=len(drawn.answers) - len(scores),
            reward=sum(scores) / len(scores),
        )

    async def stop(self) -> None:
        """Wait for no answer any more."""
        for task in self._drawing.values():
            task.cancel()
        await asyncio.gather(*self._drawing.values(), return_exceptions=True)

    @property
    def _every(self) -> int:
        return self._job.publish_every_steps or self._job.hyperparameters.steps

    def _drawn_at(self, step: int) -> int:
        return drawn_at(step, self._every, self._terms.max_staleness)

    async def _draw(self, step: int) -> "Drawn":
        number = await self._policies.number(self._job, self._drawn_at(step))
        questions = self._run.questions(step)
        places = [(place, sample) for place in range(len(questions)) for sample in range(self._terms.group_size)]
        requests = [self._request(questions[place], number, step, place, sample) for place, sample in places]
        return Drawn(number, questions, await self._insisting.answers(self._policies.pool, requests))

    def _request(self, question: Question, number: int | None, step: int, place: int, sample: int) -> InferenceRequest:
        """Its id names job, step, question and sample, and no attempt: whoever asks again asks for the same."""
        job, terms = self._job, self._terms
        name = hashlib.sha256(job.job_id.encode()).hexdigest()[:32]
        return InferenceRequest(
            request_id=f"rollout/{name}/{step}/{place}/{sample}",
            tenant=job.tenant,
            adapter=None if number is None else f"{job.adapter_id}@{number}",
            prompt_tokens=question.tokens,
            sampling=Sampling(
                max_tokens=terms.max_tokens, temperature=terms.temperature, seed=seed_of(job, step, place, sample), logprobs=0
            ),
            min_catalog_position=None if number is None else self._policies.catalog.head_position(job.adapter_id),
        )

    async def _scored(self, drawn: "Drawn") -> list[list[Scored]]:
        """The usable answers, question by question."""
        size = self._terms.group_size
        groups = [drawn.usable(range(first, first + size)) for first in range(0, len(drawn.answers), size)]
        told = [
            AnsweredItem(text=answer.text or "", item=question.item)
            for question, group in zip(drawn.questions, groups, strict=True)
            for answer in group
        ]
        scores = iter(await self._grader.scores(told))
        return [
            [_scored(question, answer, next(scores)) for answer in group] for question, group in zip(drawn.questions, groups, strict=True)
        ]


@dataclass(frozen=True)
class Drawn:
    """What came of a step's questions: `answers` are those to the first one, then those to the next."""

    number: int | None
    questions: tuple[Question, ...]
    answers: tuple[Answered, ...]

    @property
    def complaint(self) -> str:
        """Why answers are missing, most frequent reasons first, each once."""
        errors = [answer for answer in self.answers if isinstance(answer, ErrorBody)]
        messages = {error.code: error.message for error in errors}
        counted = Counter(error.code for error in errors).most_common()
        return "; ".join(f"{count} x {code}, e.g. {messages[code]}" for code, count in counted) or "none had log-probabilities"

    def usable(self, places: Sequence[int]) -> list[InferenceResult]:
        """Of the answers at these places, those that a policy of this number gave and whose every token has its log-probability."""
        found = [self.answers[place] for place in places]
        return [answer for answer in found if isinstance(answer, InferenceResult) and self._whole(answer)]

    def _whole(self, answer: InferenceResult) -> bool:
        served = answer.served_by.number if answer.served_by else None
        drawn = tuple(one.token for one in answer.logprobs or ())
        return served == self.number and bool(drawn) and drawn == answer.tokens


def _scored(question: Question, answer: InferenceResult, score: float) -> Scored:
    logprobs = answer.logprobs or ()
    return Scored(question.tokens, tuple(one.token for one in logprobs), tuple(one.logprob for one in logprobs), score)
