"""Where a job is worked on between its steps: everything about it that needs torch or the store and knows nothing of Kafka.

Called from several threads, for different jobs; a job is here or in a pass, never in both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

import torch

from mint_stream.adapter import AdapterWeights, fresh_parameters
from mint_stream.errors import BaseMismatch, InvalidAdapter, InvalidDataset, InvalidJob, InvalidRequest
from mint_stream.messages.adapters import Manifest, Revision
from mint_stream.messages.lineage import Lineage
from mint_stream.messages.record import canonical_digest
from mint_stream.messages.training import LoraSettings, TrainingJob
from mint_stream.model.base import ResidentBase
from mint_stream.store import Store
from mint_stream.trainer.checkpoint import KEPT, CheckpointManifest, CheckpointName, Checkpoints, check_same_job
from mint_stream.trainer.dataset import Dataset, read_dataset
from mint_stream.trainer.fingerprint import code_version, numeric_fingerprint
from mint_stream.trainer.loss_scale import LossScale
from mint_stream.trainer.optimizer import FlatAdapter
from mint_stream.trainer.questions import read_questions
from mint_stream.trainer.run import StepReport, TrainingRun

ReadDataset = Callable[[str], bytes]
"""Gives the bytes at a uri. Raises UriNotAllowed, InvalidRequest or StoreUnavailable."""


@dataclass
class Work:
    """A job being worked on, and the checkpoint it last went on from or wrote."""

    run: TrainingRun
    checkpoint: CheckpointName | None = None
    resumed: Literal["exact", "inexact"] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last step made."""
    recorded: bool = False
    """Whether this worker has put the job's record into the store."""

    def made(self, report: StepReport) -> None:
        """A step was made."""
        self.metrics = {"loss": report.loss, "grad_norm": report.grad_norm}


WHEN = {"priority"}
"""Fields of a job that say when it is worked on, and nothing of what comes out."""

STATE_BYTES = 16
"""A parameter: master, gradient and two moments in fp32."""


