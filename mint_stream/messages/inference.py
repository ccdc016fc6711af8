"""Inference: requests, results, chunks of a stream, cancellations."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from mint_stream.messages.record import Record
from mint_stream.messages.shared import CatalogPosition, Digest, EpochMs, ErrorBody, Id, Name, Reason

AdapterRef = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}(@[a-zA-Z0-9._-]{1,128})?$")]
"""`adapter`, `adapter@7` or `adapter@alias`; a bare name means its production revision."""


MAX_TOP_LOGPROBS = 20
"""What a result may carry of each token's alternatives, so that the longest answer fits its topic."""


class ChatMessage(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Record):
    """How tokens are chosen. Temperature 0 is greedy. The seed defaults to one derived from request_id."""

    max_tokens: int = Field(default=64, ge=1, le=131_072)
    temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    stop: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(default=(), max_length=16)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """The log-probability of each token drawn, and of this many most likely ones in its place. None: none at all."""
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """The same for the tokens of the prompt, all but its first."""


RequestName = tuple[str, str]
"""(tenant, request_id): what tells one request from all others. Tenants choose their ids without knowing each other's."""


class ReplyTo(Record):
    """Where the result of a request goes instead of `inference-results`."""

    topic: str
    partition: int | None = Field(default=None, ge=0)
    """None: by key, which is the request_id."""


class InferenceRequest(Record):
    """Ask for one completion. Exactly one of `messages`, `prompt` and `prompt_tokens` is given."""

    request_id: Id
    tenant: Name = "default"
    adapter: AdapterRef | None = None
    """None asks for the bare base model."""
    messages: tuple[ChatMessage, ...] | None = Field(default=None, min_length=1)
    prompt: str | None = Field(default=None, min_length=1)
    prompt_tokens: tuple[int, ...] | None = Field(default=None, min_length=1)
    sampling: Sampling = Sampling()
    stream: bool = False
    deadline_at_ms: EpochMs | None = None
    """None: the worker's own limit counts from the record's timestamp."""
    min_catalog_position: CatalogPosition | None = None
    reply_to: ReplyTo | None = None

    @property
    def name(self) -> RequestName:
        """What tells this request from all others."""
        return self.tenant, self.request_id

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        given = [name for name in ("messages", "prompt", "prompt_tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of messages, prompt, prompt_tokens; this request gives {given or 'none'}")
        return self


class TokenUsage(Record):
    """How many tokens went in and came out."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    reused_tokens: int = Field(default=0, ge=0)
    """Of the prompt: what an earlier request of the same revision had computed already."""


class LikelyToken(Record):
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


class TokenLogprob(Record):
    """The natural logarithm of a token's probability under the model itself: before temperature, top-k and top-p."""

    token: int
    logprob: float
    top: tuple[LikelyToken, ...] = ()
    """The most likely ones in its place, the likeliest first."""


class Timings(Record):
    """Where the time of one request went, in milliseconds."""

    bus_ms: float
    """Record timestamp to intake."""
    admit_ms: float
    """Resolve, validate, tokenize."""
    parked_ms: float
    """Waiting for a cold adapter or a catalog position."""
    queued_ms: float
    """Ready, waiting for a place in the running batch."""
    prefill_ms: float
    decode_ms: float
    total_ms: float


class ServedBy(Record):
    """What produced a completion: the exact revision and its bytes, and who ran it."""

    adapter_id: Name | None = None
    """None: the bare base."""
    number: int | None = None
    canary: bool = False
    """Whether the request asked for production and was answered by its canary."""
    spread: int = Field(default=1, ge=1)
    """Over how many partitions requests for this adapter should be laid; our clients do so from the next one on."""
    revision_digest: Digest | None = None
    base_digest: Digest
    worker_id: Id


FinishReason = Literal["stop", "length"]


class InferenceResult(Record):
    """The terminal answer of one request: a completion, or an error. Readers keep the first they see of a (tenant, request_id)."""

    request_id: Id
    tenant: Name
    request_digest: Digest
    """sha256 of the request's canonical JSON without its routing fields; another body under the same request_id shows here."""
    status: Literal["ok", "error"]
    adapter: str | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `tokens`, where the request asked for them."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token of the prompt but its first."""
    finish_reason: FinishReason | None = None
    usage: TokenUsage | None = None
    served_by: ServedBy | None = None
    timings: Timings | None = None
    error: ErrorBody | None = None
    attempt: int = Field(default=0, ge=0)
    completed_at_ms: EpochMs

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.status == "ok") != (self.error is None):
            raise ValueError("an ok result has no error and an error result has one")
        return self


class InferenceChunk(Record):
    """A piece of a streamed completion. `sequence` counts from 0 within an `attempt`; a higher attempt replaces a lower one."""

    request_id: Id
    tenant: Name = "default"
    attempt: int = Field(ge=0)
    sequence: int = Field(ge=0)
    text: str


class Cancellation(Record):
    """Stop working on a request of a tenant, or on every request of its batch."""

    tenant: Name = "default"
    request_id: Id | None = None
    batch_id: Id | None = None
    reason: Reason = ""
    cancelled_at_ms: EpochMs

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.request_id is None) == (self.batch_id is None):
            raise ValueError("name a request_id or a batch_id, not both")
        return self


def request_digest(request: InferenceRequest) -> str:
    """sha256 of what the request asks for, leaving out where the answer goes and by when."""
    asked = request.model_copy(update={"reply_to": None, "deadline_at_ms": None, "min_catalog_position": None})
    return asked.content_digest()
