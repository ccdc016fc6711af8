"""Training's passes on a real device: gradients are those of a CPU, and repeat their bits."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mint_stream.kernels import Dropout, LoraWeights, Segments, SiteWeights, cpu, lora_with_gradients
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import AdapterSet, pack
from mint_stream.model.tiny import linear_paths, tiny_model
from tests.kernels import mixes
from tests.model.test_training_passes import _job, _loss, _tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: training's GPU path is only interpreted"),
]
KINDS = ("llama", "qwen3", "gemma2", "gemma3", "mistral", "mixtral", "qwen3_moe", "deepseek_v3", "deepseek_v32")


def _moved(job: dict[str, LoraWeights], device: str) -> dict[str, LoraWeights]:
    """The same masters and gradients there, transposed as they were."""
    found = {}
    for path, lora in job.items():
        assert lora.grad_A is not None and lora.grad_Bt is not None
        sides = {"A": lora.A.to(device), "Bt": lora.Bt.t().to(device).t()}
        found[path] = replace(lora, **sides, grad_A=lora.grad_A.to(device), grad_Bt=lora.grad_Bt.t().to(device).t())
    return found


def _gradients(kind: str, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    model = tiny_model(kind).to(device)
    paths = linear_paths(model)
    mine, other = (_moved(dict(_job(paths, seed)), device) for seed in (1, 2))
    rows = [(_tokens(3, 11), 1), (_tokens(1, 19), 0)]
    pass_ = pack(rows, adapters=AdapterSet([mine, other]), training=True)
    logits = PackedModel(model, paths).forward(pass_).cpu()
    losses = [_loss(logits[span.start : span.end], list(pass_.tokens[span.start : span.end])) for span in pass_.spans]
    torch.stack(losses).sum().backward()
    return {path: _sides(lora) for path, lora in mine.items()}


def _sides(lora: LoraWeights) -> tuple[Tensor, Tensor]:
    assert lora.grad_A is not None and lora.grad_Bt is not None
    return lora.grad_A.cpu(), lora.grad_Bt.cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_gradients_on_the_device_are_a_cpus(kind: str) -> None:
    on_cpu, on_device = _gradients(kind, "cpu"), _gradients(kind, "cuda")
    for path, sides in on_cpu.items():
        for expected, got in zip(sides, on_device[path], strict=True):
            assert (got - expected).norm() <= 1e-3 * max(1.0, float(expected.norm())), path


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_the_same_step_again_has_the_same_bits(kind: str) -> None:
    one, two = _gradients(kind, "cuda"), _gradients(kind, "cuda")
    for path, sides in one.items():
        assert all(torch.equal(mine, again) for mine, again in zip(sides, two[path], strict=True)), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_with_gradients_is_that_of_a_cpu_in_the_dtypes_that_bases_have(dtype: torch.dtype, dropout: float) -> None:
    segments = Segments.of_slots([0] * 70 + [-1] * 5 + [1] * 21)
    x, y = mixes.random(96, 128), mixes.random(96, 64, seed=1)
    sites = {device: _site(device, dtype, dropout) for device in ("cpu", "cuda")}
    leaf = x.to("cuda", dtype).requires_grad_()
    out = lora_with_gradients(leaf, y.to("cuda", dtype), segments, sites["cuda"], torch.zeros((), requires_grad=True))
    grad = mixes.random(96, 64, seed=2).to(dtype)
    out.backward(grad.cuda())
    expected, grad_x = y.to(dtype).float(), torch.zeros_like(x)
    cpu.train_lora(x.to(dtype).float(), expected, segments, sites["cpu"])
    cpu.lora_backward(x.to(dtype).float(), grad.float(), segments, sites["cpu"], grad_x)
    tolerance = 1e-3 if dtype == torch.float32 else 8e-2
    torch.testing.assert_close(out.detach().float().cpu(), expected, atol=tolerance, rtol=tolerance)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.float().cpu(), grad_x, atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(sites["cuda"].at, sites["cpu"].at, strict=True):
        assert mine is not None and theirs is not None
        for got, right in ((mine.grad_A, theirs.grad_A), (mine.grad_Bt, theirs.grad_Bt)):
            assert got is not None and right is not None
            assert (got.float().cpu() - right).norm() <= tolerance * max(1.0, float(right.norm()))


def _site(device: str, dtype: torch.dtype, dropout: float) -> SiteWeights:
    """Masters rounded to `dtype` and, on the device, of it; gradients likewise, Bt a transposed view."""
    kept = dtype if device == "cuda" else torch.float32
    found: list[LoraWeights | None] = []
    for slot, rank in enumerate((16, 5)):
        a, b = (mixes.random(*shape, seed=slot + shape[0]).mul(0.2).to(dtype).to(device, kept) for shape in ((rank, 128), (64, rank)))
        drop = Dropout(dropout, seed=slot) if dropout else None
        found.append(LoraWeights(a, b.t(), 0.5, torch.zeros_like(a), torch.zeros_like(b).t(), drop))
    return SiteWeights(found)
