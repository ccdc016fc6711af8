"""What the whole fleet counted of canaries: a fold of `worker-status`."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mint_stream.bus.table import LogRecord
from mint_stream.errors import InvalidRecord
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.gates import ArmTally, CanaryTally
from mint_stream.workers.moves import Moves

log = logging.getLogger(__name__)

Arms = tuple[ArmTally, ArmTally]
"""The canary's and production's."""
NOTHING: Arms = (ArmTally(), ArmTally())


@dataclass
class _Worker:
    life_ms: int
    now: dict[str, CanaryTally] = field(default_factory=dict)


class CanaryCounts:
    """Sums over workers. A worker counts from 0 in each life; what an earlier life had counted is kept as far as it was seen here."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._past: dict[str, Arms] = {}
        self._moves = Moves()

    def apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `worker-status`."""
        for record in records:
            try:
                self._note(WorkerStatus.decode(record.value))
            except InvalidRecord as error:
                log.warning("worker-status offset=%d passed over: %s", record.offset, error)
        self._moves.wake()

    def of(self, trial_id: str) -> Arms:
        """What was counted of this trial so far."""
        arms = self._past.get(trial_id, NOTHING)
        for worker in self._workers.values():
            if (tally := worker.now.get(trial_id)) is not None:
                arms = _sum(arms, (tally.canary, tally.production))
        return arms

    def forget(self, trial_id: str) -> None:
        """The trial is over."""
        self._past.pop(trial_id, None)

    async def moved(self, timeout_s: float) -> None:
        """Return when any worker said anything, or after `timeout_s`."""
        await self._moves.moved(timeout_s)

    def _note(self, status: WorkerStatus) -> None:
        if status.role != "serve":
            return
        worker = self._workers.setdefault(status.worker_id, _Worker(status.started_at_ms))
        if worker.life_ms != status.started_at_ms:
            for trial_id, tally in worker.now.items():
                self._past[trial_id] = _sum(self._past.get(trial_id, NOTHING), (tally.canary, tally.production))
        worker.life_ms, worker.now = status.started_at_ms, {tally.trial_id: tally for tally in status.canaries}


def _sum(one: Arms, other: Arms) -> Arms:
    canary, production = (_added(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    return canary, production


def _added(one: ArmTally, other: ArmTally) -> ArmTally:
    buckets = Counter(one.latency_ms) + Counter(other.latency_ms)
    return ArmTally(requests=one.requests + other.requests, errors=one.errors + other.errors, latency_ms=dict(buckets))