class Workshop:
    """Prepares, resumes, saves and uploads jobs on one resident base."""

    def __init__(
        self, base: ResidentBase, store: Store, read: ReadDataset, max_rank: int, most_tokens: int = 2048, kept: int = KEPT
    ) -> None:
        """`most_tokens` of a pass; `kept` checkpoints of each job."""
        self._base = base
        self._most_tokens = most_tokens
        self._kept = kept
        self._reading = Lock()
        self._store = store
        self._read = read
        self._max_rank = max_rank
        self.fingerprint = numeric_fingerprint(base)
        self._code_version = code_version()

    def prepare(self, job: TrainingJob, parent: Revision | None) -> Work:
        """Validate the whole job and start it at step 0. `parent` is the revision `job.parent` names.

        Raises InvalidJob, InvalidDataset (names the line), UriNotAllowed, BaseMismatch, CorruptObject or StoreUnavailable.
        """
        self._check_lengths(job)
        weights = self._fresh(job) if parent is None else self._continued(job, parent)
        dataset = self._dataset(job)
        self._check_pieces(job, dataset)
        run = TrainingRun(job, dataset, self._flat(weights))
        if job.method == "dpo" and parent is not None:
            run.start = self._flat(weights).lora_weights(lambda _path: None)
        return Work(run)

    def resume(self, work: Work) -> Work:
        """The job at its furthest checkpoint, or as it is when it has none. Raises CorruptObject for one that is not whole."""
        job, dataset = work.run.job, work.run.dataset
        found = Checkpoints(self._store, job.job_id).latest()
        if found is None:
            return work
        check_same_job(found.manifest, job_digest(job), dataset.digest, self._base.digest)
        run = TrainingRun(job, dataset, self._flat(found.weights), found.manifest.name.step, found.manifest.cursor)
        run.optimizer.restore(found.moments)
        run.start = work.run.start
        run.scale = LossScale(found.manifest.loss_scale, found.manifest.steps_at_scale)
        same = found.manifest.numeric_fingerprint == self.fingerprint and not found.manifest.inexact
        return Work(run, found.manifest.name, "exact" if same else "inexact", dict(found.manifest.metrics))

    def save(self, work: Work, attempt: int) -> None:
        """Make the job's state durable. Raises StoreUnavailable."""
        run = work.run
        manifest = CheckpointManifest(
            job_id=run.job.job_id,
            name=CheckpointName(step=run.step, attempt=attempt),
            parent=work.checkpoint,
            cursor=run.cursor,
            job_digest=job_digest(run.job),
            dataset_digest=run.dataset.digest,
            base_digest=self._base.digest,
            numeric_fingerprint=self.fingerprint,
            inexact=work.resumed == "inexact",
            loss_scale=run.scale.value,
            steps_at_scale=run.scale.steps,
            metrics=work.metrics,
            files=(),
        )
        Checkpoints(self._store, run.job.job_id, self._kept).write(manifest, run.weights(), run.optimizer.moments())
        work.checkpoint = manifest.name

    def furthest_step(self, job: TrainingJob) -> int:
        """The step the job would go on from; 0 when it has no checkpoint. Raises StoreUnavailable."""
        names = Checkpoints(self._store, job.job_id).names()
        return names[-1].step if names else 0

    def upload(self, work: Work) -> Manifest:
        """Put the adapter's files into the store as a revision; the manifest is what an announce carries. Raises StoreUnavailable."""
        job = work.run.job
        if not work.recorded:  # it stays the same, and who waits for the revision would wait for it each time
            self._store.put_object(job_path(job), _asked(job).model_dump_json(exclude_none=True, exclude=WHEN).encode())
            work.recorded = True
        weights = work.run.weights()
        return self._store.put_revision(
            weights.to_peft(),
            digest=weights.digest,
            base_digest=self._base.digest,
            targets=weights.targets(),
            parameters=weights.parameters,
            numeric_fingerprint=self.fingerprint,
            metrics=work.metrics,
        )

    def state_bytes(self, job: TrainingJob, parent: Revision | None) -> int:
        """What the job's adapter, gradients and moments will take; 0 where that cannot be said, for a job that will be refused."""
        try:
            parameters = fresh_parameters(job.lora, self._base.linears, self._base.output_head) if parent is None else 0
        except InvalidAdapter:
            return 0
        if parent is not None:
            parameters = (parent.size_bytes or 0) // 4
        narrow = 0 if self._base.dtype == torch.float32 else 4
        compared = 8 + narrow if job.method == "dpo" and parent is not None else 0
        return parameters * (STATE_BYTES + narrow + compared)

    def lineage(self, work: Work) -> Lineage:
        """What has to be known to make the job's revisions again."""
        job = work.run.job
        return Lineage(
            job_uri=f"{self._store.uri}/{job_path(job)}",
            dataset_digest=work.run.dataset.digest,
            seed=job.seed,
            code_version=self._code_version,
            numeric_fingerprint=self.fingerprint,
        )

    def _check_lengths(self, job: TrainingJob) -> None:
        longest = job.hyperparameters.max_length_tokens
        if longest > self._base.context_tokens:
            raise InvalidJob(f"job {job.job_id}: max_length_tokens {longest} exceeds the base's context of {self._base.context_tokens}")

    def _check_pieces(self, job: TrainingJob, dataset: Dataset) -> None:
        """A pass holds all activations of its tokens, so a job that would need a larger one than this trainer makes is refused."""
        longest, asked = dataset.longest, job.hyperparameters.micro_batch_tokens
        batch = job.hyperparameters.batch_size * (job.rollouts.group_size if job.rollouts else 1)
        largest = max(longest, min(asked, longest * batch))
        if largest > self._most_tokens:
            raise InvalidJob(
                f"job {job.job_id}: pieces of {largest} tokens (longest example {longest}, micro_batch_tokens {asked}) exceed the "
                f"{self._most_tokens} of a pass here: lower them, or raise MINT_TRAINING__MAX_NUM_BATCHED_TOKENS"
            )

    def _flat(self, weights: AdapterWeights) -> FlatAdapter:
        return FlatAdapter(weights, self._base.dtype, self._base.device)

    def _dataset(self, job: TrainingJob) -> Dataset:
        settings = job.hyperparameters
        try:
            text = self._read(job.dataset_uri)
        except InvalidRequest as error:
            raise InvalidDataset(f"job {job.job_id}: {error}") from error
        with self._reading:  # the tokenizer is one for all
            if job.rollouts is not None:
                return read_questions(text, self._base.tokenizer, settings.max_length_tokens, job.rollouts.max_tokens)
            return read_dataset(text, self._base.tokenizer, settings.max_length_tokens, settings.too_long, job.method)

    def _fresh(self, job: TrainingJob) -> AdapterWeights:
        try:
            weights = AdapterWeights.fresh(job.lora, self._base.linears, job.seed, self._base.output_head)
            weights.check_layers(self._base.linears, self._max_rank)
        except InvalidAdapter as error:
            raise InvalidJob(f"job {job.job_id}: {error}") from error
        return weights

    def _continued(self, job: TrainingJob, parent: Revision) -> AdapterWeights:
        """The parent's weights. `lora` left at its defaults keeps the parent's shape; anything else must describe that shape."""
        name = f"{parent.adapter_id}@{parent.number}"
        if parent.base_digest != self._base.digest:
            theirs, ours = str(parent.base_digest)[:12], self._base.digest[:12]
            raise BaseMismatch(f"job {job.job_id}: parent {name} was trained for base {theirs}, this pool runs {ours}")
        if parent.uri is None:
            raise InvalidJob(f"parent {name} is retired: its files are gone")
        weights = AdapterWeights.from_files(self._store.read_revision(parent.uri))
        if bare := next((path for path, layer in weights.layers.items() if layer.experts), None):
            raise InvalidJob(f"job {job.job_id}: parent {name} adapts {bare}: routers and experts can be served, not trained")
        asked = job.lora.model_copy(update={"dropout": 0.0})
        if asked != LoraSettings() and dict(self._fresh(job).config) != dict(weights.config):
            raise InvalidJob(f"job {job.job_id}: lora differs from parent {name}; leave lora out to continue the parent as it is")
        return weights


def job_digest(job: TrainingJob) -> str:
    """sha256 of what the job asks for; submitting the same again is the same job, at whatever time and priority."""
    return canonical_digest(_asked(job).model_dump(mode="json", exclude_none=True, exclude=WHEN))


def _asked(job: TrainingJob) -> TrainingJob:
    return job.model_copy(update={"submitted_at_ms": 0})


def job_path(job: TrainingJob) -> str:
    """Where the store keeps the record of a job, for whoever wants to make its revisions again."""
    return f"jobs/{job_digest(job)}.json"
