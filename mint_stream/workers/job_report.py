"""What a trainer says of a job on `training-events`: its states, its progress, and that it is still there."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.errors import BusUnavailable, MintError
from mint_stream.messages.shared import ErrorBody
from mint_stream.messages.training import TERMINAL, JobState, TrainingEvent, TrainingJob
from mint_stream.trainer.run import StepReport
from mint_stream.workers.clock import now_ms

log = logging.getLogger(__name__)


class JobReport:
    """The events of one job, under one attempt at a time."""

    def __init__(self, producer: Producer, job: TrainingJob, worker_id: str, attempt: int) -> None:
        self._producer = producer
        self._job = job
        self._worker_id = worker_id
        self.attempt = attempt
        self.step = 0
        self.state: JobState = "queued"
        self._mentioned: asyncio.Task[None] | None = None

    @property
    def claimed(self) -> bool:
        """True once this worker has said that the job is its own."""
        return self.state not in ("queued", *TERMINAL)

    async def say(self, state: JobState, **fields: Any) -> None:
        """Write that the job is in `state` now; acknowledged when this returns."""
        await self._settled()
        self.state = state
        await self._write(self._event(**fields))

    async def mention(self, state: JobState, **fields: Any) -> None:
        """As `say`, but acknowledged when the next thing is said: the job goes on meanwhile."""
        await self._settled()
        self.state = state
        self._mentioned = asyncio.create_task(self._write(self._event(**fields)))

    async def _settled(self) -> None:
        mentioned, self._mentioned = self._mentioned, None
        if mentioned is not None:
            await mentioned

    async def failure(self, state: JobState, error: MintError, fault: str) -> None:
        """Write why the job ended badly."""
        log.warning("%s job_id=%s adapter_id=%s code=%s %s", state, self._job.job_id, self._job.adapter_id, error.code, error)
        await self.say(state, error=ErrorBody.of(error), fault=fault)

    @asynccontextmanager
    async def beating(self, every_s: float) -> AsyncIterator[None]:
        """Within this block the job's state is said again every `every_s`."""
        task = asyncio.create_task(self._beat(every_s))
        try:
            yield
        finally:
            task.cancel()

    async def _beat(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._write(self._event(heartbeat=True))
            except BusUnavailable as error:
                log.warning("no heartbeat job_id=%s: %s", self._job.job_id, error)

    def _event(self, **fields: Any) -> TrainingEvent:
        job = self._job
        return TrainingEvent(
            job_id=job.job_id,
            adapter_id=job.adapter_id,
            tenant=job.tenant,
            state=self.state,
            attempt=self.attempt,
            worker_id=self._worker_id,
            step=self.step,
            steps=job.hyperparameters.steps,
            at_ms=now_ms(),
            **fields,
        )

    async def _write(self, event: TrainingEvent) -> None:
        await self._producer.publish(contracts.TRAINING_EVENTS, event, event.job_id)


def obituary(value: bytes | None, error: MintError, worker_id: str, state: JobState, attempt: int = 0) -> TrainingEvent | None:
    """The terminal event of a record that is not worked on; None when its bytes do not even name a job."""
    try:
        fields = from_json(value or b"")  # which bounds its depth and knows no text that could not be told
        return TrainingEvent(
            job_id=fields["job_id"],
            adapter_id=fields["adapter_id"],
            tenant=fields.get("tenant", "default"),
            state=state,
            attempt=attempt,
            worker_id=worker_id,
            steps=0,
            error=ErrorBody.of(error),
            fault="user" if state == "rejected" else "server",
            at_ms=now_ms(),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Progress:
    """Speed and remaining time of a job, from the steps made here."""

    def __init__(self, steps: int, every_s: float) -> None:
        self._steps = steps
        self._every_s = every_s
        self._started = self._told = time.perf_counter()
        self._untold: list[StepReport] = []
        self._made = 0

    def add(self, report: StepReport) -> dict[str, float] | None:
        """The fields of a progress event, when one is due: at most every `every_s`, and for the first and the last step."""
        self._untold.append(report)
        self._made += 1
        now = time.perf_counter()
        if now - self._told < self._every_s and self._made > 1 and report.step < self._steps:
            return None
        told = self._fields(report, self._untold, now)
        self._told, self._untold = now, []
        return told

    def _fields(self, last: StepReport, reports: Sequence[StepReport], now: float) -> dict[str, float]:
        return {
            "loss": last.loss,
            "learning_rate": last.learning_rate,
            "grad_norm": last.grad_norm,
            "tokens_per_s": sum(report.tokens for report in reports) / max(now - self._told, 1e-9),
            "eta_s": (now - self._started) / self._made * (self._steps - last.step),
        }
