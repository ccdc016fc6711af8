"""The optimizer of one adapter: AdamW as torch's, one norm over all, moments that continue in the same bits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.adapter import AdapterWeights
from mint_stream.errors import CorruptObject
from mint_stream.trainer.optimizer import AdapterOptimizer, FlatAdapter
from tests.factories import LINEARS, random_weights


def flat(dtype: torch.dtype = torch.float32, seed: int = 0) -> FlatAdapter:
    return FlatAdapter(random_weights(seed=seed), dtype)


def with_gradients(adapter: FlatAdapter, seed: int) -> FlatAdapter:
    adapter.gradients.copy_(torch.randn(adapter.gradients.shape, generator=torch.Generator().manual_seed(seed)))
    return adapter


def equal(one: AdapterWeights, other: AdapterWeights) -> bool:
    return all(
        torch.equal(one.layers[path].A, layer.A) and torch.equal(one.layers[path].B, layer.B) for path, layer in other.layers.items()
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 8))
def test_an_adapter_comes_out_of_the_flat_one_as_it_went_in(seed: int, rank: int) -> None:
    weights = random_weights(rank=rank, seed=seed)
    out = FlatAdapter(weights).weights()
    assert out.layers.keys() == weights.layers.keys()
    assert equal(out, weights) and out.digest == weights.digest


def test_what_kernels_read_are_views_of_the_masters() -> None:
    adapter = flat()
    layers = adapter.lora_weights(lambda _: None)
    assert layers.keys() == LINEARS.keys()
    with torch.no_grad():
        adapter.masters.fill_(7.0)
    for path, (width, height) in LINEARS.items():
        assert layers[path].A.shape == (4, width) and layers[path].Bt.shape == (4, height)
        assert bool((layers[path].A == 7).all()) and bool((layers[path].Bt == 7).all())


def test_every_gradient_slice_is_a_part_of_the_flat_one_and_none_overlaps() -> None:
    adapter = flat()
    for number, layer in enumerate(adapter.lora_weights(lambda _: None).values()):
        assert layer.grad_A is not None and layer.grad_Bt is not None
        layer.grad_A.add_(1 + number)
        layer.grad_Bt.add_(1 + number)
    sizes = [4 * (width + height) for _, (width, height) in sorted(LINEARS.items())]
    expected = torch.cat([torch.full((size,), 1.0 + number) for number, size in enumerate(sizes)])
    assert torch.equal(adapter.gradients, expected)


def test_weights_taken_are_a_copy() -> None:
    adapter = flat()
    taken = adapter.weights()
    with torch.no_grad():
        adapter.masters.zero_()
    assert equal(taken, random_weights())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.floats(0.01, 1000.0))
def test_gradients_are_scaled_to_the_limit_and_never_up(seed: int, limit: float) -> None:
    adapter = with_gradients(flat(), seed)
    before = adapter.gradients.clone()
    norm = AdapterOptimizer(adapter, 0.0).clip(limit)
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    if norm <= limit:
        assert torch.equal(adapter.gradients, before)
    else:
        torch.testing.assert_close(adapter.gradients, before * (limit / norm))
        assert float(adapter.gradients.norm()) <= limit * (1 + 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_told_and_changes_nothing(bad: float) -> None:
    adapter = with_gradients(flat(), 1)
    adapter.gradients[3] = bad
    before = adapter.gradients.clone()
    assert not math.isfinite(AdapterOptimizer(adapter, 0.0).clip(1.0))
    torch.testing.assert_close(adapter.gradients, before, equal_nan=True)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_torchs_adamw_with_its_own_defaults(decay: float) -> None:
    adapter = flat()
    ours = AdapterOptimizer(adapter, decay)
    theirs = torch.nn.Parameter(adapter.masters.detach().clone())
    adamw = torch.optim.AdamW([theirs], weight_decay=decay)
    for seed, rate in enumerate((1e-2, 1e-3, 0.0, 1e-1)):
        with_gradients(adapter, seed)
        theirs.grad = adapter.gradients.clone()
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        ours.step(rate)
        torch.testing.assert_close(adapter.masters.detach(), theirs.detach(), rtol=1e-6, atol=1e-8)
        assert not adapter.gradients.any(), "a step leaves no gradient behind"


def run(adapter: FlatAdapter, optimizer: AdapterOptimizer, steps: range) -> None:
    for seed in steps:
        with_gradients(adapter, seed)
        optimizer.step(1e-2)


def test_what_goes_on_from_moments_ends_in_the_bits_of_what_never_stopped() -> None:
    whole = flat()
    run(whole, AdapterOptimizer(whole, 0.01), range(6))
    first = flat()
    before = AdapterOptimizer(first, 0.01)
    run(first, before, range(3))
    second = FlatAdapter(first.weights())
    after = AdapterOptimizer(second, 0.01)
    after.restore(before.moments())
    run(second, after, range(3, 6))
    assert torch.equal(second.masters, whole.masters)


def test_moments_are_named_flat_and_a_copy_and_there_are_none_before_the_first_step() -> None:
    adapter = flat()
    optimizer = AdapterOptimizer(adapter, 0.0)
    assert optimizer.moments() == {}
    run(adapter, optimizer, range(1))
    taken = optimizer.moments()
    assert set(taken) == {"exp_avg", "exp_avg_sq", "step"}
    assert taken["exp_avg"].shape == adapter.masters.shape and taken["step"].item() == 1
    kept = taken["exp_avg"].clone()
    run(adapter, optimizer, range(1, 2))
    assert torch.equal(taken["exp_avg"], kept)


@pytest.mark.parametrize("damage", ["exp_avg", "exp_avg_sq", "step", "another"])
def test_moments_of_another_adapter_are_refused(damage: str) -> None:
    adapter = flat()
    optimizer = AdapterOptimizer(adapter, 0.0)
    run(adapter, optimizer, range(1))
    moments = optimizer.moments()
    if damage == "another":
        moments = {name: value[:-1] if value.dim() else value for name, value in moments.items()}
    else:
        del moments[damage]
    with pytest.raises(CorruptObject, match=f"does not fit an adapter of {adapter.masters.numel()} parameters"):
        AdapterOptimizer(flat(), 0.0).restore(moments)


def test_a_narrow_base_computes_in_its_dtype_and_learns_in_fp32() -> None:
    adapter = flat(torch.bfloat16)
    layers = adapter.lora_weights(lambda _: None)
    assert {layer.A.dtype for layer in layers.values()} == {torch.bfloat16}
    for _ in range(3):
        for layer in layers.values():
            assert layer.grad_A is not None and layer.grad_A.dtype == torch.bfloat16
            layer.grad_A.add_(0.001)
        adapter.collect()
    assert adapter.gradients.dtype == torch.float32
    assert float(adapter.gradients.max()) == pytest.approx(0.003, rel=1e-2), "micro-batches add up in fp32"
    AdapterOptimizer(adapter, 0.0).step(1e-2)
    expected = adapter.weights().layers
    for path, layer in layers.items():
        assert torch.equal(layer.A, expected[path].A.bfloat16()), "kernels see the masters of after the step"
    assert not any(layer.grad_A.any() for layer in layers.values() if layer.grad_A is not None)
