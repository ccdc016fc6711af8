"""Every setting, as one frozen tree. Environment variables have the prefix MINT_ and `__` between levels: MINT_STORE__URI."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from mint_stream.errors import InvalidSettings

PREFIX = "MINT_"
BUILTIN_BASE = "smollm2-135m"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Group):
    """Which Kafka. Without `bootstrap_servers` the embedded one is started and found through its data directory."""

    bootstrap_servers: str | None = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = Field(default=None, repr=False)
    ssl_ca_file: str | None = None
    data_dir: Path | None = None
    """Embedded broker only; None is `<home>/kafka`."""
    port: int = Field(default=9092, ge=0, le=65535)
    """Embedded broker only; 0 picks a free one."""
    heap_mib: int = Field(default=512, ge=256)
    """Embedded broker only."""


class StoreSettings(_Group):
    """Where revisions, checkpoints and files live."""

    uri: str | None = None
    """An fsspec uri: file://, s3://, memory:// (tests only). None is `file://<home>/store`."""
    options: dict[str, Any] = {}
    """Passed to fsspec, e.g. {"endpoint_url": "http://127.0.0.1:9000"}."""
    allowed_roots: tuple[str, ...] = ()
    """Uris below which datasets and imports may be read, besides the store itself."""


class ServingSettings(_Group):
    """One serving worker."""

    max_num_seqs: int = Field(default=32, ge=2)
    max_num_batched_tokens: int = Field(default=512, ge=16)
    max_adapters_per_step: int = Field(default=32, ge=2)
    context_tokens: int = Field(default=2048, ge=16)
    """Prompt and completion together; never more than the base's own context."""
    max_rank: int = Field(default=128, ge=1)
    """Of a pool that this worker founds; a pool that is there keeps its founder's."""
    kv_cache_bytes: int | None = Field(default=None, ge=2**20)
    """On a GPU: for keys and values, in pages. None is three quarters of what the base and the device tier leave; a CPU has slots."""
    device_tier_bytes: int = Field(default=512 * 2**20, ge=2**20)
    host_tier_bytes: int = Field(default=1024 * 2**20, ge=2**20)
    disk_tier_bytes: int = Field(default=2 * 2**30, ge=0)
    """Of `<home>/disk-tier`, for all workers of this home together; 0 is no disk tier."""
    pinned_adapters: tuple[str, ...] = ()
    """Adapters whose production is always in the host tier."""
    load_parallelism: int = Field(default=4, ge=1)
    default_deadline_s: float = Field(default=120.0, gt=0)
    max_deadline_s: float = Field(default=900.0, gt=0)
    drain_s: float = Field(default=25.0, gt=0)
    """How long a worker that was told to stop goes on answering what it has taken; supervisors should wait a little longer."""
    tenant_share: float = Field(default=0.5, gt=0, le=1)
    """Of intake_records: what one tenant may have open before its further requests go to the bulk lane. 1 limits nobody."""
    intake_records: int = Field(default=1024, ge=1)
    intake_bytes: int = Field(default=64 * 2**20, ge=2**20)


class TenantQuota(_Group):
    """What a tenant may ask of the trainers; None is no limit."""

    jobs: int | None = Field(default=None, ge=0)
    """In training at once, on all trainers together; others wait. 0 refuses all."""
    tokens: int | None = Field(default=None, ge=1)
    """That a job may send through the base; one that would need more is refused."""


class TrainingSettings(_Group):
    """One training worker."""

    heartbeat_s: float = Field(default=2.0, gt=0)
    silence_s: float = Field(default=15.0, gt=0)
    """A job whose trainer was silent this long is taken over."""
    max_dataset_bytes: int = Field(default=256 * 2**20, ge=1)
    max_num_batched_tokens: int = Field(default=2048, ge=16)
    """Of a pass, and of a job's micro-batch."""
    max_jobs: int = Field(default=8, ge=1)
    """Trained at once; others wait in line, tenants with few jobs in training first."""
    state_bytes: int = Field(default=4 * 2**30, ge=2**20)
    """For the adapters, gradients and moments of all jobs in training, besides the base and a pass's activations."""
    busy_share: float = Field(default=0.1, gt=0, le=1)
    """Where one process serves and trains: what training may have of the base's time while serving wants all of it."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """Of each job."""
    quotas: dict[str, TenantQuota] = {}
    """By tenant, e.g. {"acme": {"jobs": 2}, "*": {"tokens": 10000000}}; `*` is every tenant that is not named."""
    recompute: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again there: slower, in less memory, the same bits."""


