"""Gates and canaries: what they ask of a candidate, the trial in which they ask it, and what serving workers count meanwhile."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mint_stream.messages.record import Record
from mint_stream.messages.shared import EpochMs, Id, Name, Reason
from mint_stream.messages.stamps import CommandStamp, EventStamp

GraderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}(:[a-zA-Z0-9_.-]{1,64})?$")]
"""A grader, and after a colon what it is to grade: `exact-match`, `reasoning-gym:leg_counting`."""

Figures = Annotated[dict[Name, float], Field(max_length=48)]
"""The numbers of a decision by name: what was measured, what was asked."""

DatasetUri = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

LATENCY_BUCKETS = 81
"""Bucket i counts times from 2^(i/4) ms up to 2^((i+1)/4) ms; the first has everything shorter, the last everything longer."""


class CanaryTerms(Record):
    """A share of production's requests goes to the candidate; it becomes production when it has answered enough of them well."""

    share_basis_points: int = Field(default=500, ge=1, le=10_000)
    """In 1/10,000 of the requests: 500 is 5 %."""
    min_requests: int = Field(default=200, ge=1, le=1_000_000)
    """Nothing is promoted before the canary has answered so many."""
    max_seconds: float = Field(default=3600.0, gt=0, le=30 * 24 * 3600)
    """A canary that has not become production after so long is rolled back."""
    max_error_rate: float = Field(default=0.02, gt=0, lt=1)
    latency_percentile: float = Field(default=95.0, ge=50, lt=100)
    max_latency_ratio: float = Field(default=1.5, ge=1, le=1000)
    """Times production's own latency at that percentile, measured over the same time."""
    dataset_uri: DatasetUri | None = None
    """Items that both revisions are asked while the canary runs, judged as the gate's are. None: the score is not looked at again."""


class GateTerms(Record):
    """What a candidate has to show before any request for production reaches it."""

    dataset_uri: DatasetUri
    """JSON lines, see `promotion.items`."""
    grader: GraderName
    floor: float = Field(ge=0, le=1)
    """The least mean score."""
    max_regression: float = Field(default=0.05, gt=0, le=1)
    """How much worse than production, in mean score over the same items, still counts as no worse."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    max_tokens: int = Field(default=64, ge=1, le=8192)
    """Of each answer. Answers are greedy."""
    canary: CanaryTerms | None = None
    """None: who passes the gate is production at once."""


TrialPhase = Literal["gate", "canary"]
Verdict = Literal["promote", "start-canary", "reject", "roll-back", "give-up"]
"""reject: at the gate; roll-back: from the canary; give-up: the trial cannot be held, which says nothing about the candidate."""


class Trial(Record):
    """A candidate on its way to production. Kept in the adapter's head, so whoever goes on with it knows where it is."""

    trial_id: Id
    """The command that began it."""
    number: int = Field(ge=1)
    phase: TrialPhase = "gate"
    since_ms: EpochMs
    """When the phase began."""


EndCause = Literal["superseded", "decided-by-a-person", "out-of-service", "rule-changed", "canary-ended"]
"""Why a trial ended without a verdict. `superseded` is of histories from before trials waited for one another."""


class ArmTally(Record):
    """Requests for production that one revision answered since the worker began to count."""

    requests: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0)
    """Of the requests: answered by an error that is not the requester's."""
    latency_ms: dict[Annotated[int, Field(ge=0, lt=LATENCY_BUCKETS)], Annotated[int, Field(ge=0)]] = {}
    """Completions by latency bucket, from intake to result."""


class CanaryTally(Record):
    """What one worker counted of one canary."""

    trial_id: Id
    canary: ArmTally = ArmTally()
    production: ArmTally = ArmTally()


class Judge(CommandStamp):
    """An evaluator's verdict on a candidate, refused unless the trial is where its figures were taken."""

    type: Literal["judge"] = "judge"
    trial_id: Id
    phase: TrialPhase
    verdict: Verdict
    production: Annotated[int, Field(ge=1)] | None = None
    """At the gate: what the candidate was compared with. Refused when production is another one now."""
    reason: Reason
    figures: Figures = {}


class TrialBegun(EventStamp):
    """A candidate is to be judged, beginning at the gate."""

    type: Literal["trial-begun"] = "trial-begun"
    trial_id: Id
    number: int


class CandidateJudged(EventStamp):
    """What became of a candidate in a phase of its trial, why, and every number that rests on."""

    type: Literal["candidate-judged"] = "candidate-judged"
    trial_id: Id
    number: int
    phase: TrialPhase
    verdict: Verdict
    production: int | None = None
    reason: Reason
    figures: Figures = {}


class TrialEnded(EventStamp):
    """A trial ended without a verdict."""

    type: Literal["trial-ended"] = "trial-ended"
    trial_id: Id
    number: int
    phase: TrialPhase
    cause: EndCause
