"""Where jobs wait before they are worked on: for a seat, for their tenant's quota, for the store, for whoever else has them."""

import time

from mint_stream.messages.training import TrainingJob
from mint_stream.workers.clock import now_ms
from mint_stream.workers.job_log import Standing, standing
from mint_stream.workers.job_stops import JobStops
from mint_stream.workers.seats import Applicant
from mint_stream.workers.training_parts import TrainingBus, TrainingRoom, TrainingTerms


class JobLine:
    """The line of one worker."""

    def __init__(self, bus: TrainingBus, room: TrainingRoom, terms: TrainingTerms, stops: JobStops) -> None:
        self._bus = bus
        self._log = bus.log
        self._room = room
        self._seats = room.seats
        self._terms = terms
        self._stops = stops

    async def standing(self, job: TrainingJob) -> Standing:
        """How the job stands for this worker and this record of it."""
        last = await self._log.current(job.job_id)
        if self._log.parked(job.job_id):
            return "over"  # for this record: whoever resumes the job writes another one
        return standing(last, self._terms.worker_id, now_ms(), self._terms.silence_s * 1000)

    async def seat(self, job: TrainingJob, applicant: Applicant) -> bool:
        """A seat for the job. False when it had to wait: look again first, for it may be cancelled, over or another trainer's by now."""
        waited = False
        told: set[str] = set()
        while not (self._stops.stopping or self._stops.interrupted(job) or self._seats.take(applicant, self._within_quota)):
            waited = True
            if (why := self._seats.lacks(applicant, self._within_quota)) not in told:
                told.add(why)
                await self._say_waiting(job, why)
            else:
                await self._log.moved(self._terms.heartbeat_s)
        self._log.wake()  # for whoever is next in line now
        return not waited

    def _within_quota(self, tenant: str, seats: int) -> bool:
        """What other trainers say they have in training counts; two that begin at the same moment do not see each other."""
        if not self._terms.quotas.limits(tenant):
            return True
        elsewhere = self._log.at_work_elsewhere(tenant, self._terms.worker_id, now_ms(), self._terms.silence_s * 1000)
        return self._terms.quotas.allows(tenant, seats + elsewhere)

    async def _say_waiting(self, job: TrainingJob, why: str) -> None:
        if await self.standing(job) == "free":
            await self._bus.report(job, self._terms.worker_id, await self._log.current(job.job_id)).say("queued", reason=why)

    async def applicant(self, job: TrainingJob) -> Applicant:
        """The job as one that wants a seat."""
        if job.parent is not None:
            await self._bus.catalog_current()
        parent = None if job.parent is None else self._bus.catalog.revision(job.adapter_id, job.parent)
        return Applicant(job.job_id, job.tenant, self._room.workshop.state_bytes(job, parent), job.priority)

    def leave(self, job: TrainingJob) -> None:
        """Give up the job's seat, or its place in the line."""
        if self._seats.leave(job.job_id):  # two that are only watched would wake each other for ever
            self._log.wake()

    async def wait_for_store(self, job: TrainingJob) -> None:
        """Leave the store alone for a while, unless the job has to be looked at before."""
        until_s, wishes = time.monotonic() + self._terms.store_wait_s, self._stops.wishes(job)
        while time.monotonic() < until_s and not self._stops.stopping and self._stops.wishes(job) == wishes:
            await self._log.moved(min(self._terms.heartbeat_s, self._terms.store_wait_s))
