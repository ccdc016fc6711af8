"""What a serving worker counts of canaries on trial: requests for production, by which revision answered them, how, and how fast."""

from collections import Counter

from mint_stream.catalog import Catalog
from mint_stream.catalog.reference import PRODUCTION, Reference
from mint_stream.errors import Cancelled, InvalidRequest, MintError, PromptTooLong
from mint_stream.messages.gates import ArmTally, CanaryTally
from mint_stream.messages.inference import InferenceRequest
from mint_stream.promotion.canary import bucket_of

COUNTED = 64
"""Canaries counted at once, the first that came; a worker's status has to fit a record."""

REQUESTERS_OWN = (Cancelled, InvalidRequest, PromptTooLong)
"""Errors that say nothing of the revision."""


class CanaryTallies:
    """Counts for adapters whose head has a trial in its canary phase, and forgets a trial once it is over.

    Law: every request for production that is answered while its trial is counted is counted once, under the revision that answered it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._arms: dict[str, tuple[str, dict[bool, _Arm]]] = {}

    def completed(self, request: InferenceRequest, canary: bool, latency_ms: float) -> None:
        """A completion, `latency_ms` after the worker took the request."""
        if (arm := self._arm(request, canary)) is not None:
            arm.latency_ms[bucket_of(latency_ms)] += 1
            arm.requests += 1

    def failed(self, request: InferenceRequest, canary: bool, error: MintError) -> None:
        """An error after a revision was chosen."""
        if not isinstance(error, REQUESTERS_OWN) and (arm := self._arm(request, canary)) is not None:
            arm.requests += 1
            arm.errors += 1

    def told(self) -> tuple[CanaryTally, ...]:
        """What was counted, of trials that still run."""
        for trial_id, (adapter_id, _) in list(self._arms.items()):
            if self._trial(adapter_id) != trial_id:
                del self._arms[trial_id]
        return tuple(
            CanaryTally(trial_id=trial_id, canary=arms[True].tally(), production=arms[False].tally())
            for trial_id, (_, arms) in self._arms.items()
        )

    def _arm(self, request: InferenceRequest, canary: bool) -> "_Arm | None":
        wanted = Reference.parse(request.adapter or "")
        trial_id = self._trial(wanted.adapter_id) if wanted.alias == PRODUCTION else None
        if trial_id is None or (trial_id not in self._arms and len(self._arms) >= COUNTED):
            return None
        _, arms = self._arms.setdefault(trial_id, (wanted.adapter_id, {True: _Arm(), False: _Arm()}))
        return arms[canary]

    def _trial(self, adapter_id: str) -> str | None:
        """The trial of the adapter that is in its canary phase."""
        head = self._catalog.head(adapter_id)
        trial = head.trial if head is not None else None
        return trial.trial_id if trial is not None and trial.phase == "canary" else None


class _Arm:
    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.latency_ms: Counter[int] = Counter()

    def tally(self) -> ArmTally:
        return ArmTally(requests=self.requests, errors=self.errors, latency_ms=dict(self.latency_ms))
