"""AdapterWeights: fresh ones, their identity, and whether a base can carry them."""

import math

import pytest
import torch

from mint_stream.adapter import AdapterLayer, AdapterWeights, pattern_of
from mint_stream.errors import BaseMismatch, InvalidAdapter
from mint_stream.messages.shared import TargetShape
from mint_stream.messages.training import LoraSettings
from tests.factories import LINEARS, random_weights

BASE = (
    TargetShape(pattern="model.layers.*.self_attn.q_proj", in_features=16, out_features=16, count=2),
    TargetShape(pattern="model.layers.*.self_attn.v_proj", in_features=16, out_features=8, count=2),
    TargetShape(pattern="model.layers.*.mlp.down_proj", in_features=40, out_features=16, count=2),
)


def fresh(seed: int = 0, **settings: object) -> AdapterWeights:
    return AdapterWeights.fresh(LoraSettings.model_validate({"rank": 4, **settings}), LINEARS, seed)


def test_a_fresh_adapter_adds_nothing_and_draws_a_as_peft_does() -> None:
    weights = fresh()
    for path, (width, height) in LINEARS.items():
        layer = weights.layers[path]
        assert (layer.A.shape, layer.B.shape) == ((4, width), (height, 4))
        assert not layer.B.any()
        assert 0.5 / math.sqrt(width) < layer.A.abs().max() <= 1 / math.sqrt(width)


def test_a_fresh_layers_numbers_follow_from_seed_and_path_alone() -> None:
    path = "model.layers.1.mlp.down_proj"
    alone = AdapterWeights.fresh(LoraSettings(rank=4), {path: LINEARS[path]}, 0)
    assert torch.equal(alone.layers[path].A, fresh().layers[path].A)
    assert not torch.equal(fresh(seed=1).layers[path].A, fresh().layers[path].A)
    assert not torch.equal(fresh().layers["model.layers.0.mlp.down_proj"].A, fresh().layers[path].A)
    assert fresh(seed=2**63 - 1).digest == fresh(seed=2**63 - 1).digest


def test_drawing_a_fresh_adapter_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    fresh()
    assert torch.equal(torch.get_rng_state(), before)


def test_all_linear_leaves_the_head_out_unless_it_is_named() -> None:
    linears = LINEARS | {"lm_head": (16, 99)}
    assert "lm_head" not in AdapterWeights.fresh(LoraSettings(), linears, 0).layers
    assert set(AdapterWeights.fresh(LoraSettings(target_modules=("lm_head",)), linears, 0).layers) == {"lm_head"}


def test_targets_that_the_base_has_not_are_refused() -> None:
    with pytest.raises(InvalidAdapter, match="names no linear layer"):
        fresh(target_modules=("nothing",))


def test_a_fresh_adapter_survives_its_files() -> None:
    weights = fresh(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3.5}, use_rslora=True)
    assert AdapterWeights.from_files(weights.to_peft()).digest == weights.digest


def test_the_digest_covers_each_number() -> None:
    weights = random_weights()
    path = "model.layers.0.self_attn.q_proj"
    layer = weights.layers[path]
    changed = layer.B.clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    other = AdapterWeights(layers={**weights.layers, path: AdapterLayer(layer.A, changed, layer.scaling)}, config=weights.config)
    assert other.digest != weights.digest


def test_the_digest_does_not_depend_on_the_order_of_layers() -> None:
    weights = random_weights()
    other = AdapterWeights(layers=dict(reversed(weights.layers.items())), config=weights.config)
    assert (other.digest, other.to_peft(), other.targets()) == (weights.digest, weights.to_peft(), weights.targets())


def test_targets_group_the_layers_of_a_kind() -> None:
    weights = fresh(rank_pattern={"layers.0.self_attn.q_proj": 2})
    assert [(target.pattern, target.rank, target.count) for target in weights.targets()] == [
        ("model.layers.*.mlp.down_proj", 4, 2),
        ("model.layers.*.self_attn.q_proj", 2, 1),
        ("model.layers.*.self_attn.q_proj", 4, 1),
        ("model.layers.*.self_attn.v_proj", 4, 2),
    ]
    assert weights.parameters == sum(layer.A.numel() + layer.B.numel() for layer in weights.layers.values())
    assert pattern_of("model.layers.10.mlp.experts.3.up") == "model.layers.*.mlp.experts.*.up"


def test_an_adapter_of_the_base_passes_both_checks() -> None:
    random_weights().check(BASE, max_rank=4)
    random_weights().check_layers(LINEARS, max_rank=4)


def test_a_rank_over_the_cap_is_refused() -> None:
    for check, base in ((random_weights(rank=5).check, BASE), (random_weights(rank=5).check_layers, LINEARS)):
        with pytest.raises(InvalidAdapter, match="rank 5 is over this pool's cap of 4"):
            check(base, 4)


@pytest.mark.parametrize(
    "linears",
    [
        {"model.layers.0.mlp.up_proj": (16, 40)},
        {"model.layers.0.mlp.down_proj": (40, 17)},
        {"model.layers.0.mlp.down_proj": (41, 16)},
    ],
)
def test_a_layer_the_base_has_not_is_a_mismatch(linears: dict[str, tuple[int, int]]) -> None:
    for check, base in ((random_weights(linears).check, BASE), (random_weights(linears).check_layers, LINEARS)):
        with pytest.raises(BaseMismatch, match=r"mlp\."):
            check(base, 8)


def test_more_layers_of_a_kind_than_the_base_has_are_a_mismatch() -> None:
    deeper = {f"model.layers.{layer}.mlp.down_proj": (40, 16) for layer in range(3)}
    with pytest.raises(BaseMismatch, match="3 layers"):
        random_weights(deeper).check(BASE, 8)
    with pytest.raises(BaseMismatch, match=r"model\.layers\.2"):
        random_weights(deeper).check_layers(LINEARS, 8)
