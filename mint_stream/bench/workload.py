"""What serving is measured on: prompts of equal length, adapters that take turns over them, and what the right answers are."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.bench.wrong import WrongResult
from mint_stream.messages.training import LoraSettings
from mint_stream.model.base import ResidentBase

__all__ = [
    "Load",
    "Workload",
    "WrongResult",
    "check",
    "drawn_adapter",
    "generated",
    "peft_model",
    "random_adapter",
    "workload",
    "write_peft",
]

CHECKED_REQUESTS = 3
CHECKED_TOKENS = 16
ROUNDING = {torch.float32: 1e-3}
"""By how much a token's logit may fall short of the highest one; kinds of fewer bits, whose logits come in steps of 1/8, may by 1/2."""


@dataclass(frozen=True)
class Load:
    """What is asked of every side."""

    adapters: int = 8
    requests: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 64
    rank: int = 8
    dtype: str = "float32"
    repeats: int = 5


@dataclass(frozen=True)
class Workload:
    """Prompts of equal length, and the adapters that take turns over them."""

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    adapters: tuple[AdapterWeights, ...]

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt."""
        return len(self.prompts[0])

    def adapter_of(self, request: int) -> int:
        """Which adapter a request asks for."""
        return request % len(self.adapters)


def workload(base: ResidentBase, load: Load) -> Workload:
    """The workload of every serving benchmark; a vocabulary too small for its tokens is used whole."""
    tokens = min(40_000, base.vocabulary_tokens - 100)
    prompts = tuple(tuple((i * 7919 + j * 31) % tokens + 100 for j in range(load.prompt_tokens)) for i in range(load.requests))
    return Workload(prompts, load.new_tokens, tuple(random_adapter(base, load.rank, seed) for seed in range(load.adapters)))


def random_adapter(base: ResidentBase, rank: int, seed: int) -> AdapterWeights:
    """All linear layers but the head, B large enough to change the answers."""
    return drawn_adapter(base.linears, rank, seed, base.output_head)


def drawn_adapter(linears: Mapping[str, tuple[int, int]], rank: int, seed: int, output_head: str | None = "lm_head") -> AdapterWeights:
    """As `random_adapter`, for layers by path with (in, out)."""
    fresh = AdapterWeights.fresh(LoraSettings(rank=rank, alpha=2.0 * rank), linears, seed, output_head)
    generator = torch.Generator().manual_seed(seed)
    drawn = {path: torch.randn(layer.B.shape, generator=generator) * 0.02 for path, layer in fresh.layers.items()}
    layers = {path: AdapterLayer(layer.A, drawn[path], layer.scaling) for path, layer in fresh.layers.items()}
    return AdapterWeights(layers=layers, config=fresh.config)


def generated(model: Any, ids: torch.Tensor, new_tokens: int, **options: Any) -> list[list[int]]:
    """Greedy tokens by transformers' own generate, exactly `new_tokens` a row; ids [rows, prompt]."""
    mask = torch.ones_like(ids)
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, **options
    )
    return [row[ids.shape[1] :].tolist() for row in out]


@contextmanager
def peft_model(plain: Any, adapters: Sequence[AdapterWeights]) -> Iterator[Any]:
    """`plain` with the adapters, named by their number, as PEFT loads them; afterwards it is plain again."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers a deprecated question
        for number, weights in enumerate(adapters):
            write_peft(weights, Path(folder, str(number)))
        adapted = peft.PeftModel.from_pretrained(plain, Path(folder, "0"), adapter_name="0")
        for number in range(1, len(adapters)):
            adapted.load_adapter(Path(folder, str(number)), adapter_name=str(number))
        yield adapted.eval()
        adapted.unload()


def write_peft(weights: AdapterWeights, folder: Path) -> None:
    """The adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    for name, content in weights.to_peft().items():
        (folder / name).write_bytes(content)


def check(plain: Any, work: Workload, ours: Sequence[Sequence[int]]) -> None:
    """Greedy tokens of a sample of requests against PEFT with the request's adapter alone, each after those before it.

    Two that are the highest but for rounding are both right. Raises WrongResult.
    """
    for request in range(min(CHECKED_REQUESTS, len(work.prompts))):
        prompt, drawn = work.prompts[request], list(ours[request][:CHECKED_TOKENS])
        with peft_model(plain, [work.adapters[work.adapter_of(request)]]) as adapted, torch.inference_mode():
            logits = adapted(input_ids=torch.tensor([[*prompt, *drawn]])).logits[0, len(prompt) - 1 : -1].float()
        highest, wanted = logits.max(-1)
        short = highest - logits.gather(-1, torch.tensor(drawn)[:, None]).squeeze(-1)
        if not float(short.max()) <= ROUNDING.get(plain.dtype, 0.5) or len(ours[request]) != work.new_tokens:  # nor is NaN right
            raise WrongResult(f"request {request}: the engine drew {drawn}, PEFT alone draws {wanted.tolist()} after the ones before")
