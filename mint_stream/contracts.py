"""topics/*.yaml as objects: the only place a topic's name comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mint_stream.errors import InvalidSettings
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, Head, Revision, SpentNumbers
from mint_stream.messages.fleet import PoolBase, WorkerStatus
from mint_stream.messages.inference import Cancellation, InferenceChunk, InferenceRequest, InferenceResult
from mint_stream.messages.training import TrainingControl, TrainingEvent, TrainingJob

POOL = "<pool>"
_HERE = Path(__file__).parent

RECORDS: dict[str, Any] = {
    **{
        kind.__name__: kind
        for kind in (
            Cancellation,
            InferenceChunk,
            InferenceRequest,
            InferenceResult,
            PoolBase,
            TrainingControl,
            TrainingEvent,
            TrainingJob,
            WorkerStatus,
        )
    },
    "AdapterCommand": Annotated[AdapterCommand, Field(discriminator="type")],
    "AdapterEvent": Annotated[AdapterEvent, Field(discriminator="type")],
    "CatalogRecord": Revision | Head | SpentNumbers,
}
"""What a topic file's `record` means: a pydantic type. The catalog's kinds are told apart by their keys."""

DEAD_LETTER_RETENTION_FACTOR = 2
"""A dead letter is kept this many times as long as its origin."""
DEAD_LETTER_LIMIT_BYTES = 64 * 2**20
"""Dead letter topics take records far over any origin's limit, for somebody may have raised that on the cluster."""


class Topic(BaseModel):
    """One topic file. `name_pattern` may hold `<pool>`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name_pattern: str = Field(alias="name")
    purpose: str
    key: str
    record: str
    version: int = Field(ge=1)
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    partitions: int = Field(ge=1)
    replication: int = Field(default=3, ge=1)
    """Copies of each record; on a cluster with fewer brokers, as many as it has."""
    dead_letter: bool = Field(default=False, alias="dead_letters")
    """Bad records of this topic are set aside in `<topic>-dlq`."""
    reply: bool = Field(default=False, alias="replies")
    """Requesters may have their answers sent to a partition of this topic."""
    config: dict[str, str] = {}

    def name(self, pool: str | None = None) -> str:
        """The topic's name on the cluster. Raises InvalidSettings when it is a pool's and none is given."""
        if POOL not in self.name_pattern:
            return self.name_pattern
        if not pool:
            raise InvalidSettings(f"topic {self.name_pattern} belongs to a pool: say which")
        return self.name_pattern.replace(POOL, pool)

    def dead_letter_name(self, pool: str | None = None) -> str:
        """Where bad records of this topic go."""
        return f"{self.name(pool)}-dlq"

    def dead_letters(self) -> "Topic":
        """The dead letter topic as a topic of its own."""
        retention_ms = int(self.config["retention.ms"]) * DEAD_LETTER_RETENTION_FACTOR
        limit = max(DEAD_LETTER_LIMIT_BYTES, 2 * int(self.config.get("max.message.bytes", 0)))
        config = {"cleanup.policy": "delete", "retention.ms": str(retention_ms), "max.message.bytes": str(limit)}
        return self.model_copy(
            update={
                "name_pattern": f"{self.name_pattern}-dlq",
                "purpose": f"Records of {self.name_pattern} that could not be processed: original bytes, headers, and why.",
                "record": "bytes",
                "producers": self.consumers,
                "consumers": (),
                "dead_letter": False,
                "config": config,
            }
        )

    def replicas(self, brokers: int) -> int:
        """The replication factor on a cluster of that many brokers."""
        return min(self.replication, brokers)

    def settings(self, brokers: int) -> dict[str, str]:
        """Kafka's topic configuration on a cluster of that many brokers: one copy may be lost without refusing writes."""
        return {**self.config, "min.insync.replicas": str(max(1, self.replicas(brokers) - 1))}

    @property
    def cleanup(self) -> Literal["delete", "compact"]:
        """Kafka's cleanup policy."""
        return "compact" if self.config.get("cleanup.policy") == "compact" else "delete"

    @classmethod
    def load(cls, path: Path) -> Self:
        """The topic of one file. Raises InvalidSettings naming the file and the field."""
        try:
            fields = yaml.safe_load(path.read_text())
            fields["config"] = {key: str(value) for key, value in fields.get("config", {}).items()}
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise InvalidSettings(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def directory() -> Path:
    """topics/ in the wheel, or in the source tree."""
    packaged = _HERE / "topics"
    return packaged if packaged.is_dir() else _HERE.parent / "topics"


def load_topics() -> dict[str, Topic]:
    """Every topic by the stem of its file."""
    return {path.stem: Topic.load(path) for path in sorted(directory().glob("*.yaml"))}


def with_partitions(topics: Mapping[str, Topic], partitions: int) -> dict[str, Topic]:
    """The same topics with `partitions` each, where they have more than one."""
    return {stem: topic.model_copy(update={"partitions": partitions}) if topic.partitions > 1 else topic for stem, topic in topics.items()}


_TOPICS = load_topics()
INFERENCE_REQUESTS = _TOPICS["inference-requests"]
INFERENCE_BATCH = _TOPICS["inference-batch"]
INFERENCE_RESULTS = _TOPICS["inference-results"]
INFERENCE_REPLIES = _TOPICS["inference-replies"]
INFERENCE_CHUNKS = _TOPICS["inference-chunks"]
INFERENCE_CANCELLATIONS = _TOPICS["inference-cancellations"]
BASE_MODELS = _TOPICS["base-models"]
TRAINING_JOBS = _TOPICS["training-jobs"]
TRAINING_CONTROLS = _TOPICS["training-controls"]
TRAINING_EVENTS = _TOPICS["training-events"]
ADAPTER_COMMANDS = _TOPICS["adapter-commands"]
ADAPTER_REVISIONS = _TOPICS["adapter-revisions"]
ADAPTER_EVENTS = _TOPICS["adapter-events"]
WORKER_STATUS = _TOPICS["worker-status"]
