"""The life of a training job on one worker, from its record to its terminal event.

    look at the log ─► over: done · held elsewhere: watch · free: a seat ─► validate ─► claim ─► resume ─► steps ─► terminal event
    every few steps: checkpoint durable ─► publish (see publishing.py)
    asked to pause: checkpoint durable ─► paused event, and the record is over (see parking.py)

Each arrow may be the last thing this process does. Whoever comes next finds the job free after a silence, claims the next attempt, goes on
from the last checkpoint, and repeats a publish that was due there, for nobody knows how far it came.
"""

import logging

from mint_stream import contracts
from mint_stream.errors import (
    BusUnavailable,
    Cancelled,
    CorruptObject,
    DeviceLost,
    EngineFailed,
    MintError,
    NoRollouts,
    OwnershipLost,
    Reject,
    RevisionQuarantined,
    RevisionRetired,
    StoreUnavailable,
    TrainingDiverged,
    UnknownRevision,
)
from mint_stream.messages.adapters import Revision
from mint_stream.messages.training import TERMINAL, JobState, ParkedJob, TrainingJob
from mint_stream.metrics import Metrics
from mint_stream.workers.claiming import Claims
from mint_stream.workers.effects import After
from mint_stream.workers.job_line import JobLine
from mint_stream.workers.job_log import LastSeen
from mint_stream.workers.job_report import JobReport, obituary
from mint_stream.workers.job_steps import JobSteps
from mint_stream.workers.job_stops import JobStops, Paused, Released
from mint_stream.workers.publishing import Publishing
from mint_stream.workers.seats import Applicant
from mint_stream.workers.training_parts import TrainingBus, TrainingRoom, TrainingTerms

log = logging.getLogger(__name__)


