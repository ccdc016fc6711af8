"""One job in training: everything that is its own, so that nothing another job does can reach it."""

import hashlib
import math
from dataclasses import dataclass

import torch

from mint_stream.adapter import AdapterWeights
from mint_stream.errors import TrainingDiverged
from mint_stream.kernels import Dropout, LoraWeights
from mint_stream.messages.training import TrainingJob
from mint_stream.trainer.dataset import Dataset, Example
from mint_stream.trainer.optimizer import AdapterOptimizer, FlatAdapter
from mint_stream.trainer.scheduler import DataOrder, learning_rate, micro_batches


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `loss` is the mean over the batch's weighted tokens, before the step."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """A piece of a job's batch, with the total weight of the whole batch that its losses are divided by."""

    examples: tuple[Example, ...]
    number: int
    batch_weight: float

    @property
    def tokens(self) -> int:
        """Tokens that go through the base."""
        return sum(len(example.tokens) for example in self.examples)


class TrainingRun:
    """The state of a job between steps: adapter, optimizer, step and cursor."""

    def __init__(self, job: TrainingJob, dataset: Dataset, adapter: FlatAdapter, step: int = 0, cursor: int = 0) -> None:
        self.job = job
        self.dataset = dataset
        self.adapter = adapter
        self.optimizer = AdapterOptimizer(adapter, job.hyperparameters.weight_decay)
        self.step = step
        """Optimizer steps made."""
        self.cursor = cursor
        """Examples seen."""
        self._order = DataOrder(job.seed, len(dataset.examples))

    @property
    def done(self) -> bool:
        """True when all steps are made."""
        return self.step >= self.job.hyperparameters.steps

    def batch(self) -> tuple[MicroBatch, ...]:
        """The next batch, cut by the job's own settings alone."""
        settings = self.job.hyperparameters
        examples = [self.dataset.examples[number] for number in self._order.batch(self.cursor, settings.batch_size)]
        weight = sum(example.learned for example in examples)
        pieces = micro_batches(examples, settings.micro_batch_tokens)
        return tuple(MicroBatch(piece, number, weight) for number, piece in enumerate(pieces))

    def lora_weights(self, micro_batch: int) -> dict[str, LoraWeights]:
        """The adapter for one micro-batch, with this step's dropout."""
        return self.adapter.lora_weights(lambda path: self._dropout(micro_batch, path))

    def finish(self, batch: tuple[MicroBatch, ...], loss: float) -> StepReport:
        """Clip, update and move on, once all gradients are there. Raises TrainingDiverged when a number is not finite."""
        settings = self.job.hyperparameters
        norm = self.optimizer.clip(settings.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"loss {loss}, gradient norm {norm}")
        rate = learning_rate(settings, self.step)
        self.optimizer.step(rate)
        if not bool(torch.isfinite(self.adapter.masters).all()):
            raise self._diverged("the update gives weights that are not finite")
        self.step += 1
        self.cursor += settings.batch_size
        return StepReport(self.step, loss, rate, norm, sum(piece.tokens for piece in batch))

    def weights(self) -> AdapterWeights:
        """The adapter as it is now."""
        return self.adapter.weights()

    def _diverged(self, how: str) -> TrainingDiverged:
        return TrainingDiverged(f"job {self.job.job_id} diverged at step {self.step + 1}: {how}; lower the learning rate")

    def _dropout(self, micro_batch: int, path: str) -> Dropout | None:
        probability = self.job.lora.dropout
        if not probability:
            return None
        drawn = hashlib.blake2b(f"{self.job.seed}/{self.step}/{micro_batch}/{path}".encode(), digest_size=8).digest()
        return Dropout(probability, int.from_bytes(drawn, "big") >> 1)
