"""Paused jobs come back by their topic: a paused job has no open record, so what follows it in its partition is committed.

    pause ─► checkpoint durable ─► paused event, which carries the job's record ─► record closed
    resume, or cancel ─► the owner of the job's partition writes the record again ─► queued ─► as any job

The owner may die between any two of these: the next one finds the job still paused and awaited. A record too many finds its job over, or
paused again, and is closed.
"""

import logging
from collections.abc import Callable

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.workers.job_log import JobLog, LastSeen

log = logging.getLogger(__name__)


class Parking:
    """Writes the records of paused jobs that were resumed or cancelled into their topic again."""

    def __init__(self, jobs: JobLog, producer: Producer, pool: str, own: Callable[[str], bool], look_every_s: float) -> None:
        """`own`: whether this worker has the partition of an adapter now; it changes unseen, so it is looked at `look_every_s`."""
        self._jobs = jobs
        self._producer = producer
        self._pool = pool
        self._own = own
        self._look_every_s = look_every_s
        self._written: dict[str, LastSeen] = {}

    async def run_until_failed(self) -> None:
        """For ever; raises BusUnavailable when a record cannot be written."""
        while True:
            await self.write()
            await self._jobs.moved(self._look_every_s)

    async def write(self) -> None:
        """The records of all that wait for it now, each once a pause."""
        awaited = await self._jobs.awaited(self._pool)
        self._written = {job_id: last for job_id, last in self._written.items() if awaited.get(job_id) == last}
        for job_id, last in awaited.items():
            if last.parked is None or job_id in self._written or not self._own(last.parked.job.adapter_id):
                continue
            job = last.parked.job
            log.info("job_id=%s is no longer paused at step %d", job_id, last.step)
            await self._producer.publish(contracts.TRAINING_JOBS, job, job.adapter_id, pool=self._pool)
            self._written[job_id] = last
