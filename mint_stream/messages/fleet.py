"""The fleet: which base a pool runs, and how each worker is doing."""

from typing import Literal

from pydantic import Field

from mint_stream.messages.gates import CanaryTally
from mint_stream.messages.record import Record
from mint_stream.messages.shared import Digest, EpochMs, Id, Name, TargetShape


class PoolBase(Record):
    """The base of a pool, and what an adapter may target on it. The first writer of a pool wins."""

    pool: Name
    base_digest: Digest
    architecture: str
    context_tokens: int = Field(gt=0)
    vocabulary_tokens: int = Field(gt=0)
    targets: tuple[TargetShape, ...]
    max_rank: int = Field(gt=0)


class TierStatus(Record):
    """One tier of a worker since its start: how full it is, and how often what was looked for was there."""

    tier: Literal["device", "host", "disk", "store"]
    used_bytes: int = Field(default=0, ge=0)
    budget_bytes: int = Field(default=0, ge=0)
    """0: it has none."""
    hits: int = Field(default=0, ge=0)
    misses: int = Field(default=0, ge=0)
    evictions: int = Field(default=0, ge=0)
    loads: int = Field(default=0, ge=0)
    """Adapters read from the tier (store, disk) or copied into it (device)."""
    mean_load_ms: float = Field(default=0.0, ge=0)


WorkerState = Literal["starting", "ready", "draining", "stopped"]


class WorkerStatus(Record):
    """What a worker holds and how busy it is."""

    worker_id: Id
    role: Literal["serve", "train", "register", "evaluate"]
    pool: Name | None = None
    state: WorkerState
    running: int = Field(default=0, ge=0)
    waiting: int = Field(default=0, ge=0)
    parked: int = Field(default=0, ge=0)
    max_adapters_in_step: int = Field(default=0, ge=0)
    """The most distinct adapters that ever shared one step of this worker."""
    resident: tuple[str, ...] = Field(default=(), max_length=64)
    """The most recently used revisions in device slots, as `adapter_id@number`."""
    resident_bytes: int = Field(default=0, ge=0)
    canaries: tuple[CanaryTally, ...] = Field(default=(), max_length=64)
    """What was counted of canaries on trial since the worker started."""
    tiers: tuple[TierStatus, ...] = Field(default=(), max_length=4)
    """Nearest to the engine first."""
    started_at_ms: EpochMs
    at_ms: EpochMs
