"""One job in training: everything that is its own, so that nothing another job does can reach it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mint_stream.adapter import AdapterWeights
from mint_stream.errors import TrainingDiverged
from mint_stream.kernels import Dropout, LoraWeights
from mint_stream.messages.training import TrainingJob
from mint_stream.trainer.dataset import Dataset
from mint_stream.trainer.examples import Learnable, Preference, Question
from mint_stream.trainer.loss_scale import LossScale
from mint_stream.trainer.objectives import Task
from mint_stream.trainer.optimizer import AdapterOptimizer, FlatAdapter
from mint_stream.trainer.scheduler import DataOrder, learning_rate, micro_batches


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `loss` is the mean over the batch's weighted tokens (DPO: over its pairs), before the step."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """A piece of a job's batch, with the total weight of the whole batch that its losses are divided by."""

    examples: tuple[Learnable, ...]
    number: int
    batch_weight: float

    @property
    def tokens(self) -> int:
        """Tokens that go through the base."""
        return sum(example.length for example in self.examples)


@dataclass
class _Step:
    """The optimizer step in progress."""

    batch: tuple[MicroBatch, ...]
    next: int = 0
    loss: float = 0.0


class TrainingRun:
    """The state of a job: adapter, optimizer, step and cursor, and how far the step in progress has come.

    A step is begun, its pieces are learned one after the other, and the last one ends it. Between steps is where jobs join and leave.
    """

    def __init__(self, job: TrainingJob, dataset: Dataset, adapter: FlatAdapter, step: int = 0, cursor: int = 0) -> None:
        self.job = job
        self.dataset = dataset
        self.adapter = adapter
        self.optimizer = AdapterOptimizer(adapter, job.hyperparameters.weight_decay)
        self.step = step
        """Optimizer steps made."""
        self.cursor = cursor
        """Examples seen."""
        self.method: str = job.rollouts.loss if job.rollouts else job.method
        """How examples are judged: the job's own, or a policy loss where rollouts are given to `begin`."""
        self.start: Mapping[str, LoraWeights] | None = None
        """The adapter of the parent that DPO compares with; None is the bare base, which is what a fresh adapter answers as."""
        self.references: dict[Preference, tuple[float, float]] = {}
        """Summed log-probabilities (chosen, rejected) at the job's start, of the pairs seen so far."""
        self.scale = LossScale.of(adapter.dtype)
        self._order = DataOrder(job.seed, len(dataset))
        self._still = None if job.lora.dropout else adapter.lora_weights(lambda _path: None)
        self._begun: _Step | None = None

    @property
    def planned_tokens(self) -> int:
        """What all steps of the job together send through the base, or may where answers are drawn; 0 for a dataset without lines."""
        lengths = [one.length for one in (*self.dataset.examples, *self.dataset.questions)]
        if not lengths:
            return 0
        settings, drawn = self.job.hyperparameters, self.job.rollouts.group_size if self.job.rollouts else 1
        epochs, rest = divmod(settings.steps * settings.batch_size, len(lengths))
        return drawn * (epochs * sum(lengths) + sum(lengths[number] for number in self._order.batch(epochs * len(lengths), rest)))

    @property
    def done(self) -> bool:
        """True when all steps are made."""
        return self.step >= self.job.hyperparameters.steps

    def batch(self) -> tuple[MicroBatch, ...]:
        """The next batch, cut by the job's own settings alone."""
        settings = self.job.hyperparameters
        return self._cut([self.dataset.examples[number] for number in self._order.batch(self.cursor, settings.batch_size)])

    def questions(self, step: int) -> tuple[Question, ...]:
        """What is asked for step `step` (steps made before it)."""
        size = self.job.hyperparameters.batch_size
        return tuple(self.dataset.questions[number] for number in self._order.batch(step * size, size))

    def begin(self, examples: Sequence[Learnable] | None = None) -> None:
        """Begin a step, of these examples or of the dataset's next ones."""
        self._begun = _Step(self.batch() if examples is None else self._cut(examples))

    @property
    def piece(self) -> MicroBatch:
        """What is to be learned next; begins a step when none is in progress."""
        if self._begun is None:
            self.begin()
        assert self._begun is not None
        return self._begun.batch[self._begun.next]

    def restart(self) -> None:
        """Begin the step in progress again from its first piece: what it added to the gradients is gone."""
        self.adapter.forget()
        if self._begun is not None:
            self._begun = _Step(self._begun.batch)

    def take(self, loss: float) -> StepReport | None:
        """The piece was learned; its gradients are in the adapter. The last one makes the step. Raises TrainingDiverged."""
        step = self._begun
        assert step is not None, "no step is in progress"
        self.adapter.collect(self.scale.value)
        step.loss += loss
        step.next += 1
        if step.next < len(step.batch):
            return None
        self._begun = None
        return self._finish(step)

    def task(self, piece: MicroBatch) -> Task:
        """How a piece is judged."""
        return Task(self.method, piece.examples, piece.batch_weight, self.job.hyperparameters.dpo_beta, self.references.__getitem__)

    def lora_weights(self, micro_batch: int) -> Mapping[str, LoraWeights]:
        """The adapter for one micro-batch, with this step's dropout."""
        return self._still or self.adapter.lora_weights(lambda path: self._dropout(micro_batch, path))

    def weights(self) -> AdapterWeights:
        """The adapter as it is now."""
        return self.adapter.weights()

    def _cut(self, examples: Sequence[Learnable]) -> tuple[MicroBatch, ...]:
        weight = sum(example.learned for example in examples)
        pieces = micro_batches(examples, self.job.hyperparameters.micro_batch_tokens)
        return tuple(MicroBatch(piece, number, weight) for number, piece in enumerate(pieces))

    def _finish(self, made: _Step) -> StepReport | None:
        """Clip, update and move on; None when the step begins again with a smaller loss scale. Raises TrainingDiverged."""
        settings = self.job.hyperparameters
        norm = self.optimizer.clip(settings.max_grad_norm)
        if math.isfinite(made.loss) and not math.isfinite(norm) and self.scale.shrink():
            self._begun = made
            self.restart()
            return None
        if not (math.isfinite(made.loss) and math.isfinite(norm)):
            raise self._diverged(f"loss {made.loss}, gradient norm {norm}")
        rate = learning_rate(settings, self.step)
        self.optimizer.step(rate)
        if not bool(torch.isfinite(self.adapter.masters).all()):
            raise self._diverged("the update gives weights that are not finite")
        self.scale.made()
        self.step += 1
        self.cursor += sum(len(piece.examples) for piece in made.batch)
        return StepReport(self.step, made.loss, rate, norm, sum(piece.tokens for piece in made.batch))

    def _diverged(self, how: str) -> TrainingDiverged:
        return TrainingDiverged(f"job {self.job.job_id} diverged at step {self.step + 1}: {how}; lower the learning rate")

    def _dropout(self, micro_batch: int, path: str) -> Dropout | None:
        probability = self.job.lora.dropout
        if not probability:
            return None
        drawn = hashlib.blake2b(f"{self.job.seed}/{self.step}/{micro_batch}/{path}".encode(), digest_size=8).digest()
        return Dropout(probability, int.from_bytes(drawn, "big") >> 1)