class EvaluationSettings(_Group):
    """One evaluator."""

    requests_at_once: int = Field(default=32, ge=1)
    """Questions of all its trials together that wait for their answers."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """A question without an answer for so long is asked again."""


class HttpSettings(_Group):
    """`/health`, `/ready` and `/metrics` of a role."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """0 picks a free port and logs it."""


class Settings(BaseSettings):
    """The whole tree. Raises InvalidSettings through `Settings.load` for anything unknown or contradictory."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")

    base: str = BUILTIN_BASE
    """A built-in name, a directory, or a hub id."""
    pool: str | None = None
    """None is derived from the base's name."""
    home: Path = Field(default_factory=lambda: Path.home() / ".mint_stream")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where serving and training workers compute; auto is a GPU where torch sees one."""
    worker_id: str | None = None
    """None is role, host and process id; a stable name keeps partitions across restarts."""
    log_json: bool = False
    partitions: int | None = Field(default=None, ge=1)
    """Partitions of keyed topics; None is what topics/ says. Changing it on a live cluster is a migration."""
    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    serving: ServingSettings = ServingSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    http: HttpSettings = HttpSettings()

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Environment, then `overrides`. Raises InvalidSettings naming the first bad key."""
        _refuse_unknown_variables(cls)
        try:
            return cls(**overrides)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = "__".join(str(part) for part in first["loc"]).upper()
            raise InvalidSettings(f"{PREFIX}{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")) from error
        except SettingsError as error:
            raise InvalidSettings(f"{error}: a value of several parts is written as JSON") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kafka.sasl_mechanism is None) != (not self.kafka.security_protocol.startswith("SASL")):
            raise ValueError("MINT_KAFKA__SASL_MECHANISM and a SASL_* MINT_KAFKA__SECURITY_PROTOCOL go together")
        if self.serving.default_deadline_s > self.serving.max_deadline_s:
            raise ValueError("MINT_SERVING__DEFAULT_DEADLINE_S is more than MINT_SERVING__MAX_DEADLINE_S")
        if self.serving.max_num_batched_tokens <= self.serving.max_num_seqs:
            raise ValueError("MINT_SERVING__MAX_NUM_BATCHED_TOKENS must exceed MINT_SERVING__MAX_NUM_SEQS: every step advances all")
        if self.training.silence_s < 3 * self.training.heartbeat_s:
            raise ValueError("MINT_TRAINING__SILENCE_S must be at least three heartbeats")
        return self

    @property
    def pool_name(self) -> str:
        """The pool's name: given, or the last part of the base's."""
        return self.pool or Path(self.base).name.lower()

    @property
    def store_uri(self) -> str:
        """The object store's uri."""
        return self.store.uri or (self.home / "store").absolute().as_uri()

    @property
    def kafka_dir(self) -> Path:
        """Where the embedded broker keeps its log."""
        return self.kafka.data_dir or self.home / "kafka"


def _refuse_unknown_variables(tree: type[BaseSettings]) -> None:
    known = _variables(tree, PREFIX)
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known and not name.startswith("MINT_TEST_"))
    if unknown:
        raise InvalidSettings(f"{unknown[0]} is not a setting; the nearest are {', '.join(_nearest(unknown[0], known))}")


def _variables(tree: type[BaseModel], prefix: str) -> set[str]:
    names: set[str] = set()
    for name, field in tree.model_fields.items():
        here = prefix + name.upper()
        names.add(here)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= _variables(kind, here + "__")
    return names


def _nearest(name: str, known: set[str]) -> list[str]:

    return difflib.get_close_matches(name, known, n=3, cutoff=0.0)
