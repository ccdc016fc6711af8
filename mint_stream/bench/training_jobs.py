"""The jobs that the training benchmark runs: one example a step, of as many tokens as are asked for, from a fresh adapter each."""

from dataclasses import dataclass

from mint_stream.adapter import AdapterWeights
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingJob
from mint_stream.model.base import ResidentBase
from mint_stream.trainer.dataset import Dataset
from mint_stream.trainer.examples import Example
from mint_stream.trainer.optimizer import FlatAdapter
from mint_stream.trainer.run import StepReport, TrainingRun
from mint_stream.trainer.scheduler import DataOrder
from mint_stream.trainer.trainer import Outcome

WEIGHT_DECAY, MAX_GRAD_NORM = 0.01, 1.0
SEQUENCES = 4
"""Of each job, seen again and again, so that losses fall."""


@dataclass(frozen=True)
class Load:
    """What is asked of every side."""

    jobs: int = 8
    steps: int = 40
    tokens: int = 64
    """A step."""
    rank: int = 8
    dtype: str = "float32"
    repeats: int = 5
    curve: tuple[int, ...] = (16, 64, 256, 1024)
    """Tokens a step at which the jobs together are compared with the jobs one after another."""
    curve_steps: int = 3
    learning_rate: float = 2e-4


def dataset(load: Load, number: int, tokens: int, vocabulary: int) -> Dataset:
    """The sequences of job `number`; each is one token longer than what goes through the base."""
    sequences = [
        tuple((number * 104_729 + i * 7919 + j * (31 + number)) % vocabulary + 100 for j in range(tokens + 1)) for i in range(SEQUENCES)
    ]
    return Dataset(tuple(Example(one, (0.0, *(1.0,) * tokens)) for one in sequences), "0" * 64)


def fresh_run(base: ResidentBase, load: Load, number: int, tokens: int) -> TrainingRun:
    """Job `number`, not begun."""
    lora = LoraSettings(rank=load.rank, alpha=2.0 * load.rank)
    settings = Hyperparameters(
        steps=max(load.steps, load.curve_steps),
        batch_size=1,
        learning_rate=load.learning_rate,
        schedule="constant",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        max_length_tokens=tokens + 1,
        micro_batch_tokens=max(2, tokens + 1),
    )
    job = TrainingJob(
        job_id=f"bench-{number}",
        tenant=f"tenant-{number}",
        adapter_id=f"adapter-{number}",
        dataset_uri="memory://",
        lora=lora,
        hyperparameters=settings,
        seed=number,
        submitted_at_ms=0,
    )
    weights = AdapterWeights.fresh(lora, base.linears, number, base.output_head)
    sequences = dataset(load, number, tokens, vocabulary_of(base))
    return TrainingRun(job, sequences, FlatAdapter(weights, base.dtype, base.device))


def in_order(load: Load, number: int, tokens: int, vocabulary: int) -> list[tuple[int, ...]]:
    """The sequences of a job's steps, as its own data order has them."""
    examples = dataset(load, number, tokens, vocabulary).examples
    return [examples[place].sequences[0].tokens for place in DataOrder(number, SEQUENCES).batch(0, load.steps)]


def vocabulary_of(base: ResidentBase) -> int:
    """Tokens that sequences are made of; a vocabulary too small for the usual ones is used whole."""
    return min(40_000, base.vocabulary_tokens - 100)


def final_loss(outcome: Outcome) -> float:
    """Of a step; NaN for one that failed."""
    return outcome.loss if isinstance(outcome, StepReport) else float("nan")
