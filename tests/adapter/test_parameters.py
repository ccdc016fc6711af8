"""LoRA on routers and experts in PEFT's files, both ways, with the real peft on the other side."""

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mint_stream.adapter import AdapterBlock, AdapterWeights
from mint_stream.cache import AdapterSource
from mint_stream.catalog.servability import unservable
from mint_stream.errors import BaseMismatch, InvalidAdapter
from mint_stream.messages.adapters import Revision
from mint_stream.messages.fleet import PoolBase
from mint_stream.model.base import load_base
from mint_stream.model.parameters import bare_parameters
from mint_stream.model.tiny import linear_paths, tiny_model
from mint_stream.store import Store
from tests.factories import VOCABULARY, peft_files, peft_model, tiny_base

TOKENS = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 111]])
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "experts": {"target_modules": [], "target_parameters": BOTH},
    "experts and attention": {"target_modules": ["q_proj"], "target_parameters": BOTH},
    "one parameter, the outer": {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    "one parameter, the inner": {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]},
    "one layer": {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.down_proj"]},
    "a router": {"target_modules": [], "target_parameters": ["gate.weight"]},
    "ranks and alphas": {
        "target_modules": [],
        "target_parameters": ["gate.weight", *BOTH],
        "rank_pattern": {"gate_up_proj": 2, r"layers\.1\.mlp\.gate\.weight": 1},
        "alpha_pattern": {"down_proj": 3},
        "use_rslora": True,
    },
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("bases") / "qwen3_moe", "qwen3_moe")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@every_setting
def test_peft_answers_the_same_from_the_files_we_write(mixture: Path, settings: dict[str, Any]) -> None:
    theirs = peft_model(mixture, **settings)
    stock = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    before = logits(stock)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        for name, content in AdapterWeights.from_files(peft_files(mixture, **settings)).to_peft().items():
            (Path(directory) / name).write_bytes(content)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The following (alpha|rank)_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("error", "Found missing adapter keys")
        ours = PeftModel.from_pretrained(stock, directory).eval()
        assert torch.equal(logits(ours), logits(theirs)) and not torch.equal(logits(ours), before)


@every_setting
def test_writing_and_reading_changes_neither_digest_nor_bytes(mixture: Path, settings: dict[str, Any]) -> None:
    once = AdapterWeights.from_files(peft_files(mixture, **settings))
    twice = AdapterWeights.from_files(once.to_peft())
    assert (twice.digest, twice.to_peft()) == (once.digest, once.to_peft())


@every_setting
def test_the_base_it_was_made_for_can_carry_it_and_the_manifest_says_so(mixture: Path, settings: dict[str, Any]) -> None:
    weights = AdapterWeights.from_files(peft_files(mixture, **settings))
    model = tiny_model("qwen3_moe", vocab_size=VOCABULARY)
    base = linear_paths(model) | bare_parameters(model)
    weights.check_layers(base, max_rank=8)
    with pytest.raises(InvalidAdapter, match="over this pool's cap"):
        weights.check_layers(base, max_rank=1)
    assert all(target.rank <= 8 for target in weights.targets())


@every_setting
def test_the_registrar_takes_it_and_a_worker_loads_it(mixture: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    weights = AdapterWeights.from_files(peft_files(mixture, **settings))
    base = load_base(mixture, torch.float32)
    store = Store((tmp_path / "store").as_uri())
    manifest = store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest=base.digest, targets=weights.targets(), parameters=weights.parameters
    )
    pool = PoolBase(
        pool="p",
        base_digest=base.digest,
        architecture=base.architecture,
        context_tokens=64,
        vocabulary_tokens=VOCABULARY,
        targets=base.targets(),
        max_rank=8,
    )
    assert unservable(manifest, pool) is None
    assert unservable(manifest, pool.model_copy(update={"targets": base.targets()[:1]})) is not None
    fields = {"adapter_id": "a", "number": 1, "state": "announced", "pool": "p", "announced_at_ms": 0, "base_digest": base.digest}
    block = AdapterSource(store, base.layers, max_rank=8).block(Revision(**fields, uri=manifest.uri, digest=manifest.digest))
    assert {path: layer.shape for path, layer in block.layers.items()} == {path: layer.shape for path, layer in weights.layers.items()}
    with pytest.raises(BaseMismatch, match="has no such layer"):
        AdapterSource(store, {}, max_rank=8).block(Revision(**fields, uri=manifest.uri, digest=manifest.digest))


def test_each_expert_counts_as_a_layer_of_its_own(mixture: Path) -> None:
    targets = AdapterWeights.from_files(peft_files(mixture, target_modules=[], target_parameters=["gate.weight", *BOTH])).targets()
    assert [(one.pattern, one.in_features, one.out_features, one.count, one.rank) for one in targets] == [
        ("model.layers.*.mlp.experts.*.down_proj", 32, 48, 8, 4),
        ("model.layers.*.mlp.experts.*.gate_up_proj", 48, 64, 8, 4),
        ("model.layers.*.mlp.gate.weight", 48, 4, 2, 4),
    ]


def test_another_number_of_experts_is_a_mismatch(mixture: Path) -> None:
    weights = AdapterWeights.from_files(peft_files(mixture, target_modules=[], target_parameters=BOTH))
    model = tiny_model("qwen3_moe", vocab_size=VOCABULARY, num_experts=8)
    with pytest.raises(BaseMismatch, match="32 -> 48 in 4 experts, the base as 32 -> 48 in 8 experts"):
        weights.check_layers(bare_parameters(model), 8)


def test_a_block_has_each_experts_matrices_one_after_the_other(mixture: Path) -> None:
    weights = AdapterWeights.from_files(peft_files(mixture, target_modules=[], target_parameters=BOTH))
    block = AdapterBlock.build(weights)
    wrapper = peft_model(mixture, target_modules=[], target_parameters=BOTH).base_model.model.model.layers[0].mlp.experts
    theirs = wrapper.get_delta_weight("default")
    ours = block.layers["model.layers.0.mlp.experts.down_proj"]
    a, bt = ours.A.view(4, 4, -1), ours.Bt.view(4, 4, -1)
    torch.testing.assert_close(torch.einsum("eri,ero->eoi", a, bt), theirs)
    assert (block.rank, ours.shape) == (4, (32, 48, 4))


NAME = "base_model.model.model.layers.1.mlp.experts.lora_A.weight"
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
REFUSED: dict[str, Change] = {
    "bare parameters .*names 'norm.weight', which no tensor is for": lambda config, _: config["target_parameters"].append("norm.weight"),
    "names 2 of its parameters, the tensors are for 1": lambda _, tensors: [tensors.pop(name) for name in _of_outer(tensors)],
    "does not select it": lambda config, _: config.update(target_parameters=[]),
    "but not the other half": lambda _, tensors: tensors.pop(NAME),
    r"are not \[12, in\]": lambda _, tensors: tensors.update({NAME: tensors[NAME][:-1].clone()}),
}


def _of_outer(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if "layers.1.mlp.experts.lora" in name]


@pytest.mark.parametrize(("reason", "change"), REFUSED.items(), ids=REFUSED.keys())
def test_a_file_that_leaves_doubt_is_refused(mixture: Path, reason: str, change: Change) -> None:
    files = peft_files(mixture, target_modules=[], target_parameters=BOTH)
    config, tensors = json.loads(files["adapter_config.json"]), safetensors.torch.load(files["adapter_model.safetensors"])
    change(config, tensors)
    with pytest.raises(InvalidAdapter, match=reason):
        AdapterWeights.from_peft(json.dumps(config).encode(), safetensors.torch.save(tensors))
