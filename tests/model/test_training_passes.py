"""Training through packed passes: gradients are PEFT's, and company changes no bit."""

from collections.abc import Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels import LoraWeights
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import AdapterSet, pack
from mint_stream.model.tiny import VOCABULARY, linear_paths, tiny_model

RANK, SCALING = 4, 2.0
TRAINED = (
    "llama",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
)
Job = Mapping[str, LoraWeights]


def _job(paths: Mapping[str, tuple[int, int]], seed: int) -> Job:
    """Masters as PEFT shapes them (A [r, in], B [out, r]), unscaled, with gradient slices beside them."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, (width_in, width_out) in paths.items():
        a = torch.randn(RANK, width_in, generator=generator) * 0.1
        b = torch.randn(width_out, RANK, generator=generator) * 0.1
        layers[path] = LoraWeights(a, b.t(), SCALING, torch.zeros_like(a), torch.zeros_like(b).t())
    return layers


def _loss(logits: Tensor, tokens: list[int]) -> Tensor:
    return functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum")


def _train(packed: PackedModel, rows: list[tuple[list[int], int]], jobs: list[Job]) -> None:
    pass_ = pack(rows, adapters=AdapterSet(jobs), training=True)
    logits = packed.forward(pass_)
    at = 0
    losses = []
    for tokens, _ in rows:
        losses.append(_loss(logits[at : at + len(tokens)], tokens))
        at += len(tokens)
    torch.stack(losses).sum().backward()


def _tokens(seed: int, length: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _peft(kind: str, jobs: Job, rows: list[list[int]]) -> dict[str, Tensor]:
    model: Any = tiny_model(kind)
    model.config.model_type = "plain"  # else PEFT takes the linears of dense layers and shared experts for those of routed experts
    config = peft.LoraConfig(r=RANK, lora_alpha=int(RANK * SCALING), target_modules=list(jobs))
    wrapped = peft.get_peft_model(model, config).train()
    state = wrapped.state_dict()
    for path, lora in jobs.items():
        state[f"base_model.model.{path}.lora_A.default.weight"].copy_(lora.A)
        state[f"base_model.model.{path}.lora_B.default.weight"].copy_(lora.Bt.t())
    for tokens in rows:
        _loss(wrapped(input_ids=torch.tensor([tokens])).logits[0], tokens).backward()
    return {name: weight.grad for name, weight in wrapped.named_parameters() if weight.grad is not None}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # inside PEFT
@pytest.mark.parametrize("kind", TRAINED)
def test_one_step_gradients_of_every_linear_layer_are_pefts(kind: str) -> None:
    model = tiny_model(kind)
    paths = linear_paths(model)
    if kind.startswith("gemma"):
        del paths["lm_head"]  # tied to the embedding there, which PEFT warns about
    packed = PackedModel(model, linear_paths(model))
    rows = [_tokens(1, 19), _tokens(2, 7)]
    mine, other = _job(paths, 1), _job(paths, 2)
    _train(packed, [(rows[0], 0), (_tokens(3, 11), 1), (rows[1], 0)], [mine, other])
    for name, gradient in _peft(kind, mine, rows).items():
        path, side = name.removeprefix("base_model.model.").split(".lora_")
        ours = mine[path].grad_A if side.startswith("A") else mine[path].grad_Bt
        assert ours is not None
        ours = ours if side.startswith("A") else ours.t()
        assert (ours - gradient).norm() <= 1e-5 * max(1.0, float(gradient.norm())), name


def test_a_jobs_gradients_alone_and_beside_a_broken_neighbour_are_the_same_bits() -> None:
    packed = PackedModel(tiny_model("llama"), linear_paths(tiny_model("llama")))
    paths = linear_paths(packed.model)
    alone, beside, broken = _job(paths, 1), _job(paths, 1), _job(paths, 2)
    for lora in broken.values():
        lora.A.fill_(torch.nan)
    tokens = _tokens(1, 19)
    _train(packed, [(tokens, 0)], [alone])
    _train(packed, [(_tokens(5, 9), 0), (tokens, 1)], [broken, beside])
    for path in paths:
        one, two = alone[path].grad_A, beside[path].grad_A
        assert one is not None and two is not None and torch.equal(one, two) and bool(one.isfinite().all())


def test_an_adapter_on_one_layer_leaves_the_others_without_weights() -> None:
    adapters = AdapterSet([_job({"model.layers.0.mlp.up_proj": (48, 80)}, 0), {}])
    assert adapters.site("model.layers.1.mlp.up_proj") is None
    site = adapters.site("model.layers.0.mlp.up_proj")
    assert site is not None and [weights is not None for weights in site.at] == [True, False]
