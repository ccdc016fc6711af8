"""Training: jobs, controls and the events of a job's life."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mint_stream.messages.adapters import PromotionRule, RevisionNumber
from mint_stream.messages.gates import GraderName
from mint_stream.messages.record import Record
from mint_stream.messages.shared import MESSAGE_CHARACTERS, EpochMs, ErrorBody, Id, Name, Reason

Method = Literal["sft", "dpo", "grpo"]
PolicyLoss = Literal["importance_sampling", "ppo", "cispo"]

MOST_ROLLOUTS = 8192
"""Of a step."""


class LoraSettings(Record):
    """What the adapter looks like, in PEFT's configuration terms."""

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class Hyperparameters(Record):
    """How the optimizer runs: AdamW with linear warm-up, then a schedule to zero or constant."""

    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=8, ge=1, le=4096)
    learning_rate: float = Field(default=2e-4, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length_tokens: int = Field(default=1024, ge=2)
    too_long: Literal["refuse", "truncate"] = "refuse"
    """What a line longer than `max_length_tokens` does: rejects the job by its number, or is cut at the end."""
    micro_batch_tokens: int = Field(default=1024, ge=2)
    """A batch goes through the base in pieces of at most this many tokens; a longer line goes alone. Part of the job's arithmetic."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """How much a preference outweighs staying near the job's start; dpo only."""


class RolloutTerms(Record):
    """How a policy draws the answers it learns from, and who judges them; grpo only."""

    grader: GraderName
    """Scores an answer in [0, 1]; see promotion.graders."""
    loss: PolicyLoss = "ppo"
    group_size: int = Field(default=8, ge=2, le=1024)
    """Answers to each question. An answer's advantage is its score less the group's mean, in standard deviations of the group."""
    max_tokens: int = Field(default=64, ge=1, le=8192)
    """Of each answer."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Ratios of probabilities compare revisions, at temperature 1, whatever answers are drawn at."""
    max_staleness: int = Field(default=0, ge=0, le=1000)
    """Answers are drawn by the newest revision but this many, so that they can be drawn while others are learned from."""


class TrainingJob(Record):
    """Train an adapter and publish it: one record of `training-jobs-<pool>` is one job."""

    job_id: Id
    tenant: Name = "default"
    adapter_id: Name
    method: Method = "sft"
    """sft learns what its lines say; dpo learns to prefer the chosen answer to the rejected one, compared with the job's start; grpo
    learns from answers that the serving pool draws from the job's own revisions, by how a grader scores them."""
    dataset_uri: str = Field(max_length=4096)
    """JSON lines, for sft `{"messages": [...]}` or `{"prompt": ..., "completion": ...}`, for dpo messages or prompt, chosen, rejected,
    for grpo messages or prompt, answer, which the grader reads."""
    lora: LoraSettings = LoraSettings()
    hyperparameters: Hyperparameters
    rollouts: RolloutTerms | None = None
    """grpo has to have them; `batch_size` of the hyperparameters counts questions."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    parent: RevisionNumber | None = None
    """The revision to go on from; None starts fresh (B = 0)."""
    publish_every_steps: int | None = Field(default=None, ge=1)
    """None publishes once, at the end."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    priority: int = Field(default=0, ge=-10, le=10)
    """Who is trained first where seats are short: of tenants with equally few jobs in training the highest, then who waited longest."""
    promotion: PromotionRule | None = None
    """As in an announce: the rule of an adapter that has no revision yet; one that has some keeps its own."""
    submitted_at_ms: EpochMs

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.hyperparameters.warmup_steps >= self.hyperparameters.steps:
            raise ValueError("warmup_steps must be less than steps")
        return self

    @model_validator(mode="after")
    def _draws_what_it_learns_from(self) -> Self:
        if (self.method == "grpo") != (self.rollouts is not None):
            raise ValueError("method grpo and rollouts go together: they name the grader")
        if self.rollouts is None:
            return self
        if self.publish_every_steps is None:
            raise ValueError("grpo draws from the job's own revisions: give publish_every_steps")
        drawn = self.hyperparameters.batch_size * self.rollouts.group_size
        if drawn > MOST_ROLLOUTS:
            raise ValueError(f"batch_size x group_size is {drawn} rollouts a step; at most {MOST_ROLLOUTS} may be drawn")
        return self


Action = Literal["cancel", "pause", "resume"]


class TrainingControl(Record):
    """Change the course of a job: cancel ends it, pause parks it at its next step until a resume. The last of pause and resume counts."""

    job_id: Id
    action: Action
    reason: Reason = ""
    issued_by: Id | None = None
    """Who asks, for the job's history."""
    issued_at_ms: EpochMs


PARKED_BYTES = 256 * 1024
"""A job whose record is larger is not paused: its event has to carry it."""


class ParkedJob(Record):
    """What puts a paused job into its topic again: no record of it is open there."""

    pool: Name
    job: TrainingJob


JobState = Literal["queued", "claimed", "running", "paused", "publishing", "evaluating", "succeeded", "failed", "cancelled", "rejected"]
TERMINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled", "rejected"})


class RolloutFigures(Record):
    """What a step of grpo learned from."""

    number: RevisionNumber | None = None
    """The revision that drew; None: the bare base, which a fresh adapter answers as until its first revision."""
    staleness: int = Field(ge=0)
    """Revisions that the job had published since that one when the step began."""
    graded: int = Field(ge=1)
    dropped: int = Field(ge=0)
    """Answers that did not come, or came as an error."""
    reward: float
    """The mean score of those that were graded."""


class TrainingEvent(Record):
    """A step in a job's life, or a heartbeat of its trainer (same state, same step)."""

    job_id: Id
    adapter_id: Name
    tenant: Name
    state: JobState
    attempt: int = Field(default=0, ge=0)
    worker_id: Id
    step: int = Field(default=0, ge=0)
    steps: int = Field(ge=0)
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    rollouts: RolloutFigures | None = None
    number: RevisionNumber | None = None
    """The revision a publish produced."""
    resumed: Literal["exact", "inexact"] | None = None
    heartbeat: bool = False
    reason: str | None = Field(default=None, max_length=MESSAGE_CHARACTERS)
    """Why the job is in this state, where that is no error: who paused it, what it waits for."""
    parked: ParkedJob | None = None
    """Of a paused job."""
    error: ErrorBody | None = None
    fault: Literal["user", "server"] | None = None
    at_ms: EpochMs

    @property
    def terminal(self) -> bool:
        """True when no further event of the job will change its state."""
        return self.state in TERMINAL