class JobRunner:
    """Runs as many jobs at once as have seats, and watches those that another worker runs."""

    def __init__(self, bus: TrainingBus, room: TrainingRoom, terms: TrainingTerms, metrics: Metrics, after: After) -> None:
        self._bus = bus
        self._room = room
        self._terms = terms
        self._metrics = metrics
        self._after = after
        self._claims = Claims(bus.commands, bus.catalog, terms.pool)
        self._stops = JobStops(bus.log, self._claims)
        self._line = JobLine(bus, room, terms, self._stops)
        self._steps = JobSteps(bus, room, terms, self._stops, Publishing(bus.commands, self._claims, room, terms.pool, after), metrics)

    def stop(self) -> None:
        """Let go of every job after its step; nothing new begins."""
        self._stops.stop()
        self._bus.commands.abandon()
        self._bus.log.wake()

    async def run(self, job: TrainingJob) -> None:
        """Return when the job is terminal or paused, here or elsewhere. Raises Released when this worker stops first."""
        last = await self._bus.log.current(job.job_id)
        if last is None or (last.state == "paused" and not self._bus.log.parked(job.job_id)):
            await self._bus.report(job, self._terms.worker_id, last).say("queued")
        try:
            await self._until_terminal(job, await self._line.applicant(job))
        finally:
            self._line.leave(job)

    async def _until_terminal(self, job: TrainingJob, applicant: Applicant) -> None:
        while (found := await self._line.standing(job)) != "over":
            self._stops.check_stopping(job)
            if found == "held":
                self._line.leave(job)
                await self._bus.log.moved(self._terms.heartbeat_s)
            elif (self._stops.paused(job) or await self._line.seat(job, applicant)) and await self._attempt(job, applicant):
                return

    async def bury(self, value: bytes | None, error: MintError, state: JobState) -> None:
        """Say that a record is not worked on, if it names a job that has not begun (`rejected`) or not ended (`failed`)."""
        event = obituary(value, error, self._terms.worker_id, state)
        if event is None:
            return
        last = await self._bus.log.current(event.job_id)
        if last is None or (state == "failed" and last.state not in TERMINAL):
            final = event.model_copy(update={"attempt": last.attempt if last else 0})
            await self._bus.producer.publish(contracts.TRAINING_EVENTS, final, final.job_id)

    async def _attempt(self, job: TrainingJob, applicant: Applicant) -> bool:
        """Work on a free job. True when it is terminal or paused now, False when somebody else has it."""
        last = await self._bus.log.current(job.job_id)
        report = self._bus.report(job, self._terms.worker_id, last)
        try:
            self._stops.check_cancelled(job)
            self._terms.quotas.check(job)
            if why := self._stops.paused(job):
                return await self._park(job, report, last, why)
            self._room.seats.check(applicant)
            if job.job_id not in self._room.seats:  # it was to pause when we looked for a seat, and is to go on by now
                return False
            return await self._seated(job, report)
        except OwnershipLost as error:
            return await self._watched(job, error)
        except StoreUnavailable as error:  # before the claim: the seat is free for others meanwhile
            log.warning("job_id=%s waits for the store: %s", job.job_id, error)
            self._line.leave(job)
            await self._line.wait_for_store(job)
            return False
        except (Reject, EngineFailed, NoRollouts) as error:
            return await self._ended_by(error, job, report)
        except BusUnavailable:
            self._stops.check_stopping(job)
            raise

    async def _watched(self, job: TrainingJob, lost: OwnershipLost) -> bool:
        log.info("%s; watching it", lost)
        self._line.leave(job)
        await self._bus.log.moved(self._terms.heartbeat_s)
        return False

    async def _ended_by(self, error: MintError, job: TrainingJob, report: JobReport) -> bool:
        """Who has lost the job meanwhile says nothing of its end."""
        try:
            if report.claimed:
                self._claims.check(job, report.attempt)
        except OwnershipLost as lost:
            return await self._watched(job, lost)
        if isinstance(error, EngineFailed | TrainingDiverged):
            await self._prove(report)
        await self._end(report, error)
        return True

    async def _seated(self, job: TrainingJob, report: JobReport) -> bool:
        """Validate wholly, claim, then train under the attempt granted, with heartbeats."""
        self._stops.check_stopping(job)
        work = await self._room.shop.run(self._room.workshop.prepare, job, await self._parent(job))
        if self._terms.quotas.of(job.tenant).tokens is not None:
            self._terms.quotas.check_tokens(job, await self._room.shop.run(getattr, work.run, "planned_tokens"))
        await self._bus.rollouts.check(work.run)
        self._stops.check(job, report)
        report.attempt = await self._claims.take(job)
        await report.say("claimed")
        self._after("claimed")
        try:
            async with report.beating(self._terms.heartbeat_s):
                number = await self._steps.all_of(work, report)
        except Paused as paused:
            return await self._say_paused(job, report, str(paused))
        except (Released, BusUnavailable):
            if self._stops.stopping:
                await report.say("queued")
            raise
        await self._say_evaluating(job, report, number)
        await report.say("succeeded", number=number)
        self._after("end-reported")
        self._metrics.jobs_total.labels("succeeded").inc()
        return True

    async def _park(self, job: TrainingJob, report: JobReport, last: LastSeen | None, why: str) -> bool:
        """Pause a job that is not in training: it keeps what its last checkpoint has."""
        if last is not None and last.attempt:
            report.step = await self._room.shop.run(self._room.workshop.furthest_step, job)
            if last.state not in ("queued", "paused"):  # whoever had it and may wake up has lost it
                report.attempt = await self._claims.take(job)
        return await self._say_paused(job, report, why)

    async def _say_paused(self, job: TrainingJob, report: JobReport, why: str) -> bool:
        """Nobody has to keep a record open for it: the event has all that is needed to go on."""
        await report.say("paused", reason=why, parked=ParkedJob(pool=self._terms.pool, job=job))
        self._after("pause-reported")
        return True

    async def _say_evaluating(self, job: TrainingJob, report: JobReport, number: int | None) -> None:
        """Where a gate decides what becomes of the last revision, the job says so; the evaluators' verdict is an adapter event."""
        await self._bus.catalog_current()
        head = self._bus.catalog.head(job.adapter_id)
        if number is not None and head is not None and head.rule == "gated" and head.aliases.get("production") != number:
            await report.say("evaluating", number=number, reason=f"revision {number} is judged by the gate of {job.adapter_id} now")

    async def _prove(self, report: JobReport) -> None:
        """Torch failed under a job, or gave no numbers: its own fault, if the base alone still computes.

        Else the job goes free at once, and this worker ends."""
        try:
            await self._room.passes.prove()
        except DeviceLost:
            if report.claimed:
                await report.say("queued")
            raise

    async def _end(self, report: JobReport, error: MintError) -> None:
        """The job's terminal event for an error: rejected before its first claim, failed after it."""
        ours = isinstance(error, CorruptObject) or not isinstance(error, Reject)
        if isinstance(error, Cancelled):
            await report.failure("cancelled", error, "user")
        elif ours or report.claimed:
            await report.failure("failed", error, "server" if ours else "user")
        else:
            await report.failure("rejected", error, "user")
        self._after("end-reported")
        self._metrics.jobs_total.labels(report.state).inc()

    async def _parent(self, job: TrainingJob) -> Revision | None:
        """The revision to go on from. Raises a Reject when it cannot be."""
        if job.parent is None:
            return None
        await self._bus.catalog_current()
        revision = self._bus.catalog.revision(job.adapter_id, job.parent)
        if revision is None:
            raise UnknownRevision(f"job {job.job_id}: parent {job.adapter_id}@{job.parent} does not exist")
        if revision.state != "announced":
            kind = RevisionRetired if revision.state == "retired" else RevisionQuarantined
            raise kind(f"job {job.job_id}: parent {job.adapter_id}@{job.parent} is {revision.state}")
        return revision
